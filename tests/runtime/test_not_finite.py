"""Results with NaN or infinities: an error that names the text, from every entrance, and nothing of them is kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bge_runtime
from bge_runtime import BackendError, Embedder, Reranker, TokenIndex, VectorCache, VisionEmbedder
from bge_runtime.embedding.heads import EXPECTED
from bge_runtime.engine import worker
from bge_runtime.vectors.finite import check_finite, named
from bge_runtime.vectors.similarity import unit_rows
from tests.checkpoints.files import Checkpoint
from tests.checkpoints.hub_cache import poisoned_reranker_folder, write_checkpoint
from tests.checkpoints.pictures import picture
from tests.runtime.fakes import skip_where_int8_cannot_run

BAD = "the weather today"
TEXTS = ["cat", BAD, "Paris is the capital of France", BAD, f"{BAD} again"]
GOOD = [TEXTS[0], TEXTS[2]]


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments of an embedder with three heads whose outputs are NaN for texts that hold "weather"."""
    checkpoint = Checkpoint(
        name="a/nan",
        family="xlmr",
        hidden=64,
        seed=7,
        positions=514,
        pickled=True,
        m3_heads=True,
        poisoned_token="▁weather",
    )
    folder = write_checkpoint(tmp_path_factory.mktemp("poisoned") / "m3", checkpoint)
    return {"model": str(folder), "base_model": "BAAI/bge-m3", "max_length": 64}


@pytest.fixture(scope="module")
def poisoned_reranker(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(poisoned_reranker_folder(tmp_path_factory.mktemp("reranker") / "m"))


EMBEDDING: dict[str, Callable[[Embedder, list[str]], object]] = {
    "documents": lambda embedder, texts: embedder.encode_documents(texts),
    "queries": lambda embedder, texts: embedder.encode_queries(texts),
    "stream": lambda embedder, texts: list(embedder.stream_documents(texts)),
    "tokens": lambda embedder, texts: embedder.encode_tokens(texts),
    "sparse": lambda embedder, texts: embedder.encode_sparse(texts),
    "all": lambda embedder, texts: embedder.encode_all(texts),
    "dense of all": lambda embedder, texts: embedder.encode_all(texts, outputs=["dense"]),
    "dense and sparse": lambda embedder, texts: embedder.encode_all(texts, outputs=["dense", "sparse"]),
    "async documents": lambda embedder, texts: asyncio.run(embedder.aencode_documents(texts)),
    "async sparse": lambda embedder, texts: asyncio.run(embedder.aencode_sparse(texts)),
}
LATE: dict[str, dict[str, Any]] = {
    "token vectors": {},
    "pooled": {"token_pooling": 2},
    "passages": {"long_document": "max_passage"},
    "sparse": {"mode": "sparse"},
    "dense": {"mode": "dense"},
    "hybrid": {"mode": "hybrid"},
}
BACKENDS = ["packed", "torch", "onnx", "openvino"]


@pytest.mark.parametrize("entrance", EMBEDDING)
def test_an_embedder_names_the_text(poisoned, entrance):
    embedder = Embedder(**poisoned)
    with pytest.raises(BackendError, match=r"texts\[1\] 'the weather today'"):
        EMBEDDING[entrance](embedder, TEXTS)
    EMBEDDING[entrance](embedder, GOOD)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_names_the_text(poisoned, backend):
    if backend in ("onnx", "openvino"):
        pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[backend])
    embedder = Embedder(**poisoned, backend=backend)
    with pytest.raises(BackendError, match=r"texts\[1\] 'the weather today' and 1 more"):
        embedder.encode_documents(TEXTS)
    assert np.isfinite(embedder.encode_documents(GOOD)).all()


@pytest.mark.parametrize("backend", ["packed", "onnx", "openvino"])
def test_int8_makes_no_numbers_of_broken_weights(poisoned, backend):
    if backend == "packed":
        skip_where_int8_cannot_run("int8")
    else:
        pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[backend])
    with pytest.raises(BackendError, match=r"word_embeddings.* holds NaN or infinities, which int8 would hide"):
        Embedder(**poisoned, backend=backend, precision="int8").encode_documents(GOOD)


@pytest.mark.parametrize("options", [{"normalize": False}, {"truncate_dim": 8}])
def test_vectors_as_the_model_gives_them_are_checked_too(poisoned, options):
    with pytest.raises(BackendError, match=r"texts\[1\]"):
        Embedder(**poisoned, **options).encode_documents(TEXTS)


@pytest.mark.parametrize("kind", ["memory", "file"])
@pytest.mark.parametrize("role", ["documents", "queries"])
def test_the_other_texts_are_remembered(poisoned, tmp_path, kind, role):
    cache = VectorCache(None if kind == "memory" else tmp_path / "v.sqlite")
    embedder = Embedder(**poisoned, vector_cache=cache)
    for _ in range(2):
        with pytest.raises(BackendError, match=r"texts\[1\]"):
            EMBEDDING[role](embedder, TEXTS)
    assert cache.stats.entries == len(GOOD)
    before = bge_runtime.stats()["inputs"]
    EMBEDDING[role](embedder, GOOD)
    assert bge_runtime.stats()["inputs"] == before


@pytest.mark.parametrize("role", ["documents", "sparse"])
def test_nothing_of_it_waits_for_the_other_head(poisoned, fresh_store, role):
    embedder = Embedder(**poisoned)
    view = Embedder(**poisoned)
    view.expect_sparse()
    with pytest.raises(BackendError, match=r"texts\[1\]"):
        EMBEDDING[role](embedder, TEXTS)
    kept = EXPECTED._found[embedder._runner.hold()]
    assert set(GOOD) <= {text for _, _, text in kept} <= {*GOOD, ""}


@pytest.mark.parametrize("options", LATE.values(), ids=LATE)
@pytest.mark.parametrize("cached", [False, True])
def test_late_interaction_names_the_document(poisoned, options, cached):
    cache = VectorCache() if cached else None
    reranker = Reranker(**poisoned, vector_cache=cache, **options)
    for _ in range(2):
        with pytest.raises(BackendError, match=r"documents\[1\] 'the weather today' and 1 more"):
            reranker.rank("cat", TEXTS)
    if cache is not None and "long_document" not in options:
        assert cache.stats.entries == 1 + len(GOOD) - ("token_pooling" not in options)
    assert len(reranker.rank("cat", GOOD)) == 2


@pytest.mark.parametrize("options", LATE.values(), ids=LATE)
def test_late_interaction_names_the_query(poisoned, options):
    reranker = Reranker(**poisoned, **options)
    with pytest.raises(BackendError, match=r"queries\[0\] 'the weather today'"):
        reranker.score(BAD, GOOD)
    with pytest.raises(BackendError, match=r"queries\[2\] 'the weather today'"):
        reranker.score_pairs([("cat", "cat"), ("cat", "cat"), (BAD, "cat")])


def test_a_cross_encoder_names_the_document(poisoned_reranker):
    reranker = Reranker(poisoned_reranker)
    for call in (reranker.rank, reranker.score):
        with pytest.raises(BackendError, match=r"documents\[2\] 'the weather today' with queries\[2\] 'cat'"):
            call("cat", ["cat", "cat", BAD, "Paris"])
    with pytest.raises(BackendError, match=r"documents\[1\] 'cat' with queries\[1\] 'the weather today'"):
        reranker.score_pairs([("cat", "cat"), (BAD, "cat")])


def test_a_passage_of_a_long_document_counts(poisoned_reranker):
    reranker = Reranker(poisoned_reranker, max_length=32, passage_overlap=4, long_document="max_passage")
    with pytest.raises(BackendError, match=r"documents\[1\] 'the dog .*'\.\.\. with queries"):
        reranker.score("cat", ["cat", "the dog slept in the garden " * 8 + BAD])


def test_a_deadline_is_no_fault(poisoned_reranker, poisoned, monkeypatch):
    forward = worker._forward

    def slow(*given):
        time.sleep(0.2)  # else all may be there before the caller's thread looks at the clock
        return forward(*given)

    for reranker in (Reranker(poisoned_reranker), Reranker(**poisoned)):
        reranker.warm_up()
        with monkeypatch.context() as patch:
            patch.setattr(worker, "_forward", slow)
            assert reranker.rank("cat", GOOD, time_budget_s=1e-6).partial
        with pytest.raises(BackendError, match=r"documents\[1\]"):
            reranker.rank("cat", TEXTS, time_budget_s=600)


def test_a_token_index_takes_all_or_nothing(poisoned):
    index = TokenIndex(Reranker(**poisoned))
    index.add(["Paris"], ["p"])
    with pytest.raises(BackendError, match=r"documents\[1\] 'the weather today' and 1 more"):
        index.add(TEXTS)
    assert index.ids == ["p"]
    with pytest.raises(BackendError, match="'the weather today'"):
        index.search(BAD)


def test_other_callers_get_their_vectors(poisoned):
    embedder = Embedder(**poisoned)
    expected = embedder.encode_documents(GOOD)

    def call(number: int) -> Any:
        try:
            return embedder.encode_documents(TEXTS if number % 2 else GOOD)
        except BackendError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(call, range(16)))
    assert all(isinstance(each, BackendError) for each in results[1::2])
    for each in results[::2]:
        np.testing.assert_allclose(each, expected, atol=1e-5)


def test_a_picture_is_named(hub_cache, monkeypatch):
    embedder = VisionEmbedder("BAAI/BGE-VL-base")
    backend = embedder._hold().engine.replicas[0].backend
    forward = backend.forward

    def spoilt(batch, output):
        rows = list(forward(batch, output))
        return [
            row * np.nan if output == "image" and sequence.pixels.sum() == 0 else row
            for row, sequence in zip(rows, batch, strict=True)
        ]

    monkeypatch.setattr(backend, "forward", spoilt)
    import PIL.Image

    black = PIL.Image.new("RGB", (40, 40))
    with pytest.raises(BackendError, match=r"images\[1\] Image"):
        embedder.encode_images([picture(1, 40, 40), black])
    with pytest.raises(BackendError, match=r"images\[1\] Image"):
        embedder.encode_image_texts([(picture(1, 40, 40), "a cat"), (black, "a cat")])
    assert np.isfinite(embedder.encode_images([picture(1, 40, 40)])).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_scaling_makes_no_zeros_of_what_is_too_large(value):
    rows = np.ones((2, 8), np.float32)
    rows[1, 3] = value
    scaled = unit_rows(rows)
    assert np.isfinite(scaled).all(axis=1).tolist() == [True, False]
    with pytest.raises(BackendError, match=r"'m' gave NaN or infinite numbers for texts\[7\] 'x'\. "):
        check_finite(scaled, "m", lambda index: named("texts", 6 + index, "x"))


def test_a_folder_of_the_users_own_is_named(poisoned):
    with pytest.raises(BackendError) as caught:
        Embedder(**poisoned).encode_documents([f"{BAD} {'x ' * 100}"])
    assert Path(poisoned["model"]).name in str(caught.value)
    assert len(str(caught.value)) < 500
