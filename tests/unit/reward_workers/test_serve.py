"""How a worker process begins and ends, beyond what the client's tests show."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from reward_workers.protocol import Channel

ROOT = Path(__file__).parents[3]
FAKE_WORKER = [sys.executable, str(Path(__file__).parent / "fake_worker.py")]


def test_over_stdin_and_stdout_a_librarys_prints_go_elsewhere(tmp_path):
    """As behind ssh or srun: only the frames may come out of its stdout, from Python or from C."""
    log = tmp_path / "log"
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    with open(log, "wb") as file:
        worker = subprocess.Popen([*FAKE_WORKER, "--stdio"], stdin=theirs_in, stdout=theirs_out, stderr=file)
    os.close(theirs_in)
    os.close(theirs_out)
    channel = Channel(ours_in, ours_out)
    channel.send({"id": 1, "op": "load", "args": {}})
    assert channel.receive() == {"id": 1, "result": {"model": "fake"}}
    channel.send({"id": 2, "op": "score", "args": {"samples": [{"mt": "abc", "do": ["noise", 100]}]}})
    assert channel.receive()["result"]["results"] == [{"score": 3.0}]
    channel.close()
    assert worker.wait(60) == 0
    assert "Predicting" in log.read_text() and "from C" in log.read_text()


def test_a_worker_whose_parent_is_not_the_trainer_ends_and_says_so():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [*FAKE_WORKER, "--fd", str(theirs.fileno()), "--parent", "1"]
        run = subprocess.run(command, pass_fds=[theirs.fileno()], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert "and not the trainer, 1" in run.stderr


def test_ctrl_c_is_not_for_the_worker():
    ours, theirs = socket.socketpair()
    command = [*FAKE_WORKER, "--fd", str(theirs.fileno()), "--parent", str(os.getpid())]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL) as worker:
        theirs.close()
        fd = ours.detach()
        channel = Channel(fd, fd)
        for request in range(2):
            channel.send({"id": request, "op": "load", "args": {}})
            assert channel.receive()["id"] == request
            worker.send_signal(signal.SIGINT)
        channel.close()
        assert worker.wait(60) == 0


@pytest.mark.parametrize("kind", ["metricx", "xcomet"])
def test_the_package_is_found_without_being_installed_and_brings_nothing_else(kind, tmp_path):
    """Run from elsewhere by a Python that has none of the requirements: it fails at the first of them, not before, and
    the trainer's folder, with all that lies beside the package, does not come onto its path.
    """
    command = [sys.executable, "-I", "-S", str(ROOT / "reward_workers"), kind, "--stdio"]
    run = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert "No module named 'torch'" in run.stderr
    probe = "import runpy, sys; sys.argv = ['x', '--help']\ntry: runpy.run_path({!r}, run_name='__main__')\n"
    probe += "except SystemExit: pass\nimport reward_workers.protocol, importlib.util\n"
    probe += "assert importlib.util.find_spec('jax_rl') is None and importlib.util.find_spec('protocol') is None"
    code = probe.format(str(ROOT / "reward_workers"))
    run = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
