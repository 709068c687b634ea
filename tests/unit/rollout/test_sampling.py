"""Draws against the exact distribution of a small model, enumerated in float64."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jax_rl.models.cache import empty_cache, grow_cache
from jax_rl.models.sharing import keep_rows, share_prompts
from jax_rl.rollout.engine import RolloutEngine
from jax_rl.rollout.sampling import SamplingParams, sample_keys, sample_tokens

VOCAB, LENGTH, DRAWS, PROMPT = 6, 3, 8192, (5, 2)
TABLE = np.random.default_rng(3).normal(size=(VOCAB, VOCAB)) * 1.5  # next-token logits after each token


def bigram_model():
    """A model with the engine's interface whose logits depend on the last token alone."""
    table = jnp.asarray(TABLE, jnp.float32)
    return SimpleNamespace(
        init_cache=lambda batch, slots, dtype: empty_cache({}, batch, slots),
        forward=lambda params, tokens, positions, cache=None: (table[tokens], cache),
        logits=lambda params, hidden: hidden,
        unroll=lambda params: params,
        share_prompts=share_prompts,
        keep_rows=keep_rows,
        grow_cache=grow_cache,
    )


def next_token_probs(context: tuple[int, ...], p: SamplingParams) -> np.ndarray:
    """The distribution that Hugging Face's processors give, in their order, written out by hand."""
    logits = TABLE[context[-1]].copy()
    penalty = p.repetition_penalty or 1.0
    for token in set(context):
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    logits = logits / p.temperature
    order = np.argsort(-logits)
    if p.top_k:
        logits[order[p.top_k :]] = -np.inf
    probs = np.exp(logits - logits.max())
    probs /= probs.sum()
    kept = np.zeros(VOCAB, bool)
    mass = 0.0
    for token in order:
        if mass < (p.top_p or 1.0):
            kept[token] = True
        mass += probs[token]
    probs = np.where(kept, probs, 0.0)
    return probs / probs.sum()


def sequence_probs(p: SamplingParams) -> dict[tuple[int, ...], float]:
    out = {}
    for sequence in itertools.product(range(VOCAB), repeat=LENGTH):
        prob, context = 1.0, PROMPT
        for token in sequence:
            prob *= next_token_probs(context, p)[token]
            context = (*context, token)
        out[sequence] = prob
    return out


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.6),
        SamplingParams(temperature=1.7),
        SamplingParams(top_k=3),
        SamplingParams(top_p=0.7),
        SamplingParams(temperature=2.5, top_p=0.3),
        SamplingParams(repetition_penalty=1.8),
        SamplingParams(temperature=0.8, top_k=4, top_p=0.9, repetition_penalty=1.3),
    ],
    ids=str,
)
def test_draws_follow_the_exact_distribution_of_whole_sequences(params):
    engine = RolloutEngine(bigram_model(), LENGTH, eos_ids=(), pad_id=0)
    keys = sample_keys(seed=1, stream=0, prompt_ids=np.arange(1), group_size=DRAWS)
    generated = engine.generate(None, [PROMPT], keys, DRAWS, params)
    drawn = [tuple(row) for row in generated.tokens[:, -LENGTH:].tolist()]
    exact = sequence_probs(params)
    assert all(exact[sequence] > 0 for sequence in set(drawn)), "a sequence was drawn that has no probability"
    common = [s for s, prob in exact.items() if prob * DRAWS >= 5]
    counts = np.array([drawn.count(s) for s in common] + [sum(s not in set(common) for s in drawn)])
    expected = np.array([exact[s] for s in common])
    expected = np.append(expected, max(1.0 - expected.sum(), 0.0)) * DRAWS
    if expected[-1] < 1e-6:
        assert counts[-1] == 0
        counts, expected = counts[:-1], expected[:-1]
    expected *= counts.sum() / expected.sum()  # takes out float rounding, which chisquare refuses
    assert stats.chisquare(counts, expected).pvalue > 1e-4


def test_the_chi_square_test_tells_a_wrong_temperature():
    """The test above can fail: draws at another temperature do not pass as these."""
    engine = RolloutEngine(bigram_model(), 1, eos_ids=(), pad_id=0)
    keys = sample_keys(seed=1, stream=0, prompt_ids=np.arange(1), group_size=DRAWS)
    tokens = engine.generate(None, [PROMPT], keys, DRAWS, SamplingParams(temperature=1.1)).tokens[:, -1]
    counts = np.bincount(tokens, minlength=VOCAB)
    assert stats.chisquare(counts, next_token_probs(PROMPT, SamplingParams()) * DRAWS).pvalue < 1e-4


@pytest.mark.parametrize("top_p", [None, 0.8])
def test_draws_from_a_vocabulary_that_fills_no_square(top_p):
    """300 tokens, a third of which cannot be: the frequencies, and that nothing else is drawn."""
    rng = np.random.default_rng(0)
    logits = np.where(np.arange(300) % 3 == 1, -np.inf, rng.normal(size=300) * 2)
    probs = np.exp(logits) / np.exp(logits).sum()
    if top_p:
        order = np.argsort(-probs)
        probs[order[np.cumsum(probs[order]) - probs[order] >= top_p]] = 0.0
        probs /= probs.sum()
    keys = sample_keys(3, 0, np.arange(1), 4 * DRAWS)
    draw = jax.jit(sample_tokens)
    rows = jnp.tile(jnp.asarray(logits, jnp.float32), (4 * DRAWS, 1))
    counts = np.bincount(draw(rows, None, keys, 5, SamplingParams(top_p=top_p)), minlength=300)
    assert counts.shape == (300,) and counts[probs == 0].sum() == 0
    expected = probs * counts.sum()
    bins = np.where(expected < 5, 300, np.arange(300))
    merged = np.array([np.bincount(bins, weights=of, minlength=301) for of in (counts, expected)])
    assert stats.chisquare(*merged[:, merged[1] > 0]).pvalue > 1e-4


def test_greedy_takes_the_best_token():
    engine = RolloutEngine(bigram_model(), LENGTH, eos_ids=(), pad_id=0)
    keys = sample_keys(seed=1, stream=0, prompt_ids=np.arange(1), group_size=2)
    tokens = engine.generate(None, [PROMPT], keys, 2, SamplingParams(temperature=None)).tokens[:, -LENGTH:]
    best, token = [], PROMPT[-1]
    for _ in range(LENGTH):
        token = int(TABLE[token].argmax())
        best.append(token)
    assert tokens.tolist() == [best, best]


def test_keys_depend_on_seed_stream_prompt_and_sample_alone():
    def data(*args, **kwargs):
        return np.asarray(jax.random.key_data(sample_keys(*args, **kwargs)))

    both = data(7, 3, np.array([4, 9]), 3)
    assert len(np.unique(both, axis=0)) == 6
    np.testing.assert_array_equal(both[3:], data(7, 3, np.array([9]), 3))
    np.testing.assert_array_equal(both[:2], data(7, 3, np.array([4]), 2))
    assert not np.array_equal(both, data(8, 3, np.array([4, 9]), 3))
    assert not np.array_equal(both, data(7, 4, np.array([4, 9]), 3))
