"""What BGEEmbedding returns and says, beyond the contract."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.base.embeddings.base import SimilarityMode, mean_agg
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler

from bge_runtime import BackendError, Embedder, InputError
from llamaindex_bge import BGEEmbedding
from tests.contracts.concurrency import ticks_during
from tests.llamaindex.conftest import EMBEDDER, EN, Callbacks, Recorder

TEXTS = ["panda", "the dog slept in the garden", "Paris is the capital of France"]
EVENTS = ("EmbeddingStartEvent", "EmbeddingEndEvent")

pytestmark = pytest.mark.usefixtures("hub_cache")


@pytest.fixture
def embedding() -> BGEEmbedding:
    return BGEEmbedding(EMBEDDER)


@pytest.fixture
def handed_over(monkeypatch: Any) -> list[int]:
    """How many texts each call of the runtime got."""
    sizes: list[int] = []
    for name in ("encode_queries", "encode_documents"):
        original = getattr(Embedder, name)

        def spy(self: Any, texts: Any, *, original: Any = original, **options: Any) -> Any:
            sizes.append(len(texts))
            return original(self, texts, **options)

        monkeypatch.setattr(Embedder, name, spy)
    return sizes


def assert_close(left: Any, right: Any) -> None:
    np.testing.assert_allclose(np.asarray(left), np.asarray(right), atol=1e-5)


# Values


def test_paraphrases_are_closer_than_unrelated_texts(minilm: Path) -> None:
    embedding = BGEEmbedding("sentence-transformers/all-MiniLM-L6-v2")
    query = embedding.get_query_embedding("How do I reset my password?")
    same, other = embedding.get_text_embedding_batch(
        ["Flow to change a forgotten login secret", "The recipe needs two cups of flour"]
    )
    assert embedding.similarity(query, same) > embedding.similarity(query, other) + 0.3


def test_vectors_are_lists_of_python_floats(embedding: BGEEmbedding) -> None:
    for vector in (embedding.get_query_embedding("a"), embedding.get_text_embedding_batch(["a"])[0]):
        assert type(vector) is list
        assert {type(value) for value in vector} == {float}


async def test_every_entrance_gives_the_same_vectors(embedding: BGEEmbedding) -> None:
    documents = embedding.embedder.encode_documents(TEXTS)
    queries = embedding.embedder.encode_queries(TEXTS)
    assert_close(embedding.get_text_embedding_batch(TEXTS), documents)
    assert_close(await embedding.aget_text_embedding_batch(TEXTS), documents)
    assert_close([embedding.get_text_embedding(text) for text in TEXTS], documents)
    assert_close([await embedding.aget_text_embedding(text) for text in TEXTS], documents)
    assert_close([embedding.get_query_embedding(text) for text in TEXTS], queries)
    assert_close([await embedding.aget_query_embedding(text) for text in TEXTS], queries)


async def test_the_hooks_of_the_base_class_work(embedding: BGEEmbedding) -> None:
    documents = embedding.embedder.encode_documents(TEXTS)
    assert_close(embedding._get_text_embeddings(TEXTS), documents)
    assert_close(await embedding._aget_text_embeddings(TEXTS), documents)
    assert_close(embedding._get_text_embedding(TEXTS[0]), documents[0])
    assert_close(await embedding._aget_text_embedding(TEXTS[0]), documents[0])


async def test_a_subclass_may_replace_the_hooks() -> None:
    class Shouting(BGEEmbedding):
        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return super()._get_text_embeddings([text.upper() for text in texts])

        async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return await super()._aget_text_embeddings([text.upper() for text in texts])

    embedding = Shouting("sentence-transformers/all-MiniLM-L6-v2", text_instruction="X: ")
    expected = embedding.embedder.encode_documents(["A B"])
    assert_close(embedding.get_text_embedding_batch(["a b"]), expected)
    assert_close(await embedding.aget_text_embedding_batch(["a b"]), expected)


def test_the_whole_list_goes_to_the_runtime_at_once(handed_over: list[int]) -> None:
    BGEEmbedding(embed_batch_size=2).get_text_embedding_batch([f"{text} {n}" for n in range(9) for text in TEXTS])
    assert handed_over == [27]


def test_a_very_long_list_goes_over_in_windows(handed_over: list[int], events: Recorder, monkeypatch: Any) -> None:
    monkeypatch.setattr("llamaindex_bge.embeddings.WINDOW", 4)
    texts = [f"panda {number}" for number in range(10)]
    embedding = BGEEmbedding()
    vectors = embedding.get_text_embedding_batch(iter(texts))
    assert handed_over == [4, 4, 2]
    assert [len(event.chunks) for event in events.named("EmbeddingEndEvent")] == [4, 4, 2]
    assert_close(vectors, embedding.embedder.encode_documents(texts))


def test_similarity_is_a_python_float(embedding: BGEEmbedding) -> None:
    for mode in SimilarityMode:
        assert type(embedding.similarity([1.0, 0.0], [0.6, 0.8], mode)) is float
    assert embedding.similarity([1.0, 0.0], [0.6, 0.8]) == pytest.approx(0.6)


async def test_several_queries_are_combined_in_one_call(
    embedding: BGEEmbedding, handed_over: list[int], events: Recorder
) -> None:
    combined = embedding.get_agg_embedding_from_queries(TEXTS)
    assert handed_over == [3]
    assert len(events.named("EmbeddingStartEvent")) == len(events.named("EmbeddingEndEvent")) == 1
    assert_close(combined, mean_agg(embedding.embedder.encode_queries(TEXTS).tolist()))
    assert_close(await embedding.aget_agg_embedding_from_queries(TEXTS), combined)


async def test_combining_uses_the_given_function(embedding: BGEEmbedding) -> None:
    first = embedding.get_query_embedding(TEXTS[0])
    assert_close(embedding.get_agg_embedding_from_queries(TEXTS, lambda vectors: vectors[0]), first)
    assert_close(await embedding.aget_agg_embedding_from_queries(TEXTS, lambda vectors: vectors[0]), first)


def test_combining_nothing_is_an_input_error(embedding: BGEEmbedding) -> None:
    with pytest.raises(InputError, match="at least one query"):
        embedding.get_agg_embedding_from_queries([])


async def test_64_concurrent_queries_leave_the_loop_free(embedding: BGEEmbedding) -> None:
    texts = [f"panda {'dog ' * (number % 40)}{number}" for number in range(64)]
    expected = embedding.embedder.encode_queries(texts)
    calls = asyncio.gather(*(embedding.aget_query_embedding(text) for text in texts))
    vectors, ticks = await ticks_during(calls)
    assert_close(vectors, expected)
    assert ticks > 10


def test_progress_is_silent_unless_asked_for(embedding: BGEEmbedding, capsys: Any) -> None:
    embedding.get_text_embedding_batch(TEXTS)
    assert capsys.readouterr().err == ""
    embedding.get_text_embedding_batch(TEXTS, show_progress=True)
    assert "3/3" in capsys.readouterr().err


# Events


def test_a_call_sends_start_and_end_in_order(embedding: BGEEmbedding, events: Recorder, callbacks: Callbacks) -> None:
    embedding.callback_manager = callbacks.manager()
    embedding.get_text_embedding_batch(TEXTS)
    start, end = events.named(*EVENTS)
    assert (start.class_name(), end.class_name()) == EVENTS
    assert start.model_dict == embedding.to_payload()
    assert end.chunks == TEXTS
    assert_close(end.embeddings, embedding.embedder.encode_documents(TEXTS))
    assert [(kind, name) for kind, name, _, _ in callbacks.seen] == [("start", "embedding"), ("end", "embedding")]


@pytest.mark.parametrize(
    "call",
    [
        lambda embedding: embedding.get_query_embedding("a"),
        lambda embedding: embedding.get_text_embedding("a"),
        lambda embedding: embedding.get_text_embedding_batch(["a", "b"]),
        lambda embedding: embedding.get_agg_embedding_from_queries(["a", "b"]),
        lambda embedding: asyncio.run(embedding.aget_query_embedding("a")),
        lambda embedding: asyncio.run(embedding.aget_text_embedding("a")),
        lambda embedding: asyncio.run(embedding.aget_text_embedding_batch(["a", "b"])),
        lambda embedding: asyncio.run(embedding.aget_agg_embedding_from_queries(["a", "b"])),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_every_start_has_an_end(
    call: Any, fails: bool, events: Recorder, callbacks: Callbacks, monkeypatch: Any
) -> None:
    embedding = BGEEmbedding(callback_manager=callbacks.manager())
    if fails:
        for name in ("encode_queries", "encode_documents", "aencode_queries", "aencode_documents"):
            monkeypatch.setattr(Embedder, name, _fail)
        with pytest.raises(BackendError):
            call(embedding)
    else:
        call(embedding)
    assert [event.class_name() for event in events.named(*EVENTS)] == list(EVENTS)
    assert callbacks.balanced()


def _fail(*args: Any, **kwargs: Any) -> Any:
    raise BackendError("device lost")


def test_no_texts_send_no_events(embedding: BGEEmbedding, events: Recorder) -> None:
    assert embedding.get_text_embedding_batch([]) == []
    assert events.named(*EVENTS) == []


def test_a_lone_surrogate_does_not_break_the_events(embedding: BGEEmbedding, events: Recorder) -> None:
    embedding.get_text_embedding_batch(["a\ud800b"])
    embedding.get_query_embedding("a\ud800b")
    assert [event.chunks for event in events.named("EmbeddingEndEvent")] == [["a\ufffdb"], ["a\ufffdb"]]


def test_payload_shows_the_instruction_and_no_secret() -> None:
    payload = BGEEmbedding(EMBEDDER, token="hf_secret").to_payload()
    assert payload["query_instruction"] == EN
    assert payload["model_name"] == EMBEDDER
    assert "hf_secret" not in str(payload)


def test_calls_are_spans(embedding: BGEEmbedding) -> None:
    handler = SimpleSpanHandler()
    root = get_dispatcher()
    root.add_span_handler(handler)
    try:
        embedding.get_query_embedding("a")
        embedding.get_text_embedding_batch(["a"])
    finally:
        root.span_handlers.remove(handler)
    names = {span.id_.split("-")[0] for span in handler.completed_spans}
    assert {"BGEEmbedding.get_query_embedding", "BGEEmbedding.get_text_embedding_batch"} <= names


def test_truncated_texts_are_counted(caplog: Any) -> None:
    embedding = BGEEmbedding(max_length=16)
    with caplog.at_level(logging.WARNING, logger="bge_runtime"):
        embedding.get_text_embedding_batch(["dog " * 40, "panda"])
    assert embedding.embedder.truncated_count == 1
    assert len(caplog.records) == 1
