"""A real OpenAI-compatible server on loopback that can also delay, drop, refuse and talk nonsense."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Reply:
    """What the server does with one request."""

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    delay_sec: float = 0.0  # before the first byte
    drop: str = ""  # "at once": no answer; "in the body": half of one; "trickle": one byte at a time
    until: Callable[[], bool] | None = None  # wait for this before the first byte
    until_sec: float = 10.0  # but no longer

    @classmethod
    def chat(cls, content: str | None, finish_reason: str = "stop", **kwargs: Any) -> "Reply":
        message = {"role": "assistant", "content": content}
        choice = {"index": 0, "message": message, "finish_reason": finish_reason}
        return cls(body=json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}), **kwargs)


class ChatServer(ThreadingHTTPServer):
    """Answers by `respond(request body)`; keeps the bodies and headers that came, and how many were open at once."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.respond: Callable[[dict[str, Any]], Reply] = lambda request: Reply.chat("no-error")
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.open_now = self.open_peak = 0
        self.lock = threading.Lock()
        self.base_url = f"http://127.0.0.1:{self.server_port}/v1"

    def play(self, *replies: Reply) -> None:
        """The replies one after another; the last one for all further requests."""
        rest = list(replies)
        self.respond = lambda request: rest.pop(0) if len(rest) > 1 else rest[0]

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the client gave up on a connection: that is what these tests provoke


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.requests.append(request)
            self.server.keys.append(self.headers["authorization"])
            self.server.open_now += 1
            self.server.open_peak = max(self.server.open_peak, self.server.open_now)
            reply = self.server.respond(request)
        try:
            self._send(reply)
        finally:
            with self.server.lock:
                self.server.open_now -= 1

    def _send(self, reply: Reply) -> None:
        time.sleep(reply.delay_sec)
        deadline = time.monotonic() + reply.until_sec
        while reply.until is not None and not reply.until() and time.monotonic() < deadline:
            time.sleep(0.005)
        if reply.drop == "at once":
            self._hang_up()
            return
        body = reply.body.encode()
        self.send_response(reply.status)
        for name, value in ({"content-type": "application/json"} | reply.headers).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if reply.drop == "in the body":
            self.wfile.write(body[: len(body) // 2])
            self._hang_up()
        elif reply.drop == "trickle":
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
        else:
            self.wfile.write(body)

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def chat_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ChatServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def reply() -> type[Reply]:
    """`Reply`, for test modules."""
    return Reply
