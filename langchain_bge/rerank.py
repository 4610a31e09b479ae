"""LangChain's document compressor over the runtime's `Reranker`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import EllipsisType
from typing import Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManager, CallbackManager, Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import RunnableConfig, RunnableSerializable, ensure_config
from pydantic import Field

from bge_runtime import DEFAULT_RERANKER, InputError, Ranked, Ranking, UnknownArgumentError, check_text
from bge_runtime.fields import Count, ModelName, RerankerFields, Seconds, check_items, names_of
from langchain_bge.configured import ConfiguredModel
from langchain_bge.notes import RERANKING, annotated

__all__ = ["BGERerank", "ScoringModel"]

TopN = int | EllipsisType | None


class ScoringModel(RerankerFields, ConfiguredModel):
    """Options of a reranker, and that reranker."""

    runtime_names: ClassVar[dict[str, str]] = names_of(RerankerFields, model_name="model")

    model_name: ModelName = DEFAULT_RERANKER


class BGERerank(ScoringModel, BaseDocumentCompressor, RunnableSerializable[dict[str, Any], list[Document]]):
    """Rerank documents with a BGE reranker, or by late interaction with an embedder.

    A document compressor, and a `Runnable` over a mapping with `documents` and `query`. Constructing loads
    nothing; objects of one model share one copy of the weights.

    Setup:
        ```bash
        pip install "bge-integrations[langchain]"
        ```

    Key init args:
        model: Hub id, name in the model table (`bge models`), folder, or `ModelSpec`, of a reranker or an
            embedder. `model_name` is the same.
        top_n: How many documents to return; `None` returns all. `top_k` is the same.
        score_threshold: Lowest score to return.
        normalize: Whether scores go through a sigmoid, 0 to 1; `False` returns raw logits.
        mode, weights: For BAAI/bge-m3: compare by `multi_vector`, `sparse`, `dense`, or `hybrid` with weights.
        long_document: `truncate`, or `max_passage`: the best of overlapping passages counts.
        cutoff_layers, compress_ratio, compress_layers, prompt: for LLM rerankers, as for `bge_runtime.Reranker`.
        calibrator: Makes probabilities of raw scores, in the place of the sigmoid: a `bge_runtime.ScoreCalibrator`
            that was fitted on this reranker, or the path of its file. Thresholds are then probabilities.
        time_budget_s: Seconds after which the best order so far is returned. Documents then carry
            `metadata["partial_ranking"]`, and those not scored stand last, without a score.
        device, precision, batch_size, max_length, truncation, cache_folder, ...: see the fields.
        reranker: A `bge_runtime.Reranker` to use as it is, in place of the options that describe one.

    Instantiate:
        ```python
        from langchain_bge import BGERerank

        rerank = BGERerank(model="BAAI/bge-reranker-base", top_n=3)
        ```

    Rerank:
        ```python
        best = rerank.compress_documents(documents, "Which organ moves blood?")
        best[0].metadata["relevance_score"]
        ```

    Chain:
        ```python
        chain = {"documents": retriever, "query": RunnablePassthrough()} | rerank
        ```

    Raises:
        UnknownArgumentError: An argument does not exist.
        ConfigurationError: An argument has a value that is not allowed, or contradicts another.
        ModelNotFoundError: The name is neither in the table, nor a folder, nor a hub id.
    """

    renamed: ClassVar[dict[str, str]] = {**ScoringModel.renamed, "top_k": "top_n"}

    top_n: Count | None = Field(default=3, description="How many documents to return; None is all.")
    score_threshold: float | None = Field(
        default=None, allow_inf_nan=False, description="Lowest score to return; None is any."
    )
    time_budget_s: Seconds | None = Field(
        default=None, description="Seconds after which the best order so far is returned; None waits for all."
    )

    def rerank(
        self, documents: Iterable[str | Document], query: str, *, top_n: TopN = ...
    ) -> list[dict[str, int | float]]:
        """Score documents and return the best, as `{"index": ..., "relevance_score": ...}`, best first.

        Args:
            documents: Strings or Documents.
            query: The query.
            top_n: How many to return; `None` returns all; left out, the object's own.

        Raises:
            ConfigurationError: `top_n` is not positive.
            InputError: Something is not a text.
        """
        ranking = self.reranker.rank(query, _texts(documents), **self._limits(top_n))
        return [{"index": ranked.index, "relevance_score": ranked.score} for ranked in ranking]

    async def arerank(
        self, documents: Iterable[str | Document], query: str, *, top_n: TopN = ...
    ) -> list[dict[str, int | float]]:
        """Rerank without blocking the event loop; see `rerank`."""
        ranking = await self.reranker.arank(query, _texts(documents), **self._limits(top_n))
        return [{"index": ranked.index, "relevance_score": ranked.score} for ranked in ranking]

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Return copies of the best documents, best first, with `metadata["relevance_score"]`.

        Ids and other metadata are kept; the documents that come in stay as they are.

        Args:
            documents: Documents of any number; none give none.
            query: The query.
            callbacks: Callbacks of the run that this one is part of.

        Raises:
            InputError: Something is not a Document, or the query not a string.
        """
        return self._run(documents, query, _config(callbacks))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Rerank without blocking the event loop; see `compress_documents`."""
        return await self._arun(documents, query, _config(callbacks))

    def invoke(self, input: dict[str, Any], config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """Rerank `input["documents"]` by `input["query"]`; other keys are left alone.

        Args:
            input: Mapping with `documents` and `query`.
            config: Callbacks, tags, metadata and name of the run.
            **kwargs: `top_n` for this call.

        Raises:
            UnknownArgumentError: Another keyword was given.
            InputError: A key is missing, or something is not a text.
        """
        documents, query = _unpacked(input)
        return self._run(documents, query, ensure_config(config), self._call_top_n(kwargs))

    async def ainvoke(
        self, input: dict[str, Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        """Rerank without blocking the event loop; see `invoke`."""
        documents, query = _unpacked(input)
        return await self._arun(documents, query, ensure_config(config), self._call_top_n(kwargs))

    def _run(
        self, documents: Sequence[Document], query: str, config: RunnableConfig, top_n: TopN = ...
    ) -> list[Document]:
        check_text(query, "query")
        manager = CallbackManager.configure(config.get("callbacks"), **self._run_settings(config))
        run = manager.on_retriever_start(None, query, **self._run_name(config))
        try:
            candidates = _documents(documents)
            ranking = self.reranker.rank(query, _texts(candidates), **self._limits(top_n))
            best = _scored(candidates, ranking)
        except BaseException as error:
            run.on_retriever_error(error)
            raise
        run.on_retriever_end(best)
        return best

    async def _arun(
        self, documents: Sequence[Document], query: str, config: RunnableConfig, top_n: TopN = ...
    ) -> list[Document]:
        check_text(query, "query")
        manager = AsyncCallbackManager.configure(config.get("callbacks"), **self._run_settings(config))
        run = await manager.on_retriever_start(None, query, **self._run_name(config))
        try:
            candidates = _documents(documents)
            ranking = await self.reranker.arank(query, _texts(candidates), **self._limits(top_n))
            best = _scored(candidates, ranking)
        except BaseException as error:
            await run.on_retriever_error(error)
            raise
        await run.on_retriever_end(best)
        return best

    def _limits(self, top_n: TopN) -> dict[str, Any]:
        return {
            "top_n": self.top_n if top_n is ... else top_n,
            "score_threshold": self.score_threshold,
            "time_budget_s": self.time_budget_s,
        }

    def _run_settings(self, config: RunnableConfig) -> dict[str, Any]:
        return {
            "inheritable_tags": config.get("tags"),
            "inheritable_metadata": config.get("metadata"),
            "local_metadata": self._get_ls_params(),
        }

    def _run_name(self, config: RunnableConfig) -> dict[str, Any]:
        return {"name": config.get("run_name") or self.get_name(), "run_id": config.get("run_id")}

    def _get_ls_params(self) -> dict[str, Any]:
        """Return what LangSmith shows of the run."""
        return {"ls_retriever_name": self.get_name().lower(), "ls_model_name": self.model_name}

    @staticmethod
    def _call_top_n(kwargs: Mapping[str, Any]) -> TopN:
        UnknownArgumentError.check("BGERerank.invoke", kwargs, ["top_n"])
        top_n: TopN = kwargs.get("top_n", ...)
        return top_n


def _config(callbacks: Callbacks | None) -> RunnableConfig:
    # Without callbacks of its own, the run belongs to the one that is under way here.
    return ensure_config(None if callbacks is None else {"callbacks": callbacks})


def _unpacked(given: Any) -> tuple[Any, Any]:
    if not isinstance(given, Mapping) or not {"documents", "query"} <= given.keys():
        shown = sorted(map(str, given)) if isinstance(given, Mapping) else type(given).__name__
        raise InputError(f"BGERerank was invoked with {shown}; pass {{'documents': [...], 'query': '...'}}.")
    return given["documents"], given["query"]


def _documents(documents: Any) -> list[Document]:
    candidates = list(check_items(documents, "documents", "Documents"))
    for index, document in enumerate(candidates):
        if not isinstance(document, Document):
            raise InputError(
                f"documents[{index}] is {type(document).__name__}; pass Document(page_content=...), or use rerank()."
            )
    return candidates


def _texts(documents: Any) -> Any:
    """Return the texts of strings and Documents; the runtime answers what is neither."""
    items = check_items(documents, "documents", "strings or Documents")
    return [each.page_content if isinstance(each, Document) else each for each in items]


def _scored(documents: Sequence[Document], ranking: Ranking) -> list[Document]:
    return [_with_score(documents[ranked.index], ranked, ranking.partial) for ranked in ranking]


def _with_score(document: Document, ranked: Ranked, partial: bool) -> Document:
    scores: dict[str, Any] = {"relevance_score": ranked.score}
    if partial:
        scores = {"partial_ranking": True, **({} if math.isnan(ranked.score) else scores)}
    return annotated(document, scores, RERANKING)
