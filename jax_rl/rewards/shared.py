"""Scoring on several hosts: each scores its share with its own workers, and all hear of all scores."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from jax_rl.rewards.scoring import CompletionScores, Scorer, ScoringCounts
from jax_rl.rewards.types import ErrorSpan, Missing, Score, Scored, Translation

Gather = Callable[[str, Any], list[Any]]  # (what it is, this host's value) -> every host's, in order
OwnRows = Callable[[int], slice]  # of so many -> this host's; those of all hosts, in order, are all


class SharedScorer:
    """A `Scorer` that all hosts ask for the same batches in the same order; each result waits for all hosts."""

    def __init__(self, scorer: Scorer, gather: Gather, own_rows: OwnRows) -> None:
        self._scorer, self._gather, self._own_rows = scorer, gather, own_rows

    def submit(self, batch: Sequence[Translation]) -> "SharedScores":
        """Starts scoring this host's share.

        Equal translations are one host's: in two hosts' batches they would get unlike scores.
        """
        numbers: dict[Translation, int] = {}
        of_row = [numbers.setdefault(translation, len(numbers)) for translation in batch]
        dealt = sorted(range(len(batch)), key=of_row.__getitem__)  # the hosts' rows, one host after the other
        own = range(len(numbers))[self._own_rows(len(numbers))]
        return SharedScores(self._scorer.submit([batch[i] for i in dealt if of_row[i] in own]), dealt, self._gather)

    def score(self, batch: Sequence[Translation]) -> list[CompletionScores]:
        """`submit`, and wait."""
        return self.submit(batch).result()

    def wait_until_ready(self) -> None:
        """As `Scorer`'s, for this host's metrics."""
        self._scorer.wait_until_ready()

    def take_counts(self) -> ScoringCounts:
        """What happened on all hosts since the last call; `busy` is of this one, as clocks of hosts do not compare."""
        own = self._scorer.take_counts()
        told = self._gather("counts", [dict(own.missing), own.unknown_severities, dict(own.events)])
        total = ScoringCounts(busy=own.busy)
        for missing, unknown, events in told:
            total.missing += Counter(missing)
            total.unknown_severities += unknown
            total.events.update(events)
        return total

    def close(self) -> None:
        self._scorer.close()


AnyScorer = Scorer | SharedScorer


class SharedScores:
    """What `SharedScorer.submit` gives: all hosts must ask for the results, in the order of their submission."""

    def __init__(self, own: "Future[list[CompletionScores]]", dealt: Sequence[int], gather: Gather) -> None:
        self._own, self._dealt, self._gather = own, dealt, gather

    def result(self) -> list[CompletionScores]:
        parts = self._gather("scores", [_to_plain(scores) for scores in self._own.result()])
        in_turn = [_from_plain(plain) for part in parts for plain in part]
        return [scores for _, scores in sorted(zip(self._dealt, in_turn, strict=True), key=lambda pair: pair[0])]


def _to_plain(scores: CompletionScores) -> list[Any]:
    reward = scores.sequence_reward
    return [
        {name: _score_to_plain(score) for name, score in scores.scores.items()},
        reward.reason if isinstance(reward, Missing) else reward,
        [_span_to_plain(span) for span in scores.spans],
    ]


def _from_plain(plain: list[Any]) -> CompletionScores:
    scores, reward, spans = plain
    return CompletionScores(
        {name: _score_from_plain(score) for name, score in scores.items()},
        Missing(reward) if isinstance(reward, str) else reward,
        tuple(ErrorSpan(*span) for span in spans),
    )


def _score_to_plain(score: Score) -> Any:
    if isinstance(score, Missing):
        return score.reason
    return [score.value, [_span_to_plain(span) for span in score.spans]]


def _score_from_plain(plain: Any) -> Score:
    if isinstance(plain, str):
        return Missing(plain)
    return Scored(plain[0], tuple(ErrorSpan(*span) for span in plain[1]))


def _span_to_plain(span: ErrorSpan) -> list[Any]:
    return [span.start, span.end, span.severity, span.confidence, span.text]
