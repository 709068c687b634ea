"""Kills of the trainer and of a worker: the run that goes on is bit for bit the run that was never stopped."""

import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def uninterrupted(folder, finished_training):
    """The run that the others are compared with."""
    return finished_training(folder / "uninterrupted")


def assert_same_run(run, reference):
    assert run.kinds() == reference.kinds()
    for row, expected in zip(run.log(), reference.log()):
        assert row == expected
    ours, theirs = (load_file(r.log_path.parent / "final" / "model.safetensors") for r in (run, reference))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_sigkill_of_the_trainer_between_checkpoints(folder, start_training, uninterrupted):
    """Killed after update 5; the newest checkpoint is update 4's, so update 5 is made again."""
    killed = start_training(folder / "killed")
    killed.wait_for_update(5)
    killed.kill()
    assert killed.kinds()[-1] == ("train", 5)
    resumed = start_training(folder / "killed")
    assert resumed.finish() == 0, resumed.stderr[-3000:]
    assert "resumed" in resumed.stderr and "at update 4" in resumed.stderr
    assert_same_run(resumed, uninterrupted)


def test_sigkill_of_a_worker_in_the_middle_of_a_request(folder, start_training, uninterrupted):
    """The worker is stopped, so that the next request reaches it and stays with it, and then killed."""
    run = start_training(folder / "worker_killed")
    run.wait_for_update(1)
    worker = run.workers()["metricx"]
    os.kill(worker, signal.SIGSTOP)
    before = len(run.log())
    time.sleep(4)
    assert len(run.log()) <= before + 1, "the trainer should be waiting for the stopped worker"
    os.kill(worker, signal.SIGKILL)
    assert run.finish() == 0, run.stderr[-3000:]
    lines = [line for line in run.stderr.splitlines() if "restart" in line]
    assert len(lines) == 1 and "metricx worker" in lines[0] and "SIGKILL" in lines[0] and "restart 1 of 3" in lines[0]
    assert_same_run(run, uninterrupted)


def test_sigterm_saves_and_the_same_command_goes_on(folder, start_training, uninterrupted):
    stopped = start_training(folder / "terminated")
    stopped.wait_for_update(1)
    stopped.process.send_signal(signal.SIGTERM)
    assert stopped.finish() == 0, stopped.stderr[-3000:]
    assert "SIGTERM: stopped after update" in stopped.stderr
    assert not (folder / "terminated" / "final").exists()
    resumed = start_training(folder / "terminated")
    assert resumed.finish() == 0, resumed.stderr[-3000:]
    assert_same_run(resumed, uninterrupted)


def test_sigterm_before_the_first_evaluation_costs_nothing(folder, start_training, uninterrupted):
    """While the workers load: what was not evaluated is evaluated by the next start."""
    stopped = start_training(folder / "early")
    stopped.wait_for("its handler", lambda: catches_sigterm(stopped.process.pid))
    stopped.process.send_signal(signal.SIGTERM)
    assert stopped.finish() == 0, stopped.stderr[-3000:]
    assert "SIGTERM: stopped after update 0" in stopped.stderr and not stopped.log()
    resumed = start_training(folder / "early", "rl.updates=3")
    assert resumed.finish() == 0, resumed.stderr[-3000:]
    reference = uninterrupted.log()[: len(resumed.log())]
    assert resumed.log() == reference and reference[0]["type"] == "eval"


def catches_sigterm(pid):
    caught = re.search(r"SigCgt:\s+([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_a_killed_trainer_leaves_no_worker_behind(folder, start_training):
    run = start_training(folder / "orphans")
    run.wait_for("both workers", lambda: len(run.workers()) == 2)
    workers = run.workers()
    run.kill()
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers.values()):
        assert time.monotonic() < end, f"still there: {workers}"
        time.sleep(0.1)


def test_a_lora_run_goes_on_bit_for_bit(folder, start_training):
    """Killed after update 3, so that update 3 is made again from the adapters of checkpoint-2."""
    lora = ["model.lora={enabled: true, rank: 4, alpha: 8}", "rl.updates=4"]
    whole = start_training(folder / "lora", *lora, workers=False)
    killed = start_training(folder / "lora_killed", *lora, workers=False)
    killed.wait_for_update(3)
    killed.kill()
    resumed = start_training(folder / "lora_killed", *lora, workers=False)
    assert (whole.finish(), resumed.finish()) == (0, 0), resumed.stderr[-3000:]
    assert "resumed" in resumed.stderr and "at update 2" in resumed.stderr
    assert_same_run(resumed, whole)
    sizes = [sum(f.stat().st_size for f in (folder / "lora" / name).rglob("*")) for name in ("checkpoint-4", "final")]
    assert sizes[0] < sizes[1] / 4, "adapters with their moments against the whole model"
    rows = [row for row in whole.log() if row["type"] == "train"]
    assert rows[0]["kl_to_reference"] < 1e-10 and rows[-1]["kl_to_reference"] > 1e-6
