"""SIGTERM as a wish to stop, which the trainer reads between updates."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Stop:
    requested: bool = False


@contextmanager
def stop_on_sigterm() -> Iterator[Stop]:
    """Turns SIGTERM (Slurm's and Kubernetes' notice) into a flag.

    Only a main thread can: in another one, of a notebook say, SIGTERM does what it did.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(signum, frame) -> None:
        stop.requested = True

    before = signal.signal(signal.SIGTERM, request)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
