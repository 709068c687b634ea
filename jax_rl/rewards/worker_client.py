"""Keeps one reward worker running: starts it, asks it, and after a failure starts a new one and asks again."""

import itertools
import logging
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jax_rl.config.schema import MetricXConfig, XCometConfig
from jax_rl.errors import UserError
from jax_rl.parallel.seats import given_gpus
from jax_rl.rewards.worker_process import WorkerCommand, WorkerFault, WorkerProcess
from reward_workers import protocol
from reward_workers.protocol import Message

log = logging.getLogger(__name__)

_SILENCE_SECONDS = 60.0  # a worker beats every second; importing or a slow disk may hold its interpreter for a while
_LONGEST_PAUSE_SECONDS = 30.0

# What a worker inherits. Not: PYTHON*, LD_*, XLA_* and the like, which are the trainer's, nor API keys, which are not
# its.
_INHERITED = {"PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS"}
_WORKER_SETTINGS = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", "TOKENIZERS_PARALLELISM": "false"}
_PREFIX_PREFIXES = ("SSH_", "SLURM_", "KUBE")
_INHERITED_PREFIXES = ("HF_", "XDG_", "LC_", "SSL_", "REQUESTS_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


class WorkerStartError(RuntimeError):
    """A worker that never came up: its Python, its requirements, its model or its device are wrong."""


class WorkerFailed(RuntimeError):
    """A request that `max_restarts` new processes did not answer either. Its message is one line."""


class WorkerClient:
    """A worker process and its restarts. The process starts at once and loads; `wait_until_ready` waits for that.

    `options` is what its `load` gets. One request at a time (others queue).
    """

    def __init__(
        self,
        name: str,
        command: WorkerCommand,
        options: Message,
        *,
        environment: Mapping[str, str],
        log_path: Path,
        startup_seconds: float,
        request_seconds: float,
        max_restarts: int,
        silence_seconds: float = _SILENCE_SECONDS,
    ):
        self.name = name
        self.restarts = 0  # so far
        self._command, self._options, self._environment = command, options, dict(environment)
        self._log_path = log_path
        self._startup_seconds, self._request_seconds = startup_seconds, request_seconds
        self._silence_seconds, self._max_restarts = silence_seconds, max_restarts
        self._process: WorkerProcess | None = None
        self._facts: Message | None = None
        self._closing = threading.Event()
        self._busy = True
        log_path.parent.mkdir(parents=True, exist_ok=True)
        # All starts happen in this thread, which lives as long as the client: Linux kills a worker with its starter.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"worker-{name}")
        self._ready = self._thread.submit(self._start_first)

    def wait_until_ready(self) -> Message:
        """The facts that the loaded worker tells of itself. WorkerStartError when it does not come up."""
        return self._ready.result()

    def score(self, samples: list[dict[str, Any]]) -> Message:
        """The worker's answer. WorkerFailed when there is none, WorkerStartError when it never came up."""
        self.wait_until_ready()
        return self._thread.submit(self._score, samples).result()

    def close(self) -> None:
        """Ends the worker, also in the middle of a request, and waits for its end."""
        self._closing.set()
        process = self._process
        if self._busy and process is not None:
            process.kill()
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._process is not None:
            self._process.close()
            self._process = None

    def _start_first(self) -> Message:
        try:
            self._start()
        except WorkerFault as fault:
            self._discard()
            raise WorkerStartError(f"the {self.name} worker did not come up: {fault}") from fault
        finally:
            self._busy = False
        assert self._facts is not None
        return self._facts

    def _score(self, samples: list[dict[str, Any]]) -> Message:
        self._busy = True
        try:
            for restart in itertools.count(1):
                try:
                    return self._ask(samples)
                except WorkerFault as fault:
                    self._discard()
                    if self._closing.is_set():
                        raise WorkerFailed(f"the {self.name} worker was closed in the middle of a request") from fault
                    if restart > self._max_restarts:
                        log.error("%s worker: %s", self.name, fault)
                        after = f"after {self._max_restarts} restarts: {fault.reason}"
                        raise WorkerFailed(f"the {self.name} worker failed, {after}") from fault
                    tried = f"restart {restart} of {self._max_restarts}"
                    log.warning("%s worker: %s; %s", self.name, fault.reason, tried)
                    self.restarts += 1
                    self._closing.wait(min(_LONGEST_PAUSE_SECONDS, 0.1 * 4**restart))
            raise AssertionError("unreachable")
        finally:
            self._busy = False

    def _ask(self, samples: list[dict[str, Any]]) -> Message:
        if self._closing.is_set():
            raise WorkerFault("closed", self._log_path)
        process = self._process or self._start()
        return process.request("score", {"samples": samples}, self._request_seconds, self._silence_seconds)

    def _start(self) -> WorkerProcess:
        self._process = WorkerProcess(self._command, self._environment, self._log_path)
        if self._closing.is_set():
            raise WorkerFault("closed while it started", self._log_path)
        # no limit on silence: while a library is imported or a file read, the worker's heart may stand still
        facts = self._process.request("load", self._options, self._startup_seconds, self._startup_seconds)
        if self._facts not in (None, facts):
            raise WorkerFault(f"its model changed on disk: it was {self._facts} and is {facts}", self._log_path)
        self._facts = facts
        return self._process

    def _discard(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.close()
            self._process = None


def worker_command(kind: str, cfg: MetricXConfig | XCometConfig) -> WorkerCommand:
    """The command of worker `kind` in its Python (None: this one), behind its prefix if it has one.

    UserError when there is no such program here.
    """
    python, folder = cfg.python_executable or sys.executable, str(Path(protocol.__file__).parent)
    if not cfg.command_prefix:
        if shutil.which(python) is None:
            raise UserError(
                f"reward.{kind}.python_executable: {python} is not a program; "
                f"`make workers` builds .venv-{kind}/bin/python"
            )
        return WorkerCommand((python, folder, kind))
    if shutil.which(cfg.command_prefix[0]) is None:
        raise UserError(f"reward.{kind}.command_prefix: {cfg.command_prefix[0]} is not a program")
    # our environment may not travel: what the worker must have is set by `env` where it runs
    variables = _WORKER_SETTINGS | _visible_devices(cfg.device, None)
    there = [
        "env",
        *(f"{name}={value}" for name, value in variables.items()),
        python,
        cfg.worker_folder or folder,
        kind,
    ]
    if Path(cfg.command_prefix[0]).name == "ssh":  # which hands one line to a shell
        there = [shlex.quote(word) for word in there]
    return WorkerCommand((*cfg.command_prefix, *there), elsewhere=True)


def worker_environment(device: str) -> dict[str, str]:
    """A clean environment. Of `device` (cpu, cuda, cuda:N) the worker sees none, all that we were given, their Nth."""
    return _inherited() | _WORKER_SETTINGS | _visible_devices(device, given_gpus())


def prefix_environment() -> dict[str, str]:
    """What the program of a command prefix gets: also what ssh, srun and kubectl need to know where to go."""
    return _inherited(_PREFIX_PREFIXES)


def _inherited(more_prefixes: tuple[str, ...] = ()) -> dict[str, str]:
    return {
        key: value
        for key, value in os.environ.items()
        if key in _INHERITED or key.upper().startswith(_INHERITED_PREFIXES + more_prefixes)
    }


def _visible_devices(device: str, visible: str | None) -> dict[str, str]:
    if device == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    if device.startswith("cuda:"):
        return {"CUDA_VISIBLE_DEVICES": _nth_device(int(device.removeprefix("cuda:")), visible)}
    return {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}


def _nth_device(index: int, visible: str | None) -> str:
    if not visible:
        return str(index)
    devices = visible.split(",")
    if index >= len(devices):
        raise UserError(f"device cuda:{index}: CUDA_VISIBLE_DEVICES={visible} leaves {len(devices)} devices")
    return devices[index].strip()
