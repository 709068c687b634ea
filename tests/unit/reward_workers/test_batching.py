import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reward_workers.batching import score_in_batches, shorten


class Memory:
    """A model that holds at most `tokens` padded tokens at once; it scores a sample with its number."""

    def __init__(self, lengths: dict[int, int], tokens: int, error: Exception | None = None):
        self.lengths, self.tokens, self.batches = lengths, tokens, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much")

    def __call__(self, batch: list[int]) -> list[dict]:
        if len(batch) * max(self.lengths[sample] for sample in batch) > self.tokens:
            raise self.error
        self.batches.append(batch)
        return [{"score": float(sample)} for sample in batch]


LENGTHS = st.lists(st.integers(1, 30), max_size=40).map(lambda lengths: dict(enumerate(lengths, start=5)))


@given(LENGTHS, st.integers(1, 9))
def test_every_sample_once_longest_first(lengths, batch_size):
    model = Memory(lengths, tokens=10**9)
    results = score_in_batches(lengths, batch_size, model)
    assert results == {sample: {"score": float(sample)} for sample in lengths}
    order = [sample for batch in model.batches for sample in batch]
    assert sorted(order) == sorted(lengths)
    assert [lengths[sample] for sample in order] == sorted(lengths.values(), reverse=True)
    assert all(len(batch) <= batch_size for batch in model.batches)


@given(LENGTHS, st.integers(1, 9), st.integers(1, 60))
def test_out_of_memory_halves_the_batch_and_only_what_does_not_fit_alone_is_missing(lengths, batch_size, tokens):
    results = score_in_batches(lengths, batch_size, Memory(lengths, tokens))
    assert set(results) == set(lengths)
    for sample, result in results.items():
        if lengths[sample] <= tokens:
            assert result == {"score": float(sample)}
        else:
            assert result["missing"].startswith(f"out of memory on {lengths[sample]} tokens: CUDA out of memory")


def test_the_processors_own_out_of_memory_counts_too():
    """The error is torch's own, asked for 32 TiB."""
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 45)
    lengths = {0: 4, 1: 4, 2: 9}
    results = score_in_batches(lengths, 3, Memory(lengths, 8, error.value))
    assert results[0] == {"score": 0.0} and "can't allocate memory" in results[2]["missing"]


def test_other_errors_are_not_taken_for_lack_of_memory():
    with pytest.raises(RuntimeError, match="mat1"):
        score_in_batches({0: 9}, 1, Memory({0: 9}, 8, RuntimeError("mat1 and mat2 must have the same dtype")))


@given(st.lists(st.sampled_from(["a", "of", "dogs", "elephants"]), min_size=1, max_size=30), st.integers(1, 60))
def test_shorten_keeps_as_much_as_fits(words, limit):
    """Tokens here: two characters each, the last one perhaps of one."""
    text = " ".join(words)
    kept = shorten(text, lambda part: (len(part) + 1) // 2, limit)
    assert kept == text[: 2 * limit]


@given(st.integers(0, 2**32), st.integers(0, 12))
def test_shorten_never_passes_the_limit_though_tokens_do_not_grow_evenly(seed, limit):
    text = "".join(random.Random(seed).choices("abcdefgh ", k=40))
    counts = {text[:n]: max(0, n // 4 + random.Random(seed + n).randint(-2, 2)) for n in range(41)}
    kept = shorten(text, counts.__getitem__, limit)
    assert kept is None or (text.startswith(kept) and counts[kept] <= limit)


def test_shorten_to_nothing():
    assert shorten("long", lambda part: len(part) + 7, 7) is None
    assert shorten("", lambda part: len(part) + 8, 7) is None
