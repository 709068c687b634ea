"""The engine on a tiny random Gemma 3: what it samples, what it reports, and what must not change either."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_rl.learning.logprobs import forward_logprobs
from jax_rl.models.registry import model_from_config
from jax_rl.parallel.row_counts import row_bucket
from jax_rl.rollout import shapes
from jax_rl.rollout.engine import RolloutEngine
from jax_rl.rollout.sampling import SamplingParams, sample_keys
from jax_rl.rollout.shapes import bucket, next_smaller
from tests.unit.rollout.plain import generate_plainly

VOCAB, EOS, PAD, LENGTH = 64, (1, 5), 0, 24
PROMPTS = [[2, 9, 30, 31], [2, 8, 40], [2, *range(20, 40)]]
SAMPLING = SamplingParams(temperature=0.9, top_k=20, top_p=0.95)


SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.25}


def gemma3(layers):
    more = {"model_type": "gemma3_text", "query_pre_attn_scalar": 8, "sliding_window": 8, "sliding_window_pattern": 2}
    return model_from_config(SIZES | more | {"num_hidden_layers": layers})


@pytest.fixture(scope="module")
def model():
    return gemma3(layers=3)  # a period and a tail


@pytest.fixture(scope="module")
def params(model):
    return model.init(jax.random.key(0), jnp.float32)


@pytest.fixture(scope="module")
def engine(model):
    return RolloutEngine(model, LENGTH, EOS, PAD)


def generate(engine, params, prompts=PROMPTS, ids=(0, 1, 2), group_size=4, sampling=SAMPLING):
    keys = sample_keys(5, 1, np.asarray(ids), group_size)
    return engine.generate(params, prompts, keys, group_size, sampling)


def completions(generated):
    return [row[mask].tolist() for row, mask in zip(generated.tokens[:, generated.prompt_len :], generated.mask)]


def trainer_logprobs(model, params, generated):
    run = jax.jit(lambda *a: forward_logprobs(model.forward, model.unembed, *a, remat=None)[0])
    return np.asarray(run(params, generated.tokens, generated.positions, generated.mask))


def assert_equal_to_plain(generated, model, params, group_size=4, sampling=SAMPLING, **more):
    keys = sample_keys(5, 1, np.arange(3), group_size)
    more = {"length": LENGTH, "eos_ids": EOS} | more
    tokens, logprobs = generate_plainly(model, params, PROMPTS, keys, group_size, sampling, **more)
    assert completions(generated) == tokens
    for row, expected in enumerate(logprobs):
        np.testing.assert_allclose(generated.logp[row, : len(expected)], expected, atol=1e-4)


@pytest.mark.parametrize(("row_multiple", "room"), [(1, 32), (3, 1)])
def test_same_completions_as_the_plain_loop_whatever_the_shapes(model, params, monkeypatch, row_multiple, room):
    monkeypatch.setattr(shapes, "ROOM", room)
    engine = RolloutEngine(model, LENGTH, EOS, PAD, row_multiple=row_multiple)
    assert_equal_to_plain(generate(engine, params), model, params)


def test_same_completions_as_the_plain_loop_where_layers_stay_stacked(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model = gemma3(layers=5)  # two periods, one after the other in a loop, and a tail
    params = model.init(jax.random.key(0), jnp.float32)
    assert_equal_to_plain(generate(RolloutEngine(model, LENGTH, EOS, PAD), params), model, params)


@pytest.mark.parametrize("group_size", [1, 7])
def test_same_completions_as_the_plain_loop_whatever_the_group_size(engine, model, params, group_size):
    assert_equal_to_plain(generate(engine, params, group_size=group_size), model, params, group_size=group_size)


def test_same_completions_as_the_plain_loop_with_a_repetition_penalty(engine, model, params):
    sampling = SamplingParams(temperature=0.9, top_k=20, top_p=0.95, repetition_penalty=1.4)
    assert_equal_to_plain(generate(engine, params, sampling=sampling), model, params, sampling=sampling)


def test_same_completions_as_the_plain_loop_with_recurrent_layers():
    delta = {f"linear_{kind}_head_dim": 8 for kind in ("key", "value")}
    delta |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    model = model_from_config(SIZES | delta | {"model_type": "qwen3_5_text", "num_hidden_layers": 9})
    params = model.init(jax.random.key(0), jnp.float32)
    generated = generate(RolloutEngine(model, LENGTH, EOS, PAD, row_multiple=3), params)
    assert_equal_to_plain(generated, model, params)


def test_forced_lengths_are_the_lengths_and_end_with_the_end_id(engine, model, params):
    forced = np.array([1, 2, 3, 24, 23, 17, 1, 8, 8, 8, 20, 5])
    keys = sample_keys(5, 1, np.arange(3), 4)
    generated = engine.generate(params, PROMPTS, keys, 4, SAMPLING, forced_lengths=forced)
    assert [len(ids) for ids in completions(generated)] == forced.tolist()
    assert_equal_to_plain(generated, model, params, forced_lengths=forced)
    with pytest.raises(ValueError, match="between 1 and 24"):
        engine.generate(params, PROMPTS, keys, 4, SAMPLING, forced_lengths=forced + 1)


def test_all_ended_at_once(model, params):
    """Every token ends a completion here: nothing is decoded, the first token comes from the prompt alone."""
    everything = tuple(range(VOCAB))
    engine = RolloutEngine(model, LENGTH, everything, PAD)
    engine._decode = None
    generated = generate(engine, params)
    assert generated.mask.sum(axis=1).tolist() == [1] * 12
    assert_equal_to_plain(generated, model, params, eos_ids=everything)


@pytest.mark.parametrize("length", [1, 33])
def test_completions_of_the_longest_length(model, params, length):
    generated = generate(RolloutEngine(model, length, (), PAD), params)
    assert generated.mask.all()
    assert_equal_to_plain(generated, model, params, length=length, eos_ids=())


def test_rows_that_ended_cost_nothing(model, params, caplog):
    """One long completion among eleven short ones: most steps run on one row alone."""
    length = 40
    engine = RolloutEngine(model, length, EOS, PAD)
    ran = []
    decode = engine._decode

    def spy(params, state, *args, **kwargs):
        before = int(state.step)
        state = decode(params, state, *args, **kwargs)
        ran.append((state.done.shape[0], int(state.step) - before))
        return state

    engine._decode = spy
    forced = np.array([3] * 6 + [length] + [6] * 5)
    with caplog.at_level("INFO"):
        engine.generate(params, PROMPTS, sample_keys(5, 1, np.arange(3), 4), 4, SAMPLING, forced_lengths=forced)
    assert ran == [(12, 2), (8, 3), (1, 27), (1, 7)]  # after 32 tokens the cache grows
    assert sum("compiling decode" in line for line in caplog.messages) == 4


def test_sampler_logprobs_equal_the_trainers(engine, model, params):
    generated = generate(engine, params)
    assert generated.mask.sum() > 100  # long enough to leave the window of 8
    np.testing.assert_allclose(trainer_logprobs(model, params, generated), generated.logp, atol=1e-4)


def test_a_bfloat16_cache_moves_logprobs_by_its_rounding_alone(model, params):
    engine = RolloutEngine(model, LENGTH, EOS, PAD, cache_dtype=jnp.bfloat16)
    generated = generate(engine, params)
    gaps = np.abs(trainer_logprobs(model, params, generated) - generated.logp)
    assert 1e-4 < gaps.max() < 0.1


def test_a_completion_ends_with_the_first_end_id_and_keeps_it(engine, params):
    generated = generate(engine, params, group_size=16)
    ended = 0
    for ids in completions(generated):
        ends = [i for i, token in enumerate(ids) if token in EOS]
        if ends:
            assert ends == [len(ids) - 1]
            ended += 1
        else:
            assert len(ids) == LENGTH
    assert {ids[-1] for ids in completions(generated)} >= set(EOS), "both end ids should occur in this test"
    assert 0 < ended < 48, "some should end, some not"
    assert np.all(generated.tokens[:, generated.prompt_len :][~generated.mask] == PAD)
    assert np.all(generated.logp[~generated.mask] == 0)


def test_samples_do_not_depend_on_the_batch_they_ran_in(engine, params):
    together = completions(generate(engine, params))
    for row, prompt in enumerate(PROMPTS):
        alone = completions(generate(engine, params, [prompt], ids=[row]))
        assert alone == together[4 * row : 4 * row + 4]
    fewer = completions(generate(engine, params, group_size=2))
    assert fewer == [ids for row in range(3) for ids in together[4 * row : 4 * row + 2]]


def test_positions_count_real_tokens_and_mark_padding(engine, params):
    generated = generate(engine, params)
    for row in range(len(generated.tokens)):
        real = generated.positions[row] >= 0
        length = len(PROMPTS[row // 4]) + generated.mask[row].sum()
        assert generated.positions[row][real].tolist() == list(range(length))


def test_greedy_equals_the_argmax_of_full_forwards(engine, model, params):
    generated = generate(engine, params, group_size=1, sampling=SamplingParams(temperature=None))
    forward = jax.jit(lambda t, p: model.logits(params, model.forward(params, t, p)[0]))
    for prompt, ids in zip(PROMPTS, completions(generated)):
        text = prompt + ids
        tokens = np.pad(text, (0, 64 - len(text)))[None].astype(np.int32)
        positions = np.where(np.arange(64) < len(text), np.arange(64), -1)[None].astype(np.int32)
        best = np.asarray(forward(tokens, positions))[0].argmax(-1)
        assert best[len(prompt) - 1 : len(text) - 1].tolist() == ids


def test_one_program_serves_every_temperature(model, params, caplog):
    engine = RolloutEngine(model, 4, (), PAD)
    with caplog.at_level("INFO"):
        drawn = [
            generate(engine, params, sampling=SamplingParams(temperature=t, top_p=p)) for t, p in ((1, 0.9), (3, 0.5))
        ]
    assert not np.array_equal(*(generated.tokens for generated in drawn))
    assert engine._decode._cache_size() == engine._prefill._cache_size() == 1
    assert sum("compiling decode" in line for line in caplog.messages) == 1


def test_an_empty_prompt_is_refused(engine, params):
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        generate(engine, params, [[2, 3], []], ids=[0, 1])


@pytest.mark.parametrize("multiple", [1, 3, 8])
def test_row_buckets_hold_what_they_must(multiple):
    for live in range(1, 200):
        rows = row_bucket(live, multiple)
        assert rows % multiple == 0 and live <= rows < 2 * live + multiple
        assert next_smaller(rows, multiple) < live, "a smaller bucket would have done"


def test_buckets_hold_what_they_must_with_at_most_half_again():
    for n in range(1, 5000):
        assert n <= bucket(n) <= max(16, 1.5 * n)
    assert len({bucket(n) for n in range(1, 5000)}) < 20
