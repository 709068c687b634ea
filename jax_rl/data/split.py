"""Holding out evaluation rows by the hash of their ids: the same rows in whatever order the file has them."""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence

from jax_rl.data.sources import DataError

log = logging.getLogger(__name__)


def held_out_ids(
    ids: Sequence[str], *, count: int | None, ratio: float | None, seed: int, min_samples: int
) -> set[str]:
    """The ids whose rows are for evaluation: the first by sha1(f"{seed}:{id}"), ascending.

    `count` rows, or without a count max(min_samples, round(ratio * rows)), at least 1 and at most all but one. Rows
    with the same id are never parted: the last id taken may bring a few rows more, and one id is always left.

    Args:
        ids: one per row; what comes out depends on how often each occurs, not on their order.

    Raises:
        DataError: fewer than two different ids.
    """
    rows_of = Counter(ids)
    if len(rows_of) < 2:
        raise DataError(
            f"{len(ids)} rows with {len(rows_of)} different ids cannot be split into training and evaluation"
        )
    wanted = max(min_samples, round((ratio or 0.0) * len(ids))) if count is None else count
    if wanted > len(ids) - 1:
        log.warning("%d evaluation rows are asked for and there are %d rows; one is left to train on", wanted, len(ids))
    ordered = sorted(rows_of, key=lambda example_id: (_hash(seed, example_id), example_id))
    taken: set[str] = set()
    rows = 0
    for example_id in ordered[:-1]:
        if taken and rows >= wanted:
            break
        taken.add(example_id)
        rows += rows_of[example_id]
    return taken


def _hash(seed: int, example_id: str) -> str:
    return hashlib.sha1(f"{seed}:{example_id}".encode(), usedforsecurity=False).hexdigest()
