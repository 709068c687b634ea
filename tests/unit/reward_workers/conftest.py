"""Tiny random checkpoints in the real formats, made in the workers' own environments."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jax_rl.rewards.types import Translation

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several small processes at once: more threads only get in the way

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[2]


class TinyModel:
    """A checkpoint `folder`, the `python` of its worker, and what the library itself computes (see the scripts)."""

    def __init__(self, kind: str, folder: Path, *arguments: object):
        self.folder, self.python = str(folder), str(_ROOT / f".venv-{kind}" / "bin" / "python")
        assert Path(self.python).exists(), f"there is no {self.python}: `make workers` builds it"
        command = [self.python, str(_HERE / f"tiny_{kind}.py"), str(folder), *map(str, arguments)]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-3000:]
        self.expected: dict[str, Any] = json.loads((folder / "expected.json").read_text())

    def translations(self, change: Callable[[str], str] = str) -> list[Translation]:
        return [translation(**{key: change(text) for key, text in pair.items()}) for pair in self.expected["pairs"]]


def translation(src: str, mt: str, ref: str | None) -> Translation:
    return Translation(src, mt, ref, "English", "Korean")


@pytest.fixture(scope="module")
def log_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="session")
def tiny_metricx(tmp_path_factory):
    return TinyModel("metricx", tmp_path_factory.mktemp("metricx") / "model", 120)


@pytest.fixture(scope="session")
def tiny_xcomet(tmp_path_factory):
    return TinyModel("xcomet", tmp_path_factory.mktemp("xcomet") / "model")
