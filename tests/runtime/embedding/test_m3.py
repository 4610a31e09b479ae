"""The three outputs of bge-m3, and scores made of them, against plain transformers."""

from __future__ import annotations

import copy
import io
import pickle
import shutil
import weakref

import numpy as np
import pytest
import torch

import bge_runtime
from bge_runtime.reranking import comparison, late_interaction
from tests.runtime import references

M3 = "BAAI/bge-m3"
QUERY = "What is a panda? What panda"
TEXTS = [
    "The giant panda is a bear species endemic to China. It eats bamboo.",
    "",
    "panda panda panda bear",
    "?!",
    "大熊猫是中国特有的熊类动物",
    "the dog slept in the garden " * 40,
]
LENGTH = 128


@pytest.fixture
def folder(hub_cache):
    return references.snapshot_of(hub_cache, M3)


@pytest.fixture(params=["packed", "torch", "onnx"])
def embedder(hub_cache, request):
    return bge_runtime.Embedder(M3, max_length=LENGTH, truncation="silent", backend=request.param)


def test_three_outputs_equal_the_definition(folder, embedder):
    found = embedder.encode_all(TEXTS)
    for index, text in enumerate(TEXTS):
        expected = references.m3(folder, text, max_length=LENGTH)
        np.testing.assert_allclose(found.dense[index], expected.dense, atol=1e-5)
        assert set(found.sparse[index]) == set(expected.sparse)
        for token, weight in expected.sparse.items():
            assert found.sparse[index][token] == pytest.approx(weight, abs=1e-4)
        np.testing.assert_allclose(found.multi_vector[index], expected.vectors, atol=1e-5)


def test_batched_equals_one_by_one_and_the_dense_call(hub_cache):
    embedder = bge_runtime.Embedder(M3, max_length=LENGTH, truncation="silent")
    together = embedder.encode_all(TEXTS)
    np.testing.assert_allclose(together.dense, embedder.encode_documents(TEXTS), atol=1e-5)
    for index, text in enumerate(TEXTS):
        alone = embedder.encode_all([text], role="query")
        np.testing.assert_allclose(alone.dense[0], together.dense[index], atol=1e-5)
        assert alone.sparse[0] == pytest.approx(together.sparse[index], abs=1e-4)
        np.testing.assert_allclose(alone.multi_vector[0], together.multi_vector[index], atol=1e-5)


def test_one_forward_pass_gives_all_kinds(hub_cache):
    embedder = bge_runtime.Embedder(M3, truncation="silent")
    before = bge_runtime.stats()
    found = embedder.encode_all([*TEXTS, TEXTS[0]])
    assert bge_runtime.stats()["inputs"] - before["inputs"] == len(TEXTS)
    assert found.dense.shape == (len(TEXTS) + 1, 1024)
    np.testing.assert_array_equal(found.multi_vector[0], found.multi_vector[-1])


def test_only_what_is_asked_for_comes_back(hub_cache):
    embedder = bge_runtime.Embedder(M3, truncation="silent")
    found = embedder.encode_all(TEXTS, outputs=["sparse"])
    assert (found.dense, found.multi_vector) == (None, None)
    assert found.sparse == embedder.encode_sparse(TEXTS)
    empty = embedder.encode_all([])
    assert (empty.dense.shape, empty.sparse, empty.multi_vector) == ((0, 1024), [], [])


async def test_async_twins_give_the_same(hub_cache):
    embedder = bge_runtime.Embedder(M3, truncation="silent")
    found = await embedder.aencode_all(TEXTS[:2])
    np.testing.assert_allclose(found.dense, embedder.encode_all(TEXTS[:2]).dense, atol=1e-6)
    assert await embedder.aencode_sparse(TEXTS[:1]) == embedder.encode_sparse(TEXTS[:1])


def test_lexical_weights_can_be_shown_as_tokens(hub_cache):
    embedder = bge_runtime.Embedder(M3)
    (sparse,) = embedder.encode_sparse(["panda panda panda bear"])
    shown = embedder.sparse_tokens(sparse)
    assert set(shown) <= {"▁panda", "▁bear"}
    assert list(shown.values()) == list(sparse.values())
    assert bge_runtime.lexical_score(sparse, sparse) == pytest.approx(sum(each**2 for each in sparse.values()))


def test_a_dense_call_and_a_sparse_one_share_a_pass_where_it_is_expected(hub_cache, fresh_store):
    dense, sparse = (bge_runtime.Embedder(M3, truncation="silent") for _ in range(2))
    sparse.expect_sparse()
    before = bge_runtime.stats()["inputs"]
    vectors = dense.encode_documents(TEXTS)
    weights = sparse.encode_sparse(TEXTS)
    assert bge_runtime.stats()["inputs"] - before == len(TEXTS)
    expected = bge_runtime.Embedder(M3, truncation="silent").encode_all(TEXTS)
    assert weights == expected.sparse
    np.testing.assert_allclose(vectors, expected.dense, atol=1e-6)
    # The other way round as well, and each result serves once.
    before = bge_runtime.stats()["inputs"]
    sparse.encode_sparse(TEXTS)
    np.testing.assert_allclose(dense.encode_documents(TEXTS), vectors, atol=1e-6)
    assert bge_runtime.stats()["inputs"] - before == len(TEXTS)
    sparse.encode_sparse(TEXTS)
    assert bge_runtime.stats()["inputs"] - before == 2 * len(TEXTS)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda view: pickle.loads(pickle.dumps(view))])
def test_a_copy_expects_what_its_original_expected(hub_cache, fresh_store, copied):
    dense, sparse = (bge_runtime.Embedder(M3, truncation="silent") for _ in range(2))
    sparse.expect_sparse()
    sparse = copied(sparse)
    before = bge_runtime.stats()["inputs"]
    dense.encode_documents(TEXTS)
    sparse.encode_sparse(TEXTS)
    assert bge_runtime.stats()["inputs"] - before == len(TEXTS)


def test_nothing_is_shared_between_lengths_or_when_nobody_expects_it(hub_cache, fresh_store):
    dense = bge_runtime.Embedder(M3, truncation="silent")
    short = bge_runtime.Embedder(M3, truncation="silent", max_length=16)
    before = bge_runtime.stats()["inputs"]
    dense.encode_documents(TEXTS)
    dense.encode_sparse(TEXTS)
    assert bge_runtime.stats()["inputs"] - before == 2 * len(TEXTS)
    short.expect_sparse()
    dense.encode_documents(TEXTS)
    (cut,) = short.encode_sparse(TEXTS[-1:])
    assert cut == bge_runtime.Embedder(M3, truncation="silent", max_length=16).encode_sparse(TEXTS[-1:])[0]


@pytest.mark.parametrize("mode", ["dense", "sparse", "multi_vector"])
def test_pairs_score_by_each_kind(folder, mode):
    reranker = bge_runtime.Reranker(M3, mode=mode, max_length=LENGTH, truncation="silent")
    expected = [references.m3_scores(folder, QUERY, text, max_length=LENGTH)[mode] for text in TEXTS]
    np.testing.assert_allclose(reranker.score(QUERY, TEXTS), expected, atol=1e-4)
    assert reranker.mode == mode


@pytest.mark.parametrize("weights", [None, (1, 1, 1), (1, 0.3, 0), (0, 1, 1)])
def test_hybrid_is_the_weighted_mean(folder, weights):
    reranker = bge_runtime.Reranker(M3, mode="hybrid", weights=weights, max_length=LENGTH, truncation="silent")
    shares = np.array(weights or (0.4, 0.2, 0.4))
    expected = [
        shares @ list(references.m3_scores(folder, QUERY, text, max_length=LENGTH).values()) / shares.sum()
        for text in TEXTS
    ]
    np.testing.assert_allclose(reranker.score(QUERY, TEXTS), expected, atol=1e-4)
    pairs = [(text, QUERY) for text in TEXTS]
    alone = [reranker.score(text, [QUERY])[0] for text in TEXTS]
    np.testing.assert_allclose(reranker.score_pairs(pairs), alone, atol=1e-5)


def test_the_trained_head_is_the_default_and_differs_from_plain_token_states(folder):
    scores = bge_runtime.Reranker(M3, truncation="silent").score(QUERY, TEXTS[:1])
    plain = references.late_interaction(folder, QUERY, TEXTS[0], max_length=512)
    trained = references.m3_scores(folder, QUERY, TEXTS[0], max_length=512)["multi_vector"]
    assert scores[0] == pytest.approx(trained, abs=1e-4)
    assert abs(scores[0] - plain) > 1e-2


@pytest.mark.parametrize("mode", ["multi_vector", "hybrid"])
def test_a_cache_spares_the_second_pass(hub_cache, tmp_path, mode):
    def reranker():
        return bge_runtime.Reranker(M3, mode=mode, vector_cache=tmp_path / "cache", truncation="silent")

    expected = reranker().score(QUERY, TEXTS)
    before = bge_runtime.stats()["inputs"]
    np.testing.assert_allclose(reranker().score(QUERY, TEXTS), expected, atol=1e-6)
    assert bge_runtime.stats()["inputs"] == before


def test_half_precision_caches_hold_token_vectors_but_no_token_ids(hub_cache):
    cache = bge_runtime.VectorCache(storage="float16")
    exact = bge_runtime.Reranker(M3, truncation="silent").score(QUERY, TEXTS)
    rounded = bge_runtime.Reranker(M3, vector_cache=cache, truncation="silent")
    rounded.score(QUERY, TEXTS)
    np.testing.assert_allclose(rounded.score(QUERY, TEXTS), exact, atol=2e-3)
    with pytest.raises(bge_runtime.ConfigurationError, match="float32"):
        bge_runtime.Reranker(M3, mode="hybrid", vector_cache=cache).score(QUERY, TEXTS)


def test_long_documents_score_by_their_best_passage(folder):
    reranker = bge_runtime.Reranker(M3, mode="hybrid", max_length=32, long_document="max_passage", passage_overlap=8)
    whole = reranker.score(QUERY, [TEXTS[-1] + TEXTS[0]])[0]
    cut = bge_runtime.Reranker(M3, mode="hybrid", max_length=32, truncation="silent").score(QUERY, [TEXTS[-1]])[0]
    assert whole > cut


def test_mode_and_weights_are_part_of_what_a_reranker_is(hub_cache):
    plain = bge_runtime.Reranker(M3)
    hybrid = bge_runtime.Reranker(M3, mode="hybrid", weights=[1, 2, 3])
    assert plain.identity == bge_runtime.Reranker(M3, mode="multi_vector").identity != hybrid.identity
    assert hybrid.identity != bge_runtime.Reranker(M3, mode="hybrid").identity
    assert type(hybrid)(**hybrid.options()).identity == hybrid.identity


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": M3, "mode": "colbert"}, "'colbert'"),
        ({"model": M3, "weights": (1, 1, 1)}, "mode='hybrid'"),
        ({"model": M3, "mode": "hybrid", "weights": (1, 1)}, "three numbers"),
        ({"model": M3, "mode": "hybrid", "weights": (0, 0, 0)}, "not all 0"),
        ({"model": M3, "mode": "hybrid", "weights": (1, -1, 1)}, "at least 0"),
        ({"model": M3, "mode": "hybrid", "weights": "123"}, "three numbers"),
        ({"model": "BAAI/bge-small-en-v1.5", "mode": "sparse"}, "trained heads"),
        ({"model": "BAAI/bge-reranker-base", "mode": "hybrid"}, "scores pairs itself"),
    ],
)
def test_wrong_modes_are_refused_before_anything_loads(arguments, message, fresh_store):
    with pytest.raises(bge_runtime.ConfigurationError, match=message):
        bge_runtime.Reranker(**arguments)
    assert not bge_runtime.loaded_models()


def test_an_output_that_a_model_lacks_is_refused(hub_cache, fresh_store):
    with pytest.raises(bge_runtime.ConfigurationError, match="no output 'sparse'"):
        bge_runtime.Embedder("BAAI/bge-small-en-v1.5").encode_all(["panda"], outputs=["sparse"])
    with pytest.raises(bge_runtime.ConfigurationError, match="no output 'colbert'"):
        bge_runtime.Embedder(M3).encode_all(["panda"], outputs=["colbert"])
    assert not bge_runtime.loaded_models()
    assert bge_runtime.Embedder("BAAI/bge-small-en-v1.5").encode_all(["panda"]).dense.shape == (1, 384)


def test_heads_that_were_never_trained_are_never_used(folder, tmp_path, fresh_store):
    copy = shutil.copytree(folder, tmp_path / "bge-m3")
    (copy / "colbert_linear.pt").unlink()
    embedder = bge_runtime.Embedder(copy, base_model=M3)
    with pytest.raises(bge_runtime.ModelNotFoundError, match="colbert_linear"):
        embedder.encode_sparse(["panda"])
    assert not bge_runtime.loaded_models()
    np.testing.assert_allclose(
        embedder.encode_documents(["panda"])[0], references.vector(folder, "panda", max_length=512), atol=1e-5
    )


def test_heads_are_read_from_safetensors_where_there_are_any(folder, tmp_path):
    from safetensors.torch import save_file

    copy = shutil.copytree(folder, tmp_path / "bge-m3")
    heads = torch.load(copy / "sparse_linear.pt", weights_only=True)
    save_file({name: 2 * tensor for name, tensor in heads.items()}, copy / "sparse_linear.safetensors")
    (doubled,) = bge_runtime.Embedder(copy, base_model=M3).encode_sparse([TEXTS[0]])
    (plain,) = bge_runtime.Embedder(M3).encode_sparse([TEXTS[0]])
    assert doubled == pytest.approx({token: 2 * weight for token, weight in plain.items()}, rel=1e-4)


def test_a_pickle_that_would_run_code_is_not_read(folder, tmp_path):
    class Harmful:
        def __reduce__(self):
            return print, ("ran",)

    copy = shutil.copytree(folder, tmp_path / "bge-m3")
    stream = io.BytesIO()
    torch.save({"weight": Harmful()}, stream)
    (copy / "sparse_linear.pt").write_bytes(stream.getvalue())
    with pytest.raises(bge_runtime.BackendError, match="sparse_linear"):
        bge_runtime.Embedder(copy, base_model=M3).encode_sparse(["panda"])


def test_a_window_of_documents_is_let_go_of_before_the_next_is_read(hub_cache, monkeypatch):
    scored: list[weakref.ref[np.ndarray]] = []
    alive = []
    compare, windows = comparison.max_similarity, late_interaction._windows

    def watched(query, document):
        scored.append(weakref.ref(document))
        return compare(query, document)

    def counted(*arguments):
        for window in windows(*arguments):
            alive.append(sum(reference() is not None for reference in scored))
            yield window

    monkeypatch.setattr(late_interaction, "TOKEN_WINDOW", 4)
    monkeypatch.setattr(comparison, "max_similarity", watched)
    monkeypatch.setattr(late_interaction, "_windows", counted)
    documents = [f"panda {index}" for index in range(12)]
    bge_runtime.Reranker(M3, mode="hybrid").score(QUERY, documents)
    assert len(scored) == len(documents)
    assert len(alive) == 3
    assert max(alive) <= 1
