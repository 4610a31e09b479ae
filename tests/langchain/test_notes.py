"""Whatever hands out documents writes its notes on copies, and takes away those of earlier runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.documents import Document

import bge_runtime
from langchain_bge import BGERerank, BGETokenRetriever

MINILM = bge_runtime.DEFAULT_OFFLINE_MODEL
QUERY = "Which organ moves blood?"
EARLIER = {"relevance_score": 0.99, "partial_ranking": True}

Ask = Callable[[list[Document]], Any]


def token_retriever(documents: list[Document]) -> BGETokenRetriever:
    return BGETokenRetriever.from_documents(documents, MINILM, k=9)


WAYS: dict[str, Ask] = {
    "compress": lambda documents: BGERerank(MINILM).compress_documents(documents, QUERY),
    "acompress": lambda documents: asyncio.run(BGERerank(MINILM).acompress_documents(documents, QUERY)),
    "invoke": lambda documents: BGERerank(MINILM).invoke({"documents": documents, "query": QUERY}),
    "ainvoke": lambda documents: asyncio.run(BGERerank(MINILM).ainvoke({"documents": documents, "query": QUERY})),
    "token retriever": lambda documents: token_retriever(documents).invoke(QUERY),
    "async token retriever": lambda documents: asyncio.run(token_retriever(documents).ainvoke(QUERY)),
}
every_way = pytest.mark.parametrize("ask", WAYS.values(), ids=WAYS)


def document(**metadata: Any) -> Document:
    return Document(id="one", page_content="The heart pumps blood.", metadata=metadata)


@every_way
def test_a_complete_run_leaves_no_note_of_an_earlier_one(ask: Ask) -> None:
    given = document(**EARLIER, own=1)
    (found,) = ask([given])
    assert found.metadata.keys() == {"relevance_score", "own"}
    assert found.metadata["relevance_score"] != 0.99
    assert given.metadata == {**EARLIER, "own": 1}


@pytest.mark.parametrize("ask", [WAYS["compress"], WAYS["acompress"], WAYS["invoke"], WAYS["ainvoke"]])
def test_a_document_that_was_not_scored_has_no_score(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def rank(*_: Any, **__: Any) -> Any:
        return bge_runtime.Ranking([bge_runtime.Ranked(0, float("nan"))], partial=True)
        yield

    monkeypatch.setattr(bge_runtime.Reranker, "_rank", rank)
    (found,) = ask([document(**EARLIER)])
    assert found.metadata == {"partial_ranking": True}


@every_way
def test_what_is_returned_shares_nothing_that_can_change(ask: Ask) -> None:
    given = document(inner={"pages": [1]}, rows=[[1]])
    (found,) = ask([given])
    found.metadata["inner"]["pages"].append(2)
    found.metadata["rows"][0].append(2)
    assert given.metadata == {"inner": {"pages": [1]}, "rows": [[1]]}


def test_a_token_retriever_gives_the_same_twice() -> None:
    retriever = token_retriever([document(pages=[1])])
    for _ in range(2):
        (found,) = retriever.invoke(QUERY)
        assert found.metadata.pop("pages") == [1]
        found.page_content = "changed"


@every_way
def test_what_cannot_be_copied_is_shared(ask: Ask) -> None:
    lock = threading.Lock()
    given = document(lock=lock)
    (found,) = ask([given])
    assert found.metadata["lock"] is lock
    assert given.metadata == {"lock": lock}
