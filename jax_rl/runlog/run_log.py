"""Everything that a run tells: its JSON lines, TensorBoard scalars, progress, and the report at its end."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jax_rl.config.schema import Config
from jax_rl.files import move_aside
from jax_rl.runlog.jsonl import JsonLines, truncate_after
from jax_rl.runlog.progress import RunProgress
from jax_rl.runlog.tables import Evaluated, print_report
from jax_rl.runlog.tensorboard import Scalars

log = logging.getLogger(__name__)
Row = Mapping[str, Any]


def append_evaluation(output_dir: Path, cfg: Config, update: int, row: Row, outputs: Sequence[Row]) -> None:
    """Adds an evaluation without training to a run's log and outputs, beside a trainer that may be writing them."""
    output_dir.mkdir(parents=True, exist_ok=True)
    names = cfg.logging
    with JsonLines(output_dir / names.jsonl_name) as file:
        file.append([{"type": "eval", "update": update, "eval_only": True, **row}])
    if outputs:
        with JsonLines(output_dir / names.eval_output_jsonl_name) as file:
            file.append([{"eval_only": True, **output} for output in outputs])


class NoLog:
    """What the hosts that do not write have for a `RunLog`."""

    def train(self, update: int, row: Row) -> None: ...

    def evaluation(self, update: int, row: Row) -> None: ...

    def rollouts(self, rows: Iterable[Row]) -> None: ...

    def eval_outputs(self, rows: Iterable[Row]) -> None: ...

    def finish(self, before: Evaluated | None, after: Evaluated | None) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class RunLog:
    """The log files of one output folder.

    Args:
        resume_update: the update of the checkpoint that the run goes on from: rows past it are cut. None for a new run:
            logs of an earlier one in the same folder are kept under another name.
        evaluates_again: whether the checkpoint does not know of its own update's evaluation: that one's rows are cut
            too, if it has come as far as writing them.
    """

    def __init__(
        self, output_dir: Path, cfg: Config, resume_update: int | None, *, evaluates_again: bool = False
    ) -> None:
        names = cfg.logging
        self._paths = {
            "log": output_dir / names.jsonl_name,
            "rollouts": output_dir / names.rollout_jsonl_name,
            "eval_outputs": output_dir / names.eval_output_jsonl_name,
        }
        for path in self._paths.values():
            if resume_update is not None:
                truncate_after(path, resume_update, with_its_evaluation=evaluates_again)
            elif (kept := move_aside(path)) is not None:
                log.warning("%s is of an earlier run; kept as %s", path, kept.name)
        self._files: dict[str, JsonLines] = {}
        self._scalars = Scalars(output_dir / "tensorboard", resume_update) if names.tensorboard else None
        self._progress = RunProgress(cfg.rl.updates, resume_update or 0)

    def train(self, update: int, row: Row) -> None:
        """One update: a `train` row, its scalars, and the progress."""
        self._write("log", [{"type": "train", "update": update, **row}])
        if self._scalars:
            self._scalars.write(update, "train", row)
        self._progress.advance(update, row)

    def evaluation(self, update: int, row: Row) -> None:
        """One evaluation: an `eval` row, its scalars, and a line."""
        self._write("log", [{"type": "eval", "update": update, **row}])
        if self._scalars:
            self._scalars.write(update, "eval", row)
        score = row.get("model_select_score")
        self._progress.say(
            f"evaluation at update {update}: model_select_score {'-' if score is None else f'{score:.4f}'}"
        )

    def rollouts(self, rows: Iterable[Row]) -> None:
        """Sampled completions; each row carries its `update`."""
        self._write("rollouts", rows)

    def eval_outputs(self, rows: Iterable[Row]) -> None:
        """Translations of an evaluation; each row carries its `update`."""
        self._write("eval_outputs", rows)

    def finish(self, before: Evaluated | None, after: Evaluated | None) -> None:
        """Prints what the run changed."""
        self._progress.close()
        if after is not None:
            print_report(before, after)

    def close(self) -> None:
        self._progress.close()
        for file in self._files.values():
            file.close()
        if self._scalars:
            self._scalars.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _write(self, name: str, rows: Iterable[Row]) -> None:
        if name not in self._files:
            self._files[name] = JsonLines(self._paths[name])
        self._files[name].append(rows)
