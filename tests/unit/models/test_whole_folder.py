"""A folder appears whole or not at all, whatever stops the writer."""

import os
import signal
import subprocess
import sys

import pytest

from jax_rl.models.whole_folder import whole_folder


def write(target, text):
    with whole_folder(target) as folder:
        (folder / "file").write_text(text)


def test_a_folder_is_replaced_and_nothing_else_stays(tmp_path):
    write(tmp_path / "best", "one")
    (tmp_path / "best" / "stale").touch()
    write(tmp_path / "best", "two")
    assert [p.name for p in tmp_path.iterdir()] == ["best"]
    assert {p.name: p.read_text() for p in (tmp_path / "best").iterdir()} == {"file": "two"}


def test_a_failure_leaves_the_old_folder(tmp_path):
    write(tmp_path / "best", "one")
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "best") as folder:
        (folder / "file").write_text("two")
        raise KeyboardInterrupt
    assert (tmp_path / "best" / "file").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


KILLED = """
import os, signal, sys
from pathlib import Path
from jax_rl.models import whole_folder as module
renames, rename = [], os.rename
def rename_or_die(a, b):
    if len(renames) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    renames.append(a); rename(a, b)
os.rename = rename_or_die
with module.whole_folder(Path(sys.argv[1])) as folder:
    (folder / "file").write_text("two")
"""


@pytest.mark.parametrize("renames_done", [0, 1])
def test_a_kill_before_either_rename_loses_nothing(tmp_path, renames_done):
    write(tmp_path / "best", "one")
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "best", str(renames_done)])
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "best"):  # the next writer mends, even if it fails
        1 / 0  # noqa: B018
    assert (tmp_path / "best" / "file").read_text() == "one"
    write(tmp_path / "best", "three")
    assert (tmp_path / "best" / "file").read_text() == "three"
    assert os.listdir(tmp_path) == ["best"]
