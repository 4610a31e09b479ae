"""Create, add, query with a filter, delete, save, reload in a new process, query again; another model is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

import bge_runtime
from bge_runtime import IndexIdentityError
from langchain_bge import BGEEmbeddings, BGERerank, BGERetriever, bind_index
from tests.stores.facts import MINILM, OTHER, QUERY, answers_of_a_new_process
from tests.stores.langchain_stores import STORES, Place, documents, names

pytestmark = [
    pytest.mark.usefixtures("hub_cache"),
    # The stores' own packages warn about each other.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, hub_cache: Path) -> Path:
    """A folder with every kind of store, each filled, bound and closed; the document on Berlin is deleted again."""
    parent = tmp_path_factory.mktemp("stores")
    for name, kind in STORES.items():
        folder = parent / name
        folder.mkdir()
        place = kind(folder)
        store = place.open(bind_index(folder, BGEEmbeddings(model=MINILM)))
        store.add_documents(documents(), ids=place.ids())
        store.delete([place.ids()[3]])
        place.close()
    return parent


@pytest.fixture(params=list(STORES))
def place(request: Any, filled: Path) -> Place:
    return STORES[request.param](filled / request.param)


def test_two_stages_on_a_reopened_store(place: Place) -> None:
    store = place.open(BGEEmbeddings(model=MINILM))
    retriever = BGERetriever(vectorstore=store, reranker=BGERerank(model=MINILM, top_n=2), index_path=place.folder)
    found = retriever.invoke(QUERY)
    place.close()
    assert names(found) == ["heart", "blood"]
    assert {"relevance_score", "retrieval_score", "retrieval_rank"} <= found[0].metadata.keys()


def test_a_filter_reaches_the_store(place: Place) -> None:
    store = place.open(BGEEmbeddings(model=MINILM))
    retriever = BGERetriever(vectorstore=store, fetch_k=5, k=5)
    found = retriever.invoke(QUERY, filter=place.filter("cities"))
    place.close()
    assert names(found) == ["paris"]


def test_deleted_and_added_documents_show(place: Place) -> None:
    store = place.open(BGEEmbeddings(model=MINILM))
    everything = BGERetriever(vectorstore=store, fetch_k=10, k=10)
    assert sorted(names(everything.invoke(QUERY))) == ["blood", "heart", "lungs", "paris"]
    before = bge_runtime.stats()["inputs"]
    store.add_documents([documents()[3]], ids=[place.ids()[3]])
    assert bge_runtime.stats()["inputs"] - before == 1
    assert names(everything.invoke("capital of Germany"))[0] == "berlin"
    store.delete([place.ids()[3]])
    assert "berlin" not in names(everything.invoke("capital of Germany"))
    place.close()


def test_another_query_instruction_may_ask(place: Place) -> None:
    bind_index(place.folder, BGEEmbeddings(model=MINILM, query_instruction="Find: "))


def test_another_model_may_not(place: Place) -> None:
    with pytest.raises(IndexIdentityError, match=OTHER):
        bind_index(place.folder, BGEEmbeddings(model=OTHER))


@pytest.mark.slow
def test_a_new_process_finds_the_same(filled: Path) -> None:
    answers = answers_of_a_new_process("tests.stores.langchain_stores", filled, MINILM)
    assert set(answers) == set(STORES)
    for name, answer in answers.items():
        assert answer == {"found": ["blood", "heart", "lungs"]}, name


def test_a_new_process_with_another_model_is_refused_by_every_store(filled: Path) -> None:
    answers = answers_of_a_new_process("tests.stores.langchain_stores", filled, OTHER)
    assert set(answers) == set(STORES)
    for name, answer in answers.items():
        assert set(answer) == {"bind_index", "query"}, name
        for message in answer.values():
            assert MINILM in message, name
            assert OTHER in message, name


def scores_by(store: Any) -> dict[str, float]:
    found = BGERetriever(vectorstore=store, fetch_k=10, k=10).invoke(QUERY)
    return {each.metadata["name"]: each.metadata["retrieval_score"] for each in found}


def cosines(embeddings: BGEEmbeddings) -> dict[str, float]:
    query, rows = embeddings.embed_query(QUERY), embeddings.embed_documents([each.page_content for each in documents()])
    return dict(zip(names(documents()), (np.asarray(rows) @ query).tolist(), strict=True))


def test_the_score_is_the_cosine_or_the_stores_own(place: Place) -> None:
    embeddings = BGEEmbeddings(model=MINILM)
    found = scores_by(place.open(embeddings))
    place.close()
    expected = cosines(embeddings)
    assert len(found) == 4
    # LanceDB measures another way than its attribute `distance` says: 2 - 2 cosine.
    is_cosine = type(place).__name__ != "LanceDB"
    wanted = {name: expected[name] if is_cosine else 2 - 2 * expected[name] for name in found}
    assert found == pytest.approx(wanted, abs=1e-3)


def faiss_with(embeddings: BGEEmbeddings, **options: Any) -> Any:
    from langchain_community.vectorstores import FAISS

    return FAISS.from_documents(documents(), embeddings, **options)


def chroma_with(embeddings: BGEEmbeddings, space: str) -> Any:
    from langchain_chroma import Chroma

    name, configuration = f"{space}-{uuid4().hex}", {"hnsw": {"space": space}}
    return Chroma.from_documents(documents(), embeddings, collection_name=name, collection_configuration=configuration)


METRICS = {
    "Chroma cosine": lambda embeddings: chroma_with(embeddings, "cosine"),
    "Chroma l2": lambda embeddings: chroma_with(embeddings, "l2"),
    "Chroma ip": lambda embeddings: chroma_with(embeddings, "ip"),
    "FAISS inner product": lambda embeddings: faiss_with(embeddings, distance_strategy="MAX_INNER_PRODUCT"),
    "FAISS cosine": lambda embeddings: faiss_with(embeddings, distance_strategy="COSINE"),
}


@pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)
def test_the_score_is_the_cosine_whatever_the_metric(make: Any) -> None:
    embeddings = BGEEmbeddings(model=MINILM)
    assert scores_by(make(embeddings)) == pytest.approx(cosines(embeddings), abs=1e-3)


def test_the_score_stays_the_stores_own_where_the_metric_says_no_cosine() -> None:
    raw = chroma_with(BGEEmbeddings(model=MINILM, normalize=False, truncate_dim=32), "l2")
    found = raw.similarity_search_with_score(QUERY, k=5)
    raw_scores = {document.metadata["name"]: score for document, score in found}
    assert scores_by(raw) == pytest.approx(raw_scores)
