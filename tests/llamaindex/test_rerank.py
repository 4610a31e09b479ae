"""What BGERerank returns and says, beyond the contract."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.evaluation import RetrieverEvaluator
from llama_index.core.indices.vector_store import VectorIndexRetriever, VectorStoreIndex
from llama_index.core.schema import Document, IndexNode, MetadataMode, NodeWithScore, QueryBundle, TextNode

from bge_runtime import BackendError, InputError, Reranker
from llamaindex_bge import BGEEmbedding, BGERerank
from tests.contracts.concurrency import ticks_during
from tests.llamaindex.conftest import EMBEDDER, RERANKER, Callbacks, Recorder

QUERY = "What is a panda?"
TEXTS = ["the dog slept in the garden", "The giant panda is a bear", "Paris is the capital of France", "cat"]
EVENTS = ("ReRankStartEvent", "ReRankEndEvent")
MINILM = "sentence-transformers/all-MiniLM-L6-v2"

pytestmark = pytest.mark.usefixtures("hub_cache")


@pytest.fixture
def nodes() -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text), score=0.9 - index / 10) for index, text in enumerate(TEXTS)]


def ids(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node_id for node in nodes]


def test_the_answer_comes_first(minilm: Path, nodes: list[NodeWithScore]) -> None:
    reranked = BGERerank(MINILM, top_n=3).postprocess_nodes(nodes, query_str=QUERY)
    assert reranked[0].text == "The giant panda is a bear"
    assert len(reranked) == 3


def test_two_nodes_are_returned_by_default(nodes: list[NodeWithScore]) -> None:
    assert len(BGERerank(RERANKER).postprocess_nodes(nodes, query_str=QUERY)) == 2


def test_default_scores_lie_between_zero_and_one(nodes: list[NodeWithScore]) -> None:
    raw = BGERerank(RERANKER, top_n=None, normalize=False).postprocess_nodes(nodes, query_str=QUERY)
    scaled = BGERerank(RERANKER, top_n=None).postprocess_nodes(nodes, query_str=QUERY)
    assert min(node.score for node in raw) < 0
    assert all(0 <= node.score <= 1 for node in scaled)
    assert ids(raw) == ids(scaled)


def test_nodes_are_read_as_they_were_embedded() -> None:
    node = TextNode(text="body", metadata={"title": "Pandas", "secret": "x"}, excluded_embed_metadata_keys=["secret"])
    (reranked,) = BGERerank(RERANKER).postprocess_nodes([NodeWithScore(node=node)], query_str=QUERY)
    (expected,) = Reranker(RERANKER, normalize=True).score(QUERY, [node.get_content(MetadataMode.EMBED)])
    assert reranked.score == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("keep", [False, True])
def test_what_comes_in_stays_as_it_is(nodes: list[NodeWithScore], keep: bool) -> None:
    before = [node.to_json() for node in nodes]
    order = ids(nodes)
    reranked = BGERerank(RERANKER, top_n=None, keep_retrieval_score=keep).postprocess_nodes(nodes, query_str=QUERY)
    assert [node.to_json() for node in nodes] == before
    assert ids(nodes) == order
    assert not {id(node) for node in reranked} & {id(node) for node in nodes}


def test_kept_retrieval_score_is_hidden_from_models_and_shown_to_users(nodes: list[NodeWithScore]) -> None:
    wanted = {node.node_id: node.score for node in nodes}
    reranked = BGERerank(RERANKER, top_n=None, keep_retrieval_score=True).postprocess_nodes(nodes, query_str=QUERY)
    assert {node.node_id: node.metadata["retrieval_score"] for node in reranked} == wanted
    for node in reranked:
        assert node.get_content(MetadataMode.EMBED) == node.get_content(MetadataMode.LLM) == node.text
        assert node.score != wanted[node.node_id]


def test_a_cascade_keeps_the_score_of_the_retrieval(nodes: list[NodeWithScore]) -> None:
    once = BGERerank(EMBEDDER, top_n=3, keep_retrieval_score=True).postprocess_nodes(nodes, query_str=QUERY)
    twice = BGERerank(RERANKER, top_n=2, keep_retrieval_score=True).postprocess_nodes(once, query_str=QUERY)
    wanted = {node.node_id: node.score for node in nodes}
    assert {node.node_id: node.metadata["retrieval_score"] for node in twice} == {
        node.node_id: wanted[node.node_id] for node in twice
    }


def test_a_node_without_a_score_reranks(nodes: list[NodeWithScore]) -> None:
    unscored = [NodeWithScore(node=node.node) for node in nodes]
    reranked = BGERerank(RERANKER, keep_retrieval_score=True).postprocess_nodes(unscored, query_str=QUERY)
    assert reranked[0].metadata["retrieval_score"] is None


def test_other_kinds_of_nodes_keep_their_kind() -> None:
    node = NodeWithScore(node=IndexNode(text="panda", index_id="1", obj=Document(text="whole")), score=0.1)
    (reranked,) = BGERerank(RERANKER, keep_retrieval_score=True).postprocess_nodes([node], query_str=QUERY)
    assert type(reranked.node) is IndexNode
    assert reranked.node.obj is node.node.obj


def test_equal_texts_keep_their_order() -> None:
    nodes = [NodeWithScore(node=TextNode(text="panda", id_=str(number)), score=0.5) for number in range(5)]
    assert ids(BGERerank(RERANKER, top_n=4).postprocess_nodes(nodes, query_str=QUERY)) == ["0", "1", "2", "3"]


def test_scores_survive_json(nodes: list[NodeWithScore]) -> None:
    reranked = BGERerank(RERANKER).postprocess_nodes(nodes, query_str=QUERY)
    assert json.loads(json.dumps([node.to_dict() for node in reranked]))[0]["score"] == reranked[0].score


async def test_async_gives_what_sync_gives(nodes: list[NodeWithScore]) -> None:
    reranker = BGERerank(RERANKER, top_n=3, keep_retrieval_score=True)
    expected = reranker.postprocess_nodes(nodes, query_str=QUERY)
    reranked = await reranker.apostprocess_nodes(nodes, query_bundle=QueryBundle(QUERY))
    assert [(node.node_id, node.metadata) for node in reranked] == [(node.node_id, node.metadata) for node in expected]


async def test_concurrent_reranking_leaves_the_loop_free(nodes: list[NodeWithScore]) -> None:
    reranker = BGERerank(RERANKER, top_n=None)
    expected = [ids(reranker.postprocess_nodes(nodes, query_str=f"{QUERY} {number}")) for number in range(32)]
    calls = asyncio.gather(*(reranker.apostprocess_nodes(nodes, query_str=f"{QUERY} {number}") for number in range(32)))
    reranked, ticks = await ticks_during(calls)
    assert [ids(each) for each in reranked] == expected
    assert ticks > 5


# Bad input


@pytest.mark.parametrize("empty", [False, True])
def test_missing_query_is_a_clear_error(nodes: list[NodeWithScore], empty: bool, events: Recorder) -> None:
    with pytest.raises(InputError, match=r"query is missing.*query_str="):
        BGERerank(RERANKER).postprocess_nodes([] if empty else nodes)
    assert events.named(*EVENTS) == []


def test_two_queries_are_refused(nodes: list[NodeWithScore]) -> None:
    with pytest.raises(ValueError, match="both query_str and query_bundle"):
        BGERerank(RERANKER).postprocess_nodes(nodes, QueryBundle(QUERY), QUERY)


@pytest.mark.parametrize("nodes", [[TextNode(text="panda")], ["panda"], None, "panda"])
def test_what_is_no_node_is_refused(nodes: Any) -> None:
    with pytest.raises(InputError, match="NodeWithScore"):
        BGERerank(RERANKER).postprocess_nodes(nodes, query_str=QUERY)


def test_an_assigned_top_n_is_checked_too(nodes: list[NodeWithScore]) -> None:
    reranker = BGERerank(RERANKER)
    with pytest.raises(ValueError, match="top_n=0"):
        reranker.top_n = 0
    assert len(reranker.postprocess_nodes(nodes, query_str=QUERY)) == 2  # as before


# Events


@pytest.mark.parametrize("top_n", [2, None])
def test_events_tell_what_came_and_what_went(
    nodes: list[NodeWithScore], events: Recorder, callbacks: Callbacks, top_n: int | None
) -> None:
    reranker = BGERerank(RERANKER, top_n=top_n, callback_manager=callbacks.manager())
    reranked = reranker.postprocess_nodes(nodes, query_str=QUERY)
    start, end = events.named(*EVENTS)
    assert (start.class_name(), end.class_name()) == EVENTS
    assert (start.top_n, start.model_name, start.query.query_str) == (top_n or 4, RERANKER, QUERY)
    assert ids(start.nodes) == ids(nodes)
    assert ids(end.nodes) == ids(reranked)
    (_, started, _, payload), (_, _, _, ended) = callbacks.seen
    assert started == "reranking"
    assert (payload["query_str"], payload["top_k"], payload["model_name"]) == (QUERY, top_n or 4, RERANKER)
    assert ids(ended["nodes"]) == ids(reranked)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("case", ["nodes", "no nodes", "error"])
def test_every_start_has_an_end(
    nodes: list[NodeWithScore], events: Recorder, callbacks: Callbacks, monkeypatch: Any, case: str, is_async: bool
) -> None:
    reranker = BGERerank(RERANKER, callback_manager=callbacks.manager())
    given = [] if case == "no nodes" else nodes

    def call() -> Any:
        if is_async:
            return asyncio.run(reranker.apostprocess_nodes(given, query_str=QUERY))
        return reranker.postprocess_nodes(given, query_str=QUERY)

    if case == "error":
        monkeypatch.setattr(Reranker, "arank" if is_async else "rank", _fail)
        with pytest.raises(BackendError):
            call()
    else:
        assert len(call()) == min(2, len(given))
    assert [event.class_name() for event in events.named(*EVENTS)] == list(EVENTS)
    assert callbacks.balanced()


def _fail(*args: Any, **kwargs: Any) -> Any:
    raise BackendError("device lost")


# In the framework


async def test_retriever_evaluator_reranks_inside_a_running_loop() -> None:
    documents = [TextNode(text=text, id_=str(number)) for number, text in enumerate(TEXTS)]
    index = VectorStoreIndex(documents, embed_model=BGEEmbedding(MINILM))
    evaluator = RetrieverEvaluator.from_metric_names(
        ["hit_rate", "mrr"],
        retriever=VectorIndexRetriever(index, similarity_top_k=4),
        node_postprocessors=[BGERerank(MINILM, top_n=1)],
    )
    result = await evaluator.aevaluate(query=QUERY, expected_ids=["1"])
    assert result.metric_vals_dict == {"hit_rate": 1.0, "mrr": 1.0}
