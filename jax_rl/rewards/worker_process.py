"""One worker process: started, asked, ended. What to do when it fails is `worker_client`'s business."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from reward_workers.protocol import Channel, Message, ProtocolError

_TAIL_BYTES = 2000
_REASON_CHARS = 500
_LOG_LIMIT_BYTES = 16 << 20
_CLOSE_GRACE_SECONDS = 5.0


class WorkerFault(RuntimeError):
    """The process is of no more use: it died, hung, was too slow, or answered with an error.

    `reason` is one line; the message adds the end of what the worker printed.
    """

    def __init__(self, reason: str, log_path: Path):
        reason = " ".join(reason.split())[:_REASON_CHARS]
        super().__init__(f"{reason}; its output ({log_path}) ends with:\n{_tail(log_path)}")
        self.reason = reason


@dataclass(frozen=True)
class WorkerCommand:
    """The program and its arguments; `elsewhere`: it runs behind a prefix and is not our own child."""

    arguments: tuple[str, ...]
    elsewhere: bool = False


class WorkerProcess:
    """A running worker. Its stdout and stderr go to `log_path` (behind a prefix: stderr alone), so that no library's
    print can touch the frames.

    To be created in a thread that lives as long as the worker shall: Linux kills it when that thread ends.
    """

    def __init__(self, command: WorkerCommand, environment: Mapping[str, str], log_path: Path):
        self._log_path = log_path
        self._last_id = 0
        try:
            with open(log_path, "ab") as log:
                start = self._over_stdio if command.elsewhere else self._over_socket
                # a session of its own: the terminal's Ctrl-C is not for it, and ending the group ends what it started
                settings = {"stderr": log, "env": dict(environment), "start_new_session": True}
                self._popen, self._channel = start(command.arguments, log, settings)
        except OSError as error:
            raise WorkerFault(f"cannot start {command.arguments[0]}: {error.strerror}", log_path) from error

    @staticmethod
    def _over_socket(arguments: Sequence[str], log: IO, settings: dict[str, Any]) -> tuple[subprocess.Popen, Channel]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            popen = subprocess.Popen(
                [*arguments, "--fd", str(theirs.fileno()), "--parent", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                pass_fds=[theirs.fileno()],
                **settings,
            )
            fd = ours.detach()
        return popen, Channel(fd, fd)

    @staticmethod
    def _over_stdio(arguments: Sequence[str], log: IO, settings: dict[str, Any]) -> tuple[subprocess.Popen, Channel]:
        """The frames run through the prefix's stdin and stdout; the worker keeps both from its libraries."""
        (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
        try:
            popen = subprocess.Popen([*arguments, "--stdio"], stdin=their_in, stdout=their_out, **settings)
        except OSError:
            os.close(our_in)
            os.close(our_out)
            raise
        finally:
            os.close(their_in)
            os.close(their_out)
        return popen, Channel(our_in, our_out)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def request(self, op: str, args: Any, total_seconds: float, silence_seconds: float) -> Message:
        """The result of one request. WorkerFault when there is none; the process must then be ended.

        `silence_seconds`: longest time without a heartbeat.
        """
        self._last_id += 1
        end = time.monotonic() + total_seconds
        try:
            self._channel.send(
                {"id": self._last_id, "op": op, "args": args}, min(end, time.monotonic() + silence_seconds)
            )
            while True:
                answer = self._channel.receive(min(end, time.monotonic() + silence_seconds))
                if answer.get("id") == self._last_id:
                    break
        except TimeoutError:
            if time.monotonic() >= end:
                raise self._fault(f"no answer within {total_seconds:g} s") from None
            raise self._fault(f"no sign of life for {silence_seconds:g} s") from None
        except EOFError:
            raise self._fault(self._describe_end()) from None
        except ProtocolError as error:
            raise self._fault(f"broken conversation: {error}") from error
        if "error" in answer:
            raise self._fault(answer["error"])
        self._bound_log()
        return answer["result"]

    def kill(self) -> None:
        """Ends the process and all it started, at once. May be called from any thread; `close` has still to follow."""
        if self._popen.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)

    def close(self, grace_seconds: float = _CLOSE_GRACE_SECONDS) -> None:
        """Closes the conversation, upon which an idle worker ends; kills it after `grace_seconds`. Leaves no zombie."""
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(grace_seconds)
        self.kill()
        self._popen.wait()

    def _fault(self, reason: str) -> WorkerFault:
        return WorkerFault(reason, self._log_path)

    def _describe_end(self) -> str:
        try:
            code = self._popen.wait(_CLOSE_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed the conversation but goes on running"
        if code >= 0:
            return f"ended with exit code {code}"
        return f"was ended by signal {-code} ({signal.Signals(-code).name})"

    def _bound_log(self) -> None:
        """Empties a log that has grown too large (the worker appends, so it goes on at the start)."""
        if self._log_path.stat().st_size > _LOG_LIMIT_BYTES:
            self._log_path.write_text(f"[output before this was dropped at {_LOG_LIMIT_BYTES} bytes]\n")


def _tail(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError as error:
        return f"[no log: {error}]"
