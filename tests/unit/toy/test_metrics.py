"""The committed tiny metrics keep what they promise on held-out pairs, through the workers' code and environments."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from jax_rl.toy import text

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    for name, pairs in text.split_pairs(text.read_pairs()).items():
        text.write_jsonl(folder / f"{name}.jsonl", pairs)
    return folder


def evaluate(metric: str, data: Path, *only: str) -> dict[str, Any]:
    python = ROOT / f".venv-{metric}" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no {python}: `make workers` builds it")
    out = data / f"{metric}.json"
    command = [str(python), "-W", "ignore", "-m", "reward_workers.toy.evaluate", metric, f"configs/toy/{metric}"]
    done = subprocess.run(
        [*command, "--data", str(data), "--json", str(out), "--only", *only],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def test_xcomet_ranks_errors_and_marks_them(data: Path) -> None:
    found = evaluate("xcomet", data, "loop", "copy", "stub")
    assert found["spearman"] >= 0.55
    assert found["span_f1"] >= 0.6
    assert min(found[kind]["clean_better"] for kind in ("loop", "copy", "stub")) >= 0.8


def test_metricx_ranks_errors_and_does_not_reward_repetition(data: Path) -> None:
    found = evaluate("metricx", data, "repeat", "loop", "double", "last word x 6", "one dot")
    assert found["spearman"] >= 0.45
    for kind in ("repeat", "loop", "double", "last word x 6", "one dot"):
        assert found[kind]["clean_better"] >= 0.8, kind
