"""The vocabulary that `schema.py` annotates its keys with: number ranges, and what a text stands for."""

import enum
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included unless `above` (low excluded) or `below` (high excluded)."""

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        low_ok = value > self.low if self.above else value >= self.low
        return low_ok and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        text = f"{'>' if self.above else '>='} {self.low:g}"
        return text if self.high == math.inf else f"{text} and {'<' if self.below else '<='} {self.high:g}"


class Role(enum.Enum):
    """What a text stands for, where it is more than text."""

    SECRET = "never written to a file or a log"
    FILE = "a file to read"
    FOLDER = "a folder to read"
    OUTPUT = "a folder that may not exist yet"
    PROGRAM = "a program: a path, or a bare name to be found on PATH"
    MODEL = "a folder or file if one is there, else a name on the hub"


Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]  # 0 and 1 included
PositiveShare = Annotated[float, Range(0, 1, above=True)]  # 1 included
OpenShare = Annotated[float, Range(0, 1, above=True, below=True)]
PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
AxisSize = Annotated[int, Range(-1)]  # 0 is refused by checks.py
Seed = Annotated[int, Range(0, 2**32 - 1)]

Secret = Annotated[str | None, Role.SECRET]
InputFile = Annotated[str | None, Role.FILE]
InputFolder = Annotated[str | None, Role.FOLDER]
OutputFolder = Annotated[str, Role.OUTPUT]
Program = Annotated[str | None, Role.PROGRAM]
HubName = Annotated[str, Role.MODEL]


def marks(hint: Any) -> Iterator[Any]:
    """The `Range` and `Role` marks of a type, also those inside `X | None`."""
    yield from getattr(hint, "__metadata__", ())
    for argument in get_args(hint):
        if not isinstance(argument, (Range, Role)):
            yield from marks(argument)


def role_of(hint: Any) -> Role | None:
    return next((mark for mark in marks(hint) if isinstance(mark, Role)), None)


def type_hints(cls: type) -> dict[str, Any]:
    """Each key of a section with its type, marks included."""
    return get_type_hints(cls, include_extras=True)


def walk(cfg: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, type, value) of every key of a config or one of its sections, in the order of the schema."""
    for item in fields(cfg):
        key, value = prefix + item.name, getattr(cfg, item.name)
        if is_dataclass(value):
            yield from walk(value, key + ".")
        else:
            yield key, type_hints(type(cfg))[item.name], value
