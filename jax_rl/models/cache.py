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

KV = dict[str, Array]  # {"k", "v"}: each [B, K, S, H], or [repeats, B, K, S, H] for the layers of a scanned stack
SLOT_AXIS = -2  # of keys and values


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """One pytree, to be donated to the program that writes it.

    Attributes:
        layers: {"blocks": ..., "tail": ...} as the parameters are: the leaves of "blocks" are [repeats, B, ...],
            those of "tail" [B, ...].
        positions: [B, S], the position of the token in each slot, -1 where there is none.
        length: how many slots are written; the next token goes there, in every row. A write past the last slot
            would overwrite it: whoever decodes keeps `length < S` (`grow_cache`).
    """

    layers: dict[str, Any]
    positions: Any  # Int[Array, "B S"]; any leaf, as this is a pytree: shapes before there are values, axes for vmap
    length: Any  # Int[Array, ""]

    @property
    def slots(self) -> int:
        return self.positions.shape[1]


def empty_kv(batch: int, heads: int, slots: int, width: int, dtype: DTypeLike) -> KV:
    """Zeros for the keys and values of one attention layer."""
    return {name: jnp.zeros((batch, heads, slots, width), dtype) for name in ("k", "v")}


def empty_cache(layers: dict[str, Any], batch: int, slots: int) -> Cache:
    """A cache in which no slot is written."""
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
    kv: KV,
    row: Int[Array, ""] | None,
    slot: Int[Array, ""],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
) -> KV:
    """Writes one layer's new keys and values: in place, in a loop whose carry holds the cache.

    row: the layer's number in a scanned stack, None outside one. A stack of one would do for the latter, but XLA would
    copy it at every step (it merges the write with the reshape that drops the leading 1).
    """

    def write(buffer: Array, new: Array) -> Array:
        new = jnp.swapaxes(new, 1, 2).astype(buffer.dtype)
        if row is None:
            return lax.dynamic_update_slice(buffer, new, (0, 0, slot, 0))
        return lax.dynamic_update_slice(buffer, new[None], (row, 0, 0, slot, 0))

    return {"k": write(kv["k"], k), "v": write(kv["v"], v)}


def read_kv(kv: KV, row: Int[Array, ""] | None) -> tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    """All keys and values of one layer."""
    if row is None:
        return kv["k"], kv["v"]
    return lax.dynamic_index_in_dim(kv["k"], row, keepdims=False), lax.dynamic_index_in_dim(
        kv["v"], row, keepdims=False
    )


def read_state(state: dict[str, Array], row: Int[Array, ""] | None) -> dict[str, Array]:
    """One recurrent layer's state, out of the stack's (`row` as in `write_kv`)."""
    if row is None:
        return state
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, row, keepdims=False), state)


def write_state(state: dict[str, Array], row: Int[Array, ""] | None, new: dict[str, Array]) -> dict[str, Array]:
    """Replaces one recurrent layer's state."""
    new = jax.tree.map(lambda old, leaf: leaf.astype(old.dtype), state, new)
    if row is None:
        return new
    return jax.tree.map(lambda old, leaf: lax.dynamic_update_index_in_dim(old, leaf, row, 0), state, new)


def _batch_axis(path: tuple) -> int:
    return 1 if path[0].key == "blocks" else 0


def map_cache_rows(cache: Cache, fn: Callable[[Array, int], Array]) -> Cache:
    """Applies `fn(array, batch axis)` to everything that has rows: repeat each G times, gather the live ones, ..."""
    layers = jax.tree_util.tree_map_with_path(lambda path, leaf: fn(leaf, _batch_axis(path)), cache.layers)
    return replace(cache, layers=layers, positions=fn(cache.positions, 0))


def place_cache(cache: Cache, place: Callable[[Array, tuple[str | None, ...]], Array]) -> Cache:
    """Constrains the sharding of what the layers remember: rows, and the heads of keys and values."""

    def put(path: tuple, leaf: Array) -> Array:
        inner = ("batch", "kv_heads") if path[-1].key in ("k", "v") else ("batch",)
        axes = (None,) * _batch_axis(path) + inner
        return place(leaf, axes + (None,) * (leaf.ndim - len(axes)))

    return replace(cache, layers=jax.tree_util.tree_map_with_path(put, cache.layers))


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
        widths[SLOT_AXIS] = (0, extra)
        return jnp.pad(leaf, widths)

    positions = jnp.pad(cache.positions, ((0, 0), (0, extra)), constant_values=-1)
    return replace(cache, layers=jax.tree_util.tree_map_with_path(pad, cache.layers), positions=positions)
