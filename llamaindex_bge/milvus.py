"""Sparse vectors as Milvus' store takes them."""

from __future__ import annotations

from llama_index.vector_stores.milvus.utils import BaseSparseEmbeddingFunction

from bge_runtime import Embedder

__all__ = ["MilvusSparse"]

Sparse = dict[int, float]

# Milvus Lite refuses a document without weights, and with it all the others of the call. Token 0 is <s>, which lexical
# weights never hold: no query meets it.
NOTHING = {0: 1.0}


class MilvusSparse(BaseSparseEmbeddingFunction):  # type: ignore[misc]
    """The sparse output of an embedder."""

    def __init__(self, embedder: Embedder) -> None:
        """Wrap the object that computes."""
        self.embedder = embedder

    def encode_queries(self, queries: list[str]) -> list[Sparse]:
        """Embed queries."""
        return self.embedder.encode_sparse(queries, role="query")

    def encode_documents(self, documents: list[str]) -> list[Sparse]:
        """Embed documents."""
        return [each or dict(NOTHING) for each in self.embedder.encode_sparse(documents)]

    async def async_encode_queries(self, queries: list[str]) -> list[Sparse]:
        """Embed queries without blocking the event loop."""
        return await self.embedder.aencode_sparse(queries, role="query")

    async def async_encode_documents(self, documents: list[str]) -> list[Sparse]:
        """Embed documents without blocking the event loop."""
        return [each or dict(NOTHING) for each in await self.embedder.aencode_sparse(documents)]
