"""Two-stage retrieval as one LangChain retriever: fetch many candidates, rerank them, return the best."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from numbers import Real
from types import EllipsisType
from typing import Any, Literal

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForRetrieverRun,
    CallbackManager,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.vectorstores import VectorStore
from pydantic import ConfigDict, Field, PrivateAttr, ValidationError

from bge_runtime import ConfigurationError, ScoreCalibrator, UnknownArgumentError
from bge_runtime.fields import Calibrator, Count, plain
from langchain_bge.binding import bind_index
from langchain_bge.calibration import probability_of
from langchain_bge.fusion import Hit, fused
from langchain_bge.notes import RERANKING
from langchain_bge.rerank import BGERerank
from langchain_bge.scores import cosine_of

__all__ = ["BGERetriever"]

logger = logging.getLogger("langchain_bge")

Source = VectorStore | BaseRetriever


class BGERetriever(BaseRetriever):
    """Fetch candidates from one or several sources, rerank them, return the best.

    Documents come back as copies, best first. Their metadata gains `retrieval_rank` (from 1), `retrieval_score` and,
    from the reranker, `relevance_score`. The retrieval's score is the cosine where the store gives it, or is Chroma or
    FAISS, which tell their metric; else it is the store's own, which may be a distance. With several sources it is the
    fused one. Each source and the reranker is a run of its own below the retriever's.

    Key init args:
        vectorstore: Where candidates come from.
        sources: Vector stores and retrievers, instead of one store; their results are fused by rank.
        reranker: A `BGERerank`, or any document compressor; `None` returns the candidates' order.
        k: How many documents to return; `None` takes the reranker's `top_n`, or 4 without a reranker.
        fetch_k: How many candidates to take from each vector store. A retriever gives as many as it is set to.
        filter: Passed to vector stores as `filter=`.
        search_kwargs: Further arguments for the vector stores' search.
        calibrator: Without a reranker: a `bge_runtime.ScoreCalibrator` that was fitted on the cosines of the store's
            embeddings, or the path of its file. `relevance_score` is then the probability of being relevant. Of a
            reranker, it is the reranker's own option.
        score_threshold: Lowest `relevance_score` to return; a document that the reranker's `time_budget_s` left
            without a score is none of them.
        index_path: Folder or file of the store's index: before the first query it is checked that the store's
            embeddings are those that filled it; see `bind_index`.
        on_rerank_error: `raise`, or `keep_retrieval_order` with the failure in the reranker's run and in the log; the
            threshold, for which there are no scores then, is not applied.

    Instantiate:
        ```python
        from langchain_bge import BGERerank, BGERetriever

        retriever = BGERetriever(vectorstore=store, reranker=BGERerank(model="BAAI/bge-reranker-base"), k=3)
        ```

    Use:
        ```python
        documents = retriever.invoke("Which organ moves blood?")
        documents = retriever.invoke("Which organ moves blood?", k=1, filter={"topic": "medicine"})
        ```

    Raises:
        UnknownArgumentError: An argument does not exist.
        ConfigurationError: An argument has a value that is not allowed, or there is no source.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    vectorstore: VectorStore | None = Field(default=None, description="Where candidates come from.")
    sources: list[Source] = Field(default_factory=list, description="Several stores and retrievers instead.")
    reranker: BaseDocumentCompressor | None = Field(default=None, description="Orders the candidates.")
    calibrator: Calibrator = None
    k: Count | None = Field(default=None, description="How many documents to return; None is the reranker's own.")
    fetch_k: Count = Field(default=100, description="Candidates from each vector store.")
    filter: Any = Field(default=None, description="Passed to vector stores as filter=.")
    search_kwargs: dict[str, Any] = Field(default_factory=dict, description="For the vector stores' search.")
    score_threshold: float | None = Field(
        default=None, allow_inf_nan=False, description="Lowest relevance_score to return."
    )
    index_path: str | os.PathLike[str] | None = Field(
        default=None, description="Folder or file of the index, to guard it against other embeddings."
    )
    on_rerank_error: Literal["raise", "keep_retrieval_order"] = Field(
        default="raise", description="What happens when the reranker fails."
    )

    _checked: bool = PrivateAttr(default=False)
    _calibrator: ScoreCalibrator | None = PrivateAttr(default=None)

    def __init__(self, **options: Any) -> None:
        """Check the options."""
        UnknownArgumentError.check("BGERetriever", options, type(self).model_fields)
        try:
            super().__init__(**{name: plain(name, value) for name, value in options.items()})
        except ValidationError as error:
            raise ConfigurationError.from_validation("BGERetriever", error.errors()) from error
        if (self.vectorstore is None) == (not self.sources):
            got = "neither vectorstore= nor sources=" if self.vectorstore is None else "both vectorstore= and sources="
            raise ConfigurationError(
                f"BGERetriever got {got}. Pass vectorstore= for one source, or sources=[...] for several."
            )
        if self.index_path is not None and self.vectorstore is None:
            raise ConfigurationError(
                f"BGERetriever got index_path={self.index_path!r} without vectorstore=, to which it belongs. "
                "With sources=[...], call bind_index for each store."
            )
        self._read_calibrator()
        self._check_threshold(self.score_threshold)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        fetch_k: int | None = None,
        filter: Any = ...,
        score_threshold: float | EllipsisType | None = ...,
    ) -> list[Document]:
        search = self._search_kwargs(fetch_k, filter)
        self._check_index()
        relevance = self._relevance()
        hits = [self._fetch(source, query, search, run_manager) for source in self._sources()]
        candidates, limits = self._candidates(hits, relevance), self._limits(k, score_threshold)
        try:
            ordered = self._rerank(candidates, query, limits[0], run_manager)
        except Exception as error:  # noqa: BLE001 - whatever fails in the second stage
            return self._without_reranking(candidates, limits[0], error)
        return self._limited(ordered, *limits)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        fetch_k: int | None = None,
        filter: Any = ...,
        score_threshold: float | EllipsisType | None = ...,
    ) -> list[Document]:
        search = self._search_kwargs(fetch_k, filter)
        if not self._checked:
            await asyncio.to_thread(self._check_index)
        relevance = await asyncio.to_thread(self._relevance)  # the first time, it reads the model's files
        fetches = [self._afetch(source, query, search, run_manager) for source in self._sources()]
        hits = await asyncio.gather(*fetches)
        candidates, limits = self._candidates(hits, relevance), self._limits(k, score_threshold)
        try:
            ordered = await self._arerank(candidates, query, limits[0], run_manager)
        except Exception as error:  # noqa: BLE001 - whatever fails in the second stage
            return self._without_reranking(candidates, limits[0], error)
        return self._limited(ordered, *limits)

    def _check_index(self) -> None:
        if self.index_path is not None and not self._checked:
            assert self.vectorstore is not None
            bind_index(self.index_path, self.vectorstore)
        self._checked = True

    def _fetch(
        self, source: Source, query: str, search: dict[str, Any], manager: CallbackManagerForRetrieverRun
    ) -> list[Hit]:
        if isinstance(source, BaseRetriever):
            return [(each, None) for each in source.invoke(query, {"callbacks": manager.get_child()})]
        # Configured, since a handed-down manager lacks the handlers that are not inherited, such as collect_runs'.
        run = CallbackManager.configure(manager.get_child()).on_retriever_start(None, query, name=_stage(source))
        try:
            hits = source.similarity_search_with_score(query, **search)
        except BaseException as error:
            run.on_retriever_error(error)
            raise
        run.on_retriever_end([document for document, _ in hits])
        cosine = cosine_of(source)
        return [(document, cosine(score)) for document, score in hits]

    async def _afetch(
        self, source: Source, query: str, search: dict[str, Any], manager: AsyncCallbackManagerForRetrieverRun
    ) -> list[Hit]:
        if isinstance(source, BaseRetriever):
            return [(each, None) for each in await source.ainvoke(query, {"callbacks": manager.get_child()})]
        child = AsyncCallbackManager.configure(manager.get_child())  # as in `_fetch`
        run = await child.on_retriever_start(None, query, name=_stage(source))
        try:
            hits = await source.asimilarity_search_with_score(query, **search)
        except BaseException as error:
            await run.on_retriever_error(error)
            raise
        await run.on_retriever_end([document for document, _ in hits])
        cosine = cosine_of(source)
        return [(document, cosine(score)) for document, score in hits]

    def _rerank(
        self, candidates: Sequence[Document], query: str, k: int | None, manager: CallbackManagerForRetrieverRun
    ) -> Sequence[Document]:
        if self.reranker is None or not candidates:
            return candidates
        callbacks = manager.get_child()
        if isinstance(self.reranker, BGERerank):
            return self.reranker.invoke({"documents": candidates, "query": query}, {"callbacks": callbacks}, top_n=k)
        return self.reranker.compress_documents(candidates, query, callbacks)

    async def _arerank(
        self, candidates: Sequence[Document], query: str, k: int | None, manager: AsyncCallbackManagerForRetrieverRun
    ) -> Sequence[Document]:
        if self.reranker is None or not candidates:
            return candidates
        callbacks = manager.get_child()
        if isinstance(self.reranker, BGERerank):
            given = {"documents": candidates, "query": query}
            return await self.reranker.ainvoke(given, {"callbacks": callbacks}, top_n=k)
        return await self.reranker.acompress_documents(candidates, query, callbacks)

    def _without_reranking(self, candidates: Sequence[Document], k: int | None, error: Exception) -> list[Document]:
        if self.on_rerank_error == "raise":
            raise error
        logger.warning("The reranker failed, the order of the first stage is kept: %s", error)
        return list(candidates[:k])

    def _candidates(self, hits: Sequence[Sequence[Hit]], relevance: Callable[[float], float] | None) -> list[Document]:
        if relevance is not None:
            return [_with_relevance(document, relevance) for document in fused(hits, RERANKING)]
        # Scores that the sources' documents bring along would pass for the reranker's.
        return fused(hits, () if self.reranker is None else RERANKING)

    def _read_calibrator(self) -> None:
        if self.calibrator is None:
            return
        if self.reranker is not None or self.vectorstore is None:
            what = "sources=" if self.reranker is None else "reranker="
            raise ConfigurationError(
                f"BGERetriever got calibrator= together with {what}: it maps the cosines of one vectorstore=. "
                "Give a reranker its own: BGERerank(calibrator=...)."
            )
        self._calibrator = ScoreCalibrator.of(self.calibrator)

    def _relevance(self) -> Callable[[float], float] | None:
        """Return what makes a probability of the store's cosine; `None` without a calibrator.

        Raises:
            ConfigurationError: The calibrator is not of the store's embeddings, or the store tells no cosine.
        """
        if self._calibrator is None:
            return None
        assert self.vectorstore is not None
        return probability_of(self.vectorstore, self._calibrator)

    def _limited(self, ordered: Sequence[Document], k: int | None, score_threshold: float | None) -> list[Document]:
        """Return at most `k` documents, of which with a threshold each has a score that is not below it.

        Raises:
            ConfigurationError: The reranker gives no scores.
        """
        if score_threshold is None:
            return list(ordered[:k])
        passed = []
        for document in ordered:
            score = document.metadata.get("relevance_score")
            if isinstance(score, Real):
                passed += [document] if float(score) >= score_threshold else []
            elif "partial_ranking" not in document.metadata:
                raise ConfigurationError(
                    f"score_threshold={score_threshold!r} needs scores, and {type(self.reranker).__name__} gives "
                    f"metadata['relevance_score']={score!r}. Leave the threshold out, or pass "
                    "a reranker that gives numbers, such as BGERerank."
                )
        return passed[:k]

    def _check_threshold(self, score_threshold: float | None) -> None:
        if score_threshold is not None and self.reranker is None and self.calibrator is None:
            raise ConfigurationError(
                f"score_threshold={score_threshold!r} is on the reranker's scale, and BGERetriever has no reranker. "
                "Pass reranker= or calibrator=, or leave the threshold out."
            )

    def _sources(self) -> Sequence[Source]:
        return self.sources or ([] if self.vectorstore is None else [self.vectorstore])

    def _search_kwargs(self, fetch_k: int | None, filter: Any) -> dict[str, Any]:
        _check_count(fetch_k, "fetch_k")
        wanted = self.filter if filter is ... else filter
        # Not every store takes filter=, so it is passed only when there is one.
        return {**self.search_kwargs, "k": fetch_k or self.fetch_k} | ({} if wanted is None else {"filter": wanted})

    def _limits(self, k: int | None, score_threshold: float | EllipsisType | None) -> tuple[int | None, float | None]:
        _check_count(k, "k")
        threshold = self.score_threshold if isinstance(score_threshold, EllipsisType) else score_threshold
        self._check_threshold(threshold)
        own = self.reranker.top_n if isinstance(self.reranker, BGERerank) else None if self.reranker else 4
        return k or self.k or own, threshold

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        """Return what LangSmith shows of the run."""
        params = super()._get_ls_params(**kwargs)
        stores = [source for source in self._sources() if isinstance(source, VectorStore)]
        if stores:
            params["ls_vector_store_provider"] = type(stores[0]).__name__
            if stores[0].embeddings is not None:
                params["ls_embedding_provider"] = type(stores[0].embeddings).__name__
        return params


def _with_relevance(document: Document, relevance: Callable[[float], float]) -> Document:
    # A copy already, which nobody else has.
    document.metadata["relevance_score"] = relevance(document.metadata["retrieval_score"])
    return document


def _stage(source: VectorStore) -> str:
    return f"retrieve: {type(source).__name__}"


def _check_count(value: int | None, name: str) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ConfigurationError(f"{name}={value!r} is not allowed. Pass a positive whole number.")
