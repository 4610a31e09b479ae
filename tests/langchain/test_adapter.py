"""`adapter=` of the LangChain classes: peft's numbers, dumps, copies and cache keys."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.load import dumps

from bge_runtime import ConfigurationError, Embedder
from langchain_bge import BGECrossEncoder, BGEEmbeddings, BGERerank
from tests.checkpoints.lora import adapted_score, adapted_states, embedder_adapter, reranker_adapter
from tests.langchain.conftest import EMBEDDER, RERANKER
from tests.runtime.references import snapshot_of, unit

TEXTS = ["panda", "the dog slept in the garden", "The giant panda is a bear"]


@pytest.fixture(scope="module")
def adapter(hub_cache: Path, tmp_path_factory: Any) -> Path:
    return embedder_adapter(tmp_path_factory.mktemp("adapter"), snapshot_of(hub_cache, EMBEDDER))


def test_embeddings_are_those_of_peft(hub_cache: Path, adapter: Path) -> None:
    base = snapshot_of(hub_cache, EMBEDDER)
    embeddings = BGEEmbeddings(model=EMBEDDER, adapter=adapter, query_instruction="")
    expected = [unit(adapted_states(base, adapter, text)[0]) for text in TEXTS]
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), expected, atol=1e-4)
    np.testing.assert_allclose(embeddings.embed_query(TEXTS[1]), expected[1], atol=1e-4)


def test_scores_are_those_of_peft(hub_cache: Path, tmp_path: Path) -> None:
    base = snapshot_of(hub_cache, RERANKER)
    head = reranker_adapter(tmp_path / "head", base)
    expected = [adapted_score(base, head, "panda", text) for text in TEXTS]
    encoder = BGECrossEncoder(model=RERANKER, adapter=head, normalize=False)
    np.testing.assert_allclose(encoder.score([("panda", text) for text in TEXTS]), expected, atol=1e-4)
    rerank = BGERerank(model=RERANKER, adapter=head, normalize=False, top_n=None)
    best = rerank.compress_documents([Document(page_content=text) for text in TEXTS], "panda")
    assert [each.page_content for each in best] == [TEXTS[row] for row in np.argsort(expected)[::-1]]
    np.testing.assert_allclose(
        [each.metadata["relevance_score"] for each in best], sorted(expected, reverse=True), atol=1e-4
    )


def test_the_adapter_is_dumped_copied_and_part_of_the_cache_key(hub_cache: Path, adapter: Path) -> None:
    embeddings = BGEEmbeddings(model=EMBEDDER, adapter=str(adapter))
    again = pickle.loads(pickle.dumps(embeddings))
    injected = BGEEmbeddings(embedder=Embedder(EMBEDDER, adapter=adapter))
    for same in (again, injected, embeddings.model_copy()):
        assert same.adapter == str(adapter)
        assert same.cache_namespace("document") == embeddings.cache_namespace("document")
    assert json.loads(dumps(embeddings))["kwargs"]["adapter"] == str(adapter)
    without = embeddings.model_copy(update={"adapter": None})
    assert without.cache_namespace("document") == BGEEmbeddings(model=EMBEDDER).cache_namespace("document")
    assert without.cache_namespace("document") != embeddings.cache_namespace("document")


def test_an_adapter_of_another_model_is_refused_at_construction(hub_cache: Path, adapter: Path) -> None:
    with pytest.raises(ConfigurationError, match="was trained"):
        BGERerank(model=RERANKER, adapter=adapter)
