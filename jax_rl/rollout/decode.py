"""The engine's programs: prefill, decode until the shapes should change, change the shapes. No host in between.

R rows, one completion each; T = max_new_tokens. All rows of a state have sampled equally many tokens, so they write the
same slot of the cache at each step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from jax_rl.models.cache import Cache
from jax_rl.models.params import Params
from jax_rl.models.registry import Model
from jax_rl.models.sharing import Places
from jax_rl.models.stack import stack_again, unroll
from jax_rl.rollout.sampling import SamplingParams, sample_tokens


class DecodeState(NamedTuple):
    """Everything between two steps; donated to the program that makes the next ones."""

    step: Int[Array, ""]  # tokens that every live row has sampled
    cache: Cache
    keys: Key[Array, " R"]
    prompt_lens: Int[Array, " R"]
    lengths: Int[Array, " R"]  # tokens sampled, the end token included
    done: Bool[Array, " R"]
    seen: Bool[Array, "R V"] | None  # tokens of prompt and completion, for the repetition penalty
    forced_lengths: Int[Array, " R"] | None
    tokens: Int[Array, "R T"]
    logp: Float[Array, "R T"]  # of the untempered policy


@dataclass(frozen=True)
class DecodePrograms:
    """Pure functions, to be jitted.

    Attributes:
        eos_ids: every id that ends a completion; the first is the one that forced lengths end with.
        pad_id: what rows that have ended hold.
        unroll: take the layers apart while decoding. On CPU every step would else copy each layer's weights and cache
            out of their stacks; where that costs nothing, programs of many layers compile faster as they are.
    """

    model: Model
    max_new_tokens: int
    eos_ids: Sequence[int]
    pad_id: int
    cache_dtype: DTypeLike
    unroll: bool = False

    @jax.named_scope("prefill")
    def prefill(
        self,
        params: Params,
        tokens: Int[Array, "N P"],
        positions: Int[Array, "N P"],
        keys: Key[Array, " R"],
        done: Bool[Array, " R"],
        forced_lengths: Int[Array, " R"] | None,
        places: Places,
        *,
        slots: int,
        sampling: SamplingParams,
    ) -> DecodeState:
        """Runs each prompt once and samples the first tokens of its R / N rows, which read its cache from then on."""
        rows = keys.shape[0]
        cache = self.model.init_cache(tokens.shape[0], tokens.shape[1], self.cache_dtype)
        hidden, filled = self.model.forward(params, tokens, positions, cache=cache)
        assert filled is not None  # a cache was handed in
        logits = self.model.logits(params, hidden[:, -1:])[:, 0]
        seen = None
        if sampling.repetition_penalty is not None:
            prompt = jnp.arange(tokens.shape[0])[:, None]
            seen = jnp.zeros(logits.shape, bool).at[prompt, tokens].max(positions >= 0)

        def share(array: Array, axis: int = 0) -> Array:
            return jnp.repeat(array, rows // tokens.shape[0], axis=axis)  # rows stay on their prompt's device

        state = DecodeState(
            step=jnp.int32(0),
            cache=self.model.share_prompts(filled, places, slots),
            keys=keys,
            prompt_lens=share(positions.max(axis=1) + 1),
            lengths=jnp.zeros(rows, jnp.int32),
            done=done,
            seen=None if seen is None else share(seen),
            forced_lengths=forced_lengths,
            tokens=jnp.full((rows, self.max_new_tokens), self.pad_id, jnp.int32),
            logp=jnp.zeros((rows, self.max_new_tokens), jnp.float32),
        )
        return self._emit(state, share(logits), sampling)

    @jax.named_scope("decode")
    def decode(
        self,
        params: Params,
        state: DecodeState,
        last_step: Int[Array, ""],
        enough: Int[Array, ""],
        *,
        sampling: SamplingParams,
    ) -> DecodeState:
        """Samples until the rows have `last_step` tokens, or no more than `enough` of them have not ended."""

        def advance(state: DecodeState) -> DecodeState:
            token = lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)
            position = (state.prompt_lens + state.step - 1)[:, None]
            hidden, cache = self.model.forward(params, token, position, cache=state.cache)
            assert cache is not None  # one was handed in
            return self._emit(state._replace(cache=cache), self.model.logits(params, hidden)[:, 0], sampling)

        def go_on(state: DecodeState) -> Array:
            return (state.step < last_step) & (jnp.sum(~state.done) > enough)

        if not self.unroll:
            return lax.while_loop(go_on, advance, state)
        cache = state.cache
        params = self.model.unroll(params)
        state = lax.while_loop(go_on, advance, state._replace(cache=replace(cache, layers=unroll(cache.layers))))
        return state._replace(cache=replace(state.cache, layers=stack_again(state.cache.layers)))

    @jax.named_scope("resize")
    def grow(self, part: Cache, *, slots: int) -> Cache:
        """The `growing_part` of a cache with `slots` slots."""
        return self.model.grow_cache(part, slots)

    @jax.named_scope("resize")
    def keep(
        self,
        state: DecodeState,
        rows: Int[Array, " kept"],
        prompts: Int[Array, " kept_prompts"],
        places: Places,
        *,
        slots: int,
    ) -> DecodeState:
        """The state of these rows and prompts alone, with a cache of `slots` slots."""

        def take(array: Array, axis: int = 0) -> Array:
            return jnp.take(array, rows, axis=axis)

        per_row = {name: value for name, value in state._asdict().items() if name not in ("step", "cache")}
        cache = self.model.grow_cache(self.model.keep_rows(state.cache, rows, prompts, places), slots)
        return DecodeState(step=state.step, cache=cache, **jax.tree.map(take, per_row))

    @jax.named_scope("sample")
    def _emit(self, state: DecodeState, logits: Float[Array, "R V"], sampling: SamplingParams) -> DecodeState:
        """Samples the token of `step` from its logits; rows that have ended get the pad id."""
        ends, step = jnp.asarray(self.eos_ids, jnp.int32), state.step
        allowed = logits
        if state.forced_lengths is not None:
            is_end = jnp.zeros(logits.shape[1], bool).at[ends].set(True)
            allowed = jnp.where(is_end, -jnp.inf, logits)
        token = sample_tokens(allowed, state.seen, state.keys, step, sampling)
        if state.forced_lengths is not None:
            token = jnp.where(step + 1 == state.forced_lengths, ends[0], token)
        token = jnp.where(state.done, self.pad_id, token)
        rows = jnp.arange(token.shape[0])
        logp = logits[rows, token] - jax.nn.logsumexp(logits, axis=-1)
        return state._replace(
            step=step + 1,
            lengths=state.lengths + ~state.done,
            done=state.done | jnp.isin(token, ends),
            seen=None if state.seen is None else state.seen.at[rows, token].set(True),
            tokens=state.tokens.at[:, step].set(token),
            logp=state.logp.at[:, step].set(jnp.where(state.done, 0.0, logp)),
        )
