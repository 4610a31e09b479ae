"""Vectors in a LlamaIndex key-value store, so keyed that none is returned for another use."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

import numpy as np
from llama_index.core.base.embeddings.base import Embedding
from llama_index.core.storage.kvstore.types import BaseKVStore

__all__ = ["CachedVectors"]

COLLECTION = "embeddings"
FIELD = "embedding"


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedVectors:
    """The vectors of one model in one role.

    LlamaIndex keys its embeddings cache by the text alone: a query gets the vector of a text that reads the
    same, and another model's vector too. Here the key covers the model's identity and the role.

    Attributes:
        store: The caller's store.
        identity: What changes this role's vectors.
        role: What the texts are.
        dimension: Length of a vector, 0 if it is not known.
    """

    store: BaseKVStore
    identity: str
    role: Literal["query", "document"]
    dimension: int = 0

    def get(self, texts: list[str], compute: Callable[[list[str]], list[Embedding]]) -> list[Embedding]:
        """Return the vectors of `texts`; each distinct text that is missing is computed once."""
        found = {text: self._vector(self.store.get(self._key(text), COLLECTION)) for text in dict.fromkeys(texts)}
        missing = [text for text, vector in found.items() if vector is None]
        computed = dict(zip(missing, compute(missing), strict=True)) if missing else {}
        for text, vector in computed.items():
            self.store.put(self._key(text), {FIELD: vector}, COLLECTION)
        return _in_order(texts, found, computed)

    async def aget(
        self, texts: list[str], compute: Callable[[list[str]], Awaitable[list[Embedding]]]
    ) -> list[Embedding]:
        """Do the same without blocking the event loop."""
        found = {
            text: self._vector(await self.store.aget(self._key(text), COLLECTION)) for text in dict.fromkeys(texts)
        }
        missing = [text for text, vector in found.items() if vector is None]
        computed = dict(zip(missing, await compute(missing), strict=True)) if missing else {}
        for text, vector in computed.items():
            await self.store.aput(self._key(text), {FIELD: vector}, COLLECTION)
        return _in_order(texts, found, computed)

    def _vector(self, entry: dict[str, Any] | None) -> Embedding | None:
        """Return a stored vector; `None` if there is none, or what is there cannot be one."""
        vector: Embedding | None = None if entry is None else entry.get(FIELD)
        try:
            numbers = np.asarray(vector, dtype=np.float64)
        except (TypeError, ValueError):
            return None
        fits = numbers.ndim == 1 and len(numbers) == (self.dimension or len(numbers))
        return vector if fits and np.isfinite(numbers).all() else None

    def _key(self, text: str) -> str:
        return sha256(json.dumps([self.identity, self.role, text]).encode()).hexdigest()


def _in_order(texts: list[str], found: dict[str, Embedding | None], computed: dict[str, Embedding]) -> list[Embedding]:
    # Copies: in-memory stores hand out the list they keep, and callers may change theirs.
    return [list(found[text] or computed[text]) for text in texts]
