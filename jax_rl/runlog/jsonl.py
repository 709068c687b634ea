"""Logs as JSON lines: every row reaches the file whole, and a resumed run cuts what lies past its checkpoint."""

import dataclasses
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

log = logging.getLogger(__name__)


class JsonLines:
    """Appends rows to a file. They are with the system when a call returns: a kill tears at most the last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "ab+")
        if self._file.tell() and self._file.seek(-1, os.SEEK_END) >= 0 and self._file.read(1) != b"\n":
            self._file.write(b"\n")  # after a torn row, which would spoil the next one too

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes one line a row. Numbers that are not finite become null."""
        self._file.write(b"".join([_encode(row) for row in rows]))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def truncate_after(path: Path, update: int, *, with_its_evaluation: bool = False) -> None:
    """Drops the rows of `path` whose `update` is past the given one, and a last line that a kill tore.

    with_its_evaluation: and those of the update's own evaluation (`type` eval), but not of one without training.

    The file is replaced whole or not at all. A damaged line elsewhere stays, with a warning: it is not ours to lose.
    """
    if not path.exists():
        return
    kept_to = path.with_name(path.name + ".new")
    with open(path, "rb") as old, open(kept_to, "wb") as new:
        for number, line in enumerate(old, start=1):
            if not line.endswith(b"\n"):
                continue  # torn; the row is written again
            row = _read(line, f"{path}:{number}")
            at = row.get("update")
            evaluation = row.get("type") == "eval" and not row.get("eval_only")
            if not (isinstance(at, int) and (at > update or (at == update and with_its_evaluation and evaluation))):
                new.write(line)
        new.flush()
        os.fsync(new.fileno())
    os.replace(kept_to, path)


def to_json(value: Any) -> Any:
    """`value` in the types that JSON has: numpy and dataclasses become plain, what is not finite becomes null."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_json(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "__array__"):  # numpy's scalars and arrays, and JAX's
        array = np.asarray(value)
        wide = array.astype(np.float64) if array.dtype.kind not in "biuOSU" else array  # bfloat16 too
        return to_json(wide.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written to a log: {value!r}")


def _encode(row: Mapping[str, Any]) -> bytes:
    plain = to_json(row)
    try:
        return json.dumps(plain, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8; as an escape it survives
        return json.dumps(plain, allow_nan=False).encode() + b"\n"


def _read(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        log.warning("%s: is not JSON; kept as it is", where)
        return {}
    return row if isinstance(row, dict) else {}
