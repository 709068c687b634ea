"""Where a run is, besides its arrays: what `meta.json` of a checkpoint holds."""

from dataclasses import dataclass

import yaml

from jax_rl.config import Config, dump_config
from jax_rl.evaluate import EvalReport


@dataclass
class Progress:
    mesh: dict[str, int]  # sizes of the policy's mesh, which decide in what shapes parameters are held
    update: int = 0
    best_score: float | None = None
    best_update: int | None = None
    baseline: EvalReport | None = None  # of update 0
    latest: EvalReport | None = None
    latest_update: int | None = None

    def owes_evaluation(self, cfg: Config) -> bool:
        """Whether the present weights are to be evaluated and have not been.

        A run that was stopped before an evaluation, or in it, makes it when it goes on.
        """
        if self.latest_update == self.update:
            return False
        if self.update == 0:
            return cfg.eval.run_before_train
        return self.update == cfg.rl.updates or is_due(self.update, cfg.eval.eval_every_n_updates)

    def to_meta(self, cfg: Config) -> dict:
        return {
            "update": self.update,
            "data_position": {"next_update": self.update + 1, "prompts_drawn": self.update * cfg.rl.batch_size},
            "config": config_dict(cfg),
            "mesh": self.mesh,
            "best_score": self.best_score,
            "best_update": self.best_update,
            "baseline": self.baseline.to_json() if self.baseline else None,
            "latest": self.latest.to_json() if self.latest else None,
            "latest_update": self.latest_update,
        }

    @classmethod
    def from_meta(cls, meta: dict, mesh: dict[str, int]) -> "Progress":
        return cls(
            mesh=mesh,
            update=meta["update"],
            best_score=meta["best_score"],
            best_update=meta["best_update"],
            baseline=EvalReport.from_json(meta["baseline"]) if meta["baseline"] else None,
            latest=EvalReport.from_json(meta["latest"]) if meta["latest"] else None,
            latest_update=meta["latest_update"],
        )


def is_due(update: int, every: int) -> bool:
    """Whether something that happens after `every` updates (0: never) happens after this one."""
    return every > 0 and update % every == 0


def config_dict(cfg: Config) -> dict:
    """The config as plain data, without secrets."""
    return yaml.safe_load(dump_config(cfg))


def changed_keys(old: dict, new: dict, prefix: str = "") -> list[str]:
    """`section.key: old -> new` for every leaf that differs."""
    changes = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += changed_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            changes.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return changes
