"""The decode cache: what the layers remember, on slots that all rows share.

All rows write the same slot at the same time, so a write is one dynamic_update_slice and never a scatter. Which slots
a row sees is decided by positions alone: an empty slot and a padding token have position -1.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jax_rl.models.errors import ModelError

LAYER_BATCH_AXIS = 1  # of every leaf of `Cache.layers`
LAYER_SLOT_AXIS = 3  # of the keys and values among them
KV = dict[str, Array]  # {"k", "v"}: each [repeats, B, K, S, H]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """One pytree, to be donated to the program that writes it.

    Attributes:
        layers: nested dicts; the leaves are stacked over layers as the parameters are: "k" and "v" are
            [repeats, B, K, S, H] (repeats is 1 for a layer outside the scanned stack).
        positions: [B, S], the position of the token in each slot, -1 where there is none.
        length: how many slots are written; the next token goes there, in every row. A write past the last slot
            would overwrite it: whoever decodes keeps `length < S` (`grow_cache`).
    """

    layers: dict[str, Any]
    positions: Int[Array, "B S"]
    length: Int[Array, ""]

    @property
    def slots(self) -> int:
        return self.positions.shape[1]


def empty_kv(repeats: int, batch: int, heads: int, slots: int, width: int, dtype: DTypeLike) -> KV:
    """Zeros for the keys and values of `repeats` attention layers."""
    return {name: jnp.zeros((repeats, batch, heads, slots, width), dtype) for name in ("k", "v")}


def empty_cache(layers: dict[str, Any], batch: int, slots: int) -> Cache:
    return Cache(layers, jnp.full((batch, slots), -1, jnp.int32), jnp.zeros((), jnp.int32))


def advance(cache: Cache, positions: Int[Array, "B T"]) -> Cache:
    """Takes T new tokens: their positions fill the next T slots. The layers then write at the old `length`.

    Raises:
        ModelError: more tokens than the cache has slots.
    """
    count = positions.shape[1]
    if count > cache.slots:
        raise ModelError(f"{count} tokens do not fit into a cache of {cache.slots} slots")
    written = lax.dynamic_update_slice_in_dim(cache.positions, positions.astype(jnp.int32), cache.length, axis=1)
    return replace(cache, positions=written, length=cache.length + count)


def write_kv(
    kv: KV, layer: Int[Array, ""], slot: Int[Array, ""], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"]
) -> KV:
    """Writes one layer's new keys and values in place (in a jitted loop whose carry holds the cache)."""

    def write(stack: Array, new: Array) -> Array:
        new = jnp.swapaxes(new, 1, 2)[None].astype(stack.dtype)
        return lax.dynamic_update_slice(stack, new, (layer, 0, 0, slot, 0))

    return {"k": write(kv["k"], k), "v": write(kv["v"], v)}


def read_kv(kv: KV, layer: Int[Array, ""]) -> tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    """All keys and values of one layer."""
    return tuple(lax.dynamic_index_in_dim(kv[name], layer, axis=0, keepdims=False) for name in ("k", "v"))


def map_cache_rows(cache: Cache, fn: Callable[[Array, int], Array]) -> Cache:
    """Applies `fn(array, batch axis)` to everything that has rows: repeat each G times, gather the live ones, ..."""
    layers = jax.tree.map(lambda leaf: fn(leaf, LAYER_BATCH_AXIS), cache.layers)
    return replace(cache, layers=layers, positions=fn(cache.positions, 0))


def grow_cache(cache: Cache, slots: int) -> Cache:
    """The same cache with room for `slots` tokens.

    Raises:
        ModelError: fewer slots than there are.
    """
    extra = slots - cache.slots
    if extra < 0:
        raise ModelError(f"a cache of {cache.slots} slots cannot shrink to {slots}")

    def pad(path: tuple, leaf: Array) -> Array:
        if path[-1].key not in ("k", "v"):  # a recurrent layer's state has no slots
            return leaf
        widths = [(0, 0)] * leaf.ndim
        widths[LAYER_SLOT_AXIS] = (0, extra)
        return jnp.pad(leaf, widths)

    positions = jnp.pad(cache.positions, ((0, 0), (0, extra)), constant_values=-1)
    return replace(cache, layers=jax.tree_util.tree_map_with_path(pad, cache.layers), positions=positions)
