"""The decode cache: what the layers remember, on slots that all rows share.

All rows write the same slot at the same time, so a write is one dynamic_update_slice and never a scatter. Which slots
a row sees is decided by positions alone: an empty slot and a padding token have position -1.

A layer that sees a window of W tokens remembers the last W of them: token i lies in slot i % W of its ring.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jax_rl.models.errors import ModelError

SLOT_AXIS = -2  # of keys and values


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KV:
    """Keys and values of one attention layer, or of those of a scanned stack with a leading [repeats].

    Attributes:
        k, v: [B, K, R, H]; R is the cache's slots, or the window if that is less.
        window: how many tokens back the layer sees; None: all.
        prompt: of the prompts that the rows continue, [N, K, R, H], where rows share them (`sharing.py`).
    """

    k: Any  # any leaf, as this is a pytree
    v: Any
    window: int | None = field(default=None, metadata={"static": True})
    prompt: "KV | None" = None

    def map(self, fn: Callable[[Array], Array]) -> "KV":
        return replace(self, k=fn(self.k), v=fn(self.v))


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
        prompts: a `sharing.Prompts`, where the slots hold what rows have read after prompts that they share.
    """

    layers: dict[str, Any]
    positions: Any  # Int[Array, "B S"]; any leaf, as this is a pytree: shapes before there are values, axes for vmap
    length: Any  # Int[Array, ""]
    prompts: Any = None

    @property
    def slots(self) -> int:
        return self.positions.shape[1]


def empty_kv(batch: int, heads: int, slots: int, width: int, dtype: DTypeLike, window: int | None = None) -> KV:
    """Zeros for the keys and values of one attention layer."""
    shape = (batch, heads, ring_size(slots, window), width)
    return KV(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), window)


def ring_size(slots: int, window: int | None) -> int:
    """Slots of a layer in a cache of `slots`."""
    return slots if window is None else min(slots, window)


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


def ring_positions(positions: Int[Array, "B S"], length: Int[Array, ""], window: int | None) -> Int[Array, "B R"]:
    """The position of the token in each slot of the layers of that window, -1 where there is none."""
    size, newest = ring_size(positions.shape[1], window), length - 1
    if size == positions.shape[1]:
        return positions
    token = newest - (newest - jnp.arange(size)) % size  # the last one that was written to each slot
    return jnp.where(token >= 0, positions[:, jnp.maximum(token, 0)], -1)


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

    size = kv.k.shape[SLOT_AXIS]

    def write(buffer: Array, new: Array) -> Array:
        new = jnp.swapaxes(new, 1, 2).astype(buffer.dtype)
        count = new.shape[SLOT_AXIS]
        if count > size:  # into a fresh ring: the last ones stay, each in its slot
            new = jnp.roll(new[:, :, count - size :], count, SLOT_AXIS)
        if row is None:
            return lax.dynamic_update_slice(buffer, new, (0, 0, slot % size, 0))
        return lax.dynamic_update_slice(buffer, new[None], (row, 0, 0, slot % size, 0))

    return replace(kv, k=write(kv.k, k), v=write(kv.v, v))


def read_kv(kv: KV, row: Int[Array, ""] | None) -> tuple[Float[Array, "B K R H"], Float[Array, "B K R H"]]:
    """All keys and values of one layer."""
    return kv.k if row is None else _layer(kv.k, row), kv.v if row is None else _layer(kv.v, row)


def read_state(state: dict[str, Array], row: Int[Array, ""] | None) -> dict[str, Array]:
    """One recurrent layer's state, out of the stack's (`row` as in `write_kv`)."""
    if row is None:
        return state
    return jax.tree.map(lambda leaf: _layer(leaf, row), state)


def _layer(stack: Array, row: Int[Array, ""]) -> Array:
    return lax.dynamic_index_in_dim(stack, row, keepdims=False)


def write_state(state: dict[str, Array], row: Int[Array, ""] | None, new: dict[str, Array]) -> dict[str, Array]:
    """Replaces one recurrent layer's state."""
    new = jax.tree.map(lambda old, leaf: leaf.astype(old.dtype), state, new)
    if row is None:
        return new
    return jax.tree.map(lambda old, leaf: lax.dynamic_update_index_in_dim(old, leaf, row, 0), state, new)


def map_layers(layers: dict[str, Any], fn: Callable[[Any, int], Any]) -> dict[str, Any]:
    """Applies `fn(KV or array of a recurrent state, batch axis)` to what the layers remember."""

    def call(path: tuple, memory: Any) -> Any:
        return fn(memory, 1 if path[0].key == "blocks" else 0)

    return jax.tree_util.tree_map_with_path(call, layers, is_leaf=_is_kv)


def place_cache(cache: Cache, place: Callable[[Array, tuple[str | None, ...]], Array]) -> Cache:
    """Constrains the sharding of what the layers remember: rows, and the heads of keys and values."""

    def put(memory: Any, axis: int) -> Any:
        def place_rows(leaf: Array, inner: tuple[str, ...]) -> Array:
            axes = (None,) * axis + inner
            return place(leaf, axes + (None,) * (leaf.ndim - len(axes)))

        if isinstance(memory, KV):
            return jax.tree.map(lambda leaf: place_rows(leaf, ("batch", "kv_heads")), memory)
        return place_rows(memory, ("batch",))

    return replace(cache, layers=map_layers(cache.layers, put))


def grow_cache(cache: Cache, slots: int) -> Cache:
    """The same cache with room for `slots` tokens.

    Raises:
        ModelError: fewer slots than there are.
    """
    extra = slots - cache.slots
    if extra < 0:
        raise ModelError(f"a cache of {cache.slots} slots cannot shrink to {slots}")

    def pad(memory: Any) -> Any:
        if not isinstance(memory, KV):  # a recurrent layer's state has no slots
            return memory
        # a ring that grows is not full yet, so that each token already lies where the larger ring wants it
        widths = [(0, 0)] * memory.k.ndim
        widths[SLOT_AXIS] = (0, ring_size(slots, memory.window) - memory.k.shape[SLOT_AXIS])
        return memory.map(lambda leaf: jnp.pad(leaf, widths))

    positions = jnp.pad(cache.positions, ((0, 0), (0, extra)), constant_values=-1)
    return replace(cache, layers=jax.tree.map(pad, cache.layers, is_leaf=_is_kv), positions=positions)


def growing_part(cache: Cache) -> Cache:
    """What `grow_cache` changes, alone: a program that is given the rest would copy it."""

    def own(memory: Any, axis: int) -> KV | None:
        return replace(memory, prompt=None) if isinstance(memory, KV) else None

    return replace(cache, layers=map_layers(cache.layers, own), prompts=None)


def with_grown(cache: Cache, grown: Cache) -> Cache:
    """`cache` with its `growing_part` replaced."""

    def choose(old: Any, new: KV | None) -> Any:
        return replace(new, prompt=old.prompt) if new is not None else old

    layers = jax.tree.map(choose, cache.layers, grown.layers, is_leaf=lambda node: node is None or _is_kv(node))
    return replace(grown, layers=layers, prompts=cache.prompts)


def _is_kv(node: Any) -> bool:
    return isinstance(node, KV)
