"""Every family computes what transformers computes. The reference is each row alone, unpadded, without a cache.

Run with -s to see the largest differences.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jax_rl.models.hf_checkpoint import load_model
from jax_rl.models.params import spec_leaves

TOLERANCE = 1e-4  # of logits up to about 15
VOCAB = 200
LENGTHS = np.array([60, 17, 5])  # of the prompts; the sliding window is 8, a DeltaNet chunk 64
STEPS = 12  # decoded after each, past the window and past the chunk's end
FAMILIES = ["gemma3", "gemma3_wrapper", "llama", "qwen3", "qwen3_5", "qwen3_5_wrapper"]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tiny_checkpoint):
    """(transformers' model, our model, our parameters)."""
    hf, folder = tiny_checkpoint(request.param)
    return hf, *load_model(folder, jnp.float32)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return [rng.integers(3, VOCAB, length + STEPS) for length in LENGTHS]


@pytest.fixture(scope="module")
def reference(pair, rows):
    """Logits of each row, [length + STEPS, V]."""
    with torch.no_grad():
        return [pair[0](input_ids=torch.tensor(row)[None], use_cache=False).logits[0].numpy() for row in rows]


def padded(rows, lengths, width, side):
    tokens, positions = np.zeros((len(rows), width), np.int32), np.full((len(rows), width), -1, np.int32)
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        start = width - length if side == "left" else 0
        tokens[i, start : start + length] = row[:length]
        positions[i, start : start + length] = np.arange(length)
    return tokens, positions


@pytest.fixture(scope="module")
def forward(pair):
    """Logits, as numpy's, and the cache."""
    _, model, _ = pair

    @jax.jit
    def run(params, tokens, positions, cache=None, segments=None):
        hidden, cache = model.forward(params, tokens, positions, cache=cache, segments=segments)
        return model.logits(params, hidden), cache

    def logits_and_cache(*args, **more):
        logits, cache = run(*args, **more)
        return np.asarray(logits, np.float32), cache

    return logits_and_cache


def assert_close(ours, theirs, what):
    difference = np.abs(ours - theirs).max()
    print(f"\n{what}: {difference:.1e} of {np.abs(theirs).max():.0f}", end="")
    assert difference < TOLERANCE, what


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows(pair, forward, rows, reference, side):
    _, model, params = pair
    tokens, positions = padded(rows, LENGTHS + STEPS, 80, side)
    logits, _ = forward(params, tokens, positions)
    ours = np.concatenate([logits[i][positions[i] >= 0] for i in range(len(rows))])
    assert_close(ours, np.concatenate(reference), f"{model.family.name} forward, {side} padding")


@pytest.mark.parametrize("side", ["left", "right"])
def test_prefill_and_decoding(pair, forward, rows, reference, side):
    _, model, params = pair
    tokens, positions = padded(rows, LENGTHS, 66, side)
    logits, cache = forward(params, tokens, positions, model.init_cache(3, 66 + STEPS, jnp.float32))
    ours = np.concatenate([logits[i][positions[i] >= 0] for i in range(3)])
    theirs = np.concatenate([row[:n] for row, n in zip(reference, LENGTHS, strict=True)])
    assert_close(ours, theirs, f"{model.family.name} prefill, {side} padding")
    for step in range(STEPS):
        at = (LENGTHS + step)[:, None].astype(np.int32)
        token = np.array([[row[p]] for row, [p] in zip(rows, at, strict=True)], np.int32)
        logits, cache = forward(params, token, at, cache)
        theirs = np.stack([row[p] for row, [p] in zip(reference, at, strict=True)])
        assert_close(logits[:, 0], theirs, f"{model.family.name} decoding step {step}, {side} padding")
    assert int(cache.length) == 66 + STEPS


def test_packed_rows(pair, forward, rows, reference):
    _, model, params = pair
    tokens = np.concatenate(rows)[None].astype(np.int32)
    positions = np.concatenate([np.arange(len(row)) for row in rows])[None].astype(np.int32)
    segments = np.concatenate([np.full(len(row), i + 1) for i, row in enumerate(rows)])[None].astype(np.int32)
    logits, _ = forward(params, tokens, positions, segments=segments)
    assert_close(logits[0], np.concatenate(reference), f"{model.family.name} packed")


def test_a_shared_prefix_with_several_continuations(pair, forward, rows):
    """[prompt | c1 | c2] in one row: each continuation as if it stood alone behind the prompt."""
    hf, model, params = pair
    if model.family.recurrent:
        pytest.skip("a recurrent state cannot be shared inside a row")
    prompt, parts = rows[1], [rows[0][:11], rows[2]]
    with torch.no_grad():
        whole = [torch.tensor(np.concatenate([prompt, part]))[None] for part in parts]
        theirs = [hf(input_ids=row, use_cache=False).logits[0].numpy()[len(prompt) :] for row in whole]
    tokens = np.concatenate([prompt, *parts])[None].astype(np.int32)
    positions = np.concatenate([np.arange(len(prompt)), *(len(prompt) + np.arange(len(part)) for part in parts)])
    segments = np.repeat([0, 1, 2], [len(prompt), *map(len, parts)])
    logits, _ = forward(params, tokens, positions[None].astype(np.int32), segments=segments[None].astype(np.int32))
    assert_close(logits[0, len(prompt) :], np.concatenate(theirs), f"{model.family.name} shared prefix")


@pytest.mark.parametrize("remat", [None, "full", "minimal"])
def test_gradients_of_a_completions_logprob(pair, rows, remat):
    hf, model, params = pair
    row, start = rows[0], LENGTHS[0]
    hf.zero_grad()
    log_probs = hf(input_ids=torch.tensor(row)[None], use_cache=False).logits[0].log_softmax(-1)
    log_probs[np.arange(start - 1, len(row) - 1), row[start:]].sum().backward()
    wanted = {
        name.removeprefix("model.").removeprefix("language_model."): p.grad
        for name, p in hf.named_parameters()
        if p.grad is not None
    }

    def logprob(params):
        hidden, _ = model.forward(params, jnp.asarray(row)[None], jnp.arange(len(row))[None], remat=remat)
        log_probs = jax.nn.log_softmax(model.logits(params, hidden)[0])
        return log_probs[jnp.arange(start - 1, len(row) - 1), row[start:]].sum()

    gradients = map(np.asarray, jax.tree.leaves(jax.jit(jax.grad(logprob))(params)))
    worst = 0.0
    for spec, ours in zip(spec_leaves(model.specs), gradients, strict=True):
        for name, mine in zip(spec.hf_names, ours if spec.stacked else [ours], strict=True):
            theirs = wanted[name].numpy()
            worst = max(worst, np.abs(mine - theirs).max() / np.abs(theirs).max())
            np.testing.assert_allclose(mine, theirs, atol=1e-4 * np.abs(theirs).max(), err_msg=name)
    print(f"\n{model.family.name} gradients: {worst:.1e} of each tensor's largest", end="")


def test_a_padding_token_changes_nothing(pair, forward, rows):
    _, model, params = pair
    tokens, positions = padded(rows, LENGTHS, 80, "left")
    other = np.where(positions >= 0, tokens, 77)
    a, b = forward(params, tokens, positions)[0], forward(params, other, positions)[0]
    np.testing.assert_array_equal(np.where(positions[..., None] >= 0, a - b, 0), 0)
    assert np.isfinite(a).all()


def test_bfloat16_is_as_close_to_float32_as_that_of_transformers(pair, forward, rows, reference):
    """Mean |difference| of log probabilities to transformers in float32, of the longest row."""
    hf, model, params = pair
    cut = jax.tree.map(lambda spec, p: p.astype(spec.dtype(jnp.bfloat16)), model.specs, params)
    row = rows[0]
    half = type(hf)(hf.config).eval()
    half.load_state_dict(hf.state_dict())
    with torch.no_grad():
        theirs = half.bfloat16()(input_ids=torch.tensor(row)[None], use_cache=False).logits[0].float().log_softmax(-1)
    ours, _ = forward(cut, row[None].astype(np.int32), np.arange(len(row), dtype=np.int32)[None])
    exact = torch.tensor(reference[0]).log_softmax(-1).numpy()
    our_error = np.abs(torch.tensor(ours[0]).log_softmax(-1).numpy() - exact).mean()
    their_error = np.abs(theirs.numpy() - exact).mean()
    print(f"\n{model.family.name} bfloat16: ours {our_error:.4f}, transformers {their_error:.4f}", end="")
    assert our_error < 1.1 * their_error
