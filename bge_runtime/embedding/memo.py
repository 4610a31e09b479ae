"""What a forward pass gave beyond what its caller asked for, until somebody asks for that."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any, Literal

__all__ = ["Memo"]

MOST_ENTRIES = 8192  # a store writes a few thousand texts at a time, densely and then sparsely

Kind = Literal["dense", "sparse"]


class Memo:
    """Holds each result once, for the next one who asks; the oldest are dropped first."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._found: OrderedDict[tuple[Kind, int, Hashable], Any] = OrderedDict()

    def put(self, kind: Kind, max_length: int, texts: Sequence[Hashable], values: Sequence[Any]) -> None:
        """Keep the results of texts that were cut to `max_length` tokens."""
        with self._lock:
            for text, value in zip(texts, values, strict=True):
                self._found[kind, max_length, text] = value
            while len(self._found) > MOST_ENTRIES:
                self._found.popitem(last=False)

    def take(self, kind: Kind, max_length: int, texts: Sequence[Hashable]) -> list[Any]:
        """Return and forget the results; `None` for texts that have none."""
        with self._lock:
            return [self._found.pop((kind, max_length, text), None) for text in texts]
