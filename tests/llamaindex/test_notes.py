"""Whatever hands out nodes hands out copies, with no note of an earlier run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.postprocessor import MetadataReplacementPostProcessor
from llama_index.core.schema import ImageNode, MetadataMode, NodeWithScore, TextNode

import bge_runtime
from llamaindex_bge import BGERerank, BGETokenRetriever

MINILM = bge_runtime.DEFAULT_OFFLINE_MODEL
QUERY = "Which organ moves blood?"

Ask = Callable[[TextNode], NodeWithScore]


def reranked(node: TextNode, **options: Any) -> NodeWithScore:
    (found,) = BGERerank(MINILM, **options).postprocess_nodes([NodeWithScore(node=node, score=0.5)], query_str=QUERY)
    return found


async def areranked(node: TextNode) -> NodeWithScore:
    given = [NodeWithScore(node=node, score=0.5)]
    (found,) = await BGERerank(MINILM).apostprocess_nodes(given, query_str=QUERY)
    return found


WAYS: dict[str, Ask] = {
    "rerank": reranked,
    "arerank": lambda node: asyncio.run(areranked(node)),
    "keeping the retrieval's score": lambda node: reranked(node, keep_retrieval_score=True),
    "token retriever": lambda node: BGETokenRetriever.from_nodes([node], MINILM).retrieve(QUERY)[0],
    "async": lambda node: asyncio.run(BGETokenRetriever.from_nodes([node], MINILM).aretrieve(QUERY))[0],
}
every_way = pytest.mark.parametrize("ask", WAYS.values(), ids=WAYS)


@every_way
def test_a_complete_run_leaves_no_mark_of_a_partial_one(ask: Ask) -> None:
    hidden, metadata = ["own", "partial_ranking"], {"own": 1, "partial_ranking": True}
    node = TextNode(text="The heart.", metadata=metadata, excluded_embed_metadata_keys=hidden)
    found = ask(node).node
    assert found.metadata.keys() - {"retrieval_score"} == {"own"}
    assert [key for key in found.excluded_embed_metadata_keys if key != "retrieval_score"] == ["own"]
    assert node.metadata == {"own": 1, "partial_ranking": True}


def test_a_partial_mark_is_there_once_and_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def rank(*_: Any, **__: Any) -> Any:
        return bge_runtime.Ranking([bge_runtime.Ranked(0, float("nan"))], partial=True)
        yield

    monkeypatch.setattr(bge_runtime.Reranker, "_rank", rank)
    again = reranked(reranked(TextNode(text="The heart.")).node)
    assert (again.score, again.node.metadata) == (None, {"partial_ranking": True})
    assert again.node.excluded_llm_metadata_keys == ["partial_ranking"]
    assert again.node.get_content(MetadataMode.EMBED) == "The heart."


@every_way
def test_what_is_returned_shares_nothing_that_can_change(ask: Ask) -> None:
    node = ImageNode(
        text="The heart.", embedding=[0.5], metadata={"inner": {"pages": [1]}}, excluded_llm_metadata_keys=["inner"]
    )
    before = node.model_dump()
    found = ask(node).node
    assert (type(found), found.node_id, found.hash) == (ImageNode, node.node_id, node.hash)
    found.set_content("changed")
    found.metadata["inner"]["pages"].append(2)
    found.excluded_llm_metadata_keys.append("changed")
    found.embedding.append(0.7)
    found.relationships["1"] = None
    assert node.model_dump() == before


def test_a_token_retriever_gives_the_same_twice() -> None:
    node = TextNode(text="The heart.", metadata={"window": "W"}, excluded_embed_metadata_keys=["window"])
    retriever = BGETokenRetriever.from_nodes([node], MINILM)
    for _ in range(2):
        found = retriever.retrieve(QUERY)
        assert found[0].text == "The heart."
        MetadataReplacementPostProcessor(target_metadata_key="window").postprocess_nodes(found)
        assert found[0].text == "W"


@every_way
def test_what_cannot_be_copied_is_shared(ask: Ask) -> None:
    lock = threading.Lock()
    node = TextNode(text="The heart.", metadata={"lock": lock}, excluded_embed_metadata_keys=["lock"])
    found = ask(node).node
    assert found.metadata["lock"] is lock
    assert found.metadata is not node.metadata
