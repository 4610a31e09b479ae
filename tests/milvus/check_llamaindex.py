"""Hybrid search through LlamaIndex on Milvus Lite, in an environment of its own: `make milvus-check`.

Run as a module it asks what another process has filled:

    python -m tests.milvus.check_llamaindex FOLDER MODEL
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import MetadataFilters
from llama_index.vector_stores.milvus import MilvusVectorStore

import bge_runtime
from llamaindex_bge import BGEEmbedding, BGESparseEmbedding
from tests.milvus.facts import FACTS, M3, QUERY, WITHOUT_WEIGHTS, Scores, lite_file, release
from tests.stores.facts import answers_of_a_new_process

pytestmark = [
    pytest.mark.usefixtures("hub_cache"),
    pytest.mark.filterwarnings("ignore"),  # the store's own packages
]


def open_index(folder: Path, **options: Any) -> VectorStoreIndex:
    dense = BGEEmbedding(model_name=M3)
    store = MilvusVectorStore(
        uri=lite_file(folder),
        dim=dense.embedder.dimension,
        enable_sparse=True,
        sparse_embedding_function=BGESparseEmbedding(model_name=M3).for_milvus(),
        **{"use_async_client": False, **options},
    )
    # A reopened file is not loaded, and the store does not do it.
    store.client.load_collection(store.collection_name)
    return VectorStoreIndex.from_vector_store(store, embed_model=dense)


def nodes() -> list[TextNode]:
    """The store takes the lexical weights of the text alone, so the metadata are kept out of the dense text."""
    return [
        TextNode(
            id_=name,
            text=text,
            metadata={"name": name, "topic": topic},
            excluded_embed_metadata_keys=["name", "topic"],
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"source of {name}")},
        )
        for name, (text, topic) in FACTS.items()
    ]


def retriever(index: VectorStoreIndex, **options: Any) -> Any:
    return index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=10, **options)


def scores(found: list[NodeWithScore]) -> dict[str, float | None]:
    return {each.node.metadata["name"]: each.score for each in found}


def passes() -> int:
    return int(bge_runtime.stats()["inputs"])


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, hub_cache: Path) -> Path:
    """A folder with an index of all facts."""
    folder = tmp_path_factory.mktemp("llamaindex")
    open_index(folder).insert_nodes(nodes())
    return folder


def check_adding_costs_one_forward_pass_per_text(tmp_path: Path) -> None:
    index, before = open_index(tmp_path), passes()
    index.insert_nodes(nodes())
    assert passes() - before == len(FACTS)


def check_a_hybrid_query_costs_one_forward_pass(filled: Path) -> None:
    index, before = open_index(filled), passes()
    assert retriever(index).retrieve(QUERY)[0].node.node_id == "dog"
    assert passes() - before == 1


def check_each_field_scores_as_computed_directly(filled: Path) -> None:
    expected, index = Scores.of(QUERY, list(FACTS)), open_index(filled)
    dense = index.as_retriever(similarity_top_k=10).retrieve(QUERY)
    assert scores(dense) == pytest.approx(expected.dense, abs=1e-5)
    # The store's own sparse mode asks for an approximation that Milvus Lite refuses; this is the same search, exact.
    store = index.vector_store
    asked = store.sparse_embedding_function.encode_queries([QUERY])
    (found,) = store.client.search(store.collection_name, asked, limit=10, anns_field=store.sparse_embedding_field)
    assert {hit["id"]: hit["distance"] for hit in found} == pytest.approx(expected.lexical, abs=1e-5)
    assert {"dog", "fox"} <= expected.lexical.keys() < expected.dense.keys()


def check_fusion_scores_as_computed_directly(filled: Path) -> None:
    expected = Scores.of(QUERY, list(FACTS))
    by_rank = retriever(open_index(filled)).retrieve(QUERY)
    assert scores(by_rank) == pytest.approx(expected.by_rank(), abs=1e-6)
    weights = {"hybrid_ranker": "WeightedRanker", "hybrid_ranker_params": {"weights": [0.7, 0.3]}}
    by_weight = retriever(open_index(filled, **weights)).retrieve(QUERY)
    assert scores(by_weight) == pytest.approx(expected.by_weight(0.7, 0.3), abs=1e-5)


def check_a_filter_reaches_both_fields(filled: Path) -> None:
    filters = MetadataFilters.from_dict({"topic": "cities"})
    found = retriever(open_index(filled), filters=filters).retrieve(QUERY)
    assert scores(found) == pytest.approx(Scores.of(QUERY, ["paris", "berlin"]).by_rank(), abs=1e-6)


def check_texts_without_weights_are_kept_and_meet_nothing(filled: Path) -> None:
    assert BGESparseEmbedding(model_name=M3).get_text_embedding_batch(["", WITHOUT_WEIGHTS]) == [{}, {}]
    found = retriever(open_index(filled)).retrieve(WITHOUT_WEIGHTS)
    assert scores(found) == pytest.approx(Scores.of(WITHOUT_WEIGHTS, list(FACTS)).by_rank(), abs=1e-6)


async def check_async_adds_and_finds_the_same_with_as_many_passes(tmp_path: Path) -> None:
    index, before = open_index(tmp_path, use_async_client=True), passes()
    await index.ainsert_nodes(nodes())
    found = await retriever(index).aretrieve(QUERY)
    assert passes() - before == len(FACTS) + 1
    assert scores(found) == pytest.approx(Scores.of(QUERY, list(FACTS)).by_rank(), abs=1e-6)


async def check_async_views_give_the_same(hub_cache: Path) -> None:
    view = BGESparseEmbedding(model_name=M3).for_milvus()
    texts = [text for text, _ in FACTS.values()]
    assert await view.async_encode_documents(texts) == view.encode_documents(texts)
    assert await view.async_encode_queries([QUERY]) == view.encode_queries([QUERY])


def check_the_view_can_be_pickled_and_goes_on_sharing(fresh_store: None) -> None:
    view = pickle.loads(pickle.dumps(BGESparseEmbedding(model_name=M3).for_milvus()))
    before = passes()
    BGEEmbedding(model_name=M3).get_text_embedding_batch([QUERY])
    view.encode_documents([QUERY])
    assert passes() - before == 1


def check_a_new_process_finds_the_same_without_the_deleted(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    index.insert_nodes(nodes())
    index.delete_ref_doc("source of dog")
    index.delete_nodes(["fox"])
    left = [name for name in FACTS if name not in ("dog", "fox")]
    expected = pytest.approx(Scores.of(QUERY, left).by_rank(), abs=1e-6)
    assert scores(retriever(index).retrieve(QUERY)) == expected
    release(tmp_path)
    answer = answers_of_a_new_process("tests.milvus.check_llamaindex", tmp_path, M3)
    assert answer["scores"] == expected
    assert answer["passes"] == 1


def main() -> None:
    found = retriever(open_index(Path(sys.argv[1]))).retrieve(QUERY)
    sys.stdout.write(json.dumps({"scores": scores(found), "passes": passes()}))


if __name__ == "__main__":
    main()
