"""What LlamaIndex's event handlers and callbacks hear of a call: always one start and one end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index_instrumentation import get_dispatcher

__all__ = ["embedding_events", "rerank_events"]

dispatcher = get_dispatcher(__name__)


@contextmanager
def embedding_events(model: BaseEmbedding, texts: list[str]) -> Iterator[Callable[[list[Embedding]], list[Embedding]]]:
    """Announce an embedding call. Yields the function to call with its vectors, which returns them."""
    payload = model.to_payload()
    done: list[Embedding] = []

    def finish(vectors: list[Embedding]) -> list[Embedding]:
        done.extend(vectors)
        event.on_end(payload={EventPayload.CHUNKS: texts, EventPayload.EMBEDDINGS: done})
        return vectors

    dispatcher.event(EmbeddingStartEvent(model_dict=payload))
    try:
        started: dict[str, Any] = {EventPayload.SERIALIZED: payload}
        with model.callback_manager.event(CBEventType.EMBEDDING, payload=started) as event:
            yield finish
    finally:
        dispatcher.event(EmbeddingEndEvent(chunks=texts if done else [], embeddings=done))


@contextmanager
def rerank_events(
    postprocessor: BaseNodePostprocessor,
    model_name: str,
    nodes: list[NodeWithScore],
    query: QueryBundle,
    top_n: int,
) -> Iterator[Callable[[list[NodeWithScore]], list[NodeWithScore]]]:
    """Announce a reranking call. Yields the function to call with the nodes to return, which returns them."""
    done: list[NodeWithScore] = []

    def finish(reranked: list[NodeWithScore]) -> list[NodeWithScore]:
        done.extend(reranked)
        event.on_end(payload={EventPayload.NODES: done})
        return reranked

    dispatcher.event(ReRankStartEvent(query=query, nodes=nodes, top_n=top_n, model_name=model_name))
    try:
        started: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: model_name,
            EventPayload.QUERY_STR: query.query_str,
            EventPayload.TOP_K: top_n,
        }
        with postprocessor.callback_manager.event(CBEventType.RERANKING, payload=started) as event:
            yield finish
    finally:
        dispatcher.event(ReRankEndEvent(nodes=done))
