"""A library's own training loop, one step at a time."""

import threading
from collections.abc import Callable


class Stepper:
    """Runs `loop` in a thread, from the first step on.

    The loop calls `wait` before a step and `finished` after it; `step` lets it make one.
    """

    def __init__(self, loop: Callable[[], object]) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._loop = loop
        self._thread = threading.Thread(target=self._run, daemon=True)

    def wait(self) -> None:
        self._go.acquire()

    def finished(self) -> None:
        self._done.release()

    def step(self) -> None:
        if self._thread.ident is None:
            self._thread.start()
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._loop()
            raise RuntimeError("the training loop ended by itself")
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asks for a step
            self._error = error
            self._done.release()
