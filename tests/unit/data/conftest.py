"""Rows of a small data set, and writers of them."""

import json
from collections.abc import Callable
from pathlib import Path

import datasets  # noqa: F401 - its log handler keeps the stderr of its first import: not one that a test captures
import pytest


@pytest.fixture
def rows() -> list[dict]:
    return [{"id": f"r{n}", "src_text": f"Sentence {n}.", "ref_text": f"문장 {n}."} for n in range(20)]


@pytest.fixture
def write_rows(tmp_path) -> Callable[..., str]:
    """write_rows(rows, "a.jsonl") -> path; a row that is text is written as it is."""

    def write(rows: list, name: str = "data.jsonl") -> str:
        path = Path(tmp_path, name)
        if path.suffix == ".jsonl":
            lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        elif path.suffix == ".json":
            path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
        else:
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return str(path)

    return write
