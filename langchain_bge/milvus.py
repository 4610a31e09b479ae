"""Sparse vectors as Milvus' store takes them."""

from __future__ import annotations

from langchain_milvus.utils.sparse import BaseSparseEmbedding

from bge_runtime import Embedder, check_text

__all__ = ["MilvusSparse"]

# Milvus Lite refuses a document without weights, and with it all the others of the call. Token 0 is <s>, which lexical
# weights never hold: no query meets it.
NOTHING = {0: 1.0}


class MilvusSparse(BaseSparseEmbedding):  # type: ignore[misc]
    """The sparse output of an embedder."""

    def __init__(self, embedder: Embedder) -> None:
        """Wrap the object that computes."""
        self.embedder = embedder

    def embed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """Embed documents."""
        return [each or dict(NOTHING) for each in self.embedder.encode_sparse(texts)]

    def embed_query(self, query: str) -> dict[int, float]:
        """Embed a query."""
        return self.embedder.encode_sparse([check_text(query)], role="query")[0]

    async def aembed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """Embed documents without blocking the event loop."""
        return [each or dict(NOTHING) for each in await self.embedder.aencode_sparse(texts)]

    async def aembed_query(self, query: str) -> dict[int, float]:
        """Embed a query without blocking the event loop."""
        return (await self.embedder.aencode_sparse([check_text(query)], role="query"))[0]
