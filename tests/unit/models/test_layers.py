"""Attention against its definition, a row and a head at a time in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_rl.models import layers
from jax_rl.models.layers import causal_attention, visible

BATCH, HEADS, KV_HEADS, WIDTH, SCALE = 2, 4, 2, 8, 0.3


def packed_rows(length):
    """A prompt of 10 tokens with two completions behind it, and a row with padding on both sides."""
    half = 10 + (length - 10) // 2
    positions = np.stack([np.arange(length), np.arange(length) - 3])
    positions[0, half:] -= half - 10
    positions[1, :3] = positions[1, -4:] = -1
    segments = np.zeros((2, length), np.int32)
    segments[0, 10:half], segments[0, half:] = 1, 2
    return jnp.asarray(positions, jnp.int32), jnp.asarray(segments)


def slowly(q, k, v, mask):
    out = np.zeros(q.shape)
    for b, n in np.ndindex(BATCH, HEADS):
        for t in np.flatnonzero(mask[b].any(axis=1)):
            keys = np.flatnonzero(mask[b, t])
            group = n // (HEADS // KV_HEADS)
            scores = k[b, group, keys].astype(np.float64) @ q[b, t, n] * SCALE
            weights = np.exp(scores - scores.max())
            out[b, t, n] = weights / weights.sum() @ v[b, group, keys]
    return out


@pytest.mark.parametrize(("length", "window"), [(40, None), (150, None), (40, 7), (17, None), (16, 5), (12, 3)])
def test_causal_attention_in_blocks(monkeypatch, length, window):
    """Lengths of one block, of several, and of more than the most there may be, so that blocks are longer."""
    monkeypatch.setattr(layers, "QUERY_BLOCK", 16)
    keys = jax.random.split(jax.random.key(length), 4)
    q = jax.random.normal(keys[0], (BATCH, length, HEADS, WIDTH))
    k, v = (jax.random.normal(key, (BATCH, KV_HEADS, length, WIDTH)) for key in keys[1:3])
    positions, segments = packed_rows(length)
    mask = visible(positions, positions, window, segments, segments)
    seen = np.asarray(mask).any(axis=2)
    out = jax.jit(lambda *qkv: causal_attention(*qkv, mask, SCALE))(q, k, v)
    expected = slowly(*map(np.asarray, (q, k, v, mask)))
    np.testing.assert_allclose(np.asarray(out)[seen], expected[seen], atol=2e-6)

    weights = jax.random.normal(keys[3], out.shape) * seen[:, :, None, None]

    def gradients(attend):
        return jax.jit(jax.grad(lambda *qkv: jnp.sum(weights * attend(*qkv, mask, SCALE)), (0, 1, 2)))(q, k, v)

    for ours, whole in zip(gradients(causal_attention), gradients(layers.attention), strict=True):
        np.testing.assert_allclose(ours, whole, atol=1e-5)
