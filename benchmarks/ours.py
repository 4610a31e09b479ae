"""This package behind the same shape as the peers: through both adapters, and without a framework."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers import Embedding, Scoring, compress_all, index_rows, node_scores
from benchmarks.workloads import DOCUMENTS_PER_QUERY

__all__ = ["open_embedder", "open_reranker", "stream_blocks"]


def open_embedder(folder: Path, surface: str, backend: str, precision: str) -> Embedding:
    """Open the embedder; objects of one process share its weights."""
    from bge_runtime import Embedder

    runtime = Embedder(
        folder, query_instruction="", truncation="silent", device="cpu", backend=backend, precision=precision
    )
    if surface == "langchain":
        from langchain_bge import BGEEmbeddings

        chain = BGEEmbeddings(embedder=runtime)
        return Embedding(chain.embed_documents, chain.embed_query, chain.aembed_query, runtime.close)
    if surface == "llamaindex":
        from llamaindex_bge import BGEEmbedding

        index = BGEEmbedding(embedder=runtime)
        return Embedding(
            lambda texts: index_rows(index, texts),
            index.get_query_embedding,
            index.aget_query_embedding,
            runtime.close,
        )

    async def row(text: str) -> Any:
        return (await runtime.aencode_queries([text]))[0]

    return Embedding(runtime.encode_documents, lambda text: runtime.encode_queries([text])[0], row, runtime.close)


def open_reranker(folder: Path, surface: str, backend: str, precision: str) -> Scoring:
    """Open the reranker; scores go through a sigmoid, as with the peers."""
    from bge_runtime import Reranker

    runtime = Reranker(folder, normalize=True, truncation="silent", device="cpu", backend=backend, precision=precision)
    if surface == "langchain":
        from langchain_bge import BGERerank

        chain = BGERerank(reranker=runtime, top_n=None)

        def score(query: str, documents: list[str]) -> list[float]:
            found = compress_all(chain, query, documents)
            return [each.metadata["relevance_score"] for each in sorted(found, key=lambda each: each.metadata["at"])]

        return score
    if surface == "llamaindex":
        from llamaindex_bge import BGERerank as NodeRerank

        nodes = NodeRerank(reranker=runtime, top_n=DOCUMENTS_PER_QUERY)
        return lambda query, documents: node_scores(nodes, query, documents)
    return runtime.score


def stream_blocks(folder: Path, backend: str, precision: str) -> tuple[Any, int]:
    """Return `stream_documents` of a loaded embedder, and the bytes of its weights."""
    from bge_runtime import Embedder, loaded_models

    runtime = Embedder(folder, device="cpu", backend=backend, precision=precision).warm_up()
    (info,) = loaded_models()
    return runtime.stream_documents, info.bytes
