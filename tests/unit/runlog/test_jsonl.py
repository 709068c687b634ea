"""JSON lines: what is written, what a kill leaves, what a resumed run cuts."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_rl.files import move_aside
from jax_rl.rewards.types import ErrorSpan
from jax_rl.runlog.jsonl import JsonLines, to_json, truncate_after


def write(path: Path, *rows: dict) -> None:
    with JsonLines(path) as file:
        file.append(rows)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_numbers_of_numpy_and_jax_become_plain(tmp_path: Path) -> None:
    row = {
        "f32": np.float32(0.5), "i64": np.int64(3), "flag": np.bool_(True), "bf16": ml_dtypes.bfloat16(1.5),
        "array": np.arange(3), "jax": jnp.float32(2.5), "jax_bf16": jnp.ones(2, jnp.bfloat16), "list": (1, [None]),
        "span": ErrorSpan(0, 2, "MAJOR", None, "안녕"), "path": Path("/a/b"),
    }  # fmt: skip
    write(tmp_path / "x.jsonl", row)
    assert read(tmp_path / "x.jsonl") == [{
        "f32": 0.5, "i64": 3, "flag": True, "bf16": 1.5, "array": [0, 1, 2], "jax": 2.5, "jax_bf16": [1.0, 1.0],
        "list": [1, [None]], "path": "/a/b",
        "span": {"start": 0, "end": 2, "severity": "MAJOR", "confidence": None, "text": "안녕"},
    }]  # fmt: skip
    assert "안녕" in (tmp_path / "x.jsonl").read_text()


@pytest.mark.parametrize(
    "value", [float("nan"), float("-inf"), np.float32("nan"), np.array([np.inf])[0], jnp.float32(jnp.nan)]
)
def test_what_is_not_finite_becomes_null(tmp_path: Path, value: object) -> None:
    write(tmp_path / "x.jsonl", {"a": value, "b": {"c": [value]}})
    assert read(tmp_path / "x.jsonl") == [{"a": None, "b": {"c": [None]}}]


def test_what_has_no_place_in_a_log_is_refused() -> None:
    with pytest.raises(TypeError, match="object"):
        to_json({"a": object()})


@given(st.text(alphabet=st.characters(exclude_categories=[])))
def test_any_text_survives_on_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("log") / "x.jsonl"
    write(path, {"text": text}, {"next": 1})
    first, second = path.read_bytes().split(b"\n")[:-1]
    assert (json.loads(first), json.loads(second)) == ({"text": text}, {"next": 1})


def test_an_evaluation_that_is_made_again_is_cut(tmp_path: Path) -> None:
    """Of a checkpoint that was saved in the middle of it; not that of `--eval-only`."""
    rows = [{"type": kind, "update": n} for n in (1, 2) for kind in ("train", "eval")]
    alone = {"type": "eval", "update": 2, "eval_only": True}
    write(tmp_path / "x.jsonl", *rows, alone, {"type": "train", "update": 3})
    truncate_after(tmp_path / "x.jsonl", 2, with_its_evaluation=True)
    assert read(tmp_path / "x.jsonl") == [*rows[:3], alone]


def test_a_row_after_a_torn_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"update": 1}\n{"upd')
    write(path, {"update": 2})
    assert [json.loads(line) for line in path.read_text().splitlines()[::2]] == [{"update": 1}, {"update": 2}]
    write(path, {"update": 3})
    assert path.read_text().endswith('{"update": 2}\n{"update": 3}\n')


def test_a_resumed_run_cuts_later_rows_and_the_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    rows = [{"type": "eval", "update": 0}, {"update": 1}, {"update": 2}, {"type": "eval", "update": 2}, {"update": 3}]
    write(path, *rows)
    before = path.read_bytes()
    path.write_bytes(before + b'{"update": 1, "half')
    truncate_after(path, 2)
    assert path.read_bytes() == b"".join(before.splitlines(keepends=True)[:4])
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]
    truncate_after(tmp_path / "none.jsonl", 2)
    assert not (tmp_path / "none.jsonl").exists()


def test_a_whole_row_without_its_newline_counts_as_torn(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"update": 1}\n{"update": 2}')
    truncate_after(path, 9)
    write(path, {"update": 2})
    assert read(path) == [{"update": 1}, {"update": 2}]


def test_a_damaged_line_in_the_middle_is_kept_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"update": 1}\n\x00\x00\n{"update": 2}\n{"no_update": 1}\n')
    with caplog.at_level(logging.WARNING):
        truncate_after(path, 1)
    assert path.read_bytes() == b'{"update": 1}\n\x00\x00\n{"no_update": 1}\n'
    assert f"{path}:2" in caplog.text


def test_an_earlier_log_is_moved_aside_and_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    assert move_aside(path) is None
    for run in (1, 2):
        write(path, {"run": run})
        assert move_aside(path) == tmp_path / f"x.jsonl.old-{run}"
        assert read(tmp_path / f"x.jsonl.old-{run}") == [{"run": run}]
    assert not path.exists()


WRITER = """
import sys
from pathlib import Path
from jax_rl.runlog.jsonl import JsonLines
with JsonLines(Path(sys.argv[1])) as file:
    for update in range(1, 10**9):
        file.append([{"update": update, "text": "x" * 5000}])
        print(update, flush=True)
"""


def test_every_row_that_was_appended_outlives_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    while int(process.stdout.readline()) < 50:
        pass
    os.kill(process.pid, signal.SIGKILL)
    last = [int(line) for line in process.stdout.read().splitlines() if line][-1:]
    process.stdout.close()
    process.wait()
    truncate_after(path, 10**9)
    updates = [row["update"] for row in read(path)]
    assert updates == list(range(1, len(updates) + 1))
    assert len(updates) >= max([50, *last])
