"""Several real processes on one machine, joined by JAX's coordination service."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest


@pytest.fixture
def free_port():
    """A function that finds a port nobody listens on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find


@dataclass
class Ended:
    """One process: its exit code, what it printed, and the seconds from the start of all to its end."""

    code: int
    output: str
    seconds: float


@pytest.fixture
def run_together(repo, tmp_path):
    """Runs commands side by side, each with its own variables, until all have ended; kills what is left."""

    def run(commands: Sequence[tuple[Sequence[str], dict[str, str]]], seconds: float = 120) -> list[Ended]:
        base = {**os.environ, "PYTHONPATH": str(repo), "JAX_PLATFORMS": "cpu"}
        start, processes, logs = time.monotonic(), [], []
        try:
            for number, (command, variables) in enumerate(commands):
                logs.append(tmp_path / f"process{number}.log")
                with logs[-1].open("w") as log:
                    processes.append(
                        subprocess.Popen(
                            [sys.executable, *command],
                            env=base | variables,
                            stdout=log,
                            stderr=subprocess.STDOUT,
                            cwd=repo,
                        )
                    )
            ended: dict[int, float] = {}
            while len(ended) < len(processes):
                assert time.monotonic() - start < seconds, "\n".join(Path(log).read_text()[-2000:] for log in logs)
                for number, process in enumerate(processes):
                    if number not in ended and process.poll() is not None:
                        ended[number] = time.monotonic() - start
                time.sleep(0.05)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
        return [Ended(p.returncode, log.read_text(), ended[i]) for i, (p, log) in enumerate(zip(processes, logs))]

    return run
