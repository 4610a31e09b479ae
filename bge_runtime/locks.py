"""Locks and futures that neither a signal's exception nor a fork leaves taken for ever.

Python runs signal handlers on the main thread between any two steps of Python code, and what they raise (Ctrl-C,
time-out libraries) comes out there. A lock of the interpreter's own, written in C, is taken and released by `with`
without such a moment; whatever is locked by Python code has one.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from operator import attrgetter
from typing import Any, TypeVar

__all__ = ["Condition", "ForkLock", "Promise", "cached_property"]

T = TypeVar("T")


class Condition(threading.Condition):
    """A condition whose lock no exception of a signal handler leaves taken.

    `threading.Condition` takes its lock in a Python function. Here `with` is handed the lock's own methods, and runs
    them itself. Only `wait` is still Python code: it is for threads that no signal reaches, all but the main one.
    """

    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))


class Promise(Future[T]):
    """A future that can be completed whatever interrupted those who looked at it.

    An exception at the wrong moment would otherwise leave it locked, and a worker that is to complete it waiting.
    """

    def __init__(self) -> None:
        """Begin without a result."""
        super().__init__()
        self._condition = Condition()


class ForkLock:
    """A lock that a forked child finds open, whichever thread of its parent held it; a context manager.

    It looks at the process id, since not every fork runs the hooks of `os.register_at_fork`: uWSGI's does not.
    """

    def __init__(self, kind: Callable[[], Any] = threading.Lock) -> None:
        """Begin open.

        Args:
            kind: Makes the lock of each process: `threading.Lock` or `threading.RLock`.
        """
        self._kind = kind
        self._by_process: dict[int, Any] = {}

    # As with `Condition`, what takes the lock is no Python code.
    __enter__ = property(lambda self: self.own.__enter__)
    __exit__ = property(lambda self: self.own.__exit__)

    @property
    def own(self) -> Any:
        """This process's lock."""
        # One step of the interpreter, so that threads that come at once get the same.
        return self._by_process.setdefault(os.getpid(), self._kind())


class cached_property(functools.cached_property[T]):
    """Python's, but for the lock that 3.11 holds while it computes a value.

    That lock is one for all objects of a class, and a child that was forked meanwhile would find it taken for ever.
    """

    def __init__(self, func: Callable[[Any], T]) -> None:
        """Compute by `func`, at the first look."""
        super().__init__(func)
        self.lock = ForkLock(threading.RLock)
