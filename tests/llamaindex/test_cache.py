"""`embeddings_cache=` and `rate_limiter=` of BGEEmbedding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from llama_index.core.storage.kvstore import SimpleKVStore

import bge_runtime
from bge_runtime import BackendError, InputError
from llamaindex_bge import BGEEmbedding
from llamaindex_bge.caching import CachedVectors
from tests.checkpoints.hub_cache import POISON, poisoned_folder

TEXTS = ["panda", "the dog slept in the garden", "Paris is the capital of France"]

pytestmark = pytest.mark.usefixtures("hub_cache")


def assert_close(left: Any, right: Any) -> None:
    np.testing.assert_allclose(np.asarray(left), np.asarray(right), atol=1e-5)


@pytest.fixture
def store() -> SimpleKVStore:
    return SimpleKVStore()


async def test_cached_texts_are_not_computed_again(store: SimpleKVStore) -> None:
    embedding = BGEEmbedding(embeddings_cache=store)
    first = embedding.get_text_embedding_batch(TEXTS)
    before = bge_runtime.stats()["inputs"]
    assert embedding.get_text_embedding_batch(TEXTS[::-1]) == first[::-1]
    assert await embedding.aget_text_embedding_batch(TEXTS) == first
    assert embedding.get_text_embedding(TEXTS[1]) == first[1]
    assert await embedding.aget_text_embedding(TEXTS[1]) == first[1]
    assert bge_runtime.stats()["inputs"] == before


async def test_queries_and_texts_have_entries_of_their_own(store: SimpleKVStore) -> None:
    embedding = BGEEmbedding(embeddings_cache=store)
    plain = BGEEmbedding()
    await embedding.aget_text_embedding_batch(["panda"])
    assert_close(await embedding.aget_query_embedding("panda"), plain.get_query_embedding("panda"))
    assert_close(embedding.get_query_embedding("panda"), plain.get_query_embedding("panda"))
    assert_close(embedding.get_text_embedding("panda"), plain.get_text_embedding("panda"))


@pytest.mark.parametrize(
    "options",
    [{"model": "BAAI/bge-small-zh-v1.5"}, {"truncate_dim": 64}, {"normalize": False}, {"text_instruction": "d: "}],
)
def test_entries_of_another_identity_are_not_returned(store: SimpleKVStore, options: dict[str, Any]) -> None:
    BGEEmbedding(embeddings_cache=store).get_text_embedding("panda")
    other = BGEEmbedding(embeddings_cache=store, **options)
    assert_close(other.get_text_embedding("panda"), BGEEmbedding(**options).get_text_embedding("panda"))


def test_documents_stay_cached_when_the_query_instruction_changes(store: SimpleKVStore) -> None:
    BGEEmbedding(embeddings_cache=store).get_text_embedding("panda")
    before = bge_runtime.stats()["inputs"]
    BGEEmbedding(embeddings_cache=store, query_instruction="").get_text_embedding("panda")
    assert bge_runtime.stats()["inputs"] == before


def test_one_identity_in_two_roles_has_two_entries(store: SimpleKVStore) -> None:
    document = CachedVectors(store=store, identity="same", role="document")
    query = CachedVectors(store=store, identity="same", role="query")
    assert document.get(["a"], lambda texts: [[1.0]]) == [[1.0]]
    assert query.get(["a"], lambda texts: [[2.0]]) == [[2.0]]


def test_entries_under_the_bare_text_are_ignored(store: SimpleKVStore) -> None:
    store.put("panda", {"x": [0.0]}, collection="embeddings")
    assert len(BGEEmbedding(embeddings_cache=store).get_text_embedding("panda")) == 384


@pytest.mark.parametrize(
    "damage",
    [
        lambda vector: [float("nan")] * len(vector),
        lambda vector: [*vector[1:], float("inf")],
        lambda vector: vector[:9],
        lambda vector: [[each] for each in vector],
        lambda vector: "text",
        lambda vector: None,
    ],
)
async def test_an_entry_that_cannot_be_the_vector_is_computed_again(store: SimpleKVStore, damage: Any) -> None:
    embedding = BGEEmbedding(embeddings_cache=store)
    expected = embedding.get_text_embedding("panda")
    ((key, entry),) = store.get_all(collection="embeddings").items()
    for call in (embedding.get_text_embedding_batch, embedding.aget_text_embedding_batch):
        store.put(key, {"embedding": damage(entry["embedding"])}, collection="embeddings")
        found = call(["panda"])
        assert_close(found if isinstance(found, list) else await found, [expected])
        assert_close(store.get(key, collection="embeddings")["embedding"], expected)


def test_a_vector_that_is_not_finite_is_not_kept(store: SimpleKVStore, tmp_path: Any) -> None:
    embedding = BGEEmbedding(str(poisoned_folder(tmp_path)), embeddings_cache=store)
    with pytest.raises(BackendError, match=POISON):
        embedding.get_text_embedding_batch(["panda", POISON])
    assert store.get_all(collection="embeddings") == {}


def test_changing_a_result_leaves_the_cache_alone(store: SimpleKVStore) -> None:
    embedding = BGEEmbedding(embeddings_cache=store)
    first = embedding.get_text_embedding("panda")
    expected = list(first)
    first[0] = 9.0
    second = embedding.get_text_embedding("panda")
    assert second == expected
    second[0] = 9.0
    assert embedding.get_text_embedding("panda") == expected


async def test_a_bad_text_is_refused_before_the_cache_is_read(store: SimpleKVStore) -> None:
    embedding = BGEEmbedding(embeddings_cache=store)
    with pytest.raises(InputError, match=r"\[1\]"):
        embedding.get_text_embedding_batch(["panda", None])
    with pytest.raises(InputError):
        await embedding.aget_query_embedding(7)


class Limiter:
    """Counts what a rate limiter is charged."""

    def __init__(self) -> None:
        self.charged: list[str] = []

    def acquire(self) -> None:
        self.charged.append("sync")

    async def async_acquire(self) -> None:
        self.charged.append("async")


async def test_rate_limiter_is_charged_once_per_computation(store: SimpleKVStore) -> None:
    limiter = Limiter()
    embedding = BGEEmbedding(rate_limiter=limiter, embeddings_cache=store)
    embedding.get_text_embedding_batch(TEXTS)
    embedding.get_text_embedding_batch(TEXTS)
    await embedding.aget_text_embedding_batch(TEXTS)
    await embedding.aget_query_embedding("panda")
    assert limiter.charged == ["sync", "async"]
