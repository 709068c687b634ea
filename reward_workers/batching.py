"""How the samples of a request reach a model: shortened to its limit, sorted by length, halved when memory runs out."""

import bisect
from collections.abc import Callable
from typing import Any

import torch

Result = dict[str, Any]  # {"score": ...} or {"missing": reason}


def shorten(text: str, count_tokens: Callable[[str], int], limit: int) -> str | None:
    """A beginning of `text` of at most `limit` tokens, None when one character is already more.

    It is the longest where tokens grow with the text; inside a word they may not, and a few characters more may be cut.
    """
    if count_tokens(text) <= limit:
        return text
    lengths = range(1, len(text))
    kept = bisect.bisect_right(lengths, limit, key=lambda length: count_tokens(text[:length]))
    return text[:kept] or None


def score_in_batches(
    lengths: dict[int, int], batch_size: int, score: Callable[[list[int]], list[Result]]
) -> dict[int, Result]:
    """Results of the samples in `lengths` (sample -> tokens), from calls of `score` on up to `batch_size` of them.

    Longest first: rows of like length need little padding, and what does not fit in memory shows at once. A batch that
    does not fit is halved, and so are those after it; a single sample that does not fit is missing.
    """
    waiting = sorted(lengths, key=lambda sample: lengths[sample], reverse=True)
    results: dict[int, Result] = {}
    while waiting:
        batch = waiting[:batch_size]
        try:
            results.update(zip(batch, score(batch), strict=True))
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        else:
            waiting = waiting[batch_size:]
            continue
        # outside the handler: there the exception would still hold the tensors that are to be freed
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch) == 1:
            results[batch[0]] = {"missing": f"out of memory on {lengths[batch[0]]} tokens: {reason}"}
            waiting = waiting[1:]
        batch_size = max(1, len(batch) // 2)
        print(f"out of memory; going on with batches of {batch_size}", flush=True)
    return results


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)  # the latter on a CPU
