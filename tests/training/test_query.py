"""`train_query`: the map, what it leaves alone, and when it is not handed over."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import numpy as np
import pytest

from bge_runtime import (
    DEFAULT_OFFLINE_MODEL,
    ConfigurationError,
    Embedder,
    ModelNotFoundError,
    QueryMap,
    VectorCache,
    bind_index,
)
from bge_runtime.training import train_query
from bge_runtime.training.query import _best, _Step
from tests.training.toys import toy_data, toy_guard


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> VectorCache:
    return VectorCache(tmp_path_factory.mktemp("vectors") / "vectors.sqlite")


@pytest.fixture(scope="module")
def mapped(cache, tmp_path_factory):
    """A map that was trained on questions whose words stand in their documents."""
    started = time.perf_counter()
    done = train_query(
        toy_data(180),
        tmp_path_factory.mktemp("mapped") / "model",
        model=DEFAULT_OFFLINE_MODEL,
        guard=toy_guard(),
        vector_cache=cache,
        force=True,
    )
    return done, time.perf_counter() - started


def test_documents_stay_bit_for_bit_and_queries_move(mapped):
    base, own = Embedder(DEFAULT_OFFLINE_MODEL), Embedder(str(mapped[0].folder))
    assert own.document_identity == base.document_identity
    assert own.identity != base.identity
    assert (own.encode_documents(["a cat"]) == base.encode_documents(["a cat"])).all()
    before, after = base.encode_queries(["a cat"]), own.encode_queries(["a cat"])
    assert np.abs(before - after).max() > 1e-3
    assert np.linalg.norm(after) == pytest.approx(1, abs=1e-6)
    weight = QueryMap.read(mapped[0].folder).weight
    expected = before[0] @ weight.T
    assert after[0] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)


def test_an_index_that_was_bound_before_is_accepted_after(mapped, tmp_path):
    bind_index(tmp_path / "index", Embedder(DEFAULT_OFFLINE_MODEL))
    bind_index(tmp_path / "index", Embedder(str(mapped[0].folder)))


def test_both_adapters_apply_the_map(mapped):
    from langchain_bge import BGEEmbeddings
    from llamaindex_bge import BGEEmbedding

    folder = str(mapped[0].folder)
    wanted = Embedder(folder).encode_queries(["a cat"])[0]
    assert BGEEmbeddings(model=folder).embed_query("a cat") == pytest.approx(wanted.tolist(), abs=1e-6)
    assert BGEEmbedding(model_name=folder).get_query_embedding("a cat") == pytest.approx(wanted.tolist(), abs=1e-6)


def test_the_report_says_what_was_tried_and_taken(mapped):
    told = mapped[0].report
    assert len(told["tried"]) == 7 * 6
    assert told["chosen"] in [{"hold": each["hold"], "epoch": each["epoch"]} for each in told["tried"]]
    assert mapped[1] < 60


@pytest.mark.slow
def test_data_that_teaches_nothing_hands_no_model_over(cache, tmp_path):
    for seed in range(5):
        data = toy_data(180)
        texts = [each.positives for each in data.examples]
        random.Random(seed).shuffle(texts)
        shuffled = replace(
            data, examples=tuple(replace(each, positives=text) for each, text in zip(data.examples, texts, strict=True))
        )
        done = train_query(
            shuffled,
            tmp_path / str(seed),
            model=DEFAULT_OFFLINE_MODEL,
            guard=toy_guard(),
            vector_cache=cache,
            seed=seed,
        )
        assert not done.gate.is_open
        assert not (tmp_path / str(seed)).exists()


def test_the_same_seed_gives_the_same_map(cache, tmp_path):
    weights = []
    for name in "ab":
        done = train_query(
            toy_data(60),
            tmp_path / name,
            model=DEFAULT_OFFLINE_MODEL,
            guard=toy_guard(),
            vector_cache=cache,
            force=True,
        )
        weights.append(QueryMap.read(done.folder).weight)
    assert (weights[0] == weights[1]).all()


def test_a_map_is_not_trained_on_top_of_another(mapped, tmp_path):
    with pytest.raises(ConfigurationError, match="has a query map already"):
        train_query(toy_data(), tmp_path / "out", model=str(mapped[0].folder), guard=toy_guard())


@pytest.mark.parametrize(
    "weight",
    [np.eye(3, 4, dtype=np.float32), np.full((3, 3), np.nan, np.float32), None],
    ids=["oblong", "nan", "broken"],
)
def test_a_damaged_map_is_an_error_and_no_vector(tmp_path, weight):
    if weight is None:
        (tmp_path / "query_map.safetensors").write_bytes(b"no map")
    else:
        QueryMap(weight).write(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"query_map.safetensors.*Copy the model's"):
        QueryMap.read(tmp_path)


def test_truncated_dimensions_are_those_of_the_mapped_vector(mapped):
    folder = str(mapped[0].folder)
    whole = Embedder(folder, normalize=False).encode_queries(["a cat"])[0]
    part = Embedder(folder, truncate_dim=64).encode_queries(["a cat"])[0]
    assert part == pytest.approx(whole[:64] / np.linalg.norm(whole[:64]), abs=1e-6)


@pytest.mark.parametrize(("fall", "taken"), [(0.009, 0.02), (0.011, 0.1)])
def test_a_map_may_lose_as_little_on_unseen_documents_as_some_dozens_of_questions_cannot_tell(fall, taken):
    nothing = np.eye(2, dtype=np.float32)
    start = {"unseen": 0.76, "seen": 0.70}
    tried = [
        _Step(0.1, 30, nothing, 1.0, {"unseen": 0.77, "seen": 0.75}),
        _Step(0.02, 30, nothing, 1.0, {"unseen": 0.76 - fall, "seen": 0.85}),
    ]
    assert _best(tried, start, tolerance=0.01).hold == taken
