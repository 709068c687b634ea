"""What a metric is asked and what it answers. A failure is a `Missing` with its reason, never a number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol


@dataclass(frozen=True)
class Translation:
    """One candidate to judge. `ref` is None where the example has no reference."""

    src: str
    mt: str
    ref: str | None
    src_lang: str
    tgt_lang: str


@dataclass(frozen=True)
class ErrorSpan:
    """An error at the characters `start..end` (end exclusive) of the translation as it was handed in."""

    start: int
    end: int
    severity: str  # MINOR, MAJOR or CRITICAL; anything else weighs 0 and is counted
    confidence: float | None  # 0..1, None where the metric gives none
    text: str


@dataclass(frozen=True)
class Scored:
    """A metric's raw value in its own units, and the error spans it found."""

    value: float
    spans: tuple[ErrorSpan, ...] = ()


@dataclass(frozen=True)
class Missing:
    """No score, and why."""

    reason: str


Score = Scored | Missing


class MetricFailed(RuntimeError):
    """A metric that gives up on a request."""

    scored: Mapping[int, Score] = MappingProxyType({})  # what it had scored by then, by place in the request


class Metric(Protocol):
    """A learned or rule-based judge of translations."""

    @property
    def name(self) -> str:
        """metricx, xcomet, mqm or chrf."""
        ...

    @property
    def identity(self) -> str:
        """Everything besides the texts that a score depends on: the cache's key."""
        ...

    def score(self, batch: Sequence[Translation]) -> list[Score]:
        """One score per translation, in order. Blocks. Called from one thread at a time."""
        ...

    def close(self) -> None:
        """Ends the metric. May be called while `score` runs in another thread."""
        ...
