"""Every row of the model table runs, through the runtime and both adapters, and each of its facts matters.

The weights are small and seeded; architecture, files, tokenizer and vector width are the published ones.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode
from typer.testing import CliRunner

import bge_runtime
import langchain_bge
import llamaindex_bge
from bge_runtime.cli.commands import app
from tests.checkpoints.clip import CLIP_CHECKPOINTS
from tests.checkpoints.hub_cache import BY_NAME, Checkpoint, files_of, place_in_hub_cache
from tests.checkpoints.pictures import picture

QUERY = "which animal eats bamboo: 大熊猫：？"
TEXTS = ["The giant panda is a bear species endemic to China. It eats bamboo.", "the dog slept in the garden", "猫坐在"]
ROWS = bge_runtime.list_models()
SEEDED = {*BY_NAME, *(each.name for each in CLIP_CHECKPOINTS), bge_runtime.DEFAULT_OFFLINE_MODEL}


def rows(kind: str) -> pytest.MarkDecorator:
    """One case per row of this kind that runs."""
    found = [row for row in ROWS if row.kind == kind and row.unsupported is None]
    return pytest.mark.parametrize("row", found, ids=lambda row: row.basename)


@pytest.fixture
def loaded(hub_cache: Path, fresh_store: None, row: bge_runtime.ModelSpec) -> Iterator[None]:
    """The hub cache holds a checkpoint of the row, as long as the test runs."""
    if row.id in SEEDED:
        yield
        return
    bert = row.architecture == "bert"
    checkpoint = Checkpoint(
        name=row.id,
        family="bert" if bert else "xlmr",
        hidden=row.dimension or 128,
        seed=500 + ROWS.index(row),
        positions=512 if bert else row.max_length + 2,
        layers=1,
        heads=8,
        head=int(row.kind == "reranker"),
        modules=row.kind == "embedder",
    )
    snapshot = place_in_hub_cache(hub_cache, row.id, files_of(checkpoint))
    yield
    shutil.rmtree(snapshot.parents[1])


def distance(left: np.ndarray, right: np.ndarray) -> float:
    """Return the length of the difference of two vectors, or of two scores."""
    return float(np.linalg.norm(np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64)))


def test_every_row_runs_or_says_why_not() -> None:
    found = CliRunner().invoke(app, ["models", "--json"])
    assert found.exit_code == 0
    listed = {entry["id"]: entry for entry in json.loads(found.stdout)}
    assert list(listed) == [row.id for row in ROWS]
    for row in ROWS:
        entry = listed[row.id]
        assert entry["runnable"] is (row.unsupported is None)
        assert entry["reason"] == row.unsupported
        assert entry["runnable"] or len(entry["reason"]) > 20


@rows("embedder")
def test_an_embedder_gives_one_vector_in_three_ways(row: bge_runtime.ModelSpec, loaded: None) -> None:
    embedder = bge_runtime.Embedder(row.id)
    (query,), documents = embedder.encode_queries([QUERY]), embedder.encode_documents(TEXTS)
    assert query.shape == (row.dimension,)
    np.testing.assert_allclose(np.linalg.norm(documents, axis=1), 1, atol=1e-4)
    chain, index = langchain_bge.BGEEmbeddings(model=row.id), llamaindex_bge.BGEEmbedding(model_name=row.id)
    for found in (chain.embed_query(QUERY), index.get_query_embedding(QUERY)):
        np.testing.assert_allclose(found, query, atol=1e-5)
    for found in (chain.embed_documents(TEXTS), index.get_text_embedding_batch(TEXTS)):
        np.testing.assert_allclose(found, documents, atol=1e-5)
    assert len(bge_runtime.loaded_models()) == 1
    one_by_one = [embedder.encode_documents([text])[0] for text in TEXTS]
    np.testing.assert_allclose(one_by_one, documents, atol=1e-4)
    other_pooling = replace(row, pooling="cls" if row.pooling == "mean" else "mean")
    assert distance(bge_runtime.Embedder(other_pooling).encode_documents(TEXTS[:1])[0], documents[0]) > 1e-2
    other_words = replace(row, query_instruction=another_instruction(row.query_instruction))
    assert distance(bge_runtime.Embedder(other_words).encode_queries([QUERY])[0], query) > 1e-2
    np.testing.assert_allclose(bge_runtime.Embedder(other_words).encode_documents(TEXTS), documents, atol=1e-5)


def another_instruction(instruction: str) -> str:
    """Return the wrong wording that is seen most: an ASCII colon, or "question" for "sentence"."""
    if not instruction:
        return "query: "
    return instruction.replace("：", ":").replace("sentence", "question").replace("query", "text", 1)


@rows("reranker")
def test_a_reranker_gives_one_score_in_three_ways(row: bge_runtime.ModelSpec, loaded: None) -> None:
    scores = bge_runtime.Reranker(row.id).score(QUERY, TEXTS)
    documents = [Document(page_content=text) for text in TEXTS]
    chain = langchain_bge.BGERerank(model=row.id, normalize=False, top_n=None)
    found = {each.page_content: each.metadata["relevance_score"] for each in chain.compress_documents(documents, QUERY)}
    np.testing.assert_allclose([found[text] for text in TEXTS], scores, atol=1e-4)
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    index = llamaindex_bge.BGERerank(model=row.id, normalize=False, top_n=None)
    scored = {each.node.text: each.score for each in index.postprocess_nodes(nodes, query_str=QUERY)}
    np.testing.assert_allclose([scored[text] for text in TEXTS], scores, atol=1e-4)
    assert len(bge_runtime.loaded_models()) == 1
    one_by_one = [bge_runtime.Reranker(row.id).score(QUERY, [text])[0] for text in TEXTS]
    np.testing.assert_allclose(one_by_one, scores, atol=1e-4)
    assert distance(another_reranker(row).score(QUERY, TEXTS), scores) > 1e-2


def another_reranker(row: bge_runtime.ModelSpec) -> bge_runtime.Reranker:
    """Return the model with one fact changed: its prompt, the head that is read, or its length."""
    if row.score == "yes_logit":
        return bge_runtime.Reranker(row.id, prompt="Is the passage about a dog?")
    if row.layers is not None:
        return bge_runtime.Reranker(row.id, cutoff_layers=row.layers[0])
    return bge_runtime.Reranker(replace(row, max_length=16), truncation="silent")


@rows("vision")
def test_a_vision_model_gives_one_vector_in_both_ways(row: bge_runtime.ModelSpec, loaded: None) -> None:
    embedder = bge_runtime.VisionEmbedder(row.id)
    image = picture(1)
    (vector,), (text,) = embedder.encode_images([image]), embedder.encode_texts(TEXTS[:1])
    assert vector.shape == text.shape == (row.dimension,)
    index = llamaindex_bge.BGEMultiModalEmbedding(model_name=row.id)
    np.testing.assert_allclose(index.get_text_embedding(TEXTS[0]), text, atol=1e-5)
    (longer,) = bge_runtime.VisionEmbedder(replace(row, normalize=False)).encode_images([image])
    assert distance(longer, vector) > 1e-2
    assert distance(vector, text) > 1e-2
