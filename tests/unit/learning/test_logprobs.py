"""Chunked logprobs and entropies against full logits: values, gradients, memory, and which column predicts which."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_rl.learning.logprobs import completion_logprobs, count_blocks, forward_logprobs


def problem(batch=3, length=7, width=5, vocab=11, dtype=jnp.float32, scale=2.0):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(batch, length, width)) * scale, dtype)
    unembed = jnp.asarray(rng.normal(size=(vocab, width)), dtype)
    return hidden, unembed, jnp.asarray(rng.integers(0, vocab, (batch, length)), jnp.int32)


@jax.jit
def whole(hidden, unembed, targets):
    """The definition, with all logits at once, in f32."""
    log_p = jax.nn.log_softmax(hidden.astype(jnp.float32) @ unembed.astype(jnp.float32).T)
    logp = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return logp, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def weighted(function):
    """A scalar that takes both results with different weights per token: its gradient mixes all of them."""

    def total(*inputs):
        logp, entropy = function(*inputs)
        weights = jnp.sin(jnp.arange(logp.size, dtype=jnp.float32)).reshape(logp.shape)
        return jnp.sum(weights * logp + weights[::-1] * 0.7 * entropy)

    return total


def gradient_of(function):
    return jax.jit(jax.grad(weighted(function), argnums=(0, 1)))


def in_blocks(blocks, inputs):
    _, unembed, targets = inputs
    at_once = unembed.shape[0] // blocks * targets.size
    assert count_blocks(unembed.shape[0], targets.size, at_once) == blocks
    return partial(completion_logprobs, logits_at_once=at_once)


@pytest.mark.parametrize("blocks", [1, 3, 12])
def test_values_and_gradients_equal_those_of_full_logits(blocks):
    inputs = problem(vocab=12)
    chunked = in_blocks(blocks, inputs)
    got = jax.jit(chunked)(*inputs)
    for mine, right in zip(got, whole(*inputs), strict=True):
        np.testing.assert_allclose(mine, right, atol=2e-6)
    for a, b in zip(gradient_of(chunked)(*inputs), gradient_of(whole)(*inputs), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


def test_a_vocabulary_without_a_fitting_divisor_is_cut_with_a_rest():
    """Of 37 = 6 * 6 + 1 tokens each is a target, the rest too."""
    hidden, unembed, _ = problem(batch=1, length=37, vocab=37, scale=0.5)
    inputs = hidden, unembed, jnp.arange(37, dtype=jnp.int32)[None]
    chunked = partial(completion_logprobs, logits_at_once=37 * 37 // 5)
    assert count_blocks(37, 37, 37 * 37 // 5) == 6 and 37 % 6
    for mine, right in zip(jax.jit(chunked)(*inputs), whole(*inputs), strict=True):
        np.testing.assert_allclose(mine, right, atol=2e-6)
    for a, b in zip(gradient_of(chunked)(*inputs), gradient_of(whole)(*inputs), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


@pytest.mark.parametrize("vocab", [262_144, 262_208, 248_320, 151_936, 151_665, 128_256, 128_257, 32_001, 262_147])
@pytest.mark.parametrize("tokens", [1, 8192, 32_768, 262_144])
def test_blocks_hold_about_as_many_logits_as_asked_for(vocab, tokens):
    at_once = 2**24
    blocks = count_blocks(vocab, tokens, at_once)
    block = tokens * max(vocab // blocks, vocab % blocks)
    assert min(at_once / 2, vocab * tokens) * 0.99 <= block <= at_once * 2.01


def test_large_logits_stay_finite_and_exact():
    hidden, unembed, targets = problem(scale=100.0)
    got = completion_logprobs(hidden, unembed, targets)
    for mine, right in zip(got, whole(hidden, unembed, targets), strict=True):
        np.testing.assert_allclose(mine, right, atol=1e-3, rtol=1e-5)
    gradients = gradient_of(completion_logprobs)(hidden, unembed, targets)
    assert all(bool(jnp.isfinite(g).all()) for g in gradients)


def test_bf16_weights_get_f32_results_and_gradients_as_good_as_bf16_allows():
    inputs = problem(batch=4, length=64, width=32, vocab=200, dtype=jnp.bfloat16, scale=0.3)
    chunked = in_blocks(8, inputs)
    got = jax.jit(chunked)(*inputs)
    for mine, right in zip(got, whole(*inputs), strict=True):
        assert mine.dtype == jnp.float32
        np.testing.assert_allclose(mine, right, atol=1e-5)  # bf16 arithmetic would be off by 1e-2
    mine = gradient_of(chunked)(*inputs)
    in_f32 = [x.astype(jnp.float32) for x in inputs[:2]]
    right = gradient_of(whole)(*in_f32, inputs[2])
    for a, b in zip(mine, right, strict=True):
        assert a.dtype == jnp.bfloat16
        error = jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b)
        assert error < 4e-3  # one rounding of the result and one of each factor; bf16 sums would give more


def gradient_temp_bytes(tokens, vocab, function):
    shapes = [
        jax.ShapeDtypeStruct((4, tokens // 4, 8), jnp.float32),
        jax.ShapeDtypeStruct((vocab, 8), jnp.float32),
        jax.ShapeDtypeStruct((4, tokens // 4), jnp.int32),
    ]
    compiled = gradient_of(function).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_the_gradient_never_holds_all_logits():
    vocab, few, many = 2**16, 512, 4096
    logits = many * vocab * 4
    assert gradient_temp_bytes(many, vocab, whole) > logits  # the measure sees them where they are
    small, large = (gradient_temp_bytes(tokens, vocab, completion_logprobs) for tokens in (few, many))
    assert gradient_temp_bytes(many, vocab + 1, completion_logprobs) < logits / 2  # 65537 is prime
    assert large < logits / 2
    assert large - small < (many - few) * vocab * 4 / 20  # 8 times the tokens: a few columns each, not V


def test_each_completion_token_is_predicted_by_the_column_before_it(toy):
    params, data = toy.init(), jax.tree.map(jnp.asarray, toy.batch(4))
    logp, entropy = forward_logprobs(
        toy.forward, toy.unembed, params, data.tokens, data.positions, data.mask, remat=None
    )
    hidden, _ = toy.forward(params, data.tokens, data.positions, remat=None)
    log_p = np.asarray(jax.nn.log_softmax(hidden @ params["embed"].T))
    logp, entropy, mask = np.asarray(logp), np.asarray(entropy), np.asarray(data.mask)
    for row, column in np.argwhere(mask):
        predicting = log_p[row, toy.prompt + column - 1]
        np.testing.assert_allclose(logp[row, column], predicting[data.tokens[row, toy.prompt + column]], atol=2e-6)
        np.testing.assert_allclose(entropy[row, column], -np.sum(np.exp(predicting) * predicting), atol=2e-6)
    assert not logp[~mask].any() and not entropy[~mask].any()


def test_a_completion_without_a_prompt_is_refused(toy):
    data = jax.tree.map(jnp.asarray, toy.batch(2))
    with pytest.raises(ValueError, match="need P >= 1"):
        forward_logprobs(
            toy.forward, toy.unembed, toy.init(), data.tokens, data.positions, jnp.ones((2, 9), bool), remat=None
        )
