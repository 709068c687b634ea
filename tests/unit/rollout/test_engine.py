"""The engine on a tiny random Gemma 3: what it samples, what it reports, and what must not change either."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_rl.learning.logprobs import forward_logprobs
from jax_rl.models.registry import model_from_config
from jax_rl.rollout.engine import RolloutEngine, bucket
from jax_rl.rollout.sampling import SamplingParams, sample_keys

VOCAB, EOS, PAD, LENGTH = 64, (1, 5), 0, 24
PROMPTS = [[2, 9, 30, 31], [2, 8, 40], [2, *range(20, 40)]]
SAMPLING = SamplingParams(temperature=0.9, top_k=20, top_p=0.95)


@pytest.fixture(scope="module")
def model():
    return model_from_config(
        {
            "model_type": "gemma3_text",
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 7,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 8,
            "initializer_range": 0.25,
        }
    )


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


def test_sampler_logprobs_equal_the_trainers(engine, model, params):
    generated = generate(engine, params)
    logp, _ = jax.jit(lambda *a: forward_logprobs(model.forward, model.unembed, *a, remat=False))(
        params, generated.tokens, generated.positions, generated.mask
    )
    assert generated.mask.sum() > 100  # long enough to leave the window of 8
    np.testing.assert_allclose(np.asarray(logp), generated.logp, atol=1e-4)


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
    assert 0 < ended < 48
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
    generated = generate(engine, params, group_size=1, sampling=SamplingParams(temperature=0.0))
    forward = jax.jit(lambda t, p: model.logits(params, model.forward(params, t, p)[0]))
    for prompt, ids in zip(PROMPTS, completions(generated)):
        text = prompt + ids
        tokens = np.pad(text, (0, 64 - len(text)))[None].astype(np.int32)
        positions = np.where(np.arange(64) < len(text), np.arange(64), -1)[None].astype(np.int32)
        best = np.asarray(forward(tokens, positions))[0].argmax(-1)
        assert best[len(prompt) - 1 : len(text) - 1].tolist() == ids


def test_decoding_stops_when_every_row_has_ended(model, params):
    """Every token ends a completion here, so the loop must never feed one back: the cache keeps only the prompt."""
    engine = RolloutEngine(model, LENGTH, tuple(range(VOCAB)), PAD)
    state = engine._prefill(params, *_padded(PROMPTS), group_size=1, track_seen=False)
    written = int(state.cache.length)
    state = engine._decode(params, state, sample_keys(0, 0, np.arange(3), 1), sampling=SAMPLING)
    assert int(state.step) == 1 and int(state.cache.length) == written
    assert np.asarray(state.mask).sum(axis=1).tolist() == [1, 1, 1]


def _padded(prompts):
    from jax_rl.rollout.engine import left_pad

    return left_pad(prompts, bucket(max(map(len, prompts))), PAD)


def test_an_empty_prompt_is_refused(engine, params):
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        generate(engine, params, [[2, 3], []], ids=[0, 1])


def test_buckets_hold_what_they_must_with_at_most_half_again():
    for n in range(1, 5000):
        assert n <= bucket(n) <= max(16, 1.5 * n)
    assert len({bucket(n) for n in range(1, 5000)}) < 20
