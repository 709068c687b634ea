"""Rows that continue the same prompt read one copy of its keys and values.

The cache of N prompts becomes one of R rows: what the rows read from then on has slots of its own, and attention goes
over both parts. Where a prompt's rows lie is a matter of indices, so that any of them can go while the others stay.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_rl.models.cache import KV, Cache, map_layers, read_kv, ring_positions, ring_size
from jax_rl.models.layers import Part, attend_part, visible


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Places:
    """Which row continues which prompt. Each prompt has the same number of places for rows."""

    prompt_of: Any  # [R] int32, of each row
    place_of: Any  # [R] int32, of each row among those of its prompt
    rows_of: Any  # [N, G] int32, the row in each place; any where there is none

    @classmethod
    def of_rows(cls, prompts: Int[np.ndarray, " R"], count: int, places: int) -> "Places":
        """prompts: of each row, below `count`; -1: the row has ended, and what it reads does not matter."""
        rows_of = np.zeros((count, places), np.int32)
        place_of = np.zeros(len(prompts), np.int32)
        taken = np.zeros(count, np.int32)
        for row, prompt in enumerate(prompts):
            if prompt >= 0:
                place_of[row] = taken[prompt]
                rows_of[prompt, taken[prompt]] = row
                taken[prompt] += 1
        return cls(np.maximum(prompts, 0).astype(np.int32), place_of, rows_of)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prompts:
    """What rows share beside the layers' `KV.prompt`."""

    positions: Any  # [N, P] int32, -1 on padding
    length: Any  # [] int32, slots that are written
    places: Places

    def mask(self, positions: Int[Array, "R 1"], window: int | None) -> Bool[Array, "N G P"]:
        """What the rows' new tokens see of their prompts, in layers of that window."""
        keys = ring_positions(self.positions, self.length, window)
        return visible(positions[self.places.rows_of, 0], keys, window)

    def attend(
        self,
        q: Float[Array, "R 1 N H"],
        kv: KV,
        row: Int[Array, ""] | None,
        mask: Bool[Array, "P G S"],
        scale: float,
    ) -> Part:
        """Attention of the rows' new tokens over their prompts. `row`: of a scanned stack, as in `write_kv`."""
        assert kv.prompt is not None  # `share_prompts` gives one to every layer
        k, v = read_kv(kv.prompt, row)
        places = self.places
        part = attend_part(q[places.rows_of, 0], k.astype(q.dtype), v.astype(q.dtype), mask, scale)
        return jax.tree.map(lambda leaf: leaf[places.prompt_of, places.place_of][:, None], part)


def share_prompts(cache: Cache, places: Places, slots: int) -> Cache:
    """From a cache that prompts have filled to one of `slots` empty slots for rows that continue them.

    Row r continues prompt r // (R / N). A recurrent layer's state is handed to each row.
    """
    rows = places.prompt_of.shape[0]
    share = rows // cache.positions.shape[0]

    def give(memory: Any, axis: int) -> Any:
        if not isinstance(memory, KV):
            return jnp.repeat(memory, share, axis=axis)  # rows stay on their prompt's device
        shape = list(memory.k.shape)
        shape[axis], shape[axis + 2] = rows, ring_size(slots, memory.window)
        return KV(jnp.zeros(shape, memory.k.dtype), jnp.zeros(shape, memory.v.dtype), memory.window, memory)

    return Cache(
        map_layers(cache.layers, give),
        jnp.full((rows, slots), -1, jnp.int32),
        jnp.zeros((), jnp.int32),
        Prompts(cache.positions, cache.length, places),
    )


def keep_rows(cache: Cache, rows: Int[Array, " kept"], prompts: Int[Array, " kept_prompts"], places: Places) -> Cache:
    """The cache of some of the rows and of some of the prompts. `places`: of the rows and prompts that are kept."""

    def take(memory: Any, axis: int) -> Any:
        if not isinstance(memory, KV):
            return jnp.take(memory, rows, axis=axis)
        own = memory.map(lambda leaf: jnp.take(leaf, rows, axis=axis))
        assert memory.prompt is not None
        return replace(own, prompt=memory.prompt.map(lambda leaf: jnp.take(leaf, prompts, axis=axis)))

    shared = replace(cache.prompts, positions=cache.prompts.positions[prompts], places=places)
    return replace(cache, layers=map_layers(cache.layers, take), positions=cache.positions[rows], prompts=shared)
