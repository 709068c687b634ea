"""Seconds of each phase of an update."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class PhaseClock:
    """Adds up wall-clock seconds by phase; `seconds` names them as the training log does."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._phases[name] = self._phases.get(name, 0.0) + time.perf_counter() - start

    def of(self, name: str) -> float:
        return self._phases[name]

    def seconds(self) -> dict[str, float]:
        """`seconds_<phase>` of every phase, and `seconds_total` since the clock was made."""
        total = {"seconds_total": time.perf_counter() - self._start}
        return {f"seconds_{name}": seconds for name, seconds in self._phases.items()} | total
