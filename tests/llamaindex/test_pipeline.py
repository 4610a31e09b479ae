"""The classes inside LlamaIndex: indexes, settings, ingestion, saved configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Settings, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.embeddings.loading import load_embed_model
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.llms import MockLLM
from llama_index.core.schema import MetadataMode, TextNode

import bge_runtime
from bge_runtime import Embedder
from llamaindex_bge import BGEEmbedding, BGERerank
from tests.checkpoints.hub_cache import BY_NAME, fine_tuned_folder, write_checkpoint
from tests.llamaindex.conftest import EMBEDDER, EN

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = [
    "The giant panda is a bear species endemic to China.",
    "Paris is the capital of France.",
    "A token budget bounds the padded tokens of one forward pass.",
    "The recipe needs two cups of flour and one egg.",
]
# What may be in a dump: each of these changes vectors.
IDENTITY = {
    "class_name",
    "model_name",
    "revision",
    "base_model",
    "query_instruction",
    "text_instruction",
    "task",
    "normalize",
    "truncate_dim",
    "max_length",
}


@pytest.fixture
def nodes() -> list[TextNode]:
    return [TextNode(text=text, id_=str(number)) for number, text in enumerate(TEXTS)]


@pytest.fixture
def settings(monkeypatch: Any) -> Any:
    """LlamaIndex's global settings, put back afterwards."""
    for name in ("_embed_model", "_llm", "_callback_manager"):
        monkeypatch.setattr(Settings, name, getattr(Settings, name))
    return Settings


# Indexes


def test_an_index_is_saved_loaded_and_queried(nodes: list[TextNode], tmp_path: Path) -> None:
    index = VectorStoreIndex(nodes, embed_model=BGEEmbedding(MINILM))
    index.storage_context.persist(str(tmp_path))
    storage = StorageContext.from_defaults(persist_dir=str(tmp_path))
    loaded = load_index_from_storage(storage, embed_model=BGEEmbedding(MINILM))
    found = loaded.as_retriever(similarity_top_k=2).retrieve("Which city is the French capital?")
    assert found[0].text == TEXTS[1]
    assert found[0].score > found[1].score + 0.2


async def test_settings_and_query_engine_use_the_models(nodes: list[TextNode], settings: Any) -> None:
    settings.embed_model = BGEEmbedding(MINILM)
    settings.llm = MockLLM()
    engine = VectorStoreIndex(nodes).as_query_engine(
        similarity_top_k=4, node_postprocessors=[BGERerank(MINILM, top_n=1)]
    )
    for response in (engine.query("Where do pandas live?"), await engine.aquery("Where do pandas live?")):
        assert [node.text for node in response.source_nodes] == [TEXTS[0]]


def test_index_and_reranker_share_one_copy_of_the_weights(nodes: list[TextNode], fresh_store: None) -> None:
    index = VectorStoreIndex(nodes, embed_model=BGEEmbedding(MINILM))
    retrieved = index.as_retriever().retrieve("panda")
    BGERerank(MINILM).postprocess_nodes(retrieved, query_str="panda")
    assert len(bge_runtime.loaded_models()) == 1


def test_queries_get_the_instruction_and_nodes_do_not(nodes: list[TextNode], hub_cache: Path) -> None:
    index = VectorStoreIndex(nodes, embed_model=BGEEmbedding(EMBEDDER))
    plain = Embedder(EMBEDDER, query_instruction="")
    query, document = plain.encode_queries([f"{EN}panda", nodes[0].get_content(MetadataMode.EMBED)])
    found = index.as_retriever(similarity_top_k=4).retrieve("panda")
    scores = {node.node_id: node.score for node in found}
    assert scores["0"] == pytest.approx(float(query @ document), abs=1e-5)


# Saved configurations


def test_a_saved_configuration_loads_the_class(tmp_path: Path) -> None:
    embedding = BGEEmbedding(EMBEDDER, query_instruction="", truncate_dim=64, max_length=100)
    saved = tmp_path / "embedding.json"
    saved.write_text(embedding.to_json())
    loaded = load_embed_model(json.loads(saved.read_text()))
    assert isinstance(loaded, BGEEmbedding)
    assert loaded.to_dict() == embedding.to_dict()
    assert loaded.embedder.options() == {**embedding.embedder.options(), "document_instruction": "", "normalize": True}


def test_a_loaded_configuration_gives_the_same_vectors(hub_cache: Path) -> None:
    embedding = BGEEmbedding("BAAI/llm-embedder", task="tool", normalize=False)
    loaded = load_embed_model(embedding.to_dict())
    assert loaded.get_query_embedding("panda") == embedding.get_query_embedding("panda")
    assert loaded.get_text_embedding("panda") == embedding.get_text_embedding("panda")
    assert loaded.embedder.identity == embedding.embedder.identity


# The ingestion cache keys on the dump


def test_the_dump_of_a_hub_model_holds_what_changes_vectors_and_nothing_else() -> None:
    assert set(BGEEmbedding(EMBEDDER, device="cpu", batch_size=3).to_dict()) == IDENTITY


@pytest.mark.parametrize(
    "options",
    [
        {"embed_batch_size": 5},
        {"batch_size": 5},
        {"batch_tokens": 999},
        {"device": "cpu"},
        {"dtype": "float32"},
        {"num_workers": 4},
        {"show_progress": True},
        {"truncation": "silent"},
        {"token": "hf_secret"},
        {"cache_folder": "elsewhere"},
        {"local_files_only": True},
        {"model_kwargs": {"attn_implementation": "eager"}},
        {"query_instruction": EN},
        {"max_length": 512},
        {"normalize": True},
    ],
)
def test_what_leaves_vectors_alone_leaves_the_key_alone(nodes: list[TextNode], options: dict[str, Any]) -> None:
    assert get_transformation_hash(nodes, BGEEmbedding(EMBEDDER, **options)) == get_transformation_hash(
        nodes, BGEEmbedding(EMBEDDER)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"model_name": "BAAI/bge-base-en-v1.5"},
        {"revision": "abc"},
        {"query_instruction": ""},
        {"text_instruction": "d: "},
        {"normalize": False},
        {"truncate_dim": 64},
        {"max_length": 64},
        {"config_kwargs": {"num_hidden_layers": 1}},
    ],
)
def test_what_changes_vectors_changes_the_key(nodes: list[TextNode], options: dict[str, Any]) -> None:
    other = BGEEmbedding(**{"model_name": EMBEDDER, **options})
    assert get_transformation_hash(nodes, other) != get_transformation_hash(nodes, BGEEmbedding(EMBEDDER))


def test_use_does_not_change_the_key(nodes: list[TextNode], hub_cache: Path) -> None:
    embedding = BGEEmbedding(EMBEDDER)
    before = get_transformation_hash(nodes, embedding)
    embedding.get_text_embedding("panda")
    assert get_transformation_hash(nodes, embedding) == before


def test_new_weights_in_the_same_folder_change_the_key(nodes: list[TextNode], tmp_path: Path) -> None:
    keys = {get_transformation_hash(nodes, BGEEmbedding(fine_tuned_folder(tmp_path, seed=seed))) for seed in (1, 2)}
    assert len(keys) == 2
    again = BGEEmbedding(tmp_path)
    assert BGEEmbedding.from_dict(again.to_dict()).to_dict() == again.to_dict()


def test_a_folder_of_a_fine_tune_shows_the_instruction_of_its_family(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "bge-small-en-v1.5", BY_NAME[EMBEDDER])
    assert BGEEmbedding(folder).query_instruction == EN


def test_a_second_run_computes_nothing(nodes: list[TextNode]) -> None:
    pipeline = IngestionPipeline(transformations=[BGEEmbedding(MINILM)])
    first = pipeline.run(nodes=nodes)
    before = bge_runtime.stats()["inputs"]
    pipeline.transformations = [BGEEmbedding(MINILM, embed_batch_size=7, device="cpu")]
    again = pipeline.run(nodes=[TextNode(text=text, id_=str(number)) for number, text in enumerate(TEXTS)])
    assert bge_runtime.stats()["inputs"] == before
    assert [node.embedding for node in again] == [node.embedding for node in first]


async def test_an_async_run_gives_the_same_vectors(nodes: list[TextNode]) -> None:
    embedding = BGEEmbedding(MINILM)
    expected = embedding.get_text_embedding_batch(TEXTS)
    result = await IngestionPipeline(transformations=[embedding], disable_cache=True).arun(nodes=nodes)
    assert [node.embedding for node in result] == expected


@pytest.mark.timeout(300)
@pytest.mark.slow  # each worker imports torch
def test_spawned_workers_load_their_own_weights(nodes: list[TextNode]) -> None:
    embedding = BGEEmbedding(MINILM)
    expected = embedding.get_text_embedding_batch(TEXTS)
    result = IngestionPipeline(transformations=[embedding], disable_cache=True).run(nodes=nodes, num_workers=2)
    vectors = {node.text: node.embedding for node in result}
    for text, vector in zip(TEXTS, expected, strict=True):
        assert vectors[text] == pytest.approx(vector, abs=1e-5)
