"""All metrics at once: from translations to scores, sequence rewards and error spans."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from jax.profiler import TraceAnnotation

from jax_rl.config.schema import RewardConfig
from jax_rl.rewards.cache import ScoreCache
from jax_rl.rewards.chrf import ChrF
from jax_rl.rewards.metricx import MetricXMetric
from jax_rl.rewards.mqm_judge import MQMJudge
from jax_rl.rewards.spans import count_unknown_severities
from jax_rl.rewards.types import ErrorSpan, Metric, MetricFailed, Missing, Score, Scored, Translation
from jax_rl.rewards.worker_metric import WorkerMetric
from jax_rl.rewards.xcomet import XCometMetric
from jax_rl.runlog.timing import Interval

SPAN_METRICS = ("xcomet", "mqm")


@dataclass(frozen=True)
class CompletionScores:
    """What all metrics say of one translation."""

    scores: dict[str, Score]  # by metric name, raw values in each metric's own units
    sequence_reward: float | Missing
    spans: tuple[ErrorSpan, ...]  # of all metrics that give spans


@dataclass
class ScoringCounts:
    """What happened while scoring, for the log.

    `events` and `busy` depend on what the cache held, so they differ between a run and its resumed twin; the rest does
    not.
    """

    missing: Counter[str] = field(default_factory=Counter)  # completions without a score, by "metric: reason"
    unknown_severities: int = 0  # spans that weigh 0 because severity_weights does not name their severity
    events: Counter[str] = field(default_factory=Counter)  # "metric/cache_hits", "/asked" and each metric's own counts
    busy: list[Interval] = field(default_factory=list)  # when each metric of this process was at work on each batch


def sequence_reward(scores: Mapping[str, Score], cfg: RewardConfig) -> float | Missing:
    """The weighted sum of spec §5, or Missing with the reasons of all the metrics that it cannot do without.

    A metric is needed if its weight is not 0 or if it gives spans: without XCOMET's spans the token rewards would say
    that nothing is wrong, so the completion is unscored even with w_xcomet_seq = 0. A metric that has weight 0 and
    gives no spans is only watched, and may be Missing.
    """
    values, reasons = {}, []
    for name, weight in metric_weights(cfg).items():
        score = scores.get(name)
        if isinstance(score, Scored):
            values[name] = score.value
        elif isinstance(score, Missing) and (weight != 0 or name in SPAN_METRICS):
            reasons.append(f"{name}: {score.reason}")
    return Missing("; ".join(reasons)) if reasons else weighted_sum(values, cfg)


def metric_weights(cfg: RewardConfig) -> dict[str, float]:
    """The weight of each metric in the sequence reward, by metric name."""
    return {"metricx": cfg.w_metricx, "xcomet": cfg.w_xcomet_seq, "mqm": cfg.w_mqm_seq, "chrf": cfg.w_chrf}


def weighted_sum(values: Mapping[str, float], cfg: RewardConfig) -> float:
    """The sum of spec §5 over the raw metric values that are given."""
    in_reward_units: dict[str, Callable[[float], float]] = {
        "metricx": lambda value: cfg.metricx.offset - value,
        "xcomet": lambda value: value * cfg.xcomet_seq_scale,
        "mqm": lambda value: value * cfg.mqm_seq_scale,
        "chrf": lambda value: value,
    }
    weights = metric_weights(cfg)
    return sum((weights[name] * in_reward_units[name](values[name]) for name in weights if name in values), 0.0)


@dataclass(frozen=True)
class _Answers:
    scores: list[Score]
    cache_hits: int
    events: Mapping[str, int]
    busy: Interval


@runtime_checkable
class CountsEvents(Protocol):
    """A metric that can tell how often something happened since it was last asked."""

    def pop_counts(self) -> dict[str, int]: ...


class Scorer:
    """Scores translations with every metric at the same time.

    Which texts a metric is asked together follows from the submitted batches, their order and the cache alone, never
    from timing: a metric's scores depend on the batch, and a resumed run must see the same ones. Hence the cache is
    looked at in the metric's own thread, when all that was submitted before has been stored. Submit from one thread.
    """

    def __init__(self, metrics: Sequence[Metric], cache: ScoreCache | None, cfg: RewardConfig) -> None:
        """`metrics` and `cache` belong to the scorer from here on; without a cache every batch is asked anew."""
        self._metrics = tuple(metrics)
        self._threads = {metric.name: _new_thread(metric.name) for metric in metrics}
        self._assembler = _new_thread("assemble")
        self._cache = cache
        self._cfg = cfg
        self._closed = False
        self._counts = ScoringCounts()
        self._counts_lock = threading.Lock()

    def submit(self, batch: Sequence[Translation]) -> "Future[list[CompletionScores]]":
        """Starts scoring; the future gives one result per translation, in order.

        What a metric raises, the future raises, unchanged.
        """
        if self._closed:
            raise RuntimeError("the scorer is closed")
        batch = list(batch)
        unique = list(dict.fromkeys(batch))
        pending = {
            metric.name: self._threads[metric.name].submit(self._ask, metric, unique) for metric in self._metrics
        }
        return self._assembler.submit(self._assemble, batch, unique, pending)

    def score(self, batch: Sequence[Translation]) -> list[CompletionScores]:
        """`submit`, and wait."""
        return self.submit(batch).result()

    def wait_until_ready(self) -> None:
        """Returns when every model is loaded. WorkerStartError when one does not come up."""
        for metric in self._metrics:
            if isinstance(metric, WorkerMetric):
                metric.wait_until_ready()

    def take_counts(self) -> ScoringCounts:
        """The counts since the last call."""
        with self._counts_lock:
            taken, self._counts = self._counts, ScoringCounts()
        return taken

    def close(self) -> None:
        """Ends the metrics, also in the middle of a request: futures that are not done then fail."""
        if self._closed:
            return
        self._closed = True
        for metric in self._metrics:
            metric.close()
        for thread in (*self._threads.values(), self._assembler):
            thread.shutdown()
        if self._cache is not None:
            self._cache.close()

    def _ask(self, metric: Metric, texts: Sequence[Translation]) -> _Answers:
        """Runs in the metric's thread."""
        start = time.perf_counter()
        with TraceAnnotation(f"score_{metric.name}"):
            scores, cache_hits = self._known_or_asked(metric, texts)
        events = metric.pop_counts() if isinstance(metric, CountsEvents) else {}
        return _Answers(scores, cache_hits, events, (start, time.perf_counter()))

    def _known_or_asked(self, metric: Metric, texts: Sequence[Translation]) -> tuple[list[Score], int]:
        """The scores, and how many the cache had."""
        if self._closed:
            raise RuntimeError("the scorer was closed before it came to this request")
        known: dict[Translation, Score] = {}
        if self._cache is not None:
            stored = self._cache.get(metric, texts)
            known = {text: score for text, score in zip(texts, stored, strict=True) if score is not None}
        cache_hits = len(known)
        unknown = [text for text in texts if text not in known]
        if unknown:
            try:
                answered = metric.score(unknown)
            except MetricFailed as failure:
                if self._cache is not None:
                    self._cache.put(metric, [(unknown[i], score) for i, score in failure.scored.items()])
                raise
            if len(answered) != len(unknown):
                raise RuntimeError(f"{metric.name} gave {len(answered)} scores for {len(unknown)} translations")
            fresh = {text: _finite(score) for text, score in zip(unknown, answered, strict=True)}
            if self._cache is not None:
                self._cache.put(metric, fresh.items())
            known |= fresh
        return [known[text] for text in texts], cache_hits

    def _assemble(
        self,
        batch: Sequence[Translation],
        unique: Sequence[Translation],
        pending: Mapping[str, "Future[_Answers]"],
    ) -> list[CompletionScores]:
        """Runs in the assembler's thread."""
        answers = {name: future.result() for name, future in pending.items()}
        by_text = {}
        for index, text in enumerate(unique):
            scores = {name: answer.scores[index] for name, answer in answers.items()}
            by_text[text] = CompletionScores(scores, sequence_reward(scores, self._cfg), _all_spans(scores))
        results = [by_text[text] for text in batch]
        self._count(answers, results)
        return results

    def _count(self, answers: Mapping[str, _Answers], results: Sequence[CompletionScores]) -> None:
        with self._counts_lock:
            for name, answer in answers.items():
                self._counts.busy.append(answer.busy)
                asked = len(answer.scores) - answer.cache_hits
                events = {"asked": asked, "cache_hits": answer.cache_hits, **answer.events}
                self._counts.events.update({f"{name}/{event}": count for event, count in events.items()})
            for result in results:
                self._counts.unknown_severities += count_unknown_severities(result.spans, self._cfg.severity_weights)
                for name, score in result.scores.items():
                    if isinstance(score, Missing):
                        self._counts.missing[f"{name}: {score.reason}"] += 1


def build_scorer(cfg: RewardConfig, output_dir: Path) -> Scorer:
    """The enabled metrics, which all begin to load (`wait_until_ready`), with the run's cache.

    Keeps `reward_cache/` (scores, the judge's prompt) and `worker_logs/` in `output_dir`. If one metric cannot be set
    up, the others are closed and its error is raised.
    """
    cache_dir, log_dir = output_dir / "reward_cache", output_dir / "worker_logs"
    metrics: list[Metric] = []
    try:
        if cfg.metricx.enabled:
            metrics.append(MetricXMetric(cfg.metricx, cfg.max_restarts, log_dir))
        if cfg.xcomet.enabled:
            metrics.append(XCometMetric(cfg.xcomet, cfg.max_restarts, log_dir))
        if cfg.mqm.enabled:
            metrics.append(MQMJudge(cfg.mqm, cache_dir))
        if cfg.chrf.enabled:
            metrics.append(ChrF())
        cache = ScoreCache(cache_dir / "scores.sqlite") if cfg.cache_enabled else None
    except BaseException:  # Ctrl-C too: no worker may be left running
        for metric in metrics:
            metric.close()
        raise
    return Scorer(metrics, cache, cfg)


def _finite(score: Score) -> Score:
    if isinstance(score, Scored) and not math.isfinite(score.value):
        return Missing(f"the metric's value is {score.value}")
    return score


def _all_spans(scores: Mapping[str, Score]) -> tuple[ErrorSpan, ...]:
    found = [score for name in SPAN_METRICS if isinstance(score := scores.get(name), Scored)]
    return tuple(span for score in found for span in score.spans)


def _new_thread(name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"score-{name}")
