"""Token ids in, token ids out: prefill once per prompt, then decode all samples of all prompts together.

The engine knows nothing of texts. Its programs are compiled once per bucket of (prompts, prompt length); a decode
program ends as soon as every row has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from jax_rl.models.cache import Cache
from jax_rl.models.registry import Model
from jax_rl.rollout.sampling import SamplingParams, sample_tokens


@dataclass(frozen=True)
class Generated:
    """Host arrays of B = prompts * G completions; the prompt is left-padded, the completion right-padded."""

    tokens: np.ndarray  # [B, P+T] int32
    positions: np.ndarray  # [B, P+T] int32, -1 on padding
    mask: np.ndarray  # [B, T] bool, true on every sampled token, the end token included
    logp: np.ndarray  # [B, T] float32, of the untempered policy, 0 where the mask is false

    @property
    def prompt_len(self) -> int:
        return self.tokens.shape[1] - self.mask.shape[1]


class _DecodeState(NamedTuple):
    step: Int[Array, ""]  # completion index of the token to be sampled next
    logits: Float[Array, "B V"]
    cache: Cache | None
    prompt_lens: Int[Array, " B"]
    done: Bool[Array, " B"]
    seen: Bool[Array, "B V"] | None
    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    logp: Float[Array, "B T"]


def bucket(n: int, smallest: int = 16) -> int:
    """The least of 16, 24, 32, 48, 64, 96, ... that holds n: few programs, at most a third of padding."""
    size = smallest
    while size < n:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


class RolloutEngine:
    """Generates completions with one model's programs.

    Args:
        model: forward pass, cache and unembedding.
        max_new_tokens: T, the longest completion, the end token included.
        eos_ids: every id that ends a completion.
        pad_id: fills rows that have ended.
        cache_dtype: of keys and values.
    """

    def __init__(self, model: Model, max_new_tokens: int, eos_ids: Sequence[int], pad_id: int, cache_dtype=jnp.float32):
        self.model = model
        self.max_new_tokens = max_new_tokens
        self.eos_ids = tuple(eos_ids)
        self.pad_id = pad_id
        self.cache_dtype = cache_dtype
        self._prefill = jax.jit(self._prefill_fn, static_argnames=("group_size", "track_seen"))
        self._decode = jax.jit(self._decode_fn, static_argnames=("sampling",), donate_argnames=("state",))

    def generate(
        self,
        params,
        prompts: Sequence[Sequence[int]],
        keys: Key[Array, " B"],
        group_size: int,
        sampling: SamplingParams,
    ) -> Generated:
        """`group_size` completions of each prompt; `keys` from `sampling.sample_keys`, one per completion."""
        longest = max(len(p) for p in prompts)
        tokens, positions = left_pad(prompts, bucket(longest), self.pad_id)
        track_seen = sampling.repetition_penalty != 1.0
        state = self._prefill(params, tokens, positions, group_size=group_size, track_seen=track_seen)
        state = self._decode(params, state, keys, sampling=sampling)
        completion, mask, logp = jax.device_get((state.tokens, state.mask, state.logp))
        prompt_lens = np.repeat([len(p) for p in prompts], group_size)
        completion_positions = np.where(mask, prompt_lens[:, None] + np.arange(self.max_new_tokens), -1)
        return Generated(
            tokens=np.concatenate([np.repeat(tokens, group_size, axis=0), completion], axis=1),
            positions=np.concatenate([np.repeat(positions, group_size, axis=0), completion_positions], axis=1).astype(
                np.int32
            ),
            mask=mask,
            logp=logp,
        )

    def _prefill_fn(self, params, tokens, positions, *, group_size: int, track_seen: bool) -> _DecodeState:
        prompts, prompt_len = tokens.shape
        cache = self.model.init_cache(prompts, prompt_len + self.max_new_tokens, self.cache_dtype)
        hidden, filled = self.model.forward(params, tokens, positions, cache=cache)
        assert filled is not None  # a cache was handed in
        logits = self.model.logits(params, hidden[:, -1:])[:, 0]
        expand = partial(jnp.repeat, repeats=group_size, axis=0)
        cache = self.model.map_cache_rows(filled, lambda a, axis: jnp.repeat(a, group_size, axis=axis))
        rows, shape = prompts * group_size, (prompts * group_size, self.max_new_tokens)
        seen = None
        if track_seen:
            real = positions >= 0
            seen = jnp.zeros((prompts, logits.shape[-1]), bool).at[jnp.arange(prompts)[:, None], tokens].max(real)
            seen = expand(seen)
        return _DecodeState(
            step=jnp.int32(0),
            logits=expand(logits),
            cache=cache,
            prompt_lens=expand(positions.max(axis=1) + 1),
            done=jnp.zeros(rows, bool),
            seen=seen,
            tokens=jnp.full(shape, self.pad_id, jnp.int32),
            mask=jnp.zeros(shape, bool),
            logp=jnp.zeros(shape, jnp.float32),
        )

    def _decode_fn(self, params, state: _DecodeState, keys, *, sampling: SamplingParams) -> _DecodeState:
        rows = jnp.arange(state.done.shape[0])

        def emit(state: _DecodeState) -> _DecodeState:
            """Samples the token of `step` from the logits at hand."""
            token = sample_tokens(state.logits, state.seen, keys, state.step, sampling)
            token = jnp.where(state.done, self.pad_id, token)
            logp = jax.nn.log_softmax(state.logits, axis=-1)[rows, token]
            return state._replace(
                step=state.step + 1,
                tokens=state.tokens.at[:, state.step].set(token),
                mask=state.mask.at[:, state.step].set(~state.done),
                logp=state.logp.at[:, state.step].set(jnp.where(state.done, 0.0, logp)),
                done=state.done | jnp.isin(token, jnp.asarray(self.eos_ids)),
                seen=None if state.seen is None else state.seen.at[rows, token].set(True),
            )

        def advance(state: _DecodeState) -> _DecodeState:
            """Feeds the last token, then samples the next."""
            token = state.tokens[:, state.step - 1]
            position = state.prompt_lens + state.step - 1
            hidden, cache = self.model.forward(params, token[:, None], position[:, None], cache=state.cache)
            return emit(state._replace(cache=cache, logits=self.model.logits(params, hidden)[:, 0]))

        def unfinished(state: _DecodeState):
            return (state.step < self.max_new_tokens) & ~jnp.all(state.done)

        return lax.while_loop(unfinished, advance, emit(state))


def left_pad(prompts: Sequence[Sequence[int]], width: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as tokens [N, width] and positions [N, width], the last token of each in the last column."""
    tokens = np.full((len(prompts), width), pad_id, np.int32)
    positions = np.full((len(prompts), width), -1, np.int32)
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {row} has no tokens: a prompt needs at least its BOS")
        tokens[row, width - len(prompt) :] = prompt
        positions[row, width - len(prompt) :] = np.arange(len(prompt))
    return tokens, positions
