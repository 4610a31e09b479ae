"""Queries and documents to relevance scores."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.embedding.embedder import Embedder
from bge_runtime.engine.flow import arun, run
from bge_runtime.errors import ConfigurationError
from bge_runtime.inputs.checks import check_pairs
from bge_runtime.loading.model import Truncation
from bge_runtime.loading.source import ModelSource
from bge_runtime.loading.store import STORE
from bge_runtime.models.spec import DEFAULT_RERANKER, ModelSpec
from bge_runtime.reranking.comparison import Mode
from bge_runtime.reranking.cross_encoder import LongDocument
from bge_runtime.reranking.llm_options import LLMOptions
from bge_runtime.reranking.pair_ranker import PairRanker, pairs_of
from bge_runtime.reranking.ranking import Ranking
from bge_runtime.vectors.cache import VectorCache

__all__ = ["Reranker"]


class Reranker(PairRanker):
    """A reranking model: a query and documents in, one relevance score per document out.

    A cross-encoder reads query and document together. Given an embedder instead (its name, or an `Embedder`), the
    score is late interaction: the mean over the query's token vectors of the best cosine with the document's.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | ModelSpec | Embedder = DEFAULT_RERANKER,
        *,
        normalize: bool = False,
        mode: Mode | None = None,
        weights: Sequence[float] | None = None,
        token_pooling: int = 1,
        long_document: LongDocument = "truncate",
        passage_overlap: int = 64,
        vector_cache: VectorCache | str | os.PathLike[str] | None = None,
        cutoff_layers: int | Sequence[int] | None = None,
        compress_ratio: int | None = None,
        compress_layers: Sequence[int] | None = None,
        prompt: str | None = None,
        max_length: int | None = None,
        truncation: Truncation = "warn",
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        show_progress: bool = False,
        device: str | None = None,
        precision: str | None = None,
        backend: str = "auto",
        calibration: str | os.PathLike[str] | None = None,
        devices: Sequence[str] | None = None,
        keep_alive_s: float | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_folder: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        base_model: str | None = None,
        adapter: str | os.PathLike[str] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Describe the model; errors that need no files are raised here.

        Args:
            model: Name, folder or spec of a reranker or an embedder, or an `Embedder`, whose own options then hold.
            normalize: Whether a cross-encoder's scores go through a sigmoid, to lie between 0 and 1. Late interaction
                is a cosine already and stays as it is.
            mode: What is compared of an embedder's outputs. `multi_vector` (the default): one vector per token, from
                the trained head where the model has one (bge-m3). `sparse`, `dense`, and `hybrid`, the weighted mean
                of the three, are for models with such heads.
            weights: In `hybrid`, those of the dense, the sparse and the multi-vector score; `None` is 0.4, 0.2, 0.4.
            token_pooling: In `multi_vector`: merge each document's token vectors to one per so many, 1 (off) to 8.
                Fewer numbers to hold and to cache, for a small loss; queries keep all of theirs.
            long_document: What becomes of a document that does not fit: `truncate` reads its beginning; `max_passage`
                reads all of it in overlapping passages, and the best one's score is the document's.
            passage_overlap: Tokens that neighbouring passages share; at most half a passage.
            vector_cache: Remembers the token vectors that late interaction compares, a few hundred kilobytes per
                document: a `VectorCache`, or the path of its file. Passages are not remembered.
            cutoff_layers: The layer of a layerwise reranker that scores, as a number or a list of one; what comes
                after it is not computed. `None` is the last.
            compress_ratio: How many neighbouring tokens of a document a lightweight reranker merges: 1, 2, 4 or 8.
            compress_layers: Before which layers it does so; `None` is 8.
            prompt: What an LLM reranker is told to do with query A and passage B; `None` is the model's own.
            max_length: Longest pair in tokens (late interaction: longest text); `None` takes the model's own. The
                prompt of an LLM reranker comes on top.
            truncation: What to do about longer inputs: cut `silent`, cut and `warn` once per call, or `error`.
            batch_size: Most inputs in a forward pass; `None` sets no limit.
            batch_tokens: Most padded tokens in a forward pass; `None` takes the device's default.
            show_progress: Whether to show a progress bar on standard error.
            device: As for `Embedder`, like all that follow.
            precision: As for `Embedder`.
            backend: As for `Embedder`.
            calibration: As for `Embedder`.
            devices: As for `Embedder`.
            keep_alive_s: As for `Embedder`.
            revision: As for `Embedder`.
            token: As for `Embedder`.
            cache_folder: As for `Embedder`.
            local_files_only: As for `Embedder`.
            trust_remote_code: As for `Embedder`.
            base_model: As for `Embedder`.
            adapter: As for `Embedder`.
            model_kwargs: As for `Embedder`.
            processor_kwargs: As for `Embedder`.
            config_kwargs: As for `Embedder`.

        Raises:
            ConfigurationError: An argument has a wrong value, or stands beside an `Embedder` that has its own.
            ModelNotFoundError: The name cannot be a model.
            UnsupportedModelError: The model's kind cannot run.
        """
        self._normalize = normalize
        source = ModelSource(
            model=model.model if isinstance(model, Embedder) else model,
            device=device,
            precision=precision,
            backend=backend,
            calibration=calibration,
            devices=devices,
            keep_alive_s=keep_alive_s,
            revision=revision,
            token=token,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
            trust_remote_code=trust_remote_code,
            base_model=base_model,
            adapter=adapter,
            model_kwargs=model_kwargs or {},
            processor_kwargs=processor_kwargs or {},
            config_kwargs=config_kwargs or {},
        )
        if isinstance(model, Embedder):
            own = max_length or batch_size or batch_tokens or truncation != "warn"
            if own or source != ModelSource(model=model.model):
                raise ConfigurationError(
                    "Reranker(model=Embedder(...)) takes the embedder's own options. Set device, lengths, truncation, "
                    "batching and loading options on the embedder, or pass its name as model=."
                )
            source = model.source
        super().__init__(
            source,
            model if isinstance(model, Embedder) else None,
            long_document=long_document,
            passage_overlap=passage_overlap,
            vector_cache=vector_cache,
            mode=mode,
            weights=weights,
            token_pooling=token_pooling,
            llm=LLMOptions.checked(cutoff_layers, compress_ratio, compress_layers, prompt),
            max_length=max_length,
            truncation=truncation,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            show_progress=show_progress,
        )

    @property
    def identity(self) -> str:
        """Digest of exactly what changes scores; needs the model's files, not its weights in memory."""
        parts = [
            self.source.weights_digest,
            self.method,
            self.max_length,
            self.normalize,
            self.source.precision_class,
            self.source.vector_arguments,
            *([] if self._overlap is None else [self._overlap]),
            *([self.mode, *self._weights] if "multi_vector" in self.spec.outputs else []),
            *([] if self._token_pooling == 1 else [f"pooled {self._token_pooling}"]),
            *self._llm.identity(self.spec),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def score(self, query: str, documents: Iterable[str], *, show_progress: bool | None = None) -> NDArray[np.float32]:
        """Score documents against one query.

        Args:
            query: The query, without any instruction.
            documents: Any iterable of strings.
            show_progress: Overrides the constructor's value.

        Returns:
            Array float32 of shape (number of documents,), in input order: raw logits, or 0 to 1 with `normalize`;
            -1 to 1 for late interaction.

        Raises:
            InputError: Something is not a string, or too long with `truncation="error"`.
            BackendError: The computation failed.
        """
        return run(self._score(pairs_of(query, documents), show_progress))

    def score_pairs(
        self, pairs: Iterable[tuple[str, str]], *, show_progress: bool | None = None
    ) -> NDArray[np.float32]:
        """Score (query, document) pairs of any number of queries in shared batches; see `score`."""
        return run(self._score(check_pairs(pairs), show_progress))

    def score_layers(
        self, query: str, documents: Iterable[str], layers: Iterable[int] | None = None
    ) -> dict[int, NDArray[np.float32]]:
        """Score documents at several layers of a layerwise reranker, in one forward pass.

        Args:
            query: The query.
            documents: Any iterable of strings.
            layers: Which layers; `None` is all that have a score head.

        Returns:
            By layer, ascending, what `score` returns with that layer as `cutoff_layers`.

        Raises:
            ConfigurationError: The model has no such layers.
            InputError: Something is not a string.
        """
        return run(self._score_layers(pairs_of(query, documents), layers))

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        dense_weight: float = 0.0,
        time_budget_s: float | None = None,
    ) -> Ranking:
        """Order documents by relevance, best first; equal scores keep their order, NaN comes last.

        Args:
            query: The query.
            documents: Any iterable of strings.
            top_n: How many to return; `None` returns all.
            score_threshold: Lowest score to return, on the scale that `score` returns.
            dense_weight: For late interaction: the share, 0 to 1, of the embedder's own cosine, both scores being
                standardised over these documents first. The scores returned are then that mixture, which a
                threshold cannot be applied to.
            time_budget_s: Seconds after which to return the best order so far; `None` waits for all. Loading the
                weights does not count. Documents are scored in their order, so pass the likeliest first.

        Returns:
            The documents; with `partial=True` when time ran out, those that were not scored last, with NaN.

        Raises:
            ConfigurationError: `top_n` or `time_budget_s` is not positive, or `dense_weight` does not fit.
            InputError: Something is not a string.
        """
        return run(self._rank(query, documents, top_n, score_threshold, dense_weight, time_budget_s))

    async def ascore(
        self, query: str, documents: Iterable[str], *, show_progress: bool | None = None
    ) -> NDArray[np.float32]:
        """Score without blocking the event loop; see `score`."""
        return await arun(self._score(pairs_of(query, documents), show_progress), STORE.pool)

    async def ascore_pairs(
        self, pairs: Iterable[tuple[str, str]], *, show_progress: bool | None = None
    ) -> NDArray[np.float32]:
        """Score pairs without blocking the event loop; see `score_pairs`."""
        return await arun(self._score(check_pairs(pairs), show_progress), STORE.pool)

    async def ascore_layers(
        self, query: str, documents: Iterable[str], layers: Iterable[int] | None = None
    ) -> dict[int, NDArray[np.float32]]:
        """Score by layer without blocking the event loop; see `score_layers`."""
        return await arun(self._score_layers(pairs_of(query, documents), layers), STORE.pool)

    async def arank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        dense_weight: float = 0.0,
        time_budget_s: float | None = None,
    ) -> Ranking:
        """Rank without blocking the event loop; see `rank`."""
        steps = self._rank(query, documents, top_n, score_threshold, dense_weight, time_budget_s)
        return await arun(steps, STORE.pool)

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments, without the access token."""
        if self._shares_embedder:
            shared = {"model": self._embedder, "show_progress": self._show_progress}
        else:
            shared = self._shared_options()
        own = {
            "long_document": self._long_document,
            "passage_overlap": self._passage_overlap,
            "mode": self._mode,
            "weights": self._weights if self._mode == "hybrid" else None,
            "token_pooling": self._token_pooling,
            "vector_cache": self._cache,
            **self._llm.as_arguments(),
        }
        return {**shared, **own, "normalize": self._normalize}

    def __repr__(self) -> str:
        """Show the model and the scale of its scores."""
        known = self.source.known_spec is not None
        shown = f", method={self.method!r}, normalize={self.normalize}" if known else ""
        return f"Reranker({self.model!r}{shown})"
