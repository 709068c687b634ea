"""What the attention layers of one forward pass share: who sees whom, and where new keys and values go."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from jax_rl.models.cache import KV, Cache, advance, read_kv, ring_positions, write_kv
from jax_rl.models.layers import attend_part, attention, causal_attention, merge_parts, visible

ATTENTION_OUT = "attention_out"  # the name under which a backward pass may keep it


class Mask(NamedTuple):
    """Who sees whom in one kind of layer."""

    own: Bool[Array, "B T S"]  # each other, or what a row's cache holds
    prompt: Bool[Array, "N G P"] | None = None  # of the prompts that rows share (`sharing.Prompts.mask`)


@dataclass(frozen=True)
class Attend:
    """Without a cache the tokens see each other. With one, T > 1 tokens fill it while it is fresh (they still see each
    other alone), and a single token sees what the cache holds, itself included.
    """

    positions: Int[Array, "B T"]  # -1 on padding
    segments: Int[Array, "B T"] | None  # of packed rows
    slot: Int[Array, ""] | None  # where the first new token goes; None without a cache
    seen: Cache | None  # what a single token sees, itself included; None: the tokens see each other

    @classmethod
    def begin(
        cls, positions: Int[Array, "B T"], segments: Int[Array, "B T"] | None, cache: Cache | None
    ) -> tuple["Attend", Cache | None]:
        """Also returns the cache with the tokens' slots taken; the layers then write them."""
        if cache is None:
            return cls(positions, segments, None, None), None
        if segments is not None:
            raise ValueError("packed rows are for training: they have no cache")
        taken = advance(cache, positions)
        return cls(positions, None, cache.length, taken if positions.shape[1] == 1 else None), taken

    def mask(self, window: int | None = None) -> Mask:
        """Who sees whom in layers of that window."""
        if self.seen is None:
            return Mask(visible(self.positions, self.positions, window, self.segments, self.segments))
        own = visible(self.positions, ring_positions(self.seen.positions, self.seen.length, window), window)
        prompts = self.seen.prompts
        return Mask(own, None if prompts is None else prompts.mask(self.positions, window))

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        mask: Mask,
        scale: float,
        kv: KV | None,
        row: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "B T NH"], KV | None]:
        """One layer's attention, heads joined. `kv`, `row`: the layer's cache and its row there (`write_kv`)."""
        keys, values = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        if kv is not None:
            assert self.slot is not None  # a cache was handed to `begin`
            kv = write_kv(kv, row, self.slot, k, v)
        if self.seen is None:
            out = causal_attention(q, keys, values, mask.own, scale)
        else:
            assert kv is not None  # it is what the token sees
            keys, values = (memory.astype(q.dtype) for memory in read_kv(kv, row))
            if mask.prompt is None:
                out = attention(q, keys, values, mask.own, scale)
            else:
                own = attend_part(q, keys, values, mask.own, scale)
                out = merge_parts(own, self.seen.prompts.attend(q, kv, row, mask.prompt, scale), q.dtype)
        return checkpoint_name(out.reshape(*out.shape[:2], -1), ATTENTION_OUT), kv
