"""Sparse vectors as Milvus' store takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_milvus.utils.sparse import BaseSparseEmbedding

if TYPE_CHECKING:
    from langchain_bge.sparse import BGESparseEmbeddings

__all__ = ["MilvusSparse"]


class MilvusSparse(BaseSparseEmbedding):  # type: ignore[misc]
    """A view of `BGESparseEmbeddings`."""

    def __init__(self, embeddings: BGESparseEmbeddings) -> None:
        """Wrap the object that computes."""
        self.embeddings = embeddings

    def embed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """Embed documents."""
        return self.embeddings.embed_documents(texts)

    def embed_query(self, query: str) -> dict[int, float]:
        """Embed a query."""
        return self.embeddings.embed_query(query)
