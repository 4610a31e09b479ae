"""Sparse vectors as Milvus' store takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_milvus.utils.sparse import BaseSparseEmbedding

if TYPE_CHECKING:
    from langchain_bge.sparse import BGESparseEmbeddings

__all__ = ["MilvusSparse"]

# Milvus Lite refuses a document without weights, and with it all the others of the call. Token 0 is <s>, which lexical
# weights never hold: no query meets it.
NOTHING = {0: 1.0}


class MilvusSparse(BaseSparseEmbedding):  # type: ignore[misc]
    """A view of `BGESparseEmbeddings`."""

    def __init__(self, embeddings: BGESparseEmbeddings) -> None:
        """Wrap the object that computes."""
        self.embeddings = embeddings

    def embed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """Embed documents."""
        return [each or dict(NOTHING) for each in self.embeddings.embed_documents(texts)]

    def embed_query(self, query: str) -> dict[int, float]:
        """Embed a query."""
        return self.embeddings.embed_query(query)

    async def aembed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """Embed documents without blocking the event loop."""
        return [each or dict(NOTHING) for each in await self.embeddings.aembed_documents(texts)]

    async def aembed_query(self, query: str) -> dict[int, float]:
        """Embed a query without blocking the event loop."""
        return await self.embeddings.aembed_query(query)
