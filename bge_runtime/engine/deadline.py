"""A moment after which a call waits no longer: what has not been computed by then is dropped."""

from __future__ import annotations

import threading
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self

from bge_runtime.locks import Promise

__all__ = ["Deadline"]


class Deadline:
    """Cancels the futures that were entrusted to it when its time has come; a context manager."""

    def __init__(self, seconds: float) -> None:
        """Begin to count."""
        self._lock = threading.Lock()
        self._futures: list[Future[Any]] = []
        self._timer = threading.Timer(seconds, self._pass)
        # A call that is given up must not keep the process from ending.
        self._timer.daemon = True
        self.passed = False
        self._timer.start()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop counting."""
        self._timer.cancel()

    def limit(self, future: Future[Any]) -> Future[Any]:
        """Return a future with the result of `future`, or `None` when the time has come before."""
        limited: Promise[Any] = Promise()
        future.add_done_callback(partial(_hand_on, limited))
        with self._lock:
            self._futures.append(future)
            passed = self.passed
        if passed:
            future.cancel()
        return limited

    def _pass(self) -> None:
        with self._lock:
            self.passed = True
            futures = list(self._futures)
        for future in futures:
            future.cancel()


def _hand_on(limited: Future[Any], future: Future[Any]) -> None:
    with suppress(InvalidStateError):  # its caller went away
        if future.cancelled():
            limited.set_result(None)
        elif (error := future.exception()) is not None:
            limited.set_exception(error)
        else:
            limited.set_result(future.result())
