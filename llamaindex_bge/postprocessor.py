"""LlamaIndex's reranking interface over the runtime's `Reranker`."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle

from bge_runtime import DEFAULT_RERANKER, InputError, Ranking, Reranker, check_text
from llamaindex_bge.events import rerank_events
from llamaindex_bge.options import LOADING_NAMES, ConfiguredModel, Count, FolderOrName

__all__ = ["BGERerank"]

RETRIEVAL_SCORE = "retrieval_score"
PARTIAL = "partial_ranking"


class BGERerank(ConfiguredModel, BaseNodePostprocessor):
    """Rerank retrieved nodes with a BGE reranker, or by late interaction with an embedder.

    Returns new `NodeWithScore` objects, best first; the nodes that come in stay as they are. Nodes are read
    as they were embedded (`MetadataMode.EMBED`). Constructing loads nothing.

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
    _injected: ClassVar[str] = "reranker"
    _runtime_class: ClassVar[type[Any]] = Reranker
    _runtime_names: ClassVar[dict[str, str]] = {
        "model": "model",
        "normalize": "normalize",
        "mode": "mode",
        "weights": "weights",
        "token_pooling": "token_pooling",
        "long_document": "long_document",
        "passage_overlap": "passage_overlap",
        "vector_cache": "vector_cache",
        "cutoff_layers": "cutoff_layers",
        "compress_ratio": "compress_ratio",
        "compress_layers": "compress_layers",
        "prompt": "prompt",
        **{name: name for name in LOADING_NAMES},
    }
    _renamed: ClassVar[dict[str, str]] = {**ConfiguredModel._renamed, "model_name": "model"}
    _retired: ClassVar[dict[str, str]] = {
        "use_fp16": "Pass precision='float16'.",
        "cross_encoder_kwargs": "Pass its entries as arguments of their own: max_length=, model_kwargs=, ...",
    }

    model: FolderOrName = Field(default=DEFAULT_RERANKER, description="Hub id, table name or folder.")
    top_n: Count | None = Field(default=2, description="How many nodes to return; None is all.")
    score_threshold: float | None = Field(default=None, description="Lowest score to return; None is any.")
    normalize: bool = Field(
        default=True, description="Sigmoid, 0 to 1; False is the raw logit. Late interaction ignores it."
    )
    mode: Literal["multi_vector", "sparse", "dense", "hybrid"] | None = Field(
        default=None, description="What is compared of an embedder's outputs; None is multi_vector."
    )
    weights: tuple[float, float, float] | None = Field(
        default=None, description="Of the dense, sparse and multi-vector score in hybrid; None is 0.4, 0.2, 0.4."
    )
    token_pooling: Count = Field(
        default=1, description="Token vectors of a document merged into one, 1 (off) to 8; for late interaction."
    )
    long_document: Literal["truncate", "max_passage"] = Field(
        default="truncate", description="Read a long document's beginning, or score its best passage."
    )
    passage_overlap: Count = Field(default=64, description="Tokens that neighbouring passages share.")
    vector_cache: Any | None = Field(
        default=None, exclude=True, description="Remembers the token vectors of late interaction; not dumped."
    )
    cutoff_layers: int | list[int] | None = Field(
        default=None, description="Layer of a layerwise reranker that scores; None is the last."
    )
    compress_ratio: int | None = Field(
        default=None, description="How many neighbouring tokens a lightweight reranker merges: 1, 2, 4, 8."
    )
    compress_layers: list[int] | None = Field(default=None, description="Before which layers it does so; None is 8.")
    prompt: str | None = Field(default=None, description="Prompt of an LLM reranker; None is the model's own.")
    time_budget_s: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        strict=True,
        description=f"Seconds until the best order so far is returned, marked metadata[{PARTIAL!r}]; None waits.",
    )
    keep_retrieval_score: bool = Field(
        default=False, description=f"Whether copies of the nodes carry metadata[{RETRIEVAL_SCORE!r}]."
    )

    _reranker: Reranker = PrivateAttr()

    def __init__(self, model: Any = None, *, reranker: Reranker | None = None, **options: Any) -> None:
        """Check the options; load nothing."""
        given = options if model is None else {"model": model, **options}
        super().__init__(**self._accepted(given, reranker))
        self._reranker = reranker or Reranker(**self._runtime_arguments())

    @property
    def reranker(self) -> Reranker:
        """The runtime object that does the work."""
        return self._reranker

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        bundle, query, retrieved = _checked(nodes, query_bundle)
        with self._events(retrieved, bundle) as finish:
            ranking = self._reranker.rank(query, _texts(retrieved), **self._limits()) if retrieved else Ranking()
            return finish(self._ordered(retrieved, ranking))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        bundle, query, retrieved = _checked(nodes, query_bundle)
        with self._events(retrieved, bundle) as finish:
            texts = _texts(retrieved)
            ranking = await self._reranker.arank(query, texts, **self._limits()) if retrieved else Ranking()
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
        return NodeWithScore(node=_annotated(node, notes) if notes else node, score=None if missing else score)


def _annotated(node: BaseNode, notes: dict[str, Any]) -> BaseNode:
    """Return a copy that carries the notes in its metadata, but not in the text that models read."""
    hidden = {
        keys: [*getattr(node, keys), *notes] for keys in ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")
    }
    return node.model_copy(update={"metadata": {**node.metadata, **notes}, **hidden})


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
