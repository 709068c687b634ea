"""Token ids in, token ids out. The engine knows nothing of texts.

Each prompt is run once, and all of its samples read the one copy of its keys and values. They are decoded together, and
the shapes follow what is left to do: when half of the rows have ended the others are gathered into half as many, and
when the cache of what they have sampled is full it grows. A decode program runs on the device until one of the two is
due; only then does the host look. Every shape comes from a small set and is compiled once.

What is sampled depends on none of this: see `sampling`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Int, Key

from jax_rl.models.cache import growing_part, with_grown
from jax_rl.models.params import Params
from jax_rl.models.registry import Model
from jax_rl.models.sharing import Places
from jax_rl.parallel.arrays import to_host
from jax_rl.parallel.row_counts import round_up, row_bucket
from jax_rl.rollout.decode import DecodePrograms, DecodeState
from jax_rl.rollout.sampling import SamplingParams
from jax_rl.rollout.shapes import bucket, cache_slots, left_pad, next_smaller

log = logging.getLogger(__name__)


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


class RolloutEngine:
    """Generates completions with one model's programs.

    Args:
        model: forward pass, cache and unembedding.
        max_new_tokens: T, the longest completion, the end token included.
        eos_ids: every id that ends a completion.
        pad_id: fills rows that have ended.
        cache_dtype: of keys and values.
        row_multiple: what the number of rows is always a multiple of, so that they divide over the devices.
    """

    def __init__(
        self,
        model: Model,
        max_new_tokens: int,
        eos_ids: Sequence[int],
        pad_id: int,
        cache_dtype: DTypeLike = jnp.float32,
        row_multiple: int = 1,
    ):
        self.max_new_tokens = max_new_tokens
        self.eos_ids = tuple(eos_ids)
        self.pad_id = pad_id
        self.row_multiple = row_multiple
        on_cpu = jax.default_backend() == "cpu"
        programs = DecodePrograms(model, max_new_tokens, self.eos_ids, pad_id, cache_dtype, unroll=on_cpu)
        self._prefill = jax.jit(programs.prefill, static_argnames="slots")
        self._decode = jax.jit(programs.decode, donate_argnames="state")
        self._grow = jax.jit(programs.grow, static_argnames="slots")
        self._keep = jax.jit(programs.keep, static_argnames="slots")
        self._announced: set[tuple] = set()

    def generate(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        keys: Key[Array, " B"],
        group_size: int,
        sampling: SamplingParams,
        forced_lengths: Int[np.ndarray, " B"] | None = None,
    ) -> Generated:
        """`group_size` completions of each prompt; `keys` from `sampling.sample_keys`, one per completion.

        forced_lengths: for benchmarks, which need equal work from unlike systems: a completion samples no end id before
            its last token and has the first of `eos_ids` there, whatever the policy says. From 1 to T.
        """
        wanted = len(prompts) * group_size
        width = bucket(max(map(len, prompts)))
        tokens, positions = left_pad(prompts, width, self.pad_id)
        # of the state: which completion each row makes, and which prompts there are; some only fill up the shape
        held = np.arange(round_up(len(prompts), self.row_multiple))
        ids = np.arange(len(held) * group_size)
        state = self._start(params, tokens, positions, keys, ids, group_size, forced_lengths, sampling)
        completions = np.full((len(ids), self.max_new_tokens), self.pad_id, np.int32)
        logp = np.zeros(completions.shape, np.float32)
        lengths = np.zeros(len(ids), np.int32)
        while True:
            step, done, lengths[ids], completions[ids], logp[ids] = to_host(
                (state.step, state.done, state.lengths, state.tokens, state.logp)
            )
            if done.all() or step == self.max_new_tokens:
                break
            state, ids, held = self._fit(state, ids, held, done, group_size, int(step))
            state = self._run(params, state, sampling)
        of_row = np.repeat(np.arange(len(prompts)), group_size)
        mask = np.arange(self.max_new_tokens) < lengths[:wanted, None]
        first = np.array([len(p) for p in prompts])[of_row, None]
        after = np.where(mask, first + np.arange(self.max_new_tokens), -1)
        return Generated(
            tokens=np.concatenate([tokens[of_row], completions[:wanted]], axis=1),
            positions=np.concatenate([positions[of_row], after], axis=1).astype(np.int32),
            mask=mask,
            logp=logp[:wanted],
        )

    def _start(
        self,
        params: Params,
        tokens: Int[np.ndarray, "N P"],
        positions: Int[np.ndarray, "N P"],
        keys: Key[Array, " B"],
        ids: Int[np.ndarray, " R"],
        group_size: int,
        forced_lengths: Int[np.ndarray, " B"] | None,
        sampling: SamplingParams,
    ) -> DecodeState:
        """All rows with their first token. Rows past the B completions fill up the shape: they have ended."""
        wanted = len(keys)
        last = np.minimum(ids, wanted - 1)
        fill = [(0, round_up(len(tokens), self.row_multiple) - len(tokens)), (0, 0)]
        if forced_lengths is not None:
            if not self.eos_ids or min(forced_lengths) < 1 or max(forced_lengths) > self.max_new_tokens:
                raise ValueError(f"forced_lengths need an end id and lie between 1 and {self.max_new_tokens}")
            forced_lengths = np.asarray(forced_lengths, np.int32)[last]
        places = Places.of_rows(ids // group_size, len(ids) // group_size, group_size)
        self._announce("prefill", prompts=len(tokens), length=tokens.shape[1], rows=len(ids), sampling=sampling.kind)
        return self._prefill(
            params,
            np.pad(tokens, fill, mode="edge"),
            np.pad(positions, fill, mode="edge"),
            keys[last],
            ids >= wanted,
            forced_lengths,
            places,
            slots=cache_slots(0, self.max_new_tokens),
            sampling=sampling,
        )

    def _fit(
        self,
        state: DecodeState,
        ids: Int[np.ndarray, " R"],
        held: Int[np.ndarray, " N"],
        done: Bool[np.ndarray, " R"],
        group_size: int,
        step: int,
    ) -> tuple[DecodeState, Int[np.ndarray, " kept"], Int[np.ndarray, " kept_prompts"]]:
        """The state in the least shapes that hold its live rows and the next token; its rows' ids and its prompts."""
        before = (len(ids), state.cache.slots)
        live = np.flatnonzero(~done)
        rows = min(row_bucket(len(live), self.row_multiple), len(ids))
        slots = cache_slots(step, self.max_new_tokens) if step > state.cache.slots else state.cache.slots
        if (rows, slots) == before:
            return state, ids, held
        self._announce("reshape", rows=f"{before[0]} to {rows}", slots=f"{before[1]} to {slots}")
        if rows == len(ids):
            grown = self._grow(growing_part(state.cache), slots=slots)
            return state._replace(cache=with_grown(state.cache, grown)), ids, held
        kept = np.concatenate([live, np.flatnonzero(done)])[:rows]
        needed = np.isin(held, ids[live] // group_size)
        prompts = np.argsort(~needed, kind="stable")[: min(len(held), rows)]  # no row is without its prompt
        place = {prompt: i for i, prompt in enumerate(held[prompts])}
        of_rows = np.array([-1 if done[row] else place[ids[row] // group_size] for row in kept])
        places = Places.of_rows(of_rows, len(prompts), group_size)
        return self._keep(state, kept, prompts, places, slots=slots), ids[kept], held[prompts]

    def _run(self, params: Params, state: DecodeState, sampling: SamplingParams) -> DecodeState:
        """Decodes until `_fit` has something to do or everything has ended."""
        rows, slots = state.done.shape[0], state.cache.slots
        last_step = min(self.max_new_tokens, slots + 1)  # the newest token is not in the cache yet
        self._announce("decode", rows=rows, slots=slots, sampling=sampling.kind)
        return self._decode(
            params, state, np.int32(last_step), np.int32(next_smaller(rows, self.row_multiple)), sampling=sampling
        )

    def _announce(self, program: str, **shape: Any) -> None:
        """Logs each program once, when it is about to be compiled."""
        if (program, *shape.values()) not in self._announced:
            self._announced.add((program, *shape.values()))
            log.info("rollout: compiling %s (%s)", program, ", ".join(f"{k} {v}" for k, v in shape.items()))
