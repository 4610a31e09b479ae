"""Hybrid search through LangChain on Milvus Lite, in an environment of its own: `make milvus-check`.

Run as a module it asks what another process has filled:

    python -m tests.milvus.check_langchain FOLDER MODEL
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_milvus import Milvus
from pymilvus import Function, FunctionType

import bge_runtime
from langchain_bge import BGEEmbeddings, BGESparseEmbeddings
from tests.milvus.facts import FACTS, M3, QUERY, WITHOUT_WEIGHTS, Scores, lite_file, release
from tests.stores.facts import answers_of_a_new_process

pytestmark = [
    pytest.mark.usefixtures("hub_cache"),
    pytest.mark.filterwarnings("ignore"),  # the store's own packages
]

DENSE = {"metric_type": "IP", "index_type": "AUTOINDEX"}
LEXICAL = {"metric_type": "IP", "index_type": "SPARSE_INVERTED_INDEX"}
IP = {"metric_type": "IP"}
BY_RANK = Function(
    name="rrf", input_field_names=[], function_type=FunctionType.RERANK, params={"reranker": "rrf", "k": 60}
)
EVERYTHING = {"k": 10, "fetch_k": 10, "reranker": BY_RANK}


def open_store(folder: Path) -> Milvus:
    return Milvus(
        [BGEEmbeddings(model=M3), BGESparseEmbeddings(model=M3).for_milvus()],
        connection_args={"uri": lite_file(folder)},
        vector_field=["dense", "sparse"],
        index_params=[DENSE, LEXICAL],
        search_params=[IP, IP],
    )


def one_field(folder: Path, field: str, embedding: Any) -> Milvus:
    return Milvus(embedding, connection_args={"uri": lite_file(folder)}, vector_field=field, search_params=IP)


def documents() -> list[Document]:
    return [
        Document(page_content=text, metadata={"name": name, "topic": topic}) for name, (text, topic) in FACTS.items()
    ]


def scores(found: list[tuple[Document, float]]) -> dict[str, float]:
    return {document.metadata["name"]: score for document, score in found}


def passes() -> int:
    return int(bge_runtime.stats()["inputs"])


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, hub_cache: Path) -> Path:
    """A folder with a store of all facts."""
    folder = tmp_path_factory.mktemp("langchain")
    open_store(folder).add_documents(documents(), ids=list(FACTS))
    return folder


def check_adding_costs_one_forward_pass_per_text(tmp_path: Path) -> None:
    store, before = open_store(tmp_path), passes()
    store.add_documents(documents(), ids=list(FACTS))
    assert passes() - before == len(FACTS)


def check_a_hybrid_query_costs_one_forward_pass(filled: Path) -> None:
    store, before = open_store(filled), passes()
    assert store.similarity_search(QUERY, **EVERYTHING)[0].metadata["name"] == "dog"
    assert passes() - before == 1


def check_each_field_scores_as_computed_directly(filled: Path) -> None:
    expected = Scores.of(QUERY, list(FACTS))
    dense = one_field(filled, "dense", BGEEmbeddings(model=M3))
    lexical = one_field(filled, "sparse", BGESparseEmbeddings(model=M3).for_milvus())
    assert scores(dense.similarity_search_with_score(QUERY, k=10)) == pytest.approx(expected.dense, abs=1e-5)
    assert scores(lexical.similarity_search_with_score(QUERY, k=10)) == pytest.approx(expected.lexical, abs=1e-5)
    assert {"dog", "fox"} <= expected.lexical.keys() < expected.dense.keys()


def check_fusion_scores_as_computed_directly(filled: Path) -> None:
    store, expected = open_store(filled), Scores.of(QUERY, list(FACTS))
    by_rank = store.similarity_search_with_score(QUERY, **EVERYTHING)
    assert scores(by_rank) == pytest.approx(expected.by_rank(), abs=1e-6)
    weights = {"ranker_type": "weighted", "ranker_params": {"weights": [0.7, 0.3]}}
    by_weight = store.similarity_search_with_score(QUERY, k=10, fetch_k=10, **weights)
    assert scores(by_weight) == pytest.approx(expected.by_weight(0.7, 0.3), abs=1e-5)


def check_a_filter_reaches_both_fields(filled: Path) -> None:
    found = open_store(filled).similarity_search_with_score(QUERY, expr="topic == 'cities'", **EVERYTHING)
    assert scores(found) == pytest.approx(Scores.of(QUERY, ["paris", "berlin"]).by_rank(), abs=1e-6)


def check_texts_without_weights_are_kept_and_meet_nothing(filled: Path) -> None:
    assert BGESparseEmbeddings(model=M3).embed_documents(["", WITHOUT_WEIGHTS]) == [{}, {}]
    lexical = one_field(filled, "sparse", BGESparseEmbeddings(model=M3).for_milvus())
    assert lexical.similarity_search(WITHOUT_WEIGHTS, k=10) == []
    found = open_store(filled).similarity_search_with_score(WITHOUT_WEIGHTS, **EVERYTHING)
    assert scores(found) == pytest.approx(Scores.of(WITHOUT_WEIGHTS, list(FACTS)).by_rank(), abs=1e-6)


async def check_async_adds_and_finds_the_same_with_as_many_passes(tmp_path: Path) -> None:
    store, before = open_store(tmp_path), passes()
    await store.aadd_documents(documents(), ids=list(FACTS))
    found = await store.asimilarity_search_with_score(QUERY, **EVERYTHING)
    assert passes() - before == len(FACTS) + 1
    assert scores(found) == pytest.approx(Scores.of(QUERY, list(FACTS)).by_rank(), abs=1e-6)


def check_the_view_can_be_pickled_and_goes_on_sharing(fresh_store: None) -> None:
    view = pickle.loads(pickle.dumps(BGESparseEmbeddings(model=M3).for_milvus()))
    dense, before = BGEEmbeddings(model=M3), passes()  # which lives on, and the weights with it
    dense.embed_documents([QUERY])
    view.embed_documents([QUERY])
    assert passes() - before == 1


def check_a_new_process_finds_the_same_without_the_deleted(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.add_documents(documents(), ids=list(FACTS))
    assert store.delete(ids=["dog"])
    left = [name for name in FACTS if name != "dog"]
    expected = pytest.approx(Scores.of(QUERY, left).by_rank(), abs=1e-6)
    assert scores(store.similarity_search_with_score(QUERY, **EVERYTHING)) == expected
    release(tmp_path)
    answer = answers_of_a_new_process("tests.milvus.check_langchain", tmp_path, M3)
    assert answer["scores"] == expected
    assert answer["passes"] == 1


def main() -> None:
    found = open_store(Path(sys.argv[1])).similarity_search_with_score(QUERY, **EVERYTHING)
    sys.stdout.write(json.dumps({"scores": scores(found), "passes": passes()}))


if __name__ == "__main__":
    main()
