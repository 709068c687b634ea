"""From padded completions to micro-batches, on the host: which tokens lie in which row, and which column predicts what.

Packed, the completions of one prompt share a row that holds the prompt once: [prompt | c1 | c2 | ...], segments 0, 1, 2
and so on, the positions of every completion going on from the prompt's (`Model.forward`, `segments`). Rows of similar
length make a micro-batch under a budget of tokens, in shapes from a small set: each shape is a program to compile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int, Int32, Shaped

from jax_rl.parallel.row_counts import round_up, row_bucket

BatchArray = Any  # a numpy array on the host, a jax array inside a program

SHORTEST = 16  # columns: shapes below are not worth a program of their own
STEPS_PER_OCTAVE = 4  # row lengths between a power of two and the next: a quarter of the columns is padding at worst


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """What the model reads, and S slots per row for the tokens whose logprobs are wanted."""

    tokens: BatchArray  # [R, L] int32
    positions: BatchArray  # [R, L] int32, -1 on pads
    segments: BatchArray | None  # [R, L] int32; None: one text a row
    predictors: BatchArray  # [R, S] int32: the column whose hidden state predicts the slot's token
    targets: BatchArray  # [R, S] int32: the slot's token
    mask: BatchArray  # [R, S] bool: slots that are taken


@dataclass(frozen=True)
class Packed:
    """A micro-batch, and where its slots come from: a row and a column of the completions [B, T]."""

    rows: Rows
    completion: Int32[np.ndarray, "R S"]
    column: Int32[np.ndarray, "R S"]

    def gather(self, values: Shaped[np.ndarray, "B T"]) -> Shaped[np.ndarray, "R S"]:
        """Each slot's value; 0 where the slot is not taken."""
        return np.where(self.rows.mask, values[self.completion, self.column], np.zeros((), values.dtype))

    def scatter(self, slots: Shaped[np.ndarray, "R S"], into: Shaped[np.ndarray, "B T"]) -> None:
        """The way back: writes the taken slots to their places."""
        mask = self.rows.mask
        into[self.completion[mask], self.column[mask]] = slots[mask]


@dataclass(frozen=True)
class Packing:
    """How completions become micro-batches."""

    rows: int  # completions of a micro-batch that is not packed
    tokens: int  # columns of a packed micro-batch, padding included; 0: not packed
    shares_prompts: bool  # whether the model can read packed groups; else each completion is a row of its own
    row_multiple: int = 1  # rows of a micro-batch are a multiple of it: the devices that they lie on


def make_micro_batches(
    tokens: Int[np.ndarray, "B PT"],
    positions: Int[np.ndarray, "B PT"],
    mask: Bool[np.ndarray, "B T"],
    packing: Packing,
) -> list[Packed]:
    """Every token in `mask` gets a slot in one micro-batch; rows without any may be left out."""
    return [*_pack(tokens, positions, mask, packing)] if packing.tokens else [*_split(tokens, positions, mask, packing)]


def unpacked_rows(tokens: BatchArray, positions: BatchArray, mask: BatchArray) -> Rows:
    """One completion a row, the last T of the L = P + T columns, each slot predicted by the column before it."""
    length, width = tokens.shape[1], mask.shape[1]
    prompt = length - width
    if prompt < 1:
        raise ValueError(f"a completion of {width} columns leaves no prompt in {length}: need P >= 1")
    predictors = np.broadcast_to(np.arange(prompt - 1, length - 1, dtype=np.int32), mask.shape)
    return Rows(tokens, positions, None, predictors, tokens[:, prompt:], mask)


def _split(tokens: np.ndarray, positions: np.ndarray, mask: np.ndarray, packing: Packing) -> Iterator[Packed]:
    """Rows as they are, `packing.rows` at a time, the last ones filled up with pads."""
    width = mask.shape[1]
    shape = (packing.rows, width)
    for start in range(0, len(mask), packing.rows):
        here = slice(start, start + packing.rows)
        missing = ((0, packing.rows - len(mask[here])), (0, 0))
        completion = np.minimum(np.arange(start, start + packing.rows, dtype=np.int32), len(mask) - 1)
        rows = unpacked_rows(
            np.pad(tokens[here], missing),
            np.pad(positions[here], missing, constant_values=-1),
            np.pad(mask[here], missing),
        )
        yield Packed(
            rows,
            np.broadcast_to(completion[:, None], shape),
            np.broadcast_to(np.arange(width, dtype=np.int32), shape),
        )


@dataclass
class _Row:
    """One row to be: the completions of one prompt."""

    prompt: np.ndarray  # token ids
    completions: list[tuple[int, np.ndarray]]  # (row of the batch, token ids up to the last one in the mask)

    @property
    def length(self) -> int:
        """Columns: the last token of a completion is predicted, but predicts nothing."""
        return len(self.prompt) + sum(len(ids) - 1 for _, ids in self.completions)

    @property
    def slots(self) -> int:
        return sum(len(ids) for _, ids in self.completions)


def _pack(tokens: np.ndarray, positions: np.ndarray, mask: np.ndarray, packing: Packing) -> Iterator[Packed]:
    """Longest rows first; a micro-batch is as long as its longest row and takes as many as the budget allows."""
    rows = sorted(_group(tokens, positions, mask, packing), key=lambda row: row.length, reverse=True)
    while rows:
        length = bucket(rows[0].length)
        most = max(packing.tokens // length // packing.row_multiple, 1) * packing.row_multiple
        count = min(row_bucket(len(rows), packing.row_multiple), most)
        taken, rows = rows[:count], rows[count:]
        slots = round_up(max(row.slots for row in taken), length // 2)  # what they cost is the head alone
        yield _lay_out(taken, (count, length), slots, mask, packing.shares_prompts)


def _group(tokens: np.ndarray, positions: np.ndarray, mask: np.ndarray, packing: Packing) -> list[_Row]:
    """Neighbours with the same prompt share a row, as far as the budget lets it grow."""
    prompt_width = tokens.shape[1] - mask.shape[1]
    longest = packing.tokens // packing.row_multiple
    rows: list[_Row] = []
    for i in np.flatnonzero(mask.any(axis=1)):
        prompt = tokens[i, :prompt_width][positions[i, :prompt_width] >= 0]
        end = int(np.flatnonzero(mask[i])[-1]) + 1
        completion = (int(i), tokens[i, prompt_width : prompt_width + end])
        last = rows[-1] if rows and packing.shares_prompts else None
        if last and np.array_equal(last.prompt, prompt) and bucket(last.length + end - 1) <= longest:
            last.completions.append(completion)
        else:
            rows.append(_Row(prompt, [completion]))
    return rows


def _lay_out(rows: list[_Row], shape: tuple[int, int], slots: int, mask: np.ndarray, with_segments: bool) -> Packed:
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    positions = np.full(shape, -1, np.int32)
    predictors, targets, completion, column = (np.zeros((shape[0], slots), np.int32) for _ in range(4))
    taken = np.zeros((shape[0], slots), bool)
    for r, row in enumerate(rows):
        prompt = end = len(row.prompt)
        tokens[r, :end], positions[r, :end] = row.prompt, np.arange(end)
        first_slot = 0
        for segment, (i, ids) in enumerate(row.completions, start=1):
            count = len(ids)
            read, of_slots = slice(end, end + count - 1), slice(first_slot, first_slot + count)
            tokens[r, read], segments[r, read] = ids[:-1], segment
            positions[r, read] = np.arange(prompt, prompt + count - 1)
            predictors[r, of_slots] = [prompt - 1, *range(end, end + count - 1)]
            targets[r, of_slots], taken[r, of_slots] = ids, mask[i, :count]
            completion[r, of_slots], column[r, of_slots] = i, np.arange(count)
            end, first_slot = end + count - 1, first_slot + count
    packed = Rows(tokens, positions, segments if with_segments else None, predictors, targets, taken)
    return Packed(packed, completion, column)


def bucket(length: int) -> int:
    """The least row length of the set that holds so many columns."""
    octave = 1 << (max(length, SHORTEST) - 1).bit_length()
    return round_up(max(length, SHORTEST), max(octave // (2 * STEPS_PER_OCTAVE), SHORTEST))
