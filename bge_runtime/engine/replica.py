"""One copy of a model's weights: how it is computed, freed, and what it has learnt about its memory."""

from __future__ import annotations

import threading
from collections.abc import Callable

from bge_runtime.backends.base import Backend
from bge_runtime.engine.hooks import Place
from bge_runtime.engine.queue import Batch

__all__ = ["Replica"]

# Another process may have had the memory: try the double again after so many batches without trouble.
BATCHES_BEFORE_GROWTH = 64


class Replica:
    """A backend, the worker thread that runs it, and the batch that it is computing.

    The engine's lock guards `backend` and `worker`; all else belongs to the worker.
    """

    def __init__(self, backend: Backend | None, place: Place, load: Callable[[], Backend] | None = None) -> None:
        """Wrap a loaded backend.

        Args:
            backend: The backend; `None` if `load` is to be called first.
            place: What events say of it.
            load: Reads the weights again after they were freed; `None` if they never are.
        """
        self.backend = backend
        self.place = place
        self.load = load
        self.worker: threading.Thread | None = None
        self.died = False
        self.batch: Batch | None = None
        self.most_tokens: int | None = None  # halved when memory runs out
        self._batches_that_fitted = 0

    def renew(self) -> Replica:
        """Return a replica over the same weights without a worker, for a forked child."""
        return Replica(self.backend, self.place, self.load)

    def free(self) -> int | None:
        """Let go of the weights and return their size; `None` if they are not in memory."""
        size = self.backend.bytes if self.backend is not None else None
        self.backend = None
        return size

    def shrink(self, padded_tokens: int) -> int:
        """Note that a batch did not fit, and return the budget from here on."""
        self.most_tokens = max(padded_tokens // 2, 1)
        self._batches_that_fitted = 0
        return self.most_tokens

    def grow(self) -> None:
        """Note that a batch fitted."""
        if self.most_tokens is None:
            return
        self._batches_that_fitted += 1
        if self._batches_that_fitted >= BATCHES_BEFORE_GROWTH:
            self.most_tokens *= 2
            self._batches_that_fitted = 0
