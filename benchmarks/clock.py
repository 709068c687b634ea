"""Seconds, CPU seconds and peak memory of the phases of an update, within one process."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Phases = dict[str, dict[str, float]]  # phase -> seconds, cpu_seconds (all threads), peak_mb (resident)


class Clock:
    """Phases may nest; one that is entered again adds up."""

    def __init__(self) -> None:
        self.phases: Phases = {}
        self._open: list[str] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._take_peak()
        self._open.append(name)
        times = self.phases.setdefault(name, {"seconds": 0.0, "cpu_seconds": 0.0, "peak_mb": 0.0})
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            times["seconds"] += time.perf_counter() - wall
            times["cpu_seconds"] += time.process_time() - cpu
            self._take_peak()
            self._open.remove(name)

    def _take_peak(self) -> None:
        """Credits the peak since the last call to the open phases and starts a new one (Linux: proc_pid_clear_refs)."""
        peak = peak_mb()
        for name in self._open:
            self.phases[name]["peak_mb"] = max(self.phases[name]["peak_mb"], peak)
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """The most memory that this process has had resident since its peak was last cleared, in MiB."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def with_train_as_rest(phases: Phases) -> Phases:
    """For loops that do not say where their training begins; the peak of the rest is the update's."""
    whole, rollout, reference = phases["update"], phases["rollout"], phases["reference"]
    rest = {name: whole[name] - rollout[name] - reference[name] for name in ("seconds", "cpu_seconds")}
    return {**phases, "train": {**rest, "peak_mb": whole["peak_mb"]}}
