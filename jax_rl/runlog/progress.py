"""How far a run is: a bar on a terminal, a plain line an update elsewhere."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text


class RunProgress:
    """Shows update, reward, KL, tokens/s and time left.

    Args:
        total: updates of the whole run.
        done: updates that were made before this session.
        console: where to show it; stderr by default, so that stdout stays for results.
    """

    def __init__(self, total: int, done: int = 0, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._total = total
        self._first: tuple[int, float] | None = None  # number and time of the first update, which also compiles
        self._bar = None
        if self.console.is_terminal:
            columns = (TextColumn("update"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[figures]}"))
            self._bar = Progress(*columns, console=self.console)
            self._task = self._bar.add_task("update", total=total, completed=done, figures="first update ...")
            self._bar.start()

    def advance(self, update: int, row: Mapping[str, Any]) -> None:
        """Shows a `train` row: its `reward_mean`, `kl_to_reference` and `rollout_tokens_per_second`."""
        figures = "  ".join([
            f"reward {_number(row.get('reward_mean'), '.3f')}",
            f"KL {_number(row.get('kl_to_reference'), '.2g')}",
            f"{_number(row.get('rollout_tokens_per_second'), ',.0f')} tokens/s",
            f"{self._time_left(update)} left",
        ])  # fmt: skip
        if self._bar:
            self._bar.update(self._task, completed=update, figures=figures)
        else:
            self.say(f"update {update}/{self._total}  {figures}")

    def say(self, text: str) -> None:
        """One line of its own, above the bar where there is one."""
        self.console.print(Text(text), soft_wrap=True)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _time_left(self, update: int) -> str:
        if self._first is None:
            self._first = (update, time.monotonic())
            return "?"
        first, start = self._first
        seconds = round((time.monotonic() - start) / (update - first) * (self._total - update))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
