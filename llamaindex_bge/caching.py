"""Vectors in a LlamaIndex key-value store, so keyed that none is returned for another use."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

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
    """

    store: BaseKVStore
    identity: str
    role: Literal["query", "document"]

    def get(self, texts: list[str], compute: Callable[[list[str]], list[Embedding]]) -> list[Embedding]:
        """Return the vectors of `texts`; each distinct text that is missing is computed once."""
        found = {text: _vector(self.store.get(self._key(text), COLLECTION)) for text in dict.fromkeys(texts)}
        missing = [text for text, vector in found.items() if vector is None]
        computed = dict(zip(missing, compute(missing), strict=True)) if missing else {}
        for text, vector in computed.items():
            self.store.put(self._key(text), {FIELD: vector}, COLLECTION)
        return _in_order(texts, found, computed)

    async def aget(
        self, texts: list[str], compute: Callable[[list[str]], Awaitable[list[Embedding]]]
    ) -> list[Embedding]:
        """Do the same without blocking the event loop."""
        found = {text: _vector(await self.store.aget(self._key(text), COLLECTION)) for text in dict.fromkeys(texts)}
        missing = [text for text, vector in found.items() if vector is None]
        computed = dict(zip(missing, await compute(missing), strict=True)) if missing else {}
        for text, vector in computed.items():
            await self.store.aput(self._key(text), {FIELD: vector}, COLLECTION)
        return _in_order(texts, found, computed)

    def _key(self, text: str) -> str:
        return sha256(json.dumps([self.identity, self.role, text]).encode()).hexdigest()


def _vector(entry: dict[str, Embedding] | None) -> Embedding | None:
    return None if entry is None else entry.get(FIELD)


def _in_order(texts: list[str], found: dict[str, Embedding | None], computed: dict[str, Embedding]) -> list[Embedding]:
    # Copies: in-memory stores hand out the list they keep, and callers may change theirs.
    return [list(found[text] or computed[text]) for text in texts]
