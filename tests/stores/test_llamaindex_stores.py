"""Create, add, query with a filter, delete, save, reload in a new process, query again; another model is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_index.core.vector_stores import MetadataFilters

import bge_runtime
from bge_runtime import IndexIdentityError
from llamaindex_bge import BGEEmbedding, BGERerank, bind_index
from tests.stores.facts import MINILM, OTHER, QUERY, answers_of_a_new_process
from tests.stores.llamaindex_stores import STORES, Place, nodes

pytestmark = [
    pytest.mark.usefixtures("hub_cache"),
    # The stores' own packages warn about each other.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, hub_cache: Path) -> Path:
    """A folder with every kind of store, each filled, bound and closed; the node on Berlin is deleted again."""
    parent = tmp_path_factory.mktemp("stores")
    for name, kind in STORES.items():
        folder = parent / name
        folder.mkdir()
        place = kind(folder)
        index = place.create(bind_index(folder, BGEEmbedding(MINILM)))
        index.insert_nodes(nodes())
        place.delete(index, "berlin")
        place.close(index)
    return parent


@pytest.fixture(params=list(STORES))
def place(request: Any, filled: Path) -> Place:
    return STORES[request.param](filled / request.param)


def names(found: list[Any]) -> list[str]:
    return [each.node.metadata["name"] for each in found]


def test_two_stages_on_a_reopened_store(place: Place) -> None:
    index = place.open(BGEEmbedding(MINILM))
    before = bge_runtime.stats()["inputs"]
    found = index.as_retriever(similarity_top_k=4).retrieve(QUERY)
    assert bge_runtime.stats()["inputs"] - before == 1
    best = BGERerank(MINILM, top_n=2).postprocess_nodes(found, query_str=QUERY)
    place.close(index)
    assert sorted(names(found)) == ["blood", "heart", "lungs", "paris"]
    assert names(best) == ["heart", "blood"]


@pytest.mark.parametrize("place", [name for name, kind in STORES.items() if kind.filters], indirect=True)
def test_a_filter_reaches_the_store(place: Place) -> None:
    index = place.open(BGEEmbedding(MINILM))
    retriever = index.as_retriever(similarity_top_k=4, filters=MetadataFilters.from_dict({"topic": "cities"}))
    found = names(retriever.retrieve(QUERY))
    place.close(index)
    assert found == ["paris"]


def test_another_query_instruction_may_ask(place: Place) -> None:
    bind_index(place.folder, BGEEmbedding(MINILM, query_instruction="Find: "))


def test_another_model_may_not(place: Place) -> None:
    with pytest.raises(IndexIdentityError, match=OTHER):
        bind_index(place.folder, BGEEmbedding(OTHER))


@pytest.mark.slow
def test_a_new_process_finds_the_same(filled: Path) -> None:
    answers = answers_of_a_new_process("tests.stores.llamaindex_stores", filled, MINILM)
    assert set(answers) == set(STORES)
    for name, answer in answers.items():
        assert answer == {"found": ["blood", "heart", "lungs"]}, name


def test_a_new_process_with_another_model_is_refused_by_every_store(filled: Path) -> None:
    answers = answers_of_a_new_process("tests.stores.llamaindex_stores", filled, OTHER)
    assert set(answers) == set(STORES)
    for name, answer in answers.items():
        assert list(answer) == ["refused"], name
        assert MINILM in answer["refused"], name
        assert OTHER in answer["refused"], name
