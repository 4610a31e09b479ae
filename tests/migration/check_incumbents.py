"""One proof per row of docs/migration.md: the same arguments give the same vectors or scores.

The name keeps these out of the default run: they need the other packages, in an environment of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from bge_runtime import Embedder, Reranker
from langchain_bge import BGEEmbeddings, BGERerank
from llamaindex_bge import BGEEmbedding
from llamaindex_bge import BGERerank as BGENodeRerank

EMBEDDER = "BAAI/bge-small-en-v1.5"
CHINESE = "BAAI/bge-small-zh-v1.5"
RERANKER = "BAAI/bge-reranker-base"
TEXTS = [
    "The heart pumps blood.",
    "Paris is the capital of France.\nIt lies on the Seine.",
    "seven fast models",
    "a red house and a blue garden " * 20,
    "",
]
QUERIES = ["Which organ moves blood?", "capital\nof France"]
CPU = {"device": "cpu"}
UNIT = {"normalize_embeddings": True}

pytestmark = [
    pytest.mark.usefixtures("hub_cache"),
    # The other packages' own deprecations are not ours to fail on.
    pytest.mark.filterwarnings("ignore"),
]


def cosines(ours: Any, theirs: Any) -> float:
    """Return the smallest cosine of two lists of vectors."""
    left, right = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return float(((left * right).sum(-1) / norms).min())


def vectors(embeddings: Any) -> tuple[list[list[float]], list[list[float]]]:
    if hasattr(embeddings, "get_text_embedding"):
        return [embeddings.get_text_embedding(text) for text in TEXTS], [
            embeddings.get_query_embedding(query) for query in QUERIES
        ]
    return embeddings.embed_documents(TEXTS), [embeddings.embed_query(query) for query in QUERIES]


def bge_embeddings(**options: Any) -> Any:
    from langchain_community.embeddings import HuggingFaceBgeEmbeddings

    return HuggingFaceBgeEmbeddings(**options)


def huggingface_embeddings(**options: Any) -> Any:
    from langchain_huggingface import HuggingFaceEmbeddings

    return HuggingFaceEmbeddings(**options)


def huggingface_embedding(**options: Any) -> Any:
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    # Its own cache is elsewhere; the checkpoints are in the hub's.
    return HuggingFaceEmbedding(cache_folder=os.environ["HF_HUB_CACHE"], **options)


EMBEDDINGS: dict[str, tuple[Callable[..., Any], dict[str, Any], Callable[..., Any], dict[str, Any]]] = {
    "HuggingFaceBgeEmbeddings, new queries": (
        bge_embeddings,
        {
            "model_name": EMBEDDER,
            "model_kwargs": CPU,
            "encode_kwargs": UNIT,
            "query_instruction": "Represent this sentence for searching relevant passages: ",
        },
        BGEEmbeddings,
        {"model_name": EMBEDDER, "model_kwargs": CPU, "encode_kwargs": UNIT},
    ),
    "HuggingFaceBgeEmbeddings, legacy": (
        bge_embeddings,
        {"model_name": EMBEDDER, "model_kwargs": CPU, "encode_kwargs": UNIT},
        BGEEmbeddings,
        {"model_name": EMBEDDER, "model_kwargs": CPU, "encode_kwargs": UNIT, "legacy": True},
    ),
    "HuggingFaceBgeEmbeddings, Chinese": (
        bge_embeddings,
        {"model_name": CHINESE, "model_kwargs": CPU, "encode_kwargs": UNIT},
        BGEEmbeddings,
        {"model_name": CHINESE, "model_kwargs": CPU, "encode_kwargs": UNIT},
    ),
    "HuggingFaceBgeEmbeddings, own instructions": (
        bge_embeddings,
        {"model_name": EMBEDDER, "model_kwargs": CPU, "query_instruction": "find: ", "embed_instruction": "keep: "},
        BGEEmbeddings,
        {"model_name": EMBEDDER, "model_kwargs": CPU, "query_instruction": "find: ", "embed_instruction": "keep: "},
    ),
    "HuggingFaceEmbeddings": (
        huggingface_embeddings,
        {"model_name": EMBEDDER, "model_kwargs": CPU, "encode_kwargs": UNIT},
        BGEEmbeddings,
        {"model_name": EMBEDDER, "model_kwargs": CPU, "encode_kwargs": UNIT, "query_instruction": ""},
    ),
    "HuggingFaceEmbedding, legacy": (
        huggingface_embedding,
        {"model_name": EMBEDDER, "device": "cpu"},
        BGEEmbedding,
        {"model_name": EMBEDDER, "device": "cpu", "legacy": True},
    ),
    "HuggingFaceEmbedding, own instructions": (
        huggingface_embedding,
        {"model_name": EMBEDDER, "device": "cpu", "query_instruction": "find:", "text_instruction": "keep:"},
        BGEEmbedding,
        {"model_name": EMBEDDER, "device": "cpu", "query_instruction": "find: ", "text_instruction": "keep: "},
    ),
}


@pytest.mark.parametrize("row", EMBEDDINGS)
def check_that_vectors_agree(row: str) -> None:
    build, theirs, replacement, ours = EMBEDDINGS[row]
    for mine, other in zip(vectors(replacement(**ours)), vectors(build(**theirs)), strict=True):
        assert cosines(mine, other) >= 0.99999


def check_that_legacy_is_needed_for_old_query_vectors() -> None:
    old = vectors(bge_embeddings(model_name=EMBEDDER, model_kwargs=CPU, encode_kwargs=UNIT))
    new = vectors(BGEEmbeddings(model_name=EMBEDDER))
    assert cosines(new[0], old[0]) >= 0.99999
    assert cosines(new[1], old[1]) < 0.9999


def check_flag_model() -> None:
    from FlagEmbedding import FlagModel

    flag = FlagModel(
        str(Embedder(EMBEDDER).source.folder),
        query_instruction_for_retrieval="Represent this sentence for searching relevant passages: ",
        use_fp16=False,
        devices=["cpu"],
    )
    embedder = Embedder(EMBEDDER)
    assert cosines(embedder.encode_documents(TEXTS), flag.encode_corpus(TEXTS)) >= 0.99999
    assert cosines(embedder.encode_queries(QUERIES), flag.encode_queries(QUERIES)) >= 0.99999


@pytest.mark.parametrize("normalize", [False, True])
def check_flag_reranker(normalize: bool) -> None:
    from FlagEmbedding import FlagReranker

    flag = FlagReranker(str(Reranker(RERANKER).source.folder), use_fp16=False, devices=["cpu"])
    # FlagEmbedding leaves two separators out before an empty document; the tokenizer and its other users do not.
    texts = [text for text in TEXTS if text]
    theirs = flag.compute_score([(QUERIES[0], text) for text in texts], normalize=normalize)
    np.testing.assert_allclose(Reranker(RERANKER, normalize=normalize).score(QUERIES[0], texts), theirs, atol=1e-4)


def nodes() -> list[Any]:
    from llama_index.core.schema import NodeWithScore, TextNode

    return [NodeWithScore(node=TextNode(id_=str(n), text=text), score=0.5) for n, text in enumerate(TEXTS[:4])]


def by_id(found: Sequence[Any]) -> dict[str, float]:
    return {each.node_id: each.score for each in found}


def check_flag_embedding_reranker() -> None:
    from llama_index.postprocessor.flag_embedding_reranker import FlagEmbeddingReranker

    folder = str(Reranker(RERANKER).source.folder)
    theirs = FlagEmbeddingReranker(model=folder, top_n=4, use_fp16=False)
    ours = BGENodeRerank(model=RERANKER, top_n=4, normalize=False)
    found = [by_id(each.postprocess_nodes(nodes(), query_str=QUERIES[0])) for each in (ours, theirs)]
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def check_sentence_transformer_rerank() -> None:
    from llama_index.postprocessor.sbert_rerank import SentenceTransformerRerank

    theirs = SentenceTransformerRerank(model=RERANKER, top_n=4, device="cpu")
    ours = BGENodeRerank(model=RERANKER, top_n=4)
    found = [by_id(each.postprocess_nodes(nodes(), query_str=QUERIES[0])) for each in (ours, theirs)]
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def check_cross_encoder_reranker() -> None:
    from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
    from langchain_community.cross_encoders import HuggingFaceCrossEncoder
    from langchain_core.documents import Document

    documents = [Document(id=str(n), page_content=text) for n, text in enumerate(TEXTS)]
    cross_encoder = HuggingFaceCrossEncoder(model_name=RERANKER, model_kwargs=CPU)
    theirs = CrossEncoderReranker(model=cross_encoder, top_n=5).compress_documents(documents, QUERIES[0])
    ours = BGERerank(model=RERANKER, top_n=5).compress_documents(documents, QUERIES[0])
    assert [each.id for each in ours] == [each.id for each in theirs]
    scores = cross_encoder.score([(QUERIES[0], each.page_content) for each in ours])
    np.testing.assert_allclose([each.metadata["relevance_score"] for each in ours], scores, atol=1e-4)
