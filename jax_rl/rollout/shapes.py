"""The static shapes that programs are compiled for: few of them, so that few programs are."""

from collections.abc import Sequence

import numpy as np

from jax_rl.parallel.row_counts import row_bucket

ROOM = 32  # tokens that the cache at least grows by


def bucket(n: int, smallest: int = 16) -> int:
    """The least of 16, 24, 32, 48, 64, 96, ... that holds n: few programs, at most a third of padding."""
    size = smallest
    while size < n:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def next_smaller(rows: int, multiple: int) -> int:
    """How few rows must live for a smaller bucket to hold them; 0 when there is none."""
    return row_bucket(rows, multiple) // 2 if rows > multiple else 0


def cache_slots(step: int, longest: int) -> int:
    """Slots for the tokens that completions have before token `step` and ROOM more; none past the longest one."""
    return bucket(min(step + ROOM - 1, longest - 1))


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
