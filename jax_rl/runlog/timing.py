"""When the phases of an update were under way: the log's seconds, and marks on the host's line of a profile."""

import itertools
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from jax.profiler import TraceAnnotation

Interval = tuple[float, float]  # start and end, in seconds of time.perf_counter


class PhaseClock:
    """Keeps the wall-clock intervals of each phase; `seconds` names them as the training log does."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._phases: dict[str, list[Interval]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            with TraceAnnotation(name):
                yield
        finally:
            self._phases.setdefault(name, []).append((start, time.perf_counter()))

    def intervals(self, *names: str) -> list[Interval]:
        """When any of these phases was under way."""
        return [interval for name in names for interval in self._phases.get(name, [])]

    def of(self, name: str) -> float:
        return covered_seconds(self._phases[name])

    def seconds(self) -> dict[str, float]:
        """`seconds_<phase>` of every phase, and `seconds_total` since the clock was made."""
        total = {"seconds_total": time.perf_counter() - self._start}
        return {f"seconds_{name}": self.of(name) for name in self._phases} | total


def covered_seconds(intervals: Iterable[Interval]) -> float:
    """Seconds during which at least one of the intervals was under way."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        covered += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return covered


def shared_seconds(ours: Iterable[Interval], theirs: Iterable[Interval]) -> float:
    """Seconds during which one of `ours` and one of `theirs` was under way at once."""
    pairs = [(max(a[0], b[0]), min(a[1], b[1])) for a, b in itertools.product(ours, theirs)]
    return covered_seconds((start, end) for start, end in pairs if start < end)
