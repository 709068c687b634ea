"""MetricX-24: an error score in 0..25, 0 is perfect."""

from pathlib import Path

from jax_rl.config.schema import MetricXConfig
from jax_rl.rewards.worker_metric import WorkerMetric

WORST = 25.0


class MetricXMetric(WorkerMetric):
    """Starts the worker at once."""

    def __init__(self, cfg: MetricXConfig, max_restarts: int, log_dir: Path):
        super().__init__(
            "metricx",
            cfg,
            options={
                "model_name": cfg.model_name,
                "tokenizer_name": cfg.tokenizer_name,
                "dtype": cfg.dtype,
                "batch_size": cfg.batch_size,
                "max_input_length": cfg.max_input_length,
                "overflow_policy": cfg.overflow_policy,
            },
            worst=WORST,
            max_restarts=max_restarts,
            log_dir=log_dir,
        )
