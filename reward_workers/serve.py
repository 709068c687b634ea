"""The worker's side: how its process begins, and its loop. Standard library only: it runs before any heavy import."""

import argparse
import ctypes
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from reward_workers.protocol import BEAT_SECONDS, Channel, Message, ProtocolError

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class Worker(Protocol):
    """A loaded model. An exception from `score` is answered as an error and the trainer then starts a new process."""

    facts: Message  # what its scores depend on beside the options: file fingerprints, library versions

    def score(self, samples: list[dict[str, Any]]) -> Message: ...


def add_channel_arguments(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--fd", type=int, help="file descriptor of the socket to the trainer")
    where.add_argument(
        "--stdio", action="store_true", help="speak over stdin and stdout: behind ssh, srun, kubectl exec"
    )
    parser.add_argument("--parent", type=int, help="process id of the trainer; required with --fd")


def open_channel(arguments: argparse.Namespace) -> Channel:
    """Ties this process to its parent's life and opens the channel. To be called before anything heavy is imported.

    A worker of `--fd` must be the trainer's own child. Behind a prefix it is not; there the end of its input ends it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's; it then closes its workers
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if arguments.stdio:
        return _take_stdio()
    if os.getppid() != arguments.parent:
        sys.exit(
            f"this worker's parent is process {os.getppid()} and not the trainer, {arguments.parent}: either that has "
            "ended, or python_executable is a wrapper that stays in between (it has to exec Python)"
        )
    os.set_inheritable(arguments.fd, False)  # no child of a library may hold the channel open
    return Channel(arguments.fd, arguments.fd)


def serve(channel: Channel, load: Callable[[dict[str, Any]], Worker]) -> None:
    """Answers requests until the trainer closes its end."""
    worker: Worker | None = None
    heart = _Heart(channel)
    while True:
        try:
            request = channel.receive()
        except EOFError:
            return
        heart.start(request["id"])
        try:
            if request["op"] == "load":
                worker = load(request["args"])
                result = worker.facts
            elif worker is None:
                raise RuntimeError("asked to score before load")
            else:
                result = worker.score(request["args"]["samples"])
            answer = {"id": request["id"], "result": result}
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in a library, the trainer has to hear of it
            traceback.print_exc()
            answer = {"id": request["id"], "error": f"{type(error).__name__}: {error}"[:4000]}
        heart.stop()
        try:
            channel.send(answer)
        except ProtocolError as error:  # a result that is no JSON: NaN, or too large
            channel.send({"id": request["id"], "error": str(error)})


class _Heart:
    """Tells the trainer, from a thread, that a request is being worked on: so slow is told from hung."""

    def __init__(self, channel: Channel):
        self._channel = channel
        self._request_id: int | None = None
        threading.Thread(target=self._beat, daemon=True).start()

    def start(self, request_id: int) -> None:
        self._request_id = request_id

    def stop(self) -> None:
        self._request_id = None

    def _beat(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(BEAT_SECONDS)
            request_id = self._request_id
            if request_id is None:
                continue
            try:
                self._channel.send({"beat": request_id})
            except EOFError:
                os._exit(1)  # nobody waits for the answer any more


def _take_stdio() -> Channel:
    """The frames get stdin and stdout for themselves: whatever a library prints goes to stderr."""
    read_fd, write_fd = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return Channel(read_fd, write_fd)
