"""What the runtime has done so far, in numbers."""

from __future__ import annotations

import threading
from collections import Counter

__all__ = ["Counters"]

NAMES = (
    "texts",  # asked for by callers
    "duplicates",  # of them, answered by another one of the same call
    "truncated",  # of them, cut to the maximum length
    "inputs",  # sent through a forward pass
    "cancelled",  # dropped before it, because their caller went away
    "tokens",
    "padded_tokens",
    "batches",
    "merged_batches",  # of them, shared by several callers
    "out_of_memory_retries",
    "errors",  # calls that failed in or before a forward pass
    "loads",  # copies of weights read
    "unloads",  # and freed
    "worker_restarts",  # after a worker died
    "compute_s",
    "queue_s",  # of each call, until its first input is taken
)


class Counters:
    """Sums that any thread may add to."""

    def __init__(self) -> None:
        """Start at zero."""
        self._lock = threading.Lock()
        self._sums: Counter[str] = Counter()

    def add(self, **amounts: float) -> None:
        """Add to sums by name, all at once."""
        # All sums of one event at once, or a snapshot between two of them would show a batch without its tokens.
        with self._lock:
            for name, amount in amounts.items():
                self._sums[name] += amount  # type: ignore[assignment]

    def snapshot(self) -> dict[str, float]:
        """Return every sum of one moment, and the share of computed tokens that was padding."""
        with self._lock:
            values: dict[str, float] = {name: self._sums[name] for name in NAMES}
        padded = values["padded_tokens"]
        return {**values, "padding_share": 1 - values["tokens"] / padded if padded else 0.0}
