"""The index of token vectors, against the reranker and against plain transformers."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import pickle
import threading

import numpy as np
import pytest

import bge_runtime
from bge_runtime import Embedder, Reranker, TokenHit, TokenIndex, VectorCache
from bge_runtime.vectors import token_blocks
from tests.runtime import references

MODEL = "BAAI/bge-small-en-v1.5"
M3 = "BAAI/bge-m3"
QUERY = "What is a panda?"
TEXTS = [
    "The giant panda is a bear species endemic to China. It eats bamboo.",
    "",
    "Paris is the capital of France",
    "the dog slept in the garden " * 30,
    "What is a panda?",
    "Paris is the capital of France",
]
IDS = [f"d{number}" for number in range(len(TEXTS))]

pytestmark = pytest.mark.usefixtures("hub_cache")


def filled(model=MODEL, storage="float32", **options):
    index = TokenIndex(Reranker(model, truncation="silent", **options), storage=storage)
    index.add(TEXTS, IDS)
    return index


def scores_of(index, query=QUERY):
    found = {hit.id: hit.score for hit in index.search(query, None)}
    return [found[id] for id in IDS]


def test_scores_are_the_mean_of_the_best_cosines(hub_cache):
    folder = references.snapshot_of(hub_cache, MODEL)
    expected = [references.late_interaction(folder, QUERY, text, max_length=512) for text in TEXTS]
    np.testing.assert_allclose(scores_of(filled()), expected, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"model": M3},
        {"token_pooling": 2},
        {"max_length": 32},
        {"max_length": 32, "long_document": "max_passage", "passage_overlap": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize("block_tokens", [1, 40, 100_000])
def test_scores_are_the_rerankers_whatever_the_blocks(monkeypatch, options, block_tokens):
    monkeypatch.setattr(token_blocks, "BLOCK_TOKENS", block_tokens)
    arguments = {"model": MODEL, **options}
    expected = Reranker(truncation="silent", **arguments).score(QUERY, TEXTS)
    np.testing.assert_allclose(scores_of(filled(**arguments)), expected, atol=1e-5)


def test_half_precision_halves_the_size_and_states_its_error():
    exact, half = filled(), filled(storage="float16")
    assert half.bytes * 2 == exact.bytes == sum(map(len, Embedder(MODEL).encode_tokens(TEXTS))) * 384 * 4
    for query in (QUERY, *TEXTS):
        np.testing.assert_allclose(scores_of(half, query), scores_of(exact, query), atol=5e-4)
    assert scores_of(half) != scores_of(exact)


def test_a_search_gives_the_best_first_and_equal_scores_in_their_order():
    index = filled()
    hits = index.search("Paris is the capital of France", 3)
    assert [hit.id for hit in hits[:2]] == ["d2", "d5"]
    assert hits == index.search("Paris is the capital of France", None)[:3]
    assert isinstance(hits[0], TokenHit)
    assert hits[0].score == pytest.approx(1, abs=1e-5)


async def test_async_twins_give_the_same():
    index = TokenIndex(Reranker(MODEL, truncation="silent"), storage="float32")
    assert await index.aadd(TEXTS, IDS) == IDS
    assert await index.asearch(QUERY, 4) == filled().search(QUERY, 4)


def test_adding_in_pieces_and_removing_leave_what_a_new_index_would_hold():
    index = filled()
    index.remove(["d0", "d3"])
    (made_up,) = index.add([TEXTS[0]])
    assert index.ids == ["d1", "d2", "d4", "d5", made_up]
    assert len(index) == 5
    found = {hit.id: hit.score for hit in index.search(QUERY, None)}
    expected = dict(zip(IDS, scores_of(filled()), strict=True))
    assert found.pop(made_up) == pytest.approx(expected["d0"], abs=1e-5)
    assert found == pytest.approx({id: expected[id] for id in found}, abs=1e-5)
    index.remove(index.ids)
    assert (len(index), index.bytes, index.search(QUERY)) == (0, 0, [])


def test_what_cannot_be_added_or_removed_changes_nothing():
    index = filled()
    with pytest.raises(bge_runtime.InputError, match="'d1' is in the index already"):
        index.add(["new", "cat"], ["n", "d1"])
    with pytest.raises(bge_runtime.InputError, match="'n' is in the index already, or given twice"):
        index.add(["new", "cat"], ["n", "n"])
    with pytest.raises(bge_runtime.InputError, match="2 texts came with 1 ids"):
        index.add(["new", "cat"], ["n"])
    with pytest.raises(bge_runtime.InputError, match="single str"):
        index.add("new")
    with pytest.raises(bge_runtime.InputError, match="'x', 'y' are not in"):
        index.remove(["d0", "x", "y"])
    with pytest.raises(bge_runtime.ConfigurationError, match="top_n"):
        index.search(QUERY, 0)
    assert index.ids == IDS


def test_a_failure_in_the_middle_adds_nothing():
    index = TokenIndex(Reranker(MODEL, truncation="error", max_length=32))
    with pytest.raises(bge_runtime.InputTooLongError):
        index.add(TEXTS, IDS)
    assert len(index) == 0


def test_a_cached_document_costs_no_forward_pass():
    cache = VectorCache()
    filled(vector_cache=cache)
    before = bge_runtime.stats()["inputs"]
    index = filled(vector_cache=cache)
    assert bge_runtime.stats()["inputs"] == before
    np.testing.assert_allclose(scores_of(index), scores_of(filled()), atol=1e-5)


def test_duplicate_texts_are_computed_once():
    before = bge_runtime.stats()["inputs"]
    filled()
    assert bge_runtime.stats()["inputs"] - before == len(set(TEXTS))


@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_a_saved_index_is_found_again_without_loading_weights(tmp_path, fresh_store, storage):
    index = filled(storage=storage, token_pooling=2)
    expected = index.search(QUERY, None)
    index.save(tmp_path / "new" / "index")
    bge_runtime.unload_models()
    loaded = TokenIndex.load(tmp_path / "new" / "index", Reranker(MODEL, truncation="silent", token_pooling=2))
    assert not bge_runtime.loaded_models()
    assert (loaded.ids, loaded.bytes, loaded.storage) == (IDS, index.bytes, storage)
    assert loaded.search(QUERY, None) == expected
    loaded.add(["The giant panda"], ["more"])
    assert len(loaded) == len(IDS) + 1
    assert [each.name for each in (tmp_path / "new" / "index").iterdir()] == ["bge-token-index.safetensors"]


def test_an_empty_index_is_saved_too(tmp_path):
    TokenIndex(MODEL).save(tmp_path)
    assert len(TokenIndex.load(tmp_path, MODEL)) == 0


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"model": "BAAI/bge-small-zh-v1.5"}, "model 'BAAI/bge-small-en-v1.5' there, 'BAAI/bge-small-zh-v1.5' here"),
        ({"model": MODEL, "max_length": 32}, "max_length '512' there, '32' here"),
        ({"model": MODEL, "token_pooling": 2}, "token_pooling '1' there, '2' here"),
        ({"model": MODEL, "long_document": "max_passage"}, "long_document 'truncate' there, 'max_passage' here"),
    ],
    ids=str,
)
def test_another_model_is_refused(tmp_path, fresh_store, other, message):
    TokenIndex(MODEL).save(tmp_path)
    with pytest.raises(bge_runtime.IndexIdentityError, match=message):
        TokenIndex.load(tmp_path, Reranker(**other))
    assert not bge_runtime.loaded_models()


def test_device_and_batching_do_not_matter(tmp_path):
    filled().save(tmp_path)
    assert len(TokenIndex.load(tmp_path, Reranker(MODEL, device="cpu", batch_size=1))) == len(TEXTS)


def test_a_damaged_or_missing_file_is_said_so(tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(bge_runtime.ConfigurationError, match="There is no index"):
        TokenIndex.load(tmp_path, MODEL)
    filled().save(tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-50])
    with pytest.raises(bge_runtime.IndexIdentityError, match="damaged"):
        TokenIndex.load(tmp_path, MODEL)
    save_file({"vectors": np.ones(3, np.float32)}, file)
    with pytest.raises(bge_runtime.IndexIdentityError, match="damaged"):
        TokenIndex.load(tmp_path, MODEL)
    file.write_bytes(whole.replace(b'"format":"1"', b'"format":"9"'))
    with pytest.raises(bge_runtime.IndexIdentityError, match="'9'"):
        TokenIndex.load(tmp_path, MODEL)


def test_saving_where_one_may_not_is_said_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(bge_runtime.ConfigurationError, match="cannot be saved"):
        TokenIndex(MODEL).save(tmp_path / "file")


def test_copies_and_pickles_hold_the_documents():
    index = filled()
    for twin in (copy.deepcopy(index), pickle.loads(pickle.dumps(index))):
        assert twin.search(QUERY, None) == index.search(QUERY, None)
        twin.remove(["d0"])
        assert len(index) == len(IDS)


def test_an_id_that_another_thread_adds_meanwhile_is_refused(monkeypatch):
    index = TokenIndex(MODEL)
    compute = index.reranker.scorer.document_vectors

    def overtaken(*arguments):
        monkeypatch.undo()
        index.add(["cat"], ["a"])
        yield from compute(*arguments)

    monkeypatch.setattr(index.reranker.scorer, "document_vectors", overtaken)
    with pytest.raises(bge_runtime.InputError, match="'a' is in the index already"):
        index.add(["dog"], ["a"])
    assert index.ids == ["a"]
    assert index.search("cat")[0].score == pytest.approx(1, abs=1e-3)


def test_searches_while_others_add_and_remove_see_whole_calls(monkeypatch):
    monkeypatch.setattr(token_blocks, "BLOCK_TOKENS", 1)  # a block per document
    index = TokenIndex(MODEL, storage="float32")
    wrong: list[object] = []
    stop = threading.Event()

    def search():
        while not stop.is_set():
            try:
                ids = {hit.id for hit in index.search(QUERY, None)}
                pairs = {id[:-1] for id in ids}
                if any({f"{pair}a", f"{pair}b"} - ids for pair in pairs):
                    wrong.append(ids)
            except BaseException as error:
                wrong.append(error)
                raise

    def add(name):
        for number in range(6):
            index.add([f"cat {number}", f"dog {name}"], [f"{name}{number}a", f"{name}{number}b"])
        index.remove([f"{name}0b", f"{name}0a"])

    searchers = [threading.Thread(target=search) for _ in range(2)]
    adders = [threading.Thread(target=add, args=(name,)) for name in "xyz"]
    for thread in (*searchers, *adders):
        thread.start()
    for thread in adders:
        thread.join()
    stop.set()
    for thread in searchers:
        thread.join()
    assert wrong == []
    assert len(index) == 3 * 10


async def test_many_async_calls_at_once():
    index = filled()
    expected = index.search(QUERY, 3)
    found = await asyncio.gather(*(index.asearch(QUERY, 3) for _ in range(20)))
    assert all([hit.id for hit in hits] == [hit.id for hit in expected] for hits in found)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenIndex("BAAI/bge-reranker-base"), "cross-encoder"),
        (lambda: TokenIndex(Reranker(M3, mode="hybrid")), "mode='hybrid'"),
        (lambda: TokenIndex(MODEL, storage="int8"), "'float16' or 'float32'"),
    ],
)
def test_what_has_no_token_vectors_is_refused_before_anything_loads(make, message, fresh_store):
    with pytest.raises(bge_runtime.ConfigurationError, match=message):
        make()
    assert not bge_runtime.loaded_models()


def test_constructing_and_showing_load_nothing(fresh_store):
    assert "0 documents" in repr(TokenIndex(Embedder(MODEL)))
    assert not bge_runtime.loaded_models()


def test_progress_is_shown_when_asked_for(capsys):
    index = TokenIndex(Reranker(MODEL, truncation="silent"))
    index.add(TEXTS, show_progress=True)
    assert "5/5" in capsys.readouterr().err


def written_by_older_versions(file):
    """Write an index file again, as it was before files had a digest."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(file, framework="np") as stored:
        facts = stored.metadata()
        arrays = {name: stored.get_tensor(name) for name in stored.keys() if name != token_blocks.DIGEST}
    save_file(arrays, file, facts)
    return arrays, facts


@pytest.fixture
def saved(tmp_path):
    index = filled(storage="float16")
    index.save(tmp_path)
    (file,) = tmp_path.iterdir()
    return file


def test_a_file_without_a_digest_is_read_while_it_is_sound(saved):
    expected = TokenIndex.load(saved.parent, Reranker(MODEL, truncation="silent")).search(QUERY, None)
    written_by_older_versions(saved)
    assert TokenIndex.load(saved.parent, Reranker(MODEL, truncation="silent")).search(QUERY, None) == expected


def test_every_flipped_bit_is_noticed(saved):
    whole = saved.read_bytes()
    places = np.random.default_rng(0).integers(8, len(whole), 150)
    header = 8 + int.from_bytes(whole[:8], "little")
    spots = [*places, *range(8, header, max(header // 150, 1)), *range(header, header + 40), *range(-40, 0)]
    accepted = []
    for number, place in enumerate(spots):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << number % 8
        saved.write_bytes(damaged)
        try:
            TokenIndex.load(saved.parent, MODEL)
        except bge_runtime.IndexIdentityError:
            continue
        accepted.append(place)
    assert accepted == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda arrays, facts: arrays["0.vectors"].__setitem__((3, 5), np.nan),
        lambda arrays, facts: arrays["0.vectors"].__setitem__((3, 5), np.inf),
        lambda arrays, facts: arrays["0.vectors"].__setitem__((3, 5), 1919),
        lambda arrays, facts: arrays["0.vectors"].__setitem__((3, slice(None)), 0.01),
        lambda arrays, facts: arrays.update({"0.vectors": arrays["0.vectors"].astype(np.float32)}),
        lambda arrays, facts: arrays.update({"0.vectors": arrays["0.vectors"].astype(np.float64)}),
        lambda arrays, facts: arrays.update({"0.vectors": arrays["0.vectors"].view(np.int16)}),
        lambda arrays, facts: arrays.update({"0.vectors": arrays["0.vectors"].reshape(-1)}),
        lambda arrays, facts: arrays.update({"0.vectors": arrays["0.vectors"].reshape(-1, 192)}),
        lambda arrays, facts: arrays.update({"0.sizes": arrays["0.sizes"].astype(np.float32)}),
        lambda arrays, facts: arrays.update({"0.lengths": arrays["0.lengths"].astype(np.int32)}),
        lambda arrays, facts: arrays["0.lengths"].__setitem__(0, -1),
        lambda arrays, facts: arrays["0.sizes"].__setitem__(0, 2**62),
        lambda arrays, facts: arrays.pop("0.sizes"),
        lambda arrays, facts: arrays.update({"1.vectors": arrays["0.vectors"]}),
        lambda arrays, facts: facts.update(ids=json.dumps([["a"] * len(IDS)])),
        lambda arrays, facts: facts.update(ids=json.dumps([list(range(len(IDS)))])),
        lambda arrays, facts: facts.update(ids=json.dumps([IDS[1:]])),
        lambda arrays, facts: facts.update(ids=json.dumps({"0": IDS})),
        lambda arrays, facts: facts.update(ids="[" * 100_000),
        lambda arrays, facts: facts.update(ids="null"),
        lambda arrays, facts: facts.update(storage="float32"),
        lambda arrays, facts: facts.update(storage="int8"),
        lambda arrays, facts: facts.pop("storage"),
        lambda arrays, facts: facts.pop("format"),
    ],
)
@pytest.mark.parametrize("age", ["new", "older"])
def test_what_no_index_has_written_is_refused(saved, damage, age):
    from safetensors.numpy import save_file

    whole = saved.read_bytes()
    arrays, facts = written_by_older_versions(saved)
    damage(arrays, facts)
    if age == "new":
        saved.write_bytes(whole)
        digest = np.frombuffer(bytes(16), np.uint8)
        arrays[token_blocks.DIGEST] = digest
    save_file(arrays, saved, facts)
    with pytest.raises(bge_runtime.IndexIdentityError, match="damaged"):
        TokenIndex.load(saved.parent, MODEL)


def test_a_pipe_in_its_place_is_no_index(tmp_path):
    os.mkfifo(tmp_path / "bge-token-index.safetensors")
    with pytest.raises(bge_runtime.ConfigurationError, match="There is no index"):
        TokenIndex.load(tmp_path, MODEL)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_saved_index_may_be_read_by_whom_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        for _ in range(2):
            TokenIndex(MODEL).save(tmp_path / "index")
    finally:
        os.umask(before)
    (file,) = (tmp_path / "index").iterdir()
    assert file.stat().st_mode & 0o777 == mode
