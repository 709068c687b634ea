"""Runs of the toy job by two processes: the numbers of one process, SIGTERM, SIGKILL, an error on one host, resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jax_rl.checkpoint_export import export_checkpoint

SMALL = [
    "data.limit=24",
    "data.max_prompt_tokens=32",  # with the skipping, one width for all: each has programs of its own to compile
    "data.overlong_prompt_policy=skip",
    "generation.max_new_tokens=8",
    "generation.num_samples_per_prompt=4",
    "rl.batch_size=2",
    "rl.lr=1e-3",
    "eval.run_before_train=false",
    "eval.eval_every_n_updates=0",
    "eval.eval_limit=4",
    "eval.num_samples_per_prompt=1",
    "eval.baseline_temperature=null",
    "logging.tensorboard=false",
    "logging.save_every_n_updates=2",
    "reward.metricx.enabled=false",
    "reward.xcomet.enabled=false",
    "reward.w_chrf=1.0",
    "misc.heartbeat_timeout_sec=15",
    "misc.host_timeout_sec=240",
]


@pytest.fixture
def start_hosts(repo, small_policy, free_port, tmp_path):
    """Starts `python -m jax_rl.train` once for each host; kills what is left at the end."""
    started: list[subprocess.Popen] = []

    def start(count: int, out: Path, *overrides: str) -> list[subprocess.Popen]:
        address, processes = f"127.0.0.1:{free_port()}", []
        paths = [f"model.policy_name_or_path={small_policy}", f"logging.output_dir={out}"]
        paths.append(f"misc.compilation_cache_dir={repo / '.cache' / 'programs'}")
        for index in range(count):
            variables = {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
            }
            command = [sys.executable, "-m", "jax_rl.train", "--config", str(repo / "configs" / "train_toy.yaml")]
            with (tmp_path / f"host{index}.log").open("ab") as log:
                processes.append(
                    subprocess.Popen(
                        [*command, *SMALL, *paths, *overrides],
                        env={**os.environ, **variables},
                        cwd=repo,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        started.extend(processes)
        return processes

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def rows(out: Path) -> list[dict]:
    log = out / "train_log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return [row for row in map(json.loads, lines) if row["type"] == "train"]


def wait_for_update(update: int, out: Path, processes: list[subprocess.Popen], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not any(row["update"] >= update for row in rows(out)):
        assert time.monotonic() < end and all(p.poll() is None for p in processes)
        time.sleep(0.1)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def codes(processes: list[subprocess.Popen], seconds: float = 300) -> list[int]:
    return [process.wait(seconds) for process in processes]


def test_two_hosts_give_the_numbers_of_one_and_stop_and_go_on_together(start_hosts, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    hosts = start_hosts(2, together, "rl.updates=1000", "misc.profile_updates=[1]")
    wait_for_update(2, together, hosts)
    hosts[1].send_signal(signal.SIGTERM)
    assert codes(hosts) == [0, 0]
    stopped_at = rows(together)[-1]["update"]
    updates = stopped_at + 2

    other_mesh = "misc.cpu_devices=3"  # 3 does not divide 128: such matrices are held with zeros at their end
    assert codes(start_hosts(1, together, f"rl.updates={stopped_at}", other_mesh)) == [0]  # restores, writes `final`
    export_checkpoint(together / f"checkpoint-{stopped_at}", tmp_path / "saved")
    assert weights(together / "final") == weights(tmp_path / "saved")

    assert codes(start_hosts(1, together, f"rl.updates={updates}", other_mesh)) == [0]
    assert codes(start_hosts(1, alone, f"rl.updates={updates}")) == [0]
    assert [row["update"] for row in rows(together)] == list(range(1, updates + 1))
    for ours, theirs in zip(rows(together), rows(alone), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert ours["token_count"] == theirs["token_count"]
    profiles = (together / "profile").rglob("*.xplane.pb")
    assert {path.relative_to(together).parts[1:3] for path in profiles} == {("update-1", f"host-{i}") for i in (0, 1)}


def test_a_killed_host_ends_the_other_and_the_same_command_goes_on(start_hosts, tmp_path):
    hosts = start_hosts(2, tmp_path / "out", "rl.updates=1000")
    wait_for_update(2, tmp_path / "out", hosts)
    hosts[1].kill()
    killed = time.monotonic()
    assert hosts[0].wait(120) != 0
    print(f"\nthe other host ended {time.monotonic() - killed:.0f} s after the kill")
    done = rows(tmp_path / "out")[-1]["update"]
    assert codes(start_hosts(2, tmp_path / "out", f"rl.updates={done + 1}")) == [0, 0]
    assert [row["update"] for row in rows(tmp_path / "out")] == list(range(1, done + 2))


def test_an_error_on_one_host_ends_both_with_its_message(start_hosts, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "host-1").write_text("where host 1 would keep its scores")  # a file: its folder cannot be made
    hosts = start_hosts(2, out, "rl.updates=2")
    assert 0 not in codes(hosts)
    assert "host 1" in (tmp_path / "host0.log").read_text()
    assert "NotADirectoryError" in (tmp_path / "host0.log").read_text()
