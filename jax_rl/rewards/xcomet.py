"""XCOMET: a score, 1 is perfect, and error spans."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jax_rl.config.schema import XCometConfig
from jax_rl.rewards.types import Score, Scored, Translation
from jax_rl.rewards.worker_metric import WorkerMetric

WORST, BEST = 0.0, 1.0


class XCometMetric(WorkerMetric):
    """Starts the worker at once."""

    def __init__(self, cfg: XCometConfig, max_restarts: int, log_dir: Path):
        super().__init__(
            "xcomet",
            cfg,
            options={
                "model_name": cfg.model_name,
                "encoder_name": cfg.encoder_name,
                "batch_size": cfg.batch_size,
                "overflow_policy": cfg.overflow_policy,
            },
            worst=WORST,
            max_restarts=max_restarts,
            log_dir=log_dir,
        )

    def score(self, batch: Sequence[Translation]) -> list[Score]:
        """The library's scores, held to 0..1: a linear head may leave them a little below."""
        return [
            replace(score, value=min(max(score.value, WORST), BEST)) if isinstance(score, Scored) else score
            for score in super().score(batch)
        ]
