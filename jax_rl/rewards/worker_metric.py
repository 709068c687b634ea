"""A metric whose model is in a worker process: which translations it is asked about, and what its answers mean."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jax_rl.config.schema import MetricXConfig, XCometConfig
from jax_rl.rewards.text import NormalizedText, is_blank, normalize, normalized
from jax_rl.rewards.types import ErrorSpan, Missing, Score, Scored, Translation
from jax_rl.rewards.worker_client import (
    WorkerClient,
    WorkerFailed,
    prefix_environment,
    worker_command,
    worker_environment,
)
from reward_workers.protocol import Message


class WorkerMetric:
    """Scores through one worker, whose process starts with this object. Implements `Metric`.

    `worst` is the score of a blank translation, for which no model is asked: both learned metrics would reward it.
    """

    def __init__(
        self,
        name: str,
        cfg: MetricXConfig | XCometConfig,
        options: Message,
        worst: float,
        max_restarts: int,
        log_dir: Path,
    ):
        self.name = name
        self._options, self._use_reference, self._worst = options, cfg.use_reference, worst
        self._counts: Counter[str] = Counter()
        self._restarts_told = 0
        self._client = WorkerClient(
            name,
            worker_command(name, cfg),
            {**options, "device": cfg.device.partition(":")[0]},  # of several GPUs the worker sees one
            environment=prefix_environment() if cfg.command_prefix else worker_environment(cfg.device),
            log_path=log_dir / f"worker_{name}.log",
            startup_seconds=cfg.startup_timeout_sec,
            request_seconds=cfg.subprocess_timeout_sec,
            max_restarts=max_restarts,
        )

    def wait_until_ready(self) -> None:
        """Returns when the model is loaded. WorkerStartError, with the end of the worker's output, when that fails."""
        self._client.wait_until_ready()

    @property
    def identity(self) -> str:
        """The options, and what the worker tells of itself: library versions and fingerprints of the model's files,
        which stand for their names. Waits until the worker is ready.
        """
        settings = {key: value for key, value in self._options.items() if key != "batch_size" and "name" not in key}
        facts = self._client.wait_until_ready()
        return json.dumps({**settings, "use_reference": self._use_reference, **facts}, sort_keys=True)

    def score(self, batch: Sequence[Translation]) -> list[Score]:
        scores: dict[int, Score] = {}
        asked: list[int] = []
        for index, translation in enumerate(batch):
            if is_blank(translation.mt):
                scores[index] = Scored(self._worst)
                self._counts["blank"] += 1
            elif self._use_reference and translation.ref is None:
                scores[index] = Missing(f"reward.{self.name}.use_reference is on, and the example has no reference")
            else:
                asked.append(index)
        scores |= dict(zip(asked, self._ask([batch[index] for index in asked]), strict=True))
        self._counts["missing"] += sum(isinstance(score, Missing) for score in scores.values())
        return [scores[index] for index in range(len(batch))]

    def pop_counts(self) -> dict[str, int]:
        """What has happened since the last call, for the log: translations blank, truncated (in their source), skipped
        (too long), missing (skipped ones included), and restarts of the worker."""
        counts = {key: self._counts[key] for key in ("blank", "truncated", "skipped", "missing")}
        counts["restarts"] = self._client.restarts - self._restarts_told
        self._restarts_told += counts["restarts"]
        self._counts.clear()
        return counts

    def close(self) -> None:
        self._client.close()

    def _ask(self, batch: Sequence[Translation]) -> list[Score]:
        if not batch:
            return []
        texts = [normalize(translation.mt) for translation in batch]
        samples = [
            {"src": normalized(translation.src), "mt": text.text, "ref": self._reference(translation)}
            for translation, text in zip(batch, texts, strict=True)
        ]
        try:
            answer = self._client.score(samples)
        except WorkerFailed as failure:
            return [Missing(str(failure))] * len(batch)
        self._counts["truncated"] += answer["truncated"]
        self._counts["skipped"] += answer["skipped"]
        return [
            _read_result(result, text, translation.mt)
            for result, text, translation in zip(answer["results"], texts, batch, strict=True)
        ]

    def _reference(self, translation: Translation) -> str | None:
        return normalized(translation.ref) if self._use_reference and translation.ref is not None else None


def _read_result(result: Message, text: NormalizedText, mt: str) -> Score:
    """A worker's result, its spans given back in the characters of `mt`, of which `text` is the normal form."""
    if "missing" in result:
        return Missing(result["missing"])
    spans = []
    for span in result.get("spans", ()):
        start, end = text.original_range(span["start"], span["end"])
        spans.append(ErrorSpan(start, end, span["severity"].upper(), span["confidence"], mt[start:end]))
    return Scored(result["score"], tuple(spans))
