"""How much may wait: tokens of a request, and of all requests of a key that are not answered yet."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from bge_runtime import BatchEvent, Hook, InputError

__all__ = ["Admission", "Busy", "Rate"]

# Of the last batches' speed in the mean.
SHARE_OF_NEW = 0.1
LONGEST_WAIT_S = 3600


class Busy(Exception):
    """A key has too much waiting.

    Attributes:
        retry_after_s: When there should be room, by the speed of the last batches.
    """

    def __init__(self, message: str, retry_after_s: int) -> None:
        """Say why, and when to come again."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Rate(Hook):
    """Tokens a second of the last batches, all models together."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._lock = threading.Lock()
        self.tokens_per_s: float | None = None

    def on_batch(self, event: BatchEvent) -> None:
        """Take a batch into the mean."""
        if event.seconds > 0:
            with self._lock:
                new, old = event.tokens / event.seconds, self.tokens_per_s
                self.tokens_per_s = new if old is None else old + SHARE_OF_NEW * (new - old)


class Admission:
    """Counts tokens that wait, by key. Used on the event loop alone."""

    def __init__(self, *, max_tokens: int, max_queued_tokens: int, rate: Rate) -> None:
        """Take the limits."""
        self._max_tokens = max_tokens
        self._max_queued = max_queued_tokens
        self._rate = rate
        self._queued: Counter[str] = Counter()

    @property
    def queued_tokens(self) -> int:
        """Tokens of all requests that are not answered yet."""
        return sum(self._queued.values())

    @contextmanager
    def slot(self, key: str, tokens: int) -> Iterator[None]:
        """Hold the place of a request in the queue of its key.

        Args:
            key: Whose request it is.
            tokens: What it brings.

        Raises:
            InputError: No request may be so large.
            Busy: Too much of this key is waiting.
        """
        if tokens > self._max_tokens:
            raise InputError(
                f"The texts have {tokens:,} tokens together, and a request may have {self._max_tokens:,}. Send them in "
                "several requests."
            )
        waiting = self._queued[key]
        # A request always fits into an empty queue, whatever the limits.
        if waiting and waiting + tokens > self._max_queued:
            rate = self._rate.tokens_per_s or math.inf
            over = waiting + tokens - self._max_queued
            raise Busy(
                f"{waiting:,} tokens of this key are waiting, and with these {tokens:,} they were more than "
                f"{self._max_queued:,}. Try again when some are answered.",
                min(max(math.ceil(over / rate), 1), LONGEST_WAIT_S),
            )
        self._queued[key] += tokens
        try:
            yield
        finally:
            self._queued[key] -= tokens
            if self._queued[key] <= 0:
                del self._queued[key]
