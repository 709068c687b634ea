"""The chunked form is the recurrent one: outputs, states, gradients, padding, packing, states handed on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_rl.models import gated_delta

chunked = jax.jit(gated_delta.chunked, static_argnames="chunk")
recurrent = jax.jit(gated_delta.recurrent)
B, T, HK, HV, DK, DV = 2, 75, 2, 4, 16, 8  # 75 tokens: chunks of 32 and a rest


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    decay = -jnp.exp(normal(B, T, HV)) * 0.5
    beta = jax.nn.sigmoid(normal(B, T, HV))
    return normal(B, T, HK, DK), normal(B, T, HK, DK), normal(B, T, HV, DV), decay, beta


@pytest.fixture(scope="module")
def state():
    return jnp.asarray(np.random.default_rng(1).normal(size=(B, HV, DK, DV)), jnp.float32)


def by_definition(q, k, v, g, beta, state):
    """float64 numpy, from the equations."""
    q, k, v, g, beta, state = (np.asarray(x, np.float64) for x in (q, k, v, g, beta, state))
    q, k = (x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6) for x in (q, k))
    out, state = np.empty(v.shape), state.copy()
    for b in range(v.shape[0]):
        for h in range(v.shape[2]):
            key_head = h // (v.shape[2] // k.shape[2])
            for t in range(v.shape[1]):
                s = state[b, h] * np.exp(g[b, t, h])
                u = beta[b, t, h] * (v[b, t, h] - k[b, t, key_head] @ s)
                state[b, h] = s + np.outer(k[b, t, key_head], u)
                out[b, t, h] = q[b, t, key_head] * k.shape[-1] ** -0.5 @ state[b, h]
    return out, state


@pytest.mark.parametrize("form", [recurrent, chunked])
def test_both_forms_follow_the_equations(form, inputs, state):
    for ours, true in zip(form(*inputs, state), by_definition(*inputs, state), strict=True):
        np.testing.assert_allclose(ours, true, atol=2e-5)


@pytest.mark.parametrize("chunk", [16, 64, 128])
def test_the_chunks_length_does_not_matter(inputs, state, chunk):
    for a, b in zip(chunked(*inputs, state, chunk=chunk), chunked(*inputs, state), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_gradients_are_those_of_the_recurrent_form(inputs, state):
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(B, T, HV, DV)), jnp.float32)

    def gradients(form):
        def total(*args):
            out, last = form(*args)
            return jnp.sum(out * weights) + jnp.sum(last**2)

        return jax.jit(jax.grad(total, argnums=tuple(range(6))))(*inputs, state)

    for a, b in zip(gradients(chunked), gradients(recurrent), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_fast_decay_gives_finite_gradients(inputs, state):
    q, k, v, g, beta = inputs

    def total(g):
        return jnp.sum(chunked(q, k, v, g, beta, state)[0] ** 2)

    assert np.isfinite(jax.jit(jax.grad(total))(200 * g)).all()


def test_the_state_is_handed_on(inputs, state):
    whole, last = chunked(*inputs, state)
    first = [x[:, :40] for x in inputs]
    out, middle = chunked(*first, state)
    rest, end = recurrent(*(x[:, 40:] for x in inputs), middle)
    np.testing.assert_allclose(jnp.concatenate([out, rest], axis=1), whole, atol=1e-5)
    np.testing.assert_allclose(end, last, atol=1e-5)


def test_a_segment_starts_from_nothing(inputs, state):
    cuts = [0, 20, 32, 33, 70, T]  # at a chunk's edge, inside one, a single token
    segments = jnp.asarray(np.repeat(np.arange(5), np.diff(cuts)), jnp.int32)
    packed, last = chunked(*inputs, state, jnp.broadcast_to(segments, (B, T)))
    for number, (start, end) in enumerate(zip(cuts, cuts[1:], strict=False)):
        before = state if number == 0 else jnp.zeros_like(state)
        alone, after = recurrent(*(x[:, start:end] for x in inputs), before)
        np.testing.assert_allclose(packed[:, start:end], alone, atol=1e-5)
    np.testing.assert_allclose(last, after, atol=1e-5)


def test_tokens_without_decay_and_step_change_nothing(inputs, state):
    q, k, v, g, beta = inputs
    real = jnp.arange(T) % 7 != 3
    g, beta = g * real[:, None], beta * real[:, None]
    with_pads, last = chunked(q, k, v, g, beta, state)
    kept = np.flatnonzero(real)
    without, end = chunked(*(x[:, kept] for x in (q, k, v, g, beta)), state)
    np.testing.assert_allclose(with_pads[:, kept], without, atol=1e-5)
    np.testing.assert_allclose(last, end, atol=1e-5)


def test_the_inverse_of_a_unit_lower_triangle():
    strict = np.tril(np.random.default_rng(3).normal(size=(3, 16, 16)), -1).astype(np.float32) * 0.3
    ours = jax.jit(gated_delta.invert_unit_lower)(strict)
    np.testing.assert_allclose(ours, np.linalg.inv(np.eye(16) + strict.astype(np.float64)), atol=1e-5)
