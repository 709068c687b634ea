"""The numeric pieces that the families share: norms, rotary positions, attention, the visibility rule.

Weights are [out, in], as in Hugging Face files: nothing is transposed on load, on export or in between.
B rows, T queries, S keys, D hidden width, N query heads, K key/value heads, H head width.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jax_rl.models.errors import ModelError
from jax_rl.models.lora import Adapted

F32 = jnp.float32
QUERY_BLOCK, MAX_BLOCKS = 128, 8  # least queries and most blocks of `causal_attention`: each block is compiled


def linear(x: Float[Array, "*rows inner"], weight: Float[Array, "out inner"] | Adapted) -> Float[Array, "*rows out"]:
    """x Wᵀ; of an adapted weight x Wᵀ + scale (x Aᵀ) Bᵀ, in the type of x."""
    if isinstance(weight, Adapted):
        inner = linear(x, weight.a.astype(x.dtype)) * weight.scale.astype(x.dtype)
        return linear(x, weight.weight) + linear(inner, weight.b.astype(x.dtype))
    rows = x.reshape(-1, x.shape[-1])  # on CPU the gradient of one long product is cheaper than of a batch of them
    return jnp.einsum("ri,oi->ro", rows, weight).reshape(*x.shape[:-1], weight.shape[0])


def rms_norm(x: Float[Array, "*rows D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "*rows D"]:
    """x / rms(x) * (1 + weight), computed in float32 (the zero-centred norm of Gemma and Qwen3.5)."""
    return (_normalized(x, eps) * (1.0 + weight.astype(F32))).astype(x.dtype)


def plain_rms_norm(x: Float[Array, "*rows D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "*rows D"]:
    """x / rms(x) in float32, rounded to x's dtype, then times weight (Llama and Qwen3)."""
    return weight * _normalized(x, eps).astype(x.dtype)


def _normalized(x: Float[Array, "*rows D"], eps: float) -> Float[Array, "*rows D"]:
    wide = x.astype(F32)
    return wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)


@dataclass(frozen=True)
class Rope:
    """Rotary position parameters of one kind of layer."""

    theta: float
    kind: str = "default"  # default | linear | llama3
    factor: float = 1.0  # positions are divided by it: all of linear's, llama3's slow ones
    low_freq_factor: float = 1.0  # llama3: wavelengths above original_context / this are divided whole
    high_freq_factor: float = 4.0  # llama3: wavelengths below original_context / this stay as they are
    original_context: int = 8192  # llama3
    rotated_share: float = 1.0  # of a head's dimensions, the first ones; the others carry no position

    @classmethod
    def from_hf(cls, raw: dict, where: str) -> "Rope":
        """Reads `rope_parameters` (transformers 5) or `rope_scaling` plus theta (transformers 4).

        Raises:
            ModelError: a rope type that is not implemented, or one of its parameters is not there.
        """
        kind = raw.get("rope_type", raw.get("type", "default"))
        if kind not in ("default", "linear", "llama3"):
            raise ModelError(f"{where}: rope_type {kind!r} is not implemented; known: default, linear, llama3")
        needed = {
            "linear": ("factor",),
            "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        }
        missing = [name for name in needed.get(kind, ()) if raw.get(name) is None]
        if missing:
            raise ModelError(f"{where}: rope_type {kind!r} needs {', '.join(missing)}")
        return cls(
            theta=float(raw["rope_theta"]),
            kind=kind,
            factor=float(raw.get("factor") or 1.0),
            low_freq_factor=float(raw.get("low_freq_factor") or cls.low_freq_factor),
            high_freq_factor=float(raw.get("high_freq_factor") or cls.high_freq_factor),
            original_context=int(raw.get("original_max_position_embeddings") or cls.original_context),
            rotated_share=float(raw.get("partial_rotary_factor") or 1.0),
        )

    def frequencies(self, width: int) -> np.ndarray:
        """Radians per position of the rotated pairs of a head of `width`, [pairs] float32.

        RoFormer, arXiv 2104.09864, section 3.2.2; llama3's bands as in transformers' `_compute_llama3_parameters`.
        """
        rotated = int(width * self.rotated_share)
        exponents = np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated)
        freqs = (np.float32(1.0) / np.float32(self.theta) ** exponents).astype(np.float32)
        if self.kind == "default":
            return freqs
        slow = freqs / np.float32(self.factor)
        if self.kind == "linear":
            return slow
        turns = self.original_context / (2 * np.pi / freqs)  # in the context that the model was first trained on
        kept = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        return ((1 - kept) * slow + kept * freqs).astype(np.float32)


def rope_angles(rope: Rope, positions: Int[Array, "B T"], width: int) -> Float[Array, "B T pairs"]:
    """The rotation of each pair of dimensions at each position, float32."""
    return positions[..., None].astype(F32) * rope.frequencies(width)


def apply_rope(x: Float[Array, "B T N H"], angles: Float[Array, "B T pairs"]) -> Float[Array, "B T N H"]:
    """Rotates the pairs (i, i + pairs) of every head, as Hugging Face's rotate_half does; float32 inside.

    Dimensions past the pairs (partial rotary embeddings) pass through.
    """
    pairs = angles.shape[-1]
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = x[..., :pairs].astype(F32), x[..., pairs : 2 * pairs].astype(F32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
    return turned if 2 * pairs == x.shape[-1] else jnp.concatenate([turned, x[..., 2 * pairs :]], axis=-1)


def visible(
    query_positions: Int[Array, "B T"],
    key_positions: Int[Array, "B S"],
    window: int | None = None,
    query_segments: Int[Array, "B T"] | None = None,
    key_segments: Int[Array, "B S"] | None = None,
) -> Bool[Array, "B T S"]:
    """Which keys a query sees: real (position >= 0), not later than it, and among the last `window` positions.

    The one rule for padding on either side, for decoding and for half-filled caches: padding and empty slots have
    position -1. A padding query sees nothing. In packed rows a query sees its own segment and segment 0, the prefix
    that all segments share.
    """
    query, key = query_positions[:, :, None], key_positions[:, None, :]
    mask = (key >= 0) & (key <= query)
    if window is not None:
        mask &= key > query - window
    if query_segments is not None and key_segments is not None:
        key_segment = key_segments[:, None, :]
        mask &= (key_segment == query_segments[:, :, None]) | (key_segment == 0)
    return mask


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
    weights = jax.nn.softmax(_scores(q, k, mask, scale), axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgts,bksh->bkgth", weights, v)
    return out.transpose(0, 3, 1, 2, 4).reshape(q.shape)


def _scores(q: Array, k: Array, mask: Array, scale: float) -> Float[Array, "B K G T S"]:
    """Float32, of the query heads by the key head that they read; the least number where the mask hides the key."""
    batch, length, heads, width = q.shape
    grouped = q.reshape(batch, length, k.shape[1], heads // k.shape[1], width).transpose(0, 2, 3, 1, 4)
    scores = jnp.einsum("bkgth,bksh->bkgts", grouped, k, preferred_element_type=F32) * scale
    return jnp.where(mask[:, None, None], scores, jnp.finfo(F32).min)


class Part(NamedTuple):
    """Attention over some of a query's keys: sums of e^(score - largest), all float32."""

    out: Float[Array, "B T N H"]  # of the values
    weight: Float[Array, "B T N"]
    largest: Float[Array, "B T N"]


def attend_part(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    mask: Bool[Array, "B T S"],
    scale: float,
) -> Part:
    """`attention` over some of the keys, to be merged with the rest. What sees none of them weighs nothing then."""
    scores = _scores(q, k, mask, scale)
    largest = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - largest[..., None])
    out = jnp.einsum("bkgts,bksh->bkgth", weights.astype(v.dtype), v, preferred_element_type=F32)

    def by_query(x: Array) -> Array:
        return jnp.moveaxis(x, 3, 1).reshape(*q.shape[:3], *x.shape[4:])

    return Part(by_query(out), by_query(jnp.sum(weights, axis=-1)), by_query(largest))


def merge_parts(a: Part, b: Part, dtype: DTypeLike) -> Float[Array, "B T N H"]:
    """Attention over the keys of both parts, as one softmax over all of them gives."""
    largest = jnp.maximum(a.largest, b.largest)
    a_scale, b_scale = jnp.exp(a.largest - largest), jnp.exp(b.largest - largest)
    weight = a_scale * a.weight + b_scale * b.weight
    out = a_scale[..., None] * a.out + b_scale[..., None] * b.out
    return (out / weight[..., None]).astype(dtype)


def causal_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K T H"],
    v: Float[Array, "B K T H"],
    mask: Bool[Array, "B T T"],
    scale: float,
) -> Float[Array, "B T N H"]:
    """`attention` of tokens that see each other, where the mask lets none see a later one.

    A block of queries at a time takes the keys up to its end: half of the products, and scores of one block alone at a
    time, which the backward pass computes again.
    """
    length = q.shape[1]
    step = max(QUERY_BLOCK, -(-length // MAX_BLOCKS))
    if length <= step:
        return attention(q, k, v, mask, scale)
    block = jax.checkpoint(attention, static_argnums=4, prevent_cse=False)
    blocks = [slice(start, start + step) for start in range(0, length, step)]
    parts = [block(q[:, b], k[:, :, : b.stop], v[:, :, : b.stop], mask[:, b, : b.stop], scale) for b in blocks]
    return jnp.concatenate(parts, axis=1)
