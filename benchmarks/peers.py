"""The other libraries behind one shape: open a model, then embed or score. Each import stays in its function.

Every library runs with the settings that it comes with, on the processor, in float32.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workloads import DOCUMENTS_PER_QUERY

__all__ = ["EMBEDDERS", "RERANKERS", "Embedding", "Scoring"]

Scoring = Callable[[str, list[str]], Any]
ONNX_FILE = "model.onnx"


@dataclass(frozen=True)
class Embedding:
    """An open embedding model: rows for documents, one row for a query, the same awaited."""

    documents: Callable[[list[str]], Any]
    query: Callable[[str], Any]
    aquery: Callable[[str], Awaitable[Any]]
    close: Callable[[], Any] = lambda: None
    loop: asyncio.AbstractEventLoop | None = None  # the loop that `aquery` belongs to, if it has one


def langchain_huggingface(folder: Path) -> Embedding:
    from langchain_huggingface import HuggingFaceEmbeddings

    model = HuggingFaceEmbeddings(model_name=str(folder), model_kwargs={"device": "cpu"})
    return Embedding(model.embed_documents, model.embed_query, model.aembed_query)


def langchain_rerank(folder: Path) -> Scoring:
    from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
    from langchain_community.cross_encoders import HuggingFaceCrossEncoder

    class Remembering(HuggingFaceCrossEncoder):
        """`CrossEncoderReranker` drops the scores; they are compared, so they are kept."""

        def score(self, text_pairs: Any) -> Any:
            seen[:] = list(super().score(text_pairs))
            return seen

    seen: list[float] = []
    model = Remembering(model_name=str(folder), model_kwargs={"device": "cpu"})

    def score(query: str, documents: list[str]) -> list[float]:
        compress_all(CrossEncoderReranker(model=model, top_n=len(documents)), query, documents)
        return list(seen)

    return score


def compress_all(compressor: Any, query: str, documents: Sequence[str]) -> Any:
    """Rerank through LangChain's interface."""
    from langchain_core.documents import Document

    found = [Document(page_content=text, metadata={"at": at}) for at, text in enumerate(documents)]
    return compressor.compress_documents(found, query)


def llama_index(folder: Path) -> Embedding:
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    model = HuggingFaceEmbedding(model_name=str(folder), device="cpu")
    return Embedding(lambda texts: index_rows(model, texts), model.get_query_embedding, model.aget_query_embedding)


def index_rows(model: Any, texts: Sequence[str]) -> list[list[float]]:
    """Build a `VectorStoreIndex` and return its vectors in input order."""
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    nodes = [TextNode(id_=str(at), text=text) for at, text in enumerate(texts)]
    vectors = VectorStoreIndex(nodes, embed_model=model).vector_store.data.embedding_dict
    return [vectors[node.node_id] for node in nodes]


def llama_index_rerank(folder: Path) -> Scoring:
    from llama_index.postprocessor.sbert_rerank import SentenceTransformerRerank

    model = SentenceTransformerRerank(model=str(folder), device="cpu", top_n=DOCUMENTS_PER_QUERY)
    return lambda query, documents: node_scores(model, query, documents)


def node_scores(reranker: Any, query: str, documents: Sequence[str]) -> list[float]:
    """Rerank through LlamaIndex's interface; scores in input order."""
    from llama_index.core.schema import NodeWithScore, TextNode

    nodes = [NodeWithScore(node=TextNode(id_=str(at), text=text), score=0.0) for at, text in enumerate(documents)]
    ranked = reranker.postprocess_nodes(nodes, query_str=query)
    return [each.score for each in sorted(ranked, key=lambda each: int(each.node.node_id))]


def sentence_transformers(folder: Path) -> Embedding:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return _threaded(model.encode, model.encode)


def sentence_transformers_rerank(folder: Path) -> Scoring:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", max_length=512)
    return lambda query, documents: model.predict([(query, document) for document in documents])


def flag_embedding(folder: Path) -> Embedding:
    from FlagEmbedding import FlagModel

    model = FlagModel(str(folder), use_fp16=False, devices="cpu")
    return _threaded(model.encode_corpus, model.encode_queries)


def flag_rerank(folder: Path) -> Scoring:
    from FlagEmbedding import FlagReranker

    model = FlagReranker(str(folder), use_fp16=False, devices="cpu", normalize=True)
    return lambda query, documents: model.compute_score([(query, document) for document in documents])


def fastembed(folder: Path) -> Embedding:
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        model="local/embedder",
        pooling=PoolingType.CLS,
        normalization=True,
        sources=ModelSource(url="local"),
        dim=384,
        model_file=ONNX_FILE,
    )
    model = TextEmbedding("local/embedder", specific_model_path=str(folder))
    return _threaded(lambda texts: np.stack(list(model.embed(texts))), lambda text: next(iter(model.query_embed(text))))


def fastembed_rerank(folder: Path) -> Scoring:
    from fastembed.common.model_description import ModelSource
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    TextCrossEncoder.add_custom_model(model="local/reranker", sources=ModelSource(url="local"), model_file=ONNX_FILE)
    model = TextCrossEncoder("local/reranker", specific_model_path=str(folder))
    return lambda query, documents: _sigmoid(list(model.rerank(query, documents)))


def infinity(folder: Path) -> Embedding:
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    # Its default needs a package that no longer goes with its other requirements.
    arguments = EngineArgs(model_name_or_path=str(folder), device="cpu", engine="torch", bettertransformer=False)
    loop = asyncio.new_event_loop()
    engine = AsyncEmbeddingEngine.from_args(arguments)
    loop.run_until_complete(engine.astart())

    async def rows(texts: list[str]) -> Any:
        vectors, _ = await engine.embed(texts)
        return np.stack(vectors)

    async def row(text: str) -> Any:
        return (await rows([text]))[0]

    return Embedding(
        lambda texts: loop.run_until_complete(rows(texts)),
        lambda text: loop.run_until_complete(row(text)),
        row,
        lambda: loop.run_until_complete(engine.astop()),
        loop,
    )


def flash_rank(folder: Path) -> Scoring:
    from flashrank import Ranker, RerankRequest
    from flashrank.Config import model_file_map

    # It knows models by name only: a folder of that name in its cache is taken as it is.
    name = "ms-marco-MiniLM-L-12-v2"
    place = folder / "flashrank" / name
    place.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.suffix in (".json", ".txt"):
            shutil.copy(file, place / file.name)
    shutil.copy(folder / ONNX_FILE, place / model_file_map[name])
    model = Ranker(model_name=name, cache_dir=str(place.parent), max_length=512, log_level="ERROR")

    def score(query: str, documents: list[str]) -> list[float]:
        passages = [{"id": at, "text": text} for at, text in enumerate(documents)]
        ranked = model.rerank(RerankRequest(query=query, passages=passages))
        return [each["score"] for each in sorted(ranked, key=lambda each: each["id"])]

    return score


def _threaded(documents: Callable[[list[str]], Any], query: Callable[[str], Any]) -> Embedding:
    """Give a library without asynchronous calls what its users write: a thread per call."""
    return Embedding(documents, query, lambda text: asyncio.to_thread(query, text))


def _sigmoid(logits: Sequence[float]) -> Any:
    return 1 / (1 + np.exp(-np.asarray(logits, dtype=np.float32)))


# Library -> how to open it.
EMBEDDERS: dict[str, Callable[[Path], Embedding]] = {
    "langchain-huggingface": langchain_huggingface,
    "llama-index": llama_index,
    "sentence-transformers": sentence_transformers,
    "FlagEmbedding": flag_embedding,
    "fastembed": fastembed,
    "infinity": infinity,
}
RERANKERS: dict[str, Callable[[Path], Scoring]] = {
    "langchain-huggingface": langchain_rerank,
    "llama-index": llama_index_rerank,
    "sentence-transformers": sentence_transformers_rerank,
    "FlagEmbedding": flag_rerank,
    "fastembed": fastembed_rerank,
    "FlashRank": flash_rank,
}
