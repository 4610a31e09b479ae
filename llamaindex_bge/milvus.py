"""Sparse vectors as Milvus' store takes them."""

from __future__ import annotations

from llama_index.vector_stores.milvus.utils import BaseSparseEmbeddingFunction

from bge_runtime import Embedder

__all__ = ["MilvusSparse"]


class MilvusSparse(BaseSparseEmbeddingFunction):  # type: ignore[misc]
    """A view of an embedder with a sparse output."""

    def __init__(self, embedder: Embedder) -> None:
        """Wrap the object that computes."""
        self.embedder = embedder

    def encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        """Embed queries."""
        return self.embedder.encode_sparse(queries, role="query")

    def encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        """Embed documents."""
        return self.embedder.encode_sparse(documents)

    async def async_encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        """Embed queries without blocking the event loop."""
        return await self.embedder.aencode_sparse(queries, role="query")

    async def async_encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        """Embed documents without blocking the event loop."""
        return await self.embedder.aencode_sparse(documents)
