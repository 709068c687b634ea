"""XCOMET: a score, 1 is perfect, and error spans."""

from pathlib import Path

from jax_rl.config.schema import XCometConfig
from jax_rl.rewards.worker_metric import WorkerMetric

WORST = 0.0


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
