"""Probabilities from LangChain's stores, through the retriever and as a store's own relevance."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.load import dumpd, load
from langchain_core.vectorstores import InMemoryVectorStore

from bge_runtime import DEFAULT_OFFLINE_MODEL, ConfigurationError, Reranker, ScoreCalibrator, score_facts
from langchain_bge import BGEEmbeddings, BGERerank, BGERetriever, relevance_score_fn

TEXTS = ["The heart pumps blood.", "Paris is the capital of France.", "Lungs take up oxygen."]
QUERY = "Which organ moves blood?"


@pytest.fixture(scope="module")
def embeddings() -> BGEEmbeddings:
    return BGEEmbeddings(model=DEFAULT_OFFLINE_MODEL)


@pytest.fixture(scope="module")
def calibrator(embeddings: BGEEmbeddings) -> ScoreCalibrator:
    identity, words = score_facts(embeddings.embedder)
    return ScoreCalibrator(method="platt", slope=10, intercept=-4, identity=identity, scorer=words)


@pytest.fixture(scope="module")
def store(embeddings: BGEEmbeddings) -> InMemoryVectorStore:
    return InMemoryVectorStore.from_texts(TEXTS, embeddings, metadatas=[{"relevance_score": 7}] * 3)


@pytest.fixture(scope="module")
def expected(embeddings: BGEEmbeddings, calibrator: ScoreCalibrator) -> list[float]:
    cosines = embeddings.embedder.encode_documents(TEXTS) @ embeddings.embedder.encode_queries([QUERY])[0]
    return sorted(calibrator.probabilities(cosines).tolist(), reverse=True)


async def test_the_retriever_gives_probabilities(store: Any, calibrator: Any, expected: list[float]) -> None:
    retriever = BGERetriever(vectorstore=store, calibrator=calibrator)
    for found in (retriever.invoke(QUERY), await retriever.ainvoke(QUERY)):
        np.testing.assert_allclose([each.metadata["relevance_score"] for each in found], expected, atol=1e-5)
        assert found[0].page_content == TEXTS[0]
    assert {each.metadata["relevance_score"] for each in store.similarity_search(QUERY)} == {7}


def test_a_threshold_of_the_retriever_is_a_probability(store: Any, calibrator: Any, expected: list[float]) -> None:
    retriever = BGERetriever(vectorstore=store, calibrator=calibrator, score_threshold=(expected[0] + expected[1]) / 2)
    assert [each.page_content for each in retriever.invoke(QUERY)] == TEXTS[:1]
    assert len(retriever.invoke(QUERY, score_threshold=None)) == 3
    assert copy.deepcopy(retriever.calibrator) == calibrator.as_dict()


def test_the_retriever_takes_a_path(store: Any, calibrator: Any, tmp_path: Path) -> None:
    calibrator.save(tmp_path / "c.json")
    retriever = BGERetriever(vectorstore=store, calibrator=tmp_path / "c.json")
    assert retriever.invoke(QUERY)[0].metadata["relevance_score"] < 1


def test_the_retriever_refuses_a_calibrator_of_other_embeddings(calibrator: Any) -> None:
    other = BGEEmbeddings(model=DEFAULT_OFFLINE_MODEL, precision="int8")
    retriever = BGERetriever(vectorstore=InMemoryVectorStore(other), calibrator=calibrator)
    with pytest.raises(ConfigurationError, match="precision 'float' there, 'int8' here"):
        retriever.invoke(QUERY)


def test_the_retriever_refuses_a_store_that_has_no_cosine_or_no_identity(embeddings: Any, calibrator: Any) -> None:
    class Other(InMemoryVectorStore.__base__):  # type: ignore[misc, name-defined]
        embeddings = None

        def similarity_search(self, query: str, k: int = 4, **options: Any) -> list[Document]:
            raise AssertionError("searched before it was checked")

        @classmethod
        def from_texts(cls, *args: Any, **options: Any) -> Any:
            return cls()

    store = Other()
    with pytest.raises(ConfigurationError, match="None has no identity"):
        BGERetriever(vectorstore=store, calibrator=calibrator).invoke(QUERY)
    store.embeddings = embeddings
    with pytest.raises(ConfigurationError, match="the score of Other is not known to be one"):
        BGERetriever(vectorstore=store, calibrator=calibrator).invoke(QUERY)
    with pytest.raises(ConfigurationError, match="has no identity"):
        BGERetriever(vectorstore=InMemoryVectorStore(DeterministicFakeEmbedding(size=3)), calibrator=calibrator).invoke(
            QUERY
        )


def test_a_calibrator_beside_a_reranker_or_several_sources_is_refused(store: Any, calibrator: Any) -> None:
    with pytest.raises(ConfigurationError, match="together with reranker="):
        BGERetriever(vectorstore=store, calibrator=calibrator, reranker=BGERerank(model=DEFAULT_OFFLINE_MODEL))
    with pytest.raises(ConfigurationError, match="together with sources="):
        BGERetriever(sources=[store], calibrator=calibrator)


@pytest.mark.parametrize(
    ("space", "measure"), [("l2", "squared_l2"), ("cosine", "cosine_distance"), ("ip", "cosine_distance")]
)
def test_chroma_gives_probabilities_as_its_relevance(
    embeddings: Any, calibrator: Any, expected: list[float], space: str, measure: Any
) -> None:
    from langchain_chroma import Chroma

    store = Chroma(
        f"relevance-{space}",
        embeddings,
        collection_configuration={"hnsw": {"space": space}},
        relevance_score_fn=relevance_score_fn(calibrator, embeddings, measure=measure),
    )
    store.add_texts(TEXTS)
    found = store.similarity_search_with_relevance_scores(QUERY)
    np.testing.assert_allclose([score for _, score in found], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("strategy", "measure"), [("EUCLIDEAN_DISTANCE", "squared_l2"), ("MAX_INNER_PRODUCT", "cosine")]
)
def test_faiss_gives_probabilities_as_its_relevance_and_to_the_retriever(
    embeddings: Any, calibrator: Any, expected: list[float], strategy: str, measure: Any
) -> None:
    from langchain_community.vectorstores import FAISS
    from langchain_community.vectorstores.utils import DistanceStrategy

    options = {"distance_strategy": DistanceStrategy[strategy]}
    relevance = relevance_score_fn(calibrator, embeddings, measure=measure)
    store = FAISS.from_texts(TEXTS, embeddings, relevance_score_fn=relevance, **options)
    scores = [score for _, score in store.similarity_search_with_relevance_scores(QUERY)]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    found = BGERetriever(vectorstore=FAISS.from_texts(TEXTS, embeddings, **options), calibrator=calibrator).invoke(
        QUERY
    )
    np.testing.assert_allclose([each.metadata["relevance_score"] for each in found], expected, atol=1e-4)


def test_a_relevance_function_is_checked_when_it_is_made(embeddings: Any, calibrator: Any) -> None:
    with pytest.raises(ConfigurationError, match="measure='dot'"):
        relevance_score_fn(calibrator, embeddings, measure="dot")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="precision 'float' there, 'int8' here"):
        relevance_score_fn(
            calibrator, BGEEmbeddings(model=DEFAULT_OFFLINE_MODEL, precision="int8"), measure="squared_l2"
        )
    with pytest.raises(ConfigurationError, match="other lengths than 1"):
        relevance_score_fn(
            calibrator, BGEEmbeddings(model=DEFAULT_OFFLINE_MODEL, normalize=False), measure="squared_l2"
        )


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
def test_a_dump_holds_the_calibrator(tmp_path: Path) -> None:
    identity, words = score_facts(Reranker(DEFAULT_OFFLINE_MODEL))
    made = ScoreCalibrator(method="platt", slope=10, intercept=-4, identity=identity, scorer=words)
    made.save(tmp_path / "c.json")
    for given in (made, str(tmp_path / "c.json")):
        dumped = dumpd(BGERerank(model=DEFAULT_OFFLINE_MODEL, calibrator=given))
        loaded = load(dumped, allowed_objects=[BGERerank], valid_namespaces=["langchain_bge"])
        assert loaded.reranker.calibrator == made
