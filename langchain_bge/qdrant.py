"""Sparse vectors as Qdrant's store takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from langchain_qdrant import SparseEmbeddings, SparseVector

if TYPE_CHECKING:
    from langchain_bge.sparse import BGESparseEmbeddings

__all__ = ["QdrantSparse"]


class QdrantSparse(SparseEmbeddings):
    """A view of `BGESparseEmbeddings`."""

    def __init__(self, embeddings: BGESparseEmbeddings) -> None:
        """Wrap the object that computes."""
        self.embeddings = embeddings

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """Embed documents."""
        return [_vector(each) for each in self.embeddings.embed_documents(texts)]

    def embed_query(self, text: str) -> SparseVector:
        """Embed a query."""
        return _vector(self.embeddings.embed_query(text))

    async def aembed_documents(self, texts: list[str]) -> list[SparseVector]:
        """Embed documents without blocking the event loop."""
        return [_vector(each) for each in await self.embeddings.aembed_documents(texts)]

    async def aembed_query(self, text: str) -> SparseVector:
        """Embed a query without blocking the event loop."""
        return _vector(await self.embeddings.aembed_query(text))


def _vector(sparse: Mapping[int, float]) -> SparseVector:
    return SparseVector(indices=list(sparse), values=list(sparse.values()))
