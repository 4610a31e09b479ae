"""Vectors that were computed before: found again by the same model only, whatever happens to the file."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import pickle
import re
import sqlite3
import threading
import zlib

import numpy as np
import pytest

import bge_runtime
from bge_runtime import Embedder, VectorCache

TEXTS = [f"text number {number}" for number in range(40)]
ROWS = np.random.default_rng(0).normal(size=(len(TEXTS), 8)).astype(np.float32)


@pytest.fixture(params=["memory", "file"])
def cache(request, tmp_path):
    made = VectorCache(None if request.param == "memory" else tmp_path / "vectors.sqlite")
    yield made
    made.close()


def computed() -> float:
    return bge_runtime.stats()["inputs"]


def found(cache: VectorCache, identity: str = "a", texts=TEXTS) -> int:
    return sum(row is not None for row in cache.get(identity, texts))


def test_vectors_come_back_as_they_were(cache):
    cache.put("a", TEXTS, ROWS)
    np.testing.assert_array_equal(np.stack(cache.get("a", TEXTS)), ROWS)
    assert cache.stats.hits == len(TEXTS)


def test_another_identity_finds_nothing(cache):
    cache.put("a", TEXTS, ROWS)
    assert found(cache, "b") == 0
    assert cache.stats.misses == len(TEXTS)


def test_float16_halves_the_size_and_keeps_the_direction(tmp_path):
    half = VectorCache(tmp_path / "half.sqlite", storage="float16")
    whole = VectorCache(tmp_path / "whole.sqlite")
    rows = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
    for each in (half, whole):
        each.put("a", TEXTS, rows)
    back = np.stack(half.get("a", TEXTS))
    cosines = (back * rows).sum(1) / np.linalg.norm(back, axis=1)
    assert cosines.min() > 0.999999
    assert whole.stats.bytes - half.stats.bytes == rows.nbytes // 2


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_the_size_stays_inside_the_bound(kind, tmp_path):
    limit = 20 * (32 + 96)
    cache = VectorCache(None if kind == "memory" else tmp_path / "small.sqlite", max_bytes=limit)
    for start in range(0, 40, 8):
        cache.put("a", TEXTS[start : start + 8], ROWS[start : start + 8])
        assert cache.stats.bytes <= limit
    assert cache.stats.evicted == 40 - cache.stats.entries > 0


def test_what_was_used_last_is_kept():
    cache = VectorCache(max_bytes=3 * (32 + 96))
    cache.put("a", TEXTS[:3], ROWS[:3])
    cache.get("a", TEXTS[:1])
    cache.put("a", TEXTS[3:4], ROWS[3:4])
    assert [row is not None for row in cache.get("a", TEXTS[:4])] == [True, False, True, True]


def test_a_reopened_file_has_everything(tmp_path):
    VectorCache(tmp_path / "v.sqlite").put("a", TEXTS, ROWS)
    assert found(VectorCache(tmp_path / "v.sqlite")) == len(TEXTS)


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_file_is_set_aside_and_said(tmp_path, caplog, content):
    path = tmp_path / "v.sqlite"
    path.write_bytes(content)
    cache = VectorCache(path)
    with caplog.at_level(logging.WARNING, logger="bge_runtime"):
        cache.put("a", TEXTS, ROWS)
    assert found(cache) == len(TEXTS)
    assert (tmp_path / "v.sqlite.damaged").read_bytes() == content
    assert "damaged" in caplog.text


def test_an_entry_that_changed_on_disk_is_computed_again(tmp_path):
    path = tmp_path / "v.sqlite"
    cache = VectorCache(path)
    cache.put("a", TEXTS, ROWS)
    cache.close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE vectors SET vector = zeroblob(32) WHERE key = (SELECT min(key) FROM vectors)")
    database.close()
    assert found(cache) == len(TEXTS) - 1
    cache.put("a", TEXTS, ROWS)
    assert found(cache) == len(TEXTS)


def test_a_disk_that_refuses_costs_the_caching_only(tmp_path, caplog, hub_cache):
    (tmp_path / "blocked").write_text("a file where a folder is needed")
    embedder = Embedder(vector_cache=tmp_path / "blocked" / "v.sqlite")
    with caplog.at_level(logging.WARNING, logger="bge_runtime"):
        first, second = embedder.encode_documents(TEXTS), embedder.encode_documents(TEXTS)
    np.testing.assert_array_equal(first, second)
    assert len([line for line in caplog.messages if "cannot be used" in line]) == 1


def test_a_full_disk_costs_the_caching_only(tmp_path, caplog):
    cache = VectorCache(tmp_path / "v.sqlite")
    cache.put("a", TEXTS[:1], ROWS[:1])
    pages = cache._entries._database.execute("PRAGMA page_count").fetchone()[0]
    cache._entries._database.execute(f"PRAGMA max_page_count = {pages}")
    many = [f"{number}" for number in range(5000)]
    with caplog.at_level(logging.WARNING, logger="bge_runtime"):
        cache.put("a", many, np.ones((5000, 8), np.float32))
    assert "full" in caplog.text
    assert found(cache, texts=TEXTS[:1]) == 1
    assert found(cache, texts=many) == 0


def write_and_read(path, worker: int) -> None:
    cache = VectorCache(path)
    for start in range(0, 40, 4):
        texts = TEXTS[start : start + 4]
        cache.put(f"worker {worker % 2}", texts, ROWS[start : start + 4])
        assert all(row is not None for row in cache.get(f"worker {worker % 2}", texts))


def test_processes_share_one_file(tmp_path):
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "v.sqlite"
    workers = [context.Process(target=write_and_read, args=(path, number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    cache = VectorCache(path)
    assert (found(cache, "worker 0"), found(cache, "worker 1"), cache.stats.entries) == (40, 40, 80)


def test_threads_share_one_cache(cache):
    def work(name: str) -> None:
        for start in range(0, 40, 4):
            cache.put(name, TEXTS[start : start + 4], ROWS[start : start + 4])

    threads = [threading.Thread(target=work, args=(f"{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(found(cache, f"{number}") == 40 for number in range(8))


def test_no_text_is_computed_twice(hub_cache, cache):
    embedder = Embedder(vector_cache=cache)
    exact = Embedder().encode_documents(TEXTS)
    before = computed()
    first = embedder.encode_documents(TEXTS[:30])
    again = embedder.encode_documents(TEXTS[::-1])
    assert computed() - before == len(TEXTS)
    np.testing.assert_allclose(first, exact[:30], atol=1e-5)
    np.testing.assert_allclose(again, exact[::-1], atol=1e-5)


def test_roles_instructions_and_lengths_do_not_share_vectors(hub_cache, cache):
    text = ["Which animal eats bamboo all day long, every day of the year?"]
    made = [
        Embedder(vector_cache=cache).encode_documents(text),
        Embedder(vector_cache=cache).encode_queries(text),
        Embedder(vector_cache=cache, query_instruction="find: ").encode_queries(text),
        Embedder(vector_cache=cache, max_length=5, truncation="silent").encode_documents(text),
    ]
    assert cache.stats.hits == 0
    assert all(np.abs(one - other).max() > 1e-3 for one in made for other in made if one is not other)


def test_another_query_instruction_keeps_the_documents(hub_cache, cache):
    Embedder(vector_cache=cache).encode_documents(TEXTS)
    before = computed()
    Embedder(vector_cache=cache, query_instruction="find: ").encode_documents(TEXTS)
    assert computed() == before


def test_a_text_in_the_cache_needs_no_weights(hub_cache, fresh_store, cache):
    Embedder(vector_cache=cache).encode_documents(TEXTS)
    bge_runtime.unload_models()
    Embedder(vector_cache=cache).encode_documents(TEXTS)
    assert bge_runtime.loaded_models() == []


async def test_async_calls_share_it(hub_cache, cache):
    embedder = Embedder(vector_cache=cache)
    before = computed()
    await embedder.aencode_documents(TEXTS)
    np.testing.assert_array_equal(await embedder.aencode_documents(TEXTS), embedder.encode_documents(TEXTS))
    assert computed() - before == len(TEXTS)


def test_copies_and_pickles_carry_the_configuration(tmp_path, hub_cache):
    embedder = Embedder(vector_cache=tmp_path / "v.sqlite")
    embedder.encode_documents(TEXTS)
    for twin in (pickle.loads(pickle.dumps(embedder)), copy.deepcopy(embedder)):
        before = computed()
        twin.encode_documents(TEXTS)
        assert computed() == before
        assert twin.vector_cache.path == tmp_path / "v.sqlite"


@pytest.mark.parametrize("wrong", [3, object(), ["v.sqlite"]])
def test_a_wrong_cache_is_refused(wrong):
    with pytest.raises(bge_runtime.ConfigurationError, match="VectorCache"):
        Embedder(vector_cache=wrong)


@pytest.mark.parametrize("options", [{"storage": "int8"}, {"max_bytes": 0}])
def test_wrong_options_are_refused(options):
    with pytest.raises(bge_runtime.ConfigurationError):
        VectorCache(**options)


def test_one_progress_bar_covers_what_is_found_and_what_is_computed(hub_cache, cache, capsys):
    embedder = Embedder("BAAI/bge-small-en-v1.5", vector_cache=cache, batch_tokens=32, show_progress=True)
    embedder.encode_documents(TEXTS[:10])
    capsys.readouterr()
    embedder.encode_documents([text * 20 for text in TEXTS] + TEXTS[:10])
    shown = capsys.readouterr().err
    assert "50/50" in shown
    assert set(re.findall(r"/(\d+) \[", shown)) == {"50"}


def crc_of_older_versions(path) -> None:
    """Rewrite a file's checksums as they were when they did not say the number format."""
    with sqlite3.connect(path) as database:
        rows = [(zlib.crc32(vector), key) for key, vector in database.execute("SELECT key, vector FROM vectors")]
        database.executemany("UPDATE vectors SET checksum = ? WHERE key = ?", rows)
    database.close()


@pytest.mark.parametrize("age", ["new", "older"])
@pytest.mark.parametrize(("first", "then"), [("float16", "float32"), ("float32", "float16")])
def test_entries_of_another_number_format_give_the_right_vectors(tmp_path, hub_cache, first, then, age):
    path = tmp_path / "v.sqlite"
    exact = Embedder().encode_documents(TEXTS)
    Embedder(vector_cache=VectorCache(path, storage=first)).encode_documents(TEXTS[:20])
    if age == "older":
        crc_of_older_versions(path)
    for texts in (TEXTS[:20], TEXTS):
        again = Embedder(vector_cache=VectorCache(path, storage=then)).encode_documents(texts)
        np.testing.assert_allclose(again, exact[: len(texts)], atol=1e-6 if then == "float32" else 1e-3)
    before = computed()
    Embedder(vector_cache=VectorCache(path, storage=then)).encode_documents(TEXTS)
    assert computed() == before


def test_a_float16_cache_takes_float32_entries_as_they_are(tmp_path):
    path = tmp_path / "v.sqlite"
    VectorCache(path).put("a", TEXTS, ROWS)
    np.testing.assert_array_equal(np.stack(VectorCache(path, storage="float16").get("a", TEXTS)), ROWS)


def test_a_file_of_an_older_version_keeps_its_entries(tmp_path):
    path = tmp_path / "v.sqlite"
    VectorCache(path).put("a", TEXTS, ROWS)
    crc_of_older_versions(path)
    np.testing.assert_array_equal(np.stack(VectorCache(path).get("a", TEXTS)), ROWS)


def test_a_vector_of_another_length_is_computed_again(hub_cache, cache):
    embedder = Embedder(vector_cache=cache)
    exact = embedder.encode_documents(TEXTS[:2])
    cache.clear()
    cache.put(f"document:{embedder.document_identity}", TEXTS[:2], [exact[0, :10], np.tile(exact[1], 2)])
    for _ in range(2):
        np.testing.assert_allclose(embedder.encode_documents(TEXTS[:3])[:2], exact, atol=1e-5)
    assert (cache.stats.entries, cache.stats.hits) == (3, 3)
    assert cache.stats.bytes == 3 * (exact.shape[1] * 4 + 96)


def test_what_is_not_finite_is_neither_kept_nor_given_back(cache):
    rows = ROWS[:3].copy()
    rows[0, 0], rows[2, 7] = np.nan, np.inf
    cache.put("a", TEXTS[:3], rows)
    assert [row is not None for row in cache.get("a", TEXTS[:3])] == [False, True, False]


def test_what_float16_cannot_hold_is_not_kept(tmp_path):
    for path in (None, tmp_path / "v.sqlite"):
        half = VectorCache(path, storage="float16")
        half.put("a", TEXTS[:2], [ROWS[0] * 1e6, ROWS[1]])
        assert [row is not None for row in half.get("a", TEXTS[:2])] == [False, True]


def test_an_entry_of_nan_in_a_file_is_computed_again(tmp_path, hub_cache):
    path = tmp_path / "v.sqlite"
    exact = Embedder(vector_cache=path).encode_documents(TEXTS[:2])
    blob = np.full(exact.shape[1], np.nan, "<f4").tobytes()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE vectors SET vector = ?, checksum = ?", (blob, zlib.crc32(blob)))
    database.close()
    np.testing.assert_allclose(Embedder(vector_cache=path).encode_documents(TEXTS[:2]), exact, atol=1e-6)
    assert VectorCache(path).stats.entries == 2
