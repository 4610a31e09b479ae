"""Each numbered defect of HuggingFaceEmbedding and its base, as behaviour of ours. DEFECTS.md is the table.

The bodies run on the incumbent classes too, in an environment that has them; there they fail. DEFECTS.md says how.
"""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.schema import TextNode
from llama_index.core.storage.kvstore import SimpleKVStore

from tests.checkpoints.hub_cache import Checkpoint, write_checkpoint
from tests.llamaindex.conftest import EMBEDDER, EN
from tests.llamaindex.subjects import Subjects, cls_vectors, last_vector, no_waiting, snapshot


@pytest.fixture
def plain(hub_cache: Path) -> Callable[[str], Any]:
    """Vector of a text by plain transformers, without any instruction."""
    folder = snapshot(hub_cache, EMBEDDER)
    return lambda text: cls_vectors(folder, [text])[0]


def assert_close(left: Any, right: Any) -> None:
    np.testing.assert_allclose(np.asarray(left), np.asarray(right), atol=1e-5)


@pytest.mark.defect("3.1")
def test_english_queries_get_the_published_instruction(subjects: Subjects, plain: Any) -> None:
    assert_close(subjects.embedding().get_query_embedding("panda"), plain(f"{EN}panda"))


@pytest.mark.defect("3.2")
def test_an_empty_instruction_turns_it_off(subjects: Subjects, plain: Any) -> None:
    assert_close(subjects.embedding(query_instruction="").get_query_embedding("panda"), plain("panda"))


@pytest.mark.defect("3.2")
def test_the_instruction_in_force_is_in_the_dump(subjects: Subjects) -> None:
    assert EN in subjects.embedding().to_dict().values()


@pytest.fixture
def prompted(tmp_path: Path) -> Path:
    """A model with prompts of its own, which is no BGE model."""
    checkpoint = Checkpoint(name="somebody/prompted", family="bert", hidden=64, seed=31)
    prompts = {"prompts": {"query": "MODELQ: ", "document": "MODELD: "}, "default_prompt_name": None}
    return write_checkpoint(
        tmp_path / "prompted", checkpoint, **{"config_sentence_transformers.json": json.dumps(prompts).encode()}
    )


@pytest.mark.defect("3.3")
def test_a_models_own_query_prompt_is_kept(subjects: Subjects, prompted: Path) -> None:
    expected = cls_vectors(prompted, ["MODELQ: panda"])[0]
    assert_close(subjects.embedding(str(prompted)).get_query_embedding("panda"), expected)


@pytest.mark.defect("3.3")
def test_a_models_own_document_prompt_is_kept(subjects: Subjects, prompted: Path) -> None:
    expected = cls_vectors(prompted, ["MODELD: panda"])[0]
    assert_close(subjects.embedding(str(prompted)).get_text_embedding("panda"), expected)


@pytest.mark.defect("3.4")
@pytest.mark.parametrize("name", ["mirror/bge-small-en-v1.5", "baai/BGE-Small-EN-v1.5"])
def test_a_folder_of_a_bge_model_gets_the_instruction(
    subjects: Subjects, plain: Any, hub_cache: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(snapshot(hub_cache, EMBEDDER), tmp_path / name)
    assert_close(subjects.embedding(str(tmp_path / name)).get_query_embedding("panda"), plain(f"{EN}panda"))


@pytest.mark.defect("3.4")
@pytest.mark.parametrize("model", ["BAAI/bge-multilingual-gemma2", "BAAI/bge-en-icl", "BAAI/bge-code-v1"])
def test_a_models_format_is_applied(subjects: Subjects, hub_cache: Path, model: str) -> None:
    task = "Given a web search query, retrieve relevant passages that answer the query."
    suffix = "\n<response>" if "icl" in model else ""
    expected = last_vector(snapshot(hub_cache, model), f"<instruct>{task}\n<query>panda{suffix}")
    assert_close(subjects.embedding(model).get_query_embedding("panda"), expected)


@pytest.mark.defect("3.5")
def test_the_base_fields_are_accepted(subjects: Subjects) -> None:
    store = SimpleKVStore()
    embedding = subjects.embedding(num_workers=2, embeddings_cache=store, rate_limiter=Limiter())
    assert (embedding.num_workers, embedding.embeddings_cache) == (2, store)


@pytest.mark.defect("3.5")
def test_a_dump_can_be_loaded(subjects: Subjects) -> None:
    embedding = subjects.embedding()
    assert type(embedding).from_dict(embedding.to_dict()).to_dict() == embedding.to_dict()


@pytest.mark.defect("3.6")
def test_an_ingestion_cache_is_not_shared_across_dimensions(subjects: Subjects) -> None:
    cache = IngestionCache()
    for embedding in (subjects.embedding(truncate_dim=32), subjects.embedding()):
        (node,) = IngestionPipeline(transformations=[embedding], cache=cache).run(
            nodes=[TextNode(text="panda", id_="1")]
        )
    assert len(node.embedding) == 384


@pytest.mark.defect("3.6")
def test_the_batch_size_is_no_reason_to_embed_again(subjects: Subjects) -> None:
    nodes = [TextNode(text="panda")]
    small, large = subjects.embedding(embed_batch_size=4), subjects.embedding(embed_batch_size=64)
    assert get_transformation_hash(nodes, small) == get_transformation_hash(nodes, large)


class Limiter:
    """Counts what a rate limiter is charged."""

    def __init__(self) -> None:
        self.charged = 0

    def acquire(self) -> None:
        self.charged += 1

    async def async_acquire(self) -> None:
        self.charged += 1


@pytest.mark.defect("3.7")
def test_a_query_does_not_get_the_cached_vector_of_an_equal_text(subjects: Subjects, plain: Any) -> None:
    embedding = subjects.embedding(query_instruction="search: ")
    embedding.embeddings_cache = SimpleKVStore()
    embedding.get_text_embedding_batch(["panda"])
    assert_close(embedding.get_query_embedding("panda"), plain("search: panda"))


@pytest.mark.defect("3.7")
def test_a_cache_is_not_shared_across_models(subjects: Subjects) -> None:
    store = SimpleKVStore()
    lengths = []
    for model in (EMBEDDER, "BAAI/bge-small-zh-v1.5"):
        embedding = subjects.embedding(model)
        embedding.embeddings_cache = store
        lengths.append(len(embedding.get_text_embedding("panda")))
    assert lengths == [384, 512]


@pytest.mark.defect("3.7")
def test_duplicates_of_a_window_are_computed_once(subjects: Subjects, monkeypatch: Any) -> None:
    embedding = subjects.embedding()
    embedding.embeddings_cache = SimpleKVStore()
    counted = subjects.counting(monkeypatch)
    embedding.get_text_embedding_batch(["panda", "dog", "panda", "panda"])
    assert counted()[1] == 2


@pytest.mark.defect("3.7")
def test_a_cached_text_costs_the_rate_limiter_nothing(subjects: Subjects) -> None:
    embedding = subjects.embedding()
    embedding.embeddings_cache, embedding.rate_limiter = SimpleKVStore(), Limiter()
    for _ in range(3):
        embedding.get_text_embedding_batch(["panda"])
    assert embedding.rate_limiter.charged == 1


@pytest.mark.defect("3.7")
async def test_an_async_call_with_a_cache_is_charged_to_the_rate_limiter(subjects: Subjects) -> None:
    embedding = subjects.embedding()
    embedding.embeddings_cache, embedding.rate_limiter = SimpleKVStore(), Limiter()
    await embedding.aget_text_embedding_batch(["panda"])
    assert embedding.rate_limiter.charged == 1


@pytest.mark.defect("3.7")
def test_an_embedding_with_a_cache_can_be_dumped_as_json(subjects: Subjects) -> None:
    embedding = subjects.embedding()
    embedding.embeddings_cache = SimpleKVStore()
    assert EMBEDDER in embedding.to_json()


@pytest.mark.defect("3.8")
@pytest.mark.parametrize("value", [None, 5])
def test_bad_input_fails_without_waiting(subjects: Subjects, monkeypatch: Any, value: Any) -> None:
    embedding = subjects.embedding()
    with no_waiting(monkeypatch) as waits, pytest.raises((TypeError, ValueError)):
        embedding.get_text_embedding(value)
    assert waits == []


@pytest.mark.defect("3.8")
def test_a_failed_computation_is_not_tried_again(subjects: Subjects, monkeypatch: Any) -> None:
    embedding = subjects.embedding()
    embedding.get_text_embedding("panda")
    attempts = subjects.break_forward(monkeypatch)
    with no_waiting(monkeypatch), pytest.raises(RuntimeError, match="device lost"):
        embedding.get_text_embedding("dog")
    assert len(attempts) == 1


@pytest.mark.defect("3.9")
def test_a_process_pool_per_call_is_refused(subjects: Subjects) -> None:
    with pytest.raises(ValueError, match="parallel_process"):
        subjects.embedding(parallel_process=True)


@pytest.mark.defect("3.10")
async def test_concurrent_queries_share_forward_passes(subjects: Subjects, monkeypatch: Any) -> None:
    embedding = subjects.embedding()
    await embedding.aget_query_embedding("warm up")
    counted = subjects.counting(monkeypatch)
    await asyncio.gather(*(embedding.aget_query_embedding(f"query {number}") for number in range(64)))
    passes, inputs = counted()
    assert inputs == 64
    assert passes < 48


@pytest.mark.defect("3.11")
def test_a_pickled_embedding_holds_no_weights(subjects: Subjects) -> None:
    embedding = subjects.embedding()
    embedding.get_text_embedding("panda")
    assert len(pickle.dumps(embedding)) < 20_000


@pytest.mark.defect("3.12")
def test_the_path_of_an_image_is_not_embedded_as_text(subjects: Subjects) -> None:
    with pytest.raises((AttributeError, NotImplementedError, ValueError)):
        subjects.embedding().get_image_embedding("/no/such.png")


@pytest.mark.defect("3.13")
def test_counting_tokens_does_not_disturb_encoding(subjects: Subjects) -> None:
    embedding = subjects.embedding()
    texts = [f"panda {'dog ' * number}" for number in (1, 3, 5, 7)]
    expected = embedding.get_text_embedding_batch(texts)
    ended = threading.Event()

    def count() -> int:
        rounds = 0
        while not ended.is_set():
            subjects.count_tokens(embedding, texts)
            rounds += 1
        return rounds

    interval = sys.getswitchinterval()
    with ThreadPoolExecutor(4) as pool:
        counting = [pool.submit(count) for _ in range(4)]
        # Threads change places often, so that the counting falls into the middle of the encoding.
        sys.setswitchinterval(1e-6)
        try:
            for _ in range(40):
                assert_close(embedding.get_text_embedding_batch(texts), expected)
        finally:
            sys.setswitchinterval(interval)
            ended.set()
    assert min(each.result() for each in counting) > 0


@pytest.mark.defect("3.14")
def test_truncation_is_reported(subjects: Subjects, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        subjects.embedding(max_length=64).get_text_embedding_batch(["dog " * 100, "panda"])
    assert "1 of 2 texts were cut to the 64 tokens" in caplog.text


@pytest.mark.defect("3.14")
def test_models_of_the_usual_hub_cache_are_found(subjects: Subjects) -> None:
    assert len(subjects.embedding(cache_folder=None).get_text_embedding("panda")) == 384
