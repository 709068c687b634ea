"""Rows of the user's data, each with the place it came from: JSON lines, JSON, Parquet, Hugging Face data sets."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax_rl.errors import UserError


class DataError(UserError):
    """Data that cannot be used; the message names the file, the line or row, and what is wrong."""


@dataclass(frozen=True)
class Row:
    where: str  # for messages: file and line, or data set and row
    number: int  # counted from 0 over the whole source; stands in for a missing id
    fields: dict[str, Any]


def read_file(path: str) -> Iterator[Row]:
    """Rows of a .jsonl, .json or .parquet file. Raises DataError."""
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}
    file = Path(path)
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: cannot read {file.suffix or 'a file without suffix'}; there are {', '.join(readers)}")
    if not file.is_file():
        raise DataError(f"{path}: {'is a folder, not a file' if file.is_dir() else 'there is no such file'}")
    for number, (where, value) in enumerate(reader(file)):
        if not isinstance(value, dict):
            raise DataError(f"{where}: must be a JSON object with one field per column, not {describe(value)}")
        yield Row(where, number, value)


def read_dataset(name: str, config: str | None, split: str, revision: str | None, streaming: bool) -> Iterator[Row]:
    """Rows of one split of a hub data set, of a folder with data files, or of a folder that `save_to_disk` wrote.

    Raises DataError where the set, its configuration or its split cannot be loaded.
    """
    import datasets  # seconds to import, and most runs read files

    try:
        if any((Path(name) / marker).is_file() for marker in ("dataset_dict.json", "state.json")):
            rows = _saved_split(datasets.load_from_disk(name), name, split)
        else:
            rows = datasets.load_dataset(name, config, split=split, revision=revision, streaming=streaming)
        for number, fields in enumerate(rows):
            yield Row(f"{name}, split {split}, row {number} (from 0)", number, fields)
    except DataError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        # that library wraps what went wrong in an error that says only where
        reason = " ".join((f"{error}: {error.__cause__}" if error.__cause__ else str(error)).split())
        raise DataError(f"data.hf_dataset_name {name!r}, split {split!r}: {reason}") from error


def describe(value: Any) -> str:
    """A value in a message: its kind, and itself where it is short."""
    if value is None:
        return "null"
    kinds = {bool: "", int: "the number ", float: "the number ", str: "the text ", list: "a list", dict: "an object"}
    kind = kinds.get(type(value), f"a {type(value).__name__}")
    return kind if isinstance(value, (list, dict)) or type(value) not in kinds else kind + json.dumps(value)[:60]


def _read_jsonl(file: Path) -> Iterator[tuple[str, Any]]:
    # split at line feeds alone: a text may hold the other characters that Python calls line ends
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file}, line {number}"
            text = _decode(line, where).removeprefix("\ufeff" if number == 1 else "")
            if text.strip():
                yield where, _parse(text, where)


def _read_json(file: Path) -> Iterator[tuple[str, Any]]:
    value = _parse(_decode(file.read_bytes(), str(file)).removeprefix("\ufeff"), str(file))
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise DataError(f'{file}: must hold a list of rows, or {{"data": [rows]}}, not {describe(rows)}')
    for number, row in enumerate(rows):
        yield f"{file}, row {number} (from 0)", row


def _read_parquet(file: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
            for row in batch.to_pylist():
                yield f"{file}, row {number} (from 0)", row
                number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a whole Parquet file: {error}") from error


def _saved_split(saved: Any, name: str, split: str) -> Any:
    if isinstance(saved, dict):
        if split not in saved:
            raise DataError(f"{name}: there is no split {split!r}; there are {', '.join(saved)}")
        return saved[split]
    if saved.split is not None and str(saved.split) != split:
        raise DataError(f"{name}: holds the split {str(saved.split)!r} alone, not {split!r}")
    return saved


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {error.start}: {error.reason}") from error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise DataError(f"{where}: broken JSON at {line}column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets thousands deep
        raise DataError(f"{where}: JSON that cannot be read: {error}") from error
