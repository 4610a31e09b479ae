"""Each numbered defect of LangChain's reranking classes and shared machinery; see `test_defects.py`."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document

import bge_runtime
from bge_runtime import BackendError
from tests.checkpoints.hub_cache import POISON, poisoned_reranker_folder, two_label_folder
from tests.contracts.concurrency import in_threads
from tests.langchain.conftest import EMBEDDER, QUERY, RERANKER, Runs
from tests.langchain.subjects import Subjects

Same = Callable[[Any, Any], bool]
PAIRS = [(QUERY, "The giant panda is a bear"), (QUERY, "the dog slept in the garden")]
LONG = "the dog slept in the garden " * 30


def ids(documents: list[Document]) -> list[str | None]:
    return [document.id for document in documents]


# HuggingFaceCrossEncoder


@pytest.mark.defect(15)
def test_scores_are_a_list_of_python_floats(subjects: Subjects) -> None:
    scores = subjects.cross_encoder(model_name=RERANKER).score(PAIRS)
    assert [type(scores), *map(type, scores)] == [list, float, float]


@pytest.mark.defect(15)
def test_a_model_with_two_labels_gives_probabilities(subjects: Subjects, tmp_path: Path) -> None:
    scores = subjects.cross_encoder(model_name=str(two_label_folder(tmp_path))).score(PAIRS)
    assert [type(scores), *map(type, scores)] == [list, float, float]
    assert all(0 < score < 1 for score in scores)


@pytest.mark.defect(15)
def test_no_pairs_have_no_scores(subjects: Subjects) -> None:
    assert subjects.cross_encoder(model_name=RERANKER).score([]) == []


@pytest.mark.defect(16)
def test_max_length_batch_size_and_device_are_options(subjects: Subjects, same: Same) -> None:
    short = subjects.cross_encoder(model=RERANKER, max_length=32, batch_size=1, device="cpu", truncation="silent")
    pairs = [(QUERY, LONG), (QUERY, f"{LONG} panda")]
    assert same(*short.score(pairs))
    assert not same(*subjects.cross_encoder(model=RERANKER).score(pairs))


@pytest.mark.defect(16)
def test_the_activation_is_an_option(subjects: Subjects, same: Same) -> None:
    raw = np.array(subjects.cross_encoder(model=RERANKER, normalize=False).score(PAIRS))
    assert same(subjects.cross_encoder(model=RERANKER, normalize=True).score(PAIRS), 1 / (1 + np.exp(-raw)))


# CrossEncoderReranker


@pytest.mark.defect(17)
def test_scores_are_in_the_metadata(subjects: Subjects, documents: list[Document]) -> None:
    best = subjects.compressor(top_n=2).compress_documents(documents, QUERY)
    scores = [document.metadata["relevance_score"] for document in best]
    assert [type(score) for score in scores] == [float, float]
    assert scores[0] > scores[1]


@pytest.mark.defect(17)
def test_top_n_none_keeps_all(subjects: Subjects, documents: list[Document]) -> None:
    assert len(subjects.compressor(top_n=None).compress_documents(documents, QUERY)) == len(documents)


@pytest.mark.defect(17)
@pytest.mark.parametrize("top_n", [0, -1])
def test_a_top_n_that_makes_no_sense_is_refused(subjects: Subjects, top_n: int) -> None:
    with pytest.raises(ValueError, match="top_n"):
        subjects.compressor(top_n=top_n)


@pytest.mark.defect(17)
def test_documents_come_back_as_copies(subjects: Subjects, documents: list[Document]) -> None:
    before = copy.deepcopy(documents)
    best = subjects.compressor(top_n=4).compress_documents(documents, QUERY)
    for document in best:
        document.metadata["seen"] = True
    assert sorted(ids(best)) == ids(documents)
    assert documents == before


@pytest.mark.defect(18)
def test_a_nan_score_gives_no_wrong_order(subjects: Subjects, tmp_path: Path) -> None:
    texts = ["cat", "dog", f"the {POISON} today", "The giant panda", "Paris", f"{POISON} in China", "bamboo", "mat"]
    documents = [Document(id=text, page_content=text) for text in texts]
    folder = str(poisoned_reranker_folder(tmp_path))
    healthy = [document for document in documents if POISON not in document.page_content]
    rerank = subjects.compressor(folder, top_n=8)
    order = ids(rerank.compress_documents(healthy, QUERY))
    assert sorted(order) == sorted(ids(healthy))
    with pytest.raises(BackendError, match=rf"documents\[2\] 'the {POISON} today'"):
        rerank.compress_documents(documents, QUERY)


@pytest.mark.defect(19)
def test_the_rerank_is_a_run_of_the_callbacks(subjects: Subjects, documents: list[Document], runs: Runs) -> None:
    best = subjects.compressor().compress_documents(documents, QUERY, callbacks=[runs])
    assert [row["documents"] for row in runs.rows.values()] == [best]


@pytest.mark.defect(19)
async def test_async_reranking_borrows_no_threads(
    subjects: Subjects, documents: list[Document], no_default_executor: None
) -> None:
    rerank = subjects.compressor()
    results = await asyncio.gather(*(rerank.acompress_documents(documents, QUERY) for _ in range(5)))
    assert [ids(best) for best in results] == [ids(rerank.compress_documents(documents, QUERY))] * 5


# Shared machinery


@pytest.mark.defect(20)
def test_a_cached_document_is_not_taken_for_a_query(subjects: Subjects, same: Same) -> None:
    model = subjects.bge_embeddings(model_name=EMBEDDER)
    cache = subjects.cached(model)
    cache.embed_documents(["panda"])
    assert same(cache.embed_query("panda"), model.embed_query("panda"))


@pytest.mark.defect(20)
def test_duplicates_among_what_a_cache_misses_are_computed_once(subjects: Subjects) -> None:
    model = subjects.bge_embeddings(model_name=EMBEDDER)
    model.embed_query("warm")
    counted = subjects.count(model)
    assert len(subjects.cached(model).embed_documents(["panda"] * 4)) == 4
    assert counted()[1] == 1


@pytest.mark.defect(20)
@pytest.mark.parametrize(
    "options", [{"embed_instruction": "passage: "}, {"max_length": 64}, {"normalize": False}, {"truncate_dim": 32}]
)
def test_the_cache_key_names_all_that_changes_vectors(subjects: Subjects, options: dict[str, Any]) -> None:
    base = subjects.bge_embeddings(model_name=EMBEDDER)
    other = subjects.bge_embeddings(model_name=EMBEDDER, **options)
    for role in ("query", "document"):
        assert base.cache_namespace(role) == subjects.bge_embeddings(model_name=EMBEDDER).cache_namespace(role)
        assert base.cache_namespace(role) != other.cache_namespace(role)


@pytest.mark.defect(21)
def test_loading_two_dtypes_at_once_gives_each_its_own(subjects: Subjects, same: Same, fresh_store: None) -> None:
    def load(dtype: str) -> Callable[[], list[list[float]]]:
        options = {"model": EMBEDDER, "model_kwargs": {"model_kwargs": {"torch_dtype": dtype}}}
        return lambda: subjects.embeddings(**options).embed_documents(["panda", "the dog slept in the garden"])

    dtypes = ["float32", "bfloat16"] * 4
    expected = [load(dtype)() for dtype in dtypes[:2]] * 4
    for _ in range(4):
        bge_runtime.unload_models()
        results = in_threads([load(dtype) for dtype in dtypes])
        assert [result for result in results if isinstance(result, Exception)] == []
        assert all(same(left, right) for left, right in zip(results[::2], expected[::2], strict=True))


@pytest.mark.defect(22)
def test_threads_with_different_lengths_share_a_tokenizer(subjects: Subjects, same: Same) -> None:
    read = subjects.reader(EMBEDDER)
    lengths = [8, 16, 24, 32, 40, 48, 56, 64]
    expected = [read(LONG, length) for length in lengths]
    calls = [lambda length=length: [read(LONG, length) for _ in range(50)] for length in lengths]
    for results, wanted in zip(in_threads(calls), expected, strict=True):
        assert all(same(result, wanted) for result in results)


@pytest.mark.defect(23)
async def test_64_queries_at_once_share_forward_passes(subjects: Subjects) -> None:
    model = subjects.embeddings(model=EMBEDDER)
    model.embed_query("warm")
    counted = subjects.count(model)
    await asyncio.gather(*(model.aembed_query(f"panda {number}") for number in range(64)))
    passes, inputs = counted()
    assert inputs == 64
    assert passes < 32


@pytest.mark.defect(23)
async def test_async_embedding_borrows_no_threads(subjects: Subjects, no_default_executor: None) -> None:
    model = subjects.embeddings(model=EMBEDDER)
    assert len(await model.aembed_query("panda")) == 384
    assert len(await model.aembed_documents(["panda", "cat"])) == 2
