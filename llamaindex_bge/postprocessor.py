"""LlamaIndex's reranking interface over the runtime's `Reranker`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Unpack

from llama_index.core.bridge.pydantic import Field
from llama_index.core.callbacks import CallbackManager
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from bge_runtime import DEFAULT_RERANKER, InputError, Ranking, Reranker, check_text
from bge_runtime.fields import Count, Flag, ModelName, RerankerArguments, RerankerFields, Seconds, names_of
from llamaindex_bge.events import rerank_events
from llamaindex_bge.notes import PARTIAL, RETRIEVAL_SCORE, annotated
from llamaindex_bge.options import ConfiguredModel

__all__ = ["BGERerank"]


class Limited(ConfiguredModel):
    """What returns the best few; a class of its own, so that its fields stay where they are in dumps."""

    model: ModelName = DEFAULT_RERANKER
    top_n: Count | None = Field(default=2, description="How many nodes to return; None is all.")
    score_threshold: float | None = Field(default=None, description="Lowest score to return; None is any.")


class Arguments(RerankerArguments, total=False):
    """Arguments of `BGERerank` beside the model."""

    model_name: str | os.PathLike[str]
    top_n: int | None
    score_threshold: float | None
    time_budget_s: float | None
    keep_retrieval_score: bool
    callback_manager: CallbackManager | None


class BGERerank(RerankerFields, Limited, BaseNodePostprocessor):
    """Rerank retrieved nodes with a BGE reranker, or by late interaction with an embedder.

    Returns copies, best first, that share nothing that can change with the nodes that come in. Nodes are read as they
    were embedded (`MetadataMode.EMBED`). Constructing loads nothing.

    Args:
        model: Hub id, name in the model table, or folder, of a reranker or an embedder. `model_name` is
            accepted too.
        reranker: A runtime `Reranker` to use as it is, in place of the options that describe one.
        **options: The other fields.

    Raises:
        UnknownArgumentError: An option does not exist.
        ConfigurationError: An option has a value that is not allowed.
        ModelNotFoundError: The name is neither in the table, nor a folder, nor a hub id.

    Examples:
        ```python
        from llamaindex_bge import BGERerank

        reranker = BGERerank(model="BAAI/bge-reranker-base", top_n=3)
        ```
    """

    _owner: ClassVar[str] = "BGERerank"
    runtime_names: ClassVar[dict[str, str]] = names_of(RerankerFields, model="model")
    renamed: ClassVar[dict[str, str]] = {**ConfiguredModel.renamed, "model_name": "model"}
    retired: ClassVar[dict[str, str]] = {
        "use_fp16": "Pass precision='float16'.",
        "cross_encoder_kwargs": "Pass its entries as arguments of their own: max_length=, model_kwargs=, ...",
    }

    time_budget_s: Seconds | None = Field(
        default=None,
        description=f"Seconds until the best order so far is returned, marked metadata[{PARTIAL!r}]; None waits.",
    )
    keep_retrieval_score: Flag = Field(
        default=False, description=f"Whether copies of the nodes carry metadata[{RETRIEVAL_SCORE!r}]."
    )

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        reranker: Reranker | None = None,
        **options: Unpack[Arguments],
    ) -> None:
        """Check the options; load nothing."""
        given: dict[str, Any] = {} if model is None else {"model": model}
        super().__init__(reranker=reranker, **given, **options)

    @property
    def model_name(self) -> str:
        """The model's name; `model` is the same."""
        return self.model

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        bundle, query, retrieved = _checked(nodes, query_bundle)
        with self._events(retrieved, bundle) as finish:
            ranking = self.reranker.rank(query, _texts(retrieved), **self._limits()) if retrieved else Ranking()
            return finish(self._ordered(retrieved, ranking))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        bundle, query, retrieved = _checked(nodes, query_bundle)
        with self._events(retrieved, bundle) as finish:
            texts = _texts(retrieved)
            ranking = await self.reranker.arank(query, texts, **self._limits()) if retrieved else Ranking()
            return finish(self._ordered(retrieved, ranking))

    def _events(
        self, nodes: list[NodeWithScore], query: QueryBundle
    ) -> AbstractContextManager[Callable[[list[NodeWithScore]], list[NodeWithScore]]]:
        top_n = len(nodes) if self.top_n is None else self.top_n
        return rerank_events(self, self.model, nodes, query, top_n)

    def _limits(self) -> dict[str, Any]:
        return {
            "top_n": self.top_n,
            "score_threshold": self.score_threshold,
            "time_budget_s": self.time_budget_s,
        }

    def _ordered(self, retrieved: list[NodeWithScore], ranking: Ranking) -> list[NodeWithScore]:
        return [self._scored(retrieved[ranked.index], ranked.score, ranking.partial) for ranked in ranking]

    def _scored(self, retrieved: NodeWithScore, score: float, partial: bool) -> NodeWithScore:
        node = retrieved.node
        notes: dict[str, Any] = {PARTIAL: True} if partial else {}
        # A node that a reranker has annotated keeps the figure of the retrieval itself.
        if self.keep_retrieval_score and RETRIEVAL_SCORE not in node.metadata:
            notes[RETRIEVAL_SCORE] = retrieved.score
        missing = partial and math.isnan(score)
        return NodeWithScore(node=annotated(node, notes), score=None if missing else score)


def _checked(nodes: Any, query_bundle: QueryBundle | None) -> tuple[QueryBundle, str, list[NodeWithScore]]:
    """Return the query, its text and the nodes, or raise `InputError`."""
    if query_bundle is None:
        raise InputError("The query is missing. Pass query_str= or query_bundle= with the nodes.")
    if not isinstance(nodes, list | tuple):
        raise InputError(f"nodes is {type(nodes).__name__}; pass a list of NodeWithScore.")
    for index, node in enumerate(nodes):
        if not isinstance(node, NodeWithScore):
            raise InputError(f"nodes[{index}] is {type(node).__name__}; pass NodeWithScore(node=...).")
    return query_bundle, check_text(query_bundle.query_str, "query"), list(nodes)


def _texts(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
