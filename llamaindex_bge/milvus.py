"""Sparse vectors as Milvus' store takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama_index.vector_stores.milvus.utils import BaseSparseEmbeddingFunction

if TYPE_CHECKING:
    from llamaindex_bge.sparse import BGESparseEmbedding

__all__ = ["MilvusSparse"]

Sparse = dict[int, float]

# Milvus Lite refuses a document without weights, and with it all the others of the call. Token 0 is <s>, which lexical
# weights never hold: no query meets it.
NOTHING = {0: 1.0}


class MilvusSparse(BaseSparseEmbeddingFunction):  # type: ignore[misc]
    """A view of `BGESparseEmbedding`."""

    def __init__(self, embedding: BGESparseEmbedding) -> None:
        """Wrap the object that computes."""
        self.embedding = embedding

    def encode_queries(self, queries: list[str]) -> list[Sparse]:
        """Embed queries."""
        return self.embedding.embedder.encode_sparse(queries, role="query")

    def encode_documents(self, documents: list[str]) -> list[Sparse]:
        """Embed documents."""
        return [each or dict(NOTHING) for each in self.embedding.embedder.encode_sparse(documents)]

    async def async_encode_queries(self, queries: list[str]) -> list[Sparse]:
        """Embed queries without blocking the event loop."""
        return await self.embedding.embedder.aencode_sparse(queries, role="query")

    async def async_encode_documents(self, documents: list[str]) -> list[Sparse]:
        """Embed documents without blocking the event loop."""
        return [each or dict(NOTHING) for each in await self.embedding.embedder.aencode_sparse(documents)]
