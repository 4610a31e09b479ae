"""`BGERerank` as document compressor and as Runnable, and `BGECrossEncoder`."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import Document
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

import bge_runtime
from langchain_bge import BGECrossEncoder, BGEEmbeddings, BGERerank
from tests.langchain.conftest import EMBEDDER, QUERY, RERANKER, Runs

Same = Callable[[Any, Any], bool]
MINILM = bge_runtime.DEFAULT_OFFLINE_MODEL


@pytest.fixture(autouse=True)
def seeded(hub_cache: Path) -> None:
    """Names of the hub load."""


@pytest.fixture
def rerank() -> BGERerank:
    return BGERerank(model=RERANKER, top_n=2)


def ids(documents: list[Document]) -> list[str | None]:
    return [document.id for document in documents]


# Documents


def test_copies_keep_ids_and_metadata_and_the_originals_stay(rerank: BGERerank, documents: list[Document]) -> None:
    before = copy.deepcopy(documents)
    best = rerank.compress_documents(documents, QUERY)
    assert documents == before
    originals = {document.id: document for document in documents}
    for document in best:
        original = originals[document.id]
        assert document.metadata == {**original.metadata, "relevance_score": document.metadata["relevance_score"]}
        assert (document.page_content, type(document)) == (original.page_content, Document)
        assert document.metadata is not original.metadata


def test_a_kind_of_document_stays_that_kind(rerank: BGERerank) -> None:
    class Page(Document):
        number: int = 0

    (page,) = rerank.compress_documents([Page(page_content="panda", number=7)], QUERY)
    assert (type(page), page.number) == (Page, 7)


def test_an_earlier_score_is_replaced(rerank: BGERerank) -> None:
    (best,) = rerank.compress_documents([Document(page_content="cat", metadata={"relevance_score": 99})], QUERY)
    assert 0 < best.metadata["relevance_score"] < 1


def test_strings_are_no_documents_for_the_compressor(rerank: BGERerank) -> None:
    with pytest.raises(bge_runtime.InputError, match=r"documents\[1\] is str; .*rerank\(\)"):
        rerank.compress_documents([Document(page_content="cat"), "dog"], QUERY)


async def test_sync_and_async_agree(rerank: BGERerank, documents: list[Document]) -> None:
    expected = rerank.compress_documents(documents, QUERY)
    assert await rerank.acompress_documents(documents, QUERY) == expected
    assert await rerank.ainvoke({"documents": documents, "query": QUERY}) == expected
    assert await rerank.arerank(documents, QUERY) == rerank.rerank(documents, QUERY)


# rerank()


def test_rerank_takes_strings_and_documents_alike(rerank: BGERerank, documents: list[Document]) -> None:
    texts = [document.page_content for document in documents]
    rows = rerank.rerank([*texts[:2], *documents[2:]], QUERY)
    assert rows == rerank.rerank(texts, QUERY) == rerank.rerank(iter(documents), QUERY)
    assert [row.keys() for row in rows] == [{"index", "relevance_score"}] * 2
    assert [(type(row["index"]), type(row["relevance_score"])) for row in rows] == [(int, float)] * 2


def test_top_n_of_a_call_wins(rerank: BGERerank, documents: list[Document]) -> None:
    assert [len(rerank.rerank(documents, QUERY, top_n=top_n)) for top_n in (1, 3, None)] == [1, 3, 4]
    with pytest.raises(bge_runtime.ConfigurationError, match="top_n=0"):
        rerank.rerank(documents, QUERY, top_n=0)


async def test_top_n_of_an_async_call_wins(rerank: BGERerank, documents: list[Document]) -> None:
    assert [len(await rerank.arerank(documents, QUERY, top_n=top_n)) for top_n in (1, 3, None)] == [1, 3, 4]


def test_three_documents_are_the_default_and_top_k_another_name() -> None:
    assert (BGERerank().top_n, BGERerank(top_k=5).top_n, BGERerank(top_k=None).top_n) == (3, 5, None)
    with pytest.raises(bge_runtime.ConfigurationError, match=r"top_n=2.*top_k=3"):
        BGERerank(top_n=2, top_k=3)


@pytest.mark.parametrize("options", [{"top_n": 0}, {"top_k": -1}, {"top_n": "3"}, {"score_threshold": float("nan")}])
def test_a_limit_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(bge_runtime.ConfigurationError):
        BGERerank(**options)


def test_an_unknown_argument_is_answered_with_the_nearest() -> None:
    with pytest.raises(bge_runtime.UnknownArgumentError, match="Did you mean 'score_threshold'"):
        BGERerank(score_treshold=0.5)
    with pytest.raises(bge_runtime.UnknownArgumentError, match="encode_kwargs"):
        BGERerank(encode_kwargs={})
    with pytest.raises(bge_runtime.ConfigurationError, match="normalize=True"):
        BGECrossEncoder(model_kwargs={"activation_fn": object()})


def test_an_embedder_finds_what_is_meant_by_late_interaction(fresh_store: None) -> None:
    texts = ["Paris is the capital of France.", "Lungs take up oxygen.", "The heart pumps blood."]
    store = InMemoryVectorStore.from_texts(texts, BGEEmbeddings(MINILM))
    candidates = store.similarity_search("Which organ moves blood?", k=3)
    best = BGERerank(model=MINILM, top_n=2).compress_documents(candidates, "Which organ moves blood?")
    assert [document.page_content for document in best] == ["The heart pumps blood.", "Lungs take up oxygen."]
    assert len(bge_runtime.loaded_models()) == 1


def test_a_reranker_that_is_handed_in_is_used() -> None:
    reranker = bge_runtime.Reranker(bge_runtime.Embedder(EMBEDDER))
    rerank = BGERerank(reranker=reranker, top_n=1)
    assert rerank.reranker is reranker
    assert rerank.model_copy(update={"top_n": 5}).reranker is reranker
    assert (rerank.model, rerank.top_n, rerank.normalize) == (EMBEDDER, 1, False)
    with pytest.raises(bge_runtime.ConfigurationError, match="which the reranker settles"):
        BGERerank(reranker=reranker, normalize=True)


# Runnable


def test_a_chain_retrieves_and_reranks(rerank: BGERerank, documents: list[Document]) -> None:
    store = InMemoryVectorStore(BGEEmbeddings(EMBEDDER))
    store.add_documents(documents)
    chain = {"documents": store.as_retriever(search_kwargs={"k": 4}), "query": RunnablePassthrough()} | rerank
    expected = ids(rerank.compress_documents(documents, QUERY))
    assert ids(chain.invoke(QUERY)) == expected
    assert [ids(best) for best in chain.batch([QUERY, QUERY])] == [expected] * 2
    assert [ids(best) for best in chain.stream(QUERY)] == [expected]


async def test_an_async_chain_retrieves_and_reranks(rerank: BGERerank, documents: list[Document]) -> None:
    chain = {"documents": RunnableLambda(lambda query: documents), "query": RunnablePassthrough()} | rerank
    expected = ids(rerank.compress_documents(documents, QUERY))
    assert [ids(best) for best in await chain.abatch([QUERY, QUERY])] == [expected] * 2


def test_top_n_can_be_bound_and_configured(rerank: BGERerank, documents: list[Document]) -> None:
    given = {"documents": documents, "query": QUERY, "question": "left alone"}
    configurable = rerank.configurable_fields(top_n=ConfigurableField(id="keep"))
    assert len(rerank.bind(top_n=1).invoke(given)) == 1
    assert len(configurable.invoke(given, {"configurable": {"keep": 3}})) == 3
    assert ids(rerank.with_retry().invoke(given)) == ids(rerank.invoke(given))


@pytest.mark.parametrize("given", [{"documents": []}, {"query": QUERY}, [Document(page_content="cat")], QUERY])
async def test_an_input_without_documents_and_query_is_refused(rerank: BGERerank, given: Any) -> None:
    with pytest.raises(bge_runtime.InputError, match="'documents'"):
        rerank.invoke(given)
    with pytest.raises(bge_runtime.InputError, match="'documents'"):
        await rerank.ainvoke(given)


async def test_an_unknown_keyword_of_a_call_is_refused(rerank: BGERerank) -> None:
    with pytest.raises(bge_runtime.UnknownArgumentError, match="Did you mean 'top_n'"):
        rerank.invoke({"documents": [], "query": QUERY}, topn=1)
    with pytest.raises(bge_runtime.UnknownArgumentError, match="Did you mean 'top_n'"):
        await rerank.ainvoke({"documents": [], "query": QUERY}, topn=1)


# Tracing


def test_the_rerank_is_a_child_of_its_chain(rerank: BGERerank, documents: list[Document], runs: Runs) -> None:
    chain = {"documents": RunnableLambda(lambda query: documents), "query": RunnablePassthrough()} | rerank
    best = chain.invoke(QUERY, {"callbacks": [runs], "tags": ["search"], "metadata": {"user": "me"}})
    (row,) = runs.named("BGERerank")
    (parent,) = [run_id for run_id, each in runs.rows.items() if each["name"] == "RunnableSequence"]
    assert (row["kind"], row["query"], row["documents"]) == ("retriever", QUERY, best)
    assert row["parent_run_id"] == parent
    assert "search" in row["tags"]
    assert row["metadata"].items() >= {"user": "me", "ls_model_name": RERANKER}.items()


async def test_the_async_rerank_is_a_child_of_its_chain(
    rerank: BGERerank, documents: list[Document], runs: Runs
) -> None:
    chain = RunnableLambda(lambda query: {"documents": documents, "query": query}) | rerank
    await chain.ainvoke(QUERY, {"callbacks": [runs]})
    (row,) = runs.named("BGERerank")
    assert runs.rows[row["parent_run_id"]]["name"] == "RunnableSequence"
    assert len(row["documents"]) == 2


def test_a_rerank_inside_a_function_is_a_child_of_it(rerank: BGERerank, documents: list[Document], runs: Runs) -> None:
    RunnableLambda(lambda query: rerank.compress_documents(documents, query), name="mine").invoke(
        QUERY, {"callbacks": [runs]}
    )
    (row,) = runs.named("BGERerank")
    assert runs.rows[row["parent_run_id"]]["name"] == "mine"


def test_no_documents_are_a_run_that_loads_nothing(rerank: BGERerank, runs: Runs, fresh_store: None) -> None:
    assert rerank.compress_documents([], QUERY, callbacks=[runs]) == []
    assert [row["documents"] for row in runs.rows.values()] == [[]]
    assert bge_runtime.loaded_models() == []


async def test_an_error_ends_the_run(rerank: BGERerank, runs: Runs) -> None:
    with pytest.raises(bge_runtime.InputError):
        rerank.compress_documents(["cat"], QUERY, callbacks=[runs])
    with pytest.raises(bge_runtime.InputError):
        await rerank.acompress_documents(["cat"], QUERY, callbacks=[runs])
    assert [type(row["error"]) for row in runs.rows.values()] == [bge_runtime.InputError] * 2


async def test_a_cancelled_run_ends(rerank: BGERerank, documents: list[Document], runs: Runs) -> None:
    task = asyncio.create_task(rerank.acompress_documents(documents * 50, QUERY, callbacks=[runs]))
    while not runs.rows:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [type(row["error"]) for row in runs.rows.values()] == [asyncio.CancelledError]


def test_a_name_of_its_own_names_the_run(documents: list[Document], runs: Runs) -> None:
    BGERerank(model=RERANKER, name="second stage").compress_documents(documents, QUERY, callbacks=[runs])
    assert len(runs.named("second stage")) == 1


# BGECrossEncoder


async def test_pairs_of_many_queries_are_scored_in_order(same: Same) -> None:
    encoder = BGECrossEncoder(model=RERANKER, normalize=False)
    pairs = [("panda", "bear"), ("cat", "dog"), ("panda", "Paris")]
    reranker = bge_runtime.Reranker(RERANKER)
    expected = [reranker.score(query, [document])[0] for query, document in pairs]
    assert isinstance(encoder, BaseCrossEncoder)
    assert same(encoder.score(pairs), expected)
    assert same(await encoder.ascore(pairs), expected)
    assert await encoder.ascore([]) == []


@pytest.mark.parametrize("pairs", ["panda", [("panda",)], [("panda", None)], None])
def test_what_is_no_pair_is_refused(pairs: Any) -> None:
    with pytest.raises(bge_runtime.InputError, match="pairs"):
        BGECrossEncoder(model=RERANKER).score(pairs)


def test_model_kwargs_of_the_older_class_have_their_effect() -> None:
    encoder = BGECrossEncoder(model_name=RERANKER, model_kwargs={"device": "cpu", "max_length": 32})
    assert (encoder.reranker.device, encoder.reranker.max_length) == ("cpu", 32)
