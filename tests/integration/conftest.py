"""Small real runs of the embedded default: two layers of the toy policy, the toy metrics in their worker processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SMALL = [
    "data.limit=40",
    "data.max_prompt_tokens=32",  # with the skipping, one width for all: each has programs of its own to compile
    "data.overlong_prompt_policy=skip",
    "generation.max_new_tokens=16",
    "generation.num_samples_per_prompt=2",
    "rl.batch_size=2",
    "rl.micro_batch_size=2",
    "rl.updates=6",
    "rl.lr=1e-3",
    "eval.eval_limit=4",
    "eval.eval_every_n_updates=3",
    "eval.num_samples_per_prompt=2",
    "logging.save_every_n_updates=2",
    "logging.tensorboard=false",
]
WITHOUT_WORKERS = ["reward.metricx.enabled=false", "reward.xcomet.enabled=false", "reward.w_chrf=1.0"]
CLOCKED = ("_per_second", "scoring_overlap")


class TrainProcess:
    """`python -m jax_rl.train` on the toy config, as a user starts it."""

    def __init__(self, repo: Path, config: Path, policy: Path, output_dir: Path, overrides: list[str]):
        self.log_path = output_dir / "train_log.jsonl"
        self.stderr_path = output_dir.with_name(output_dir.name + ".stderr")
        paths = [f"model.policy_name_or_path={policy}", f"logging.output_dir={output_dir}"]
        paths.append(f"misc.compilation_cache_dir={repo / '.cache' / 'programs'}")
        command = [sys.executable, "-m", "jax_rl.train", "--config", str(config), *SMALL, *paths, *overrides]
        with open(self.stderr_path, "ab") as stderr:
            self.process = subprocess.Popen(command, cwd=repo, stdout=subprocess.DEVNULL, stderr=stderr)

    @property
    def stderr(self) -> str:
        return self.stderr_path.read_text()

    def wait_for(self, what: str, condition: Callable[[], bool], seconds: float = 600) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"the run ended before {what}:\n{self.stderr[-3000:]}"
            assert time.monotonic() < end, f"waited {seconds} s for {what}:\n{self.stderr[-3000:]}"
            time.sleep(0.02)

    def wait_for_update(self, update: int) -> None:
        self.wait_for(f"update {update}", lambda: any(r["update"] >= update for r in self.log()))

    def workers(self) -> dict[str, int]:
        """Process ids of the reward workers by kind."""
        found = {}
        for folder in Path("/proc").iterdir():
            try:
                arguments = (folder / "cmdline").read_bytes().decode().split("\0")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            if parent == self.process.pid:
                found |= {kind: int(folder.name) for kind in ("metricx", "xcomet") if kind in arguments}
        return found

    def log(self) -> list[dict]:
        """The whole rows of train_log.jsonl, without what a clock wrote."""
        if not self.log_path.exists():
            return []
        rows = [json.loads(line) for line in self.log_path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [
            {k: v for k, v in row.items() if not k.startswith("seconds_") and not k.endswith(CLOCKED)} for row in rows
        ]

    def kinds(self) -> list[tuple[str, int]]:
        """What the log's rows are of, in their order."""
        return [(row["type"], row["update"]) for row in self.log()]

    def finish(self, seconds: float = 800) -> int:
        return self.process.wait(seconds)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def finished_training(repo, small_policy):
    """Runs `TrainProcess`es to their end."""
    with starting(repo, small_policy) as start:

        def run(*arguments, **more) -> TrainProcess:
            process = start(*arguments, **more)
            assert process.finish() == 0, process.stderr[-3000:]
            return process

        yield run


@pytest.fixture
def start_training(repo, small_policy):
    """Starts `TrainProcess`es and kills what is left of them."""
    with starting(repo, small_policy) as start:
        yield start


@contextmanager
def starting(repo: Path, policy: Path) -> Iterator[Callable[..., TrainProcess]]:
    started = []
    toy = repo / "configs" / "train_toy.yaml"

    def start(output_dir: Path, *overrides: str, workers: bool = True, config: Path = toy) -> TrainProcess:
        rewards = [] if workers else WITHOUT_WORKERS
        started.append(TrainProcess(repo, config, policy, output_dir, [*rewards, *overrides]))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            process.kill()
