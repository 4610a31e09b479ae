"""What is said of texts that are too long: once per object, with the beginning of the first, whatever reads them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from bge_runtime import DEFAULT_SPARSE_EMBEDDER as M3
from bge_runtime import Embedder, Reranker, TokenIndex, VectorCache, VisionEmbedder
from bge_runtime.loading.runner import SHOWN_CHARACTERS
from tests.checkpoints.pictures import picture

pytestmark = pytest.mark.usefixtures("hub_cache")

SHORT, LONG, LONGER = "panda", "the first long text " * 40, "another long text " * 50
TEXTS = [SHORT, LONG, LONGER]
CAPTIONED = [(picture(seed), text) for seed, text in enumerate(TEXTS)]
EMBEDDER, RERANKER = "BAAI/bge-small-en-v1.5", "BAAI/bge-reranker-base"
LLM = "BAAI/bge-reranker-v2-gemma"


def embedder(name: str = EMBEDDER, **options: Any) -> Embedder:
    return Embedder(name, max_length=16, **options)


def pairs(name: str = RERANKER, **options: Any) -> Reranker:
    return Reranker(name, max_length=16, **options)


def late(**options: Any) -> Reranker:
    return pairs(EMBEDDER, **options)


def vision(**options: Any) -> VisionEmbedder:
    return VisionEmbedder("BAAI/BGE-VL-base", max_length=16, **options)


# By entrance: what makes an object, what reads the three texts, and the words of the count.
ENTRANCES: dict[str, tuple[Callable[..., Any], Callable[[Any], Any], str]] = {
    "documents": (embedder, lambda each: each.encode_documents(TEXTS), "2 of 3 texts"),
    "queries": (embedder, lambda each: each.encode_queries(TEXTS), "2 of 3 texts"),
    "async": (embedder, lambda each: asyncio.run(each.aencode_documents(TEXTS)), "2 of 3 texts"),
    "tokens": (embedder, lambda each: each.encode_tokens(TEXTS), "2 of 3 texts"),
    "sparse": (partial(embedder, M3), lambda each: each.encode_sparse(TEXTS), "2 of 3 texts"),
    "pictures with texts": (vision, lambda each: each.encode_image_texts(CAPTIONED), "2 of 3 texts"),
    "pairs": (pairs, lambda each: each.score("cat", TEXTS), "2 of 3 pairs"),
    "long query": (pairs, lambda each: each.rank(LONG, [SHORT, "cat"]), "2 of 2 pairs"),
    "pairs of an LLM": (partial(pairs, LLM), lambda each: each.score("cat", TEXTS), "2 of 3 pairs"),
    "late": (late, lambda each: each.score("cat", TEXTS), "2 of 4 texts"),
    "late query": (late, lambda each: each.score(LONG, [LONGER]), "2 of 2 texts"),
    "late, all outputs": (partial(pairs, M3, mode="hybrid"), lambda each: each.score("cat", TEXTS), "2 of 4 texts"),
    "of an object": (lambda **more: Reranker(embedder(**more)), lambda each: each.score("cat", TEXTS), "2 of 4 texts"),
    "token index": (late, lambda each: TokenIndex(each).add(TEXTS), "2 of 3 texts"),
}
every_entrance = pytest.mark.parametrize(("make", "read", "counts"), ENTRANCES.values(), ids=ENTRANCES)


@every_entrance
def test_a_cut_text_is_told_once_with_its_beginning_and_then_counted(
    make: Callable[..., Any], read: Callable[[Any], Any], counts: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = make()
    for turn in (1, 2):
        with caplog.at_level(logging.WARNING, logger="bge_runtime"):
            read(model)
        assert model.truncated_count == turn * int(counts[0])
    (record,) = caplog.records
    told = record.getMessage()
    assert told.startswith(f"{counts} were cut to the 16 tokens that {model.model!r} reads; the first that is too long")
    assert f"begins {LONG[:SHOWN_CHARACTERS]!r}." in told
    assert "bge_runtime" in told  # Python's last resort shows no logger


@every_entrance
def test_silent_counts_and_says_nothing(
    make: Callable[..., Any], read: Callable[[Any], Any], counts: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = make(truncation="silent")
    with caplog.at_level(logging.WARNING, logger="bge_runtime"):
        read(model)
    assert caplog.records == []
    assert model.truncated_count == int(counts[0])


def test_each_object_tells_for_itself_and_a_cache_asks_nothing_twice(caplog: pytest.LogCaptureFixture) -> None:
    cache = VectorCache()
    for made in (1, 2):
        model = embedder(vector_cache=cache, query_instruction="" if made == 1 else "other: ")
        for _ in range(2):
            with caplog.at_level(logging.WARNING, logger="bge_runtime"):
                model.encode_queries(TEXTS)
        assert model.truncated_count == 2
        assert len(caplog.records) == made


def test_the_text_is_found_in_a_later_window(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bge_runtime.engine.call.WINDOW", 2)
    with caplog.at_level(logging.WARNING, logger="bge_runtime"):
        embedder().encode_documents(["one", "two", "three", LONG, LONGER])
    assert f"2 of 5 texts were cut to the 16 tokens that {EMBEDDER!r}" in caplog.text
    assert f"begins {LONG[:SHOWN_CHARACTERS]!r}" in caplog.text
