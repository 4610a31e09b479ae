"""Two-stage retrieval: what comes back, in which order, with which scores, and what the run tree shows."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from langchain_core.callbacks import BaseCallbackHandler, CallbackManagerForRetrieverRun
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.tracers.context import collect_runs
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests

import bge_runtime
from bge_runtime import ConfigurationError, UnknownArgumentError
from langchain_bge import BGEEmbeddings, BGERerank, BGERetriever

MINILM = bge_runtime.DEFAULT_OFFLINE_MODEL
TEXTS = [
    "The heart pumps blood through the body.",
    "Paris is the capital of France.",
    "The lungs take in oxygen.",
    "Berlin is the capital of Germany.",
    "Blood carries oxygen to every cell.",
    "Rivers carry water to the sea.",
]
QUERY = "Which organ moves blood?"


def documents() -> list[Document]:
    return [Document(id=f"d{n}", page_content=text, metadata={"n": n}) for n, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def store() -> InMemoryVectorStore:
    store = InMemoryVectorStore(BGEEmbeddings(model=MINILM))
    store.add_documents(documents())
    return store


@pytest.fixture
def rerank() -> BGERerank:
    return BGERerank(model=MINILM, top_n=3)


class Listed(BaseRetriever):
    """Returns the documents that it was given."""

    found: list[Document]

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return self.found


class Broken(BaseDocumentCompressor):
    """Fails."""

    def compress_documents(self, documents: Any, query: str, callbacks: Any = None) -> Any:
        raise bge_runtime.BackendError("injected")


class Runs(BaseCallbackHandler):
    """Notes each retriever run: name, parent, documents or error."""

    def __init__(self) -> None:
        self.names: dict[UUID, str] = {}
        self.parents: dict[UUID, UUID | None] = {}
        self.outcome: dict[str, int | str] = {}
        self.metadata: dict[str, Any] = {}

    def on_retriever_start(
        self, serialized: Any, query: str, *, run_id: UUID, parent_run_id: UUID | None = None, **more: Any
    ) -> None:
        self.names[run_id] = more.get("name") or ""
        self.parents[run_id] = parent_run_id
        self.metadata[self.names[run_id]] = more.get("metadata")

    def on_retriever_end(self, documents: Any, *, run_id: UUID, **_: Any) -> None:
        self.outcome[self.names[run_id]] = len(documents)

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        self.outcome[self.names[run_id]] = str(error)

    def parent_names(self) -> dict[str, str | None]:
        return {self.names[run]: self.names[parent] if parent else None for run, parent in self.parents.items()}


def ask(retriever: BGERetriever, query: str = QUERY, *, native_async: bool, **options: Any) -> list[Document]:
    if native_async:
        return asyncio.run(retriever.ainvoke(query, **options))
    return retriever.invoke(query, **options)


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def native_async(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


class TestStandard(RetrieversIntegrationTests):
    """LangChain's own requirements."""

    @property
    def retriever_constructor(self) -> type[BGERetriever]:
        return BGERetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        store = InMemoryVectorStore(BGEEmbeddings(model=MINILM))
        store.add_documents(documents())
        return {"vectorstore": store, "reranker": BGERerank(model=MINILM)}

    @property
    def retriever_query_example(self) -> str:
        return QUERY


def test_the_best_come_first_with_both_scores(store, rerank, native_async):
    found = ask(BGERetriever(vectorstore=store, reranker=rerank), native_async=native_async)

    scores = bge_runtime.Reranker(MINILM).score(QUERY, TEXTS)
    order = sorted(range(len(TEXTS)), key=lambda n: -scores[n])[:3]
    assert [each.metadata["n"] for each in found] == order
    assert [each.metadata["relevance_score"] for each in found] == pytest.approx([scores[n] for n in order], abs=1e-5)
    first_stage = {
        each.id: (rank, score) for rank, (each, score) in enumerate(store.similarity_search_with_score(QUERY, k=6), 1)
    }
    for each in found:
        rank, score = first_stage[each.id]
        assert each.metadata["retrieval_rank"] == rank
        assert each.metadata["retrieval_score"] == pytest.approx(score, abs=1e-5)


def test_stored_documents_stay_as_they_are(store, rerank):
    BGERetriever(vectorstore=store, reranker=rerank).invoke(QUERY)
    assert all(set(entry["metadata"]) == {"n"} for entry in store.store.values())


def test_k_goes_before_top_n_and_the_call_before_both(store, rerank, native_async):
    retriever = BGERetriever(vectorstore=store, reranker=rerank, k=5)
    assert len(ask(retriever, native_async=native_async)) == 5
    assert len(ask(retriever, native_async=native_async, k=1)) == 1
    assert len(ask(BGERetriever(vectorstore=store, reranker=rerank), native_async=native_async)) == 3
    assert len(ask(BGERetriever(vectorstore=store), native_async=native_async)) == 4


def test_fetch_k_bounds_the_candidates(store, rerank, native_async):
    runs = Runs()
    retriever = BGERetriever(vectorstore=store, reranker=rerank, fetch_k=2)
    assert len(ask(retriever, native_async=native_async, config={"callbacks": [runs]})) == 2
    assert runs.outcome["retrieve: InMemoryVectorStore"] == 2


def test_a_filter_reaches_the_store(store, rerank, native_async):
    capitals = BGERetriever(vectorstore=store, reranker=rerank, filter=lambda each: "capital" in each.page_content)
    assert {each.metadata["n"] for each in ask(capitals, native_async=native_async)} == {1, 3}
    assert len(ask(capitals, native_async=native_async, filter=None)) == 3


def test_a_threshold_cuts_by_relevance(store, rerank, native_async):
    every = ask(BGERetriever(vectorstore=store, reranker=rerank, k=6), native_async=native_async)
    limit = every[2].metadata["relevance_score"]
    retriever = BGERetriever(vectorstore=store, reranker=rerank, k=6, score_threshold=limit)
    assert [each.id for each in ask(retriever, native_async=native_async)] == [each.id for each in every[:3]]


def test_several_sources_are_fused_by_rank(store, native_async):
    extra = Listed(found=[Document(page_content="new"), *documents()[3:5]])
    retriever = BGERetriever(sources=[store, extra], fetch_k=6, k=10)
    found = ask(retriever, native_async=native_async)

    ranks = {each.id: rank for rank, (each, _) in enumerate(store.similarity_search_with_score(QUERY, k=6), 1)}
    expected = {f"d{n}": 1 / (60 + ranks[f"d{n}"]) for n in range(6)}
    expected["d3"] += 1 / 62
    expected["d4"] += 1 / 63
    scores = {each.id: each.metadata["retrieval_score"] for each in found}
    assert scores.pop(None) == pytest.approx(1 / 61)
    assert scores == pytest.approx(expected)
    assert [each.metadata["retrieval_rank"] for each in found] == list(range(1, 8))


def test_duplicates_by_id_or_text_come_once(rerank, native_async):
    twice = [*documents(), Document(id="other", page_content=TEXTS[0]), Document(id="d1", page_content="changed")]
    found = ask(BGERetriever(sources=[Listed(found=twice)], reranker=rerank, k=20), native_async=native_async)
    assert sorted(each.id for each in found) == [f"d{n}" for n in range(6)]


def test_both_stages_are_runs_below_the_retriever(store, rerank, native_async):
    runs = Runs()
    retriever = BGERetriever(sources=[store, Listed(found=documents())], reranker=rerank)
    ask(retriever, native_async=native_async, config={"callbacks": [runs]})
    assert runs.parent_names() == {
        "BGERetriever": None,
        "retrieve: InMemoryVectorStore": "BGERetriever",
        "Listed": "BGERetriever",
        "BGERerank": "BGERetriever",
    }
    assert runs.outcome == {"retrieve: InMemoryVectorStore": 6, "Listed": 6, "BGERerank": 3, "BGERetriever": 3}
    assert runs.metadata["BGERetriever"]["ls_vector_store_provider"] == "InMemoryVectorStore"
    assert runs.metadata["BGERetriever"]["ls_embedding_provider"] == "BGEEmbeddings"


def test_a_failing_reranker_raises(store, native_async):
    with pytest.raises(bge_runtime.BackendError, match="injected"):
        ask(BGERetriever(vectorstore=store, reranker=Broken()), native_async=native_async)


def test_on_request_the_first_stage_stands_in_and_it_is_said(store, rerank, native_async, caplog, monkeypatch):
    runs = Runs()
    retriever = BGERetriever(vectorstore=store, reranker=rerank, k=2, on_rerank_error="keep_retrieval_order")

    def fail(*_: Any, **__: Any) -> Any:
        raise bge_runtime.BackendError("injected")

    monkeypatch.setattr(bge_runtime.Reranker, "_rank", fail)
    with caplog.at_level(logging.WARNING, logger="langchain_bge"):
        found = ask(retriever, native_async=native_async, config={"callbacks": [runs]})
    assert [each.metadata["retrieval_rank"] for each in found] == [1, 2]
    assert "relevance_score" not in found[0].metadata
    assert runs.outcome["BGERerank"] == "injected"
    assert "injected" in caplog.text


@pytest.mark.parametrize("found", [[], [Document(page_content="")], [Document(page_content="word " * 100_000)]])
def test_nothing_empty_and_huge_documents_are_answered(found, native_async):
    rerank = BGERerank(model=MINILM, truncation="silent")
    retriever = BGERetriever(sources=[Listed(found=found)], reranker=rerank)
    assert len(ask(retriever, native_async=native_async)) == len(found)


class Odd(InMemoryVectorStore):
    """Gives scores that are no numbers, and less than it was asked for."""

    def similarity_search_with_score(self, query: str, k: int = 4, **more: Any) -> list[tuple[Document, float]]:
        return [(document, float("nan")) for document in documents()[:2]]


def test_a_store_with_scores_that_are_no_numbers_is_reranked_all_the_same(rerank):
    store = Odd(BGEEmbeddings(model=MINILM))
    found = BGERetriever(vectorstore=store, reranker=rerank, fetch_k=50, k=10).invoke(QUERY)
    assert [each.id for each in found] == ["d0", "d1"]
    assert all(each.metadata["relevance_score"] == each.metadata["relevance_score"] for each in found)
    assert len(BGERetriever(vectorstore=store, fetch_k=50, k=10).invoke(QUERY)) == 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ConfigurationError, "vectorstore="),
        ({"sources": []}, ConfigurationError, "vectorstore="),
        ({"vectorstore": "faiss"}, ConfigurationError, "vectorstore"),
        ({"fetch": 10}, UnknownArgumentError, "fetch_k"),
        ({"k": 0}, ConfigurationError, "k"),
        ({"fetch_k": -1}, ConfigurationError, "fetch_k"),
        ({"on_rerank_error": "ignore"}, ConfigurationError, "keep_retrieval_order"),
        ({"score_threshold": 0.5}, ConfigurationError, "reranker="),
    ],
)
def test_wrong_options_are_refused_with_what_is_allowed(store, options, error, message):
    source = {} if not options or "sources" in options or "vectorstore" in options else {"vectorstore": store}
    with pytest.raises(error, match=message):
        BGERetriever(**source, **options)


@pytest.mark.parametrize("options", [{"k": 0}, {"fetch_k": "3"}, {"score_threshold": 0.3}])
def test_wrong_options_of_a_call_are_refused(store, options):
    with pytest.raises(ConfigurationError):
        BGERetriever(vectorstore=store).invoke(QUERY, **options)


def test_an_unknown_option_of_a_call_is_refused(store):
    with pytest.raises(TypeError):
        BGERetriever(vectorstore=store).invoke(QUERY, top=3)


# Fusion


def listed(*texts: str, **metadata: Any) -> Listed:
    return Listed(found=[Document(page_content=text, metadata=dict(metadata)) for text in texts])


def filled(*rows: tuple[str | None, str]) -> InMemoryVectorStore:
    store = InMemoryVectorStore(BGEEmbeddings(model=MINILM))
    store.add_texts([text for _, text in rows], ids=None if rows[0][0] is None else [str(name) for name, _ in rows])
    return store


def found_by(native_async: bool, *sources: Any) -> list[tuple[str, int, float]]:
    found = ask(BGERetriever(sources=list(sources), k=99), native_async=native_async)
    return [(each.page_content, each.metadata["retrieval_rank"], each.metadata["retrieval_score"]) for each in found]


def test_a_text_counts_in_every_source_whether_or_not_it_has_an_id_there(native_async):
    store = filled((None, TEXTS[0]), (None, TEXTS[2]))  # ids are made up
    found = found_by(native_async, store, listed(TEXTS[2]))
    assert found == [(TEXTS[2], 1, pytest.approx(1 / 62 + 1 / 61)), (TEXTS[0], 2, pytest.approx(1 / 61))]


def test_an_id_belongs_to_its_source(native_async):
    found = found_by(native_async, filled(("1", TEXTS[0])), filled(("1", TEXTS[4])))
    assert {text for text, _, _ in found} == {TEXTS[0], TEXTS[4]}


@pytest.mark.parametrize("copy", [{"id": "a", "page_content": "changed"}, {"id": "b", "page_content": "one"}])
def test_ranks_count_what_stays(copy, native_async):
    one, two = Document(id="a", page_content="one"), Document(id="c", page_content="two")
    repeated = Listed(found=[one, Document(**copy), two])
    assert found_by(native_async, repeated, listed("three"))[-1] == ("two", 3, pytest.approx(1 / 62))
    alone = ask(BGERetriever(sources=[repeated], k=99), native_async=native_async)
    assert [(each.page_content, each.metadata["retrieval_rank"]) for each in alone] == [("one", 1), ("two", 2)]


def test_of_copies_the_best_ranked_is_returned(native_async):
    worse = Listed(found=[Document(page_content="other"), Document(id="w", page_content="both", metadata={"of": "w"})])
    retriever = BGERetriever(sources=[worse, listed("both", of="better")], k=1)
    (best,) = ask(retriever, native_async=native_async)
    assert (best.id, best.metadata["of"]) == (None, "better")


# Thresholds


class Scored(BaseDocumentCompressor):
    """Gives every document the same score, or none."""

    score: Any = "no score"

    def compress_documents(self, documents: Any, query: str, callbacks: Any = None) -> Any:
        given = {} if self.score == "no score" else {"relevance_score": self.score}
        return [each.model_copy(update={"metadata": {**each.metadata, **given}}) for each in documents]


@pytest.mark.parametrize("threshold", [0.1, 0.0, -1.0])
@pytest.mark.parametrize("score", ["no score", None, "0.9"])
def test_a_threshold_needs_a_reranker_that_gives_scores(store, score, threshold, native_async):
    retriever = BGERetriever(vectorstore=store, reranker=Scored(score=score), k=2)
    assert len(ask(retriever, native_async=native_async)) == 2
    with pytest.raises(ConfigurationError, match=r"Scored gives metadata.*Leave the threshold out"):
        ask(retriever, native_async=native_async, score_threshold=threshold)


def test_scores_that_a_source_brings_along_are_not_the_rerankers(native_async):
    retriever = BGERetriever(sources=[listed(*TEXTS, relevance_score=0.9)], reranker=Scored(), score_threshold=0.5)
    with pytest.raises(ConfigurationError, match="Scored gives"):
        ask(retriever, native_async=native_async)


@pytest.mark.parametrize(("score", "passed"), [(0.5, 6), (np.float32(0.5), 6), (1, 6), (0.49, 0), (float("nan"), 0)])
def test_any_number_is_a_score(store, score, passed, native_async):
    retriever = BGERetriever(vectorstore=store, reranker=Scored(score=score), k=9, score_threshold=0.5)
    assert len(ask(retriever, native_async=native_async)) == passed


def test_documents_that_the_time_left_unscored_pass_no_threshold(native_async, monkeypatch):
    def rank(*_: Any, **__: Any) -> Any:
        ranked = [bge_runtime.Ranked(0, 0.5), bge_runtime.Ranked(1, float("nan"))]
        return bge_runtime.Ranking(ranked, partial=True)
        yield

    monkeypatch.setattr(bge_runtime.Reranker, "_rank", rank)
    retriever = BGERetriever(sources=[listed("one", "two")], reranker=BGERerank(model=MINILM, time_budget_s=9))
    assert len(ask(retriever, native_async=native_async)) == 2
    (passed,) = ask(retriever, native_async=native_async, score_threshold=-1.0)
    assert passed.page_content == "one"


def test_a_threshold_does_not_empty_what_stands_in_for_a_failed_reranker(store, native_async):
    options = {"on_rerank_error": "keep_retrieval_order", "score_threshold": 0.5, "k": 2}
    assert len(ask(BGERetriever(vectorstore=store, reranker=Broken(), **options), native_async=native_async)) == 2


# What an earlier run left


def test_what_an_earlier_run_noted_is_replaced_or_gone(native_async):
    notes = {"retrieval_rank": 7, "retrieval_score": 0.9, "relevance_score": 0.9, "partial_ranking": True, "own": 1}
    source = listed("one", **notes)
    (found,) = ask(BGERetriever(sources=[source], reranker=Scored()), native_async=native_async)
    assert found.metadata == {"retrieval_rank": 1, "own": 1}
    kept = BGERetriever(sources=[source], reranker=Broken(), on_rerank_error="keep_retrieval_order")
    assert ask(kept, native_async=native_async)[0].metadata == {"retrieval_rank": 1, "own": 1}
    assert source.found[0].metadata == notes


def test_results_share_nothing_with_what_the_sources_hold(native_async):
    source = listed("one", inner={"pages": [1]})
    for reranker in (None, BGERerank(model=MINILM)):
        (found,) = ask(BGERetriever(sources=[source], reranker=reranker), native_async=native_async)
        found.metadata["inner"]["pages"].append(2)
        assert source.found[0].metadata == {"inner": {"pages": [1]}}


# The run tree


def test_handlers_that_are_not_handed_down_hear_of_both_stages(store, rerank, native_async):
    retriever = BGERetriever(sources=[store, listed("one")], reranker=rerank)
    with collect_runs() as collected:
        ask(retriever, native_async=native_async)
    (run,) = collected.traced_runs
    assert sorted(each.name for each in run.child_runs) == ["BGERerank", "Listed", "retrieve: InMemoryVectorStore"]
    assert {each.parent_run_id for each in run.child_runs} == {run.id}


def test_a_failing_store_is_a_failed_run(native_async):
    class Failing(InMemoryVectorStore):
        def similarity_search_with_score(self, query: str, k: int = 4, **more: Any) -> Any:
            raise RuntimeError("store down")

        async def asimilarity_search_with_score(self, query: str, k: int = 4, **more: Any) -> Any:
            raise RuntimeError("store down")

    with collect_runs() as collected, pytest.raises(RuntimeError):
        ask(BGERetriever(vectorstore=Failing(BGEEmbeddings(model=MINILM))), native_async=native_async)
    (run,) = collected.traced_runs
    assert "store down" in run.child_runs[0].error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 2}, "BGERetriever got neither vectorstore= nor sources=. Pass vectorstore= for one source, or sources"),
        ({"sources": [listed("one")], "index_path": "here"}, "got index_path='here' without vectorstore=.*bind_index"),
        ({"sources": [listed("one")], "score_threshold": 0.5}, "score_threshold=0.5 is on the reranker's scale, and"),
    ],
)
def test_a_broken_rule_is_told_without_showing_objects(options, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        BGERetriever(**options)
    assert "Listed(" not in str(caught.value)
    assert "Value error" not in str(caught.value)


def test_two_sorts_of_source_are_one_too_many(store):
    with pytest.raises(ConfigurationError, match="got both vectorstore= and sources="):
        BGERetriever(vectorstore=store, sources=[listed("one")])
