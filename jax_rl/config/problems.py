"""What is wrong with a configuration, collected so that all of it is reported at once."""

from collections.abc import Iterable
from dataclasses import dataclass

from jax_rl.errors import UserError


@dataclass(frozen=True)
class Problem:
    """`keys` are the dotted keys that the text is about, the first of them the one to look at."""

    keys: tuple[str, ...]
    text: str
    line: int | None = None  # in the YAML file, where it is not simply the first key's

    def __str__(self) -> str:
        return f"{self.keys[0]}: {self.text}" if self.keys else self.text


class ConfigError(UserError):
    """A configuration that cannot be used. `problems` holds one readable line each."""

    def __init__(self, source: str, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            message = f"{source}: {self.problems[0]}"
        else:
            message = "\n  ".join([f"{source}: {len(self.problems)} problems", *self.problems])
        super().__init__(message)
