"""The numeric pieces that the families share: norms, rotary positions, attention, the visibility rule.

Weights are [out, in], as in Hugging Face files: nothing is transposed on load, on export or in between.
B rows, T queries, S keys, D hidden width, N query heads, K key/value heads, H head width.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jax_rl.models.errors import ModelError

F32 = jnp.float32


def linear(x: Float[Array, "*rows inner"], weight: Float[Array, "out inner"]) -> Float[Array, "*rows out"]:
    """x Wᵀ."""
    return jnp.einsum("...i,oi->...o", x, weight)


def rms_norm(x: Float[Array, "*rows D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "*rows D"]:
    """x / rms(x) * (1 + weight), computed in float32 (the zero-centred norm of Gemma)."""
    wide = x.astype(F32)
    wide = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * (1.0 + weight.astype(F32))).astype(x.dtype)


@dataclass(frozen=True)
class Rope:
    """Rotary position parameters of one kind of layer."""

    theta: float
    kind: str = "default"  # default | linear
    factor: float = 1.0  # of linear: positions are divided by it

    @classmethod
    def from_hf(cls, raw: dict, where: str) -> "Rope":
        """Reads `rope_parameters` (transformers 5) or `rope_scaling` plus theta (transformers 4).

        Raises:
            ModelError: a rope type that is not implemented.
        """
        kind = raw.get("rope_type", raw.get("type", "default"))
        if kind not in ("default", "linear"):
            raise ModelError(f"{where}: rope_type {kind!r} is not implemented; known: default, linear")
        return cls(theta=float(raw["rope_theta"]), kind=kind, factor=float(raw.get("factor", 1.0)))

    def frequencies(self, width: int) -> np.ndarray:
        """Radians per position, [width/2] float32 (RoFormer, arXiv 2104.09864, section 3.2.2)."""
        exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
        freqs = np.float32(1.0) / np.float32(self.theta) ** exponents
        return (freqs / np.float32(self.factor) if self.kind == "linear" else freqs).astype(np.float32)


def rope_angles(rope: Rope, positions: Int[Array, "B T"], width: int) -> Float[Array, "B T half"]:
    """The rotation of each pair of dimensions at each position, float32."""
    return positions[..., None].astype(F32) * rope.frequencies(width)


def apply_rope(x: Float[Array, "B T N H"], angles: Float[Array, "B T half"]) -> Float[Array, "B T N H"]:
    """Rotates the pairs (i, i + H/2) of every head, as Hugging Face's rotate_half does; float32 inside."""
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x.astype(F32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def visible(
    query_positions: Int[Array, "B T"], key_positions: Int[Array, "B S"], window: int | None = None
) -> Bool[Array, "B T S"]:
    """Which keys a query sees: real (position >= 0), not later than it, and among the last `window` positions.

    The one rule for padding on either side, for decoding and for half-filled caches: padding and empty slots have
    position -1. A padding query sees nothing.
    """
    query, key = query_positions[:, :, None], key_positions[:, None, :]
    mask = (key >= 0) & (key <= query)
    return mask if window is None else mask & (key > query - window)


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    mask: Bool[Array, "B T S"],
    scale: float,
) -> Float[Array, "B T N H"]:
    """Grouped-query attention; scores and softmax in float32. Query head n reads key head n // (N/K).

    A row that sees nothing averages all values: finite, and nothing reads it.
    """
    batch, length, heads, width = q.shape
    grouped = q.reshape(batch, length, k.shape[1], heads // k.shape[1], width)
    scores = jnp.einsum("btkgh,bksh->bkgts", grouped, k, preferred_element_type=F32) * scale
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(F32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bksh->btkgh", weights, v).reshape(q.shape)
