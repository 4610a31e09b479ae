"""Late interaction over a small corpus through LlamaIndex."""

from __future__ import annotations

import numpy as np
import pytest
from llama_index.core.schema import MetadataMode, TextNode

import bge_runtime
from bge_runtime import Reranker, TokenIndex
from llamaindex_bge import BGETokenRetriever
from tests.llamaindex.conftest import EMBEDDER

QUERY = "What is a panda?"
TEXTS = ["the dog slept in the garden", "The giant panda is a bear", "Paris is the capital of France", "cat"]

pytestmark = pytest.mark.usefixtures("hub_cache")


@pytest.fixture
def nodes():
    return [
        TextNode(
            id_=f"n{number}",
            text=text,
            metadata={"topic": "bear", "page": number},
            excluded_embed_metadata_keys=["page"],
        )
        for number, text in enumerate(TEXTS)
    ]


def test_nodes_come_back_with_the_rerankers_scores_and_stay_as_they_are(nodes):
    before = [node.model_copy(deep=True) for node in nodes]
    retriever = BGETokenRetriever.from_nodes(nodes, EMBEDDER, similarity_top_k=4, storage="float32")
    found = retriever.retrieve(QUERY)
    read = [node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
    assert read[0] == "topic: bear\n\nthe dog slept in the garden"
    scores = Reranker(EMBEDDER).score(QUERY, read)
    assert [each.node.node_id for each in found] == [f"n{n}" for n in np.argsort(-scores)]
    np.testing.assert_allclose([each.score for each in found], -np.sort(-scores), atol=1e-5)
    assert nodes == before


async def test_async_gives_the_same(nodes):
    retriever = await BGETokenRetriever.afrom_nodes(iter(nodes), EMBEDDER)
    found = await retriever.aretrieve(QUERY)
    assert found == retriever.retrieve(QUERY)
    assert len(found) == 2


def test_an_index_read_from_disk_serves_its_nodes(tmp_path, nodes, fresh_store):
    first = BGETokenRetriever.from_nodes(nodes, Reranker(EMBEDDER, token_pooling=2))
    first.index.save(tmp_path)
    expected = first.retrieve(QUERY)
    bge_runtime.unload_models()
    index = TokenIndex.load(tmp_path, Reranker(EMBEDDER, token_pooling=2))
    second = BGETokenRetriever(index, nodes)
    assert not bge_runtime.loaded_models()
    assert second.retrieve(QUERY) == expected
    with pytest.raises(bge_runtime.ConfigurationError, match="'n3'"):
        BGETokenRetriever(index, nodes[:3], similarity_top_k=4).retrieve(QUERY)


def test_callbacks_and_events_hear_of_it(nodes, callbacks, events):
    retriever = BGETokenRetriever.from_nodes(nodes, EMBEDDER, callback_manager=callbacks.manager())
    found = retriever.retrieve(QUERY)
    assert callbacks.balanced()
    (end,) = events.named("RetrievalEndEvent")
    assert end.nodes == found


def test_a_query_engine_takes_it(nodes):
    from llama_index.core.llms import MockLLM
    from llama_index.core.query_engine import RetrieverQueryEngine

    retriever = BGETokenRetriever.from_nodes(nodes, EMBEDDER, similarity_top_k=1)
    answer = RetrieverQueryEngine.from_args(retriever, llm=MockLLM()).query(QUERY)
    assert [each.node for each in answer.source_nodes] == [each.node for each in retriever.retrieve(QUERY)]


def test_wrong_arguments_are_refused_before_anything_loads(nodes, fresh_store):
    with pytest.raises(bge_runtime.ConfigurationError, match="similarity_top_k=0"):
        BGETokenRetriever.from_nodes(nodes, EMBEDDER, similarity_top_k=0)
    with pytest.raises(bge_runtime.ConfigurationError, match="TokenIndex"):
        BGETokenRetriever(EMBEDDER, nodes)
    with pytest.raises(bge_runtime.InputError, match=r"nodes\[1\] has the id 'n0'"):
        BGETokenRetriever.from_nodes([nodes[0], nodes[0].model_copy(update={"text": "b"})], EMBEDDER)
    with pytest.raises(bge_runtime.InputError, match="TextNode"):
        BGETokenRetriever.from_nodes(["text"], EMBEDDER)
    assert not bge_runtime.loaded_models()
