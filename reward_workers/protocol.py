"""What the trainer and a worker say to each other: length-prefixed JSON frames. Standard library only.

The trainer asks `{"id", "op": "load" | "score", "args"}`; the worker answers `{"id", "result"}` or `{"id", "error"}`,
and while it works it says `{"beat": id}` every BEAT_SECONDS. Numbers are finite (NaN and infinity have no place in
JSON), text is UTF-8 without lone surrogates, and nothing is ever unpickled.
"""

import json
import os
import select
import struct
import threading
import time
from typing import Any

Message = dict[str, Any]

MAX_FRAME_BYTES = 256 << 20
BEAT_SECONDS = 1.0

_LENGTH = struct.Struct("!I")
_CHUNK_BYTES = 1 << 20


class ProtocolError(RuntimeError):
    """What was to be sent or what came is no frame: too large, or not a JSON object."""


class Channel:
    """Frames over two file descriptors, which it owns (a socket: the same twice). Any thread may send, one receives.

    Deadlines are `time.monotonic()` values; None waits for ever. After a TimeoutError or ProtocolError a frame may lie
    half read: the channel is of no more use.
    """

    def __init__(self, read_fd: int, write_fd: int):
        self._read_fd, self._write_fd = read_fd, write_fd
        self._send_lock = threading.Lock()
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)

    def send(self, message: Message, deadline: float | None = None) -> None:
        """ProtocolError: `message` is no frame. EOFError: the other side has gone. TimeoutError: at the deadline."""
        try:
            body = json.dumps(message, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise ProtocolError(f"not a message: {error}") from error
        if len(body) > MAX_FRAME_BYTES:
            raise ProtocolError(f"a message of {len(body)} bytes; the limit is {MAX_FRAME_BYTES}")
        rest = memoryview(_LENGTH.pack(len(body)) + body)
        with self._send_lock:
            while rest:
                _wait(self._write_fd, select.POLLOUT, deadline)
                try:
                    rest = rest[os.write(self._write_fd, rest[:_CHUNK_BYTES]) :]
                except BlockingIOError:
                    continue
                except (BrokenPipeError, ConnectionResetError):
                    raise EOFError("the other side has gone") from None

    def receive(self, deadline: float | None = None) -> Message:
        """The next message. Raises as `send`."""
        (size,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline))
        if size > MAX_FRAME_BYTES:
            raise ProtocolError(f"a frame of {size} bytes; the limit is {MAX_FRAME_BYTES}")
        try:
            message = json.loads(self._read(size, deadline))
        except ValueError as error:
            raise ProtocolError(f"a frame that is not JSON: {error}") from error
        if not isinstance(message, dict):
            raise ProtocolError(f"a frame that is not an object but {type(message).__name__}")
        return message

    def close(self) -> None:
        for fd in {self._read_fd, self._write_fd}:
            os.close(fd)

    def _read(self, size: int, deadline: float | None) -> bytes:
        data = bytearray()
        while len(data) < size:
            _wait(self._read_fd, select.POLLIN, deadline)
            try:
                chunk = os.read(self._read_fd, min(_CHUNK_BYTES, size - len(data)))
            except BlockingIOError:
                continue
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                raise EOFError("the other side has gone")
            data += chunk
        return bytes(data)


def _wait(fd: int, event: int, deadline: float | None) -> None:
    """Until `fd` is ready for `event` or its other side has gone."""
    poll = select.poll()
    poll.register(fd, event)
    left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
    if not poll.poll(left):
        raise TimeoutError
