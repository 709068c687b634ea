"""Frames over real sockets and pipes."""

import os
import socket
import struct
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_workers import protocol
from reward_workers.protocol import Channel, ProtocolError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)


@pytest.fixture
def ends():
    """Two channels that speak to each other."""
    fds = [end.detach() for end in socket.socketpair()]
    channels = [Channel(fd, fd) for fd in fds]
    yield channels
    for channel in channels:
        channel.close()


def soon():
    return time.monotonic() + 0.2


@settings(max_examples=25)
@given(st.dictionaries(TEXT, JSON))
def test_what_is_sent_arrives(message):
    fds = [end.detach() for end in socket.socketpair()]
    ours, theirs = (Channel(fd, fd) for fd in fds)
    ours.send(message)
    ours.send({"next": 1})
    assert theirs.receive() == message
    assert theirs.receive() == {"next": 1}
    ours.close()
    theirs.close()


def test_a_message_larger_than_any_buffer(ends):
    message = {"text": "가" * 5_000_000}
    sender = threading.Thread(target=ends[0].send, args=[message])
    sender.start()
    assert ends[1].receive() == message
    sender.join()


def test_frames_of_several_threads_do_not_mix(ends):
    messages = [{"id": i, "text": str(i) * 50_000} for i in range(8)]
    senders = [threading.Thread(target=ends[0].send, args=[message]) for message in messages]
    for sender in senders:
        sender.start()
    received = [ends[1].receive() for _ in messages]
    assert sorted(received, key=lambda message: message["id"]) == messages
    for sender in senders:
        sender.join()


def test_over_a_pair_of_pipes():
    forth, back = os.pipe(), os.pipe()
    ours, theirs = Channel(back[0], forth[1]), Channel(forth[0], back[1])
    ours.send({"question": 1})
    theirs.send({"answer": theirs.receive()["question"] + 1})
    assert ours.receive() == {"answer": 2}
    theirs.close()
    with pytest.raises(EOFError):
        ours.receive()
    with pytest.raises(EOFError):
        ours.send({"question": 2})
    ours.close()


@pytest.mark.parametrize("message", [{"x": float("nan")}, {"x": float("inf")}, {"x": "\ud800"}, {"x": b"bytes"}])
def test_what_is_no_json_is_refused_before_a_byte_of_it_is_sent(ends, message):
    with pytest.raises(ProtocolError, match="not a message"):
        ends[0].send(message)
    ends[0].send({"next": 1})
    assert ends[1].receive() == {"next": 1}


def test_frames_beyond_the_limit_are_refused_at_both_ends(ends, monkeypatch):
    fd = os.dup(ends[0]._write_fd)
    os.write(fd, struct.pack("!I", 3 << 30))
    os.close(fd)
    with pytest.raises(ProtocolError, match="a frame of 3221225472 bytes"):
        ends[1].receive()
    monkeypatch.setattr(protocol, "MAX_FRAME_BYTES", 10)
    with pytest.raises(ProtocolError, match="the limit is 10"):
        ends[0].send({"text": "longer than ten"})


@pytest.mark.parametrize(("body", "message"), [(b"{,", "not JSON"), (b"\xff", "not JSON"), (b"[1]", "but list")])
def test_a_frame_that_is_no_message(ends, body, message):
    fd = os.dup(ends[0]._write_fd)
    os.write(fd, struct.pack("!I", len(body)) + body)
    os.close(fd)
    with pytest.raises(ProtocolError, match=message):
        ends[1].receive()


def test_nothing_comes_or_only_half_a_frame(ends):
    with pytest.raises(TimeoutError):
        ends[1].receive(soon())
    fd = os.dup(ends[0]._write_fd)
    os.write(fd, struct.pack("!I", 100) + b"{")
    os.close(fd)
    with pytest.raises(TimeoutError):
        ends[1].receive(soon())


def test_nobody_reads(ends):
    with pytest.raises(TimeoutError):
        ends[0].send({"text": "x" * 50_000_000}, soon())


def test_what_lies_there_already_is_received_even_after_the_deadline(ends):
    """A trainer that was itself suspended must not take its worker for dead."""
    ends[0].send({"answer": 1})
    assert ends[1].receive(time.monotonic() - 100) == {"answer": 1}
