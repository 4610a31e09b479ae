"""Sparse vectors as Qdrant's store takes them."""

from __future__ import annotations

from collections.abc import Mapping

from langchain_qdrant import SparseEmbeddings, SparseVector

from bge_runtime import Embedder, check_text

__all__ = ["QdrantSparse"]


class QdrantSparse(SparseEmbeddings):
    """The sparse output of an embedder."""

    def __init__(self, embedder: Embedder) -> None:
        """Wrap the object that computes."""
        self.embedder = embedder

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """Embed documents."""
        return [_vector(each) for each in self.embedder.encode_sparse(texts)]

    def embed_query(self, text: str) -> SparseVector:
        """Embed a query."""
        return _vector(self.embedder.encode_sparse([check_text(text)], role="query")[0])

    async def aembed_documents(self, texts: list[str]) -> list[SparseVector]:
        """Embed documents without blocking the event loop."""
        return [_vector(each) for each in await self.embedder.aencode_sparse(texts)]

    async def aembed_query(self, text: str) -> SparseVector:
        """Embed a query without blocking the event loop."""
        return _vector((await self.embedder.aencode_sparse([check_text(text)], role="query"))[0])


def _vector(sparse: Mapping[int, float]) -> SparseVector:
    return SparseVector(indices=list(sparse), values=list(sparse.values()))
