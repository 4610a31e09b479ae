"""Pairs of query and document to raw scores, by a cross-encoder or by late interaction."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from bge_runtime.backends import LayerScore, Output
from bge_runtime.embedding.embedder import Embedder
from bge_runtime.engine.deadline import Deadline
from bge_runtime.engine.flow import Steps
from bge_runtime.errors import ConfigurationError
from bge_runtime.inputs.checks import check_count
from bge_runtime.loading.model import Model
from bge_runtime.loading.source import ModelSource
from bge_runtime.loading.store import STORE
from bge_runtime.models.spec import ModelSpec
from bge_runtime.reranking.comparison import Mode, check_mode, check_weights
from bge_runtime.reranking.late_interaction import (
    Comparison,
    comparison_of,
    document_vectors,
    late_scores,
    query_vectors,
)
from bge_runtime.reranking.llm_options import LLMOptions
from bge_runtime.reranking.ranking import best_passages
from bge_runtime.vectors.cache import VectorCache, check_cache
from bge_runtime.vectors.token_pooling import check_token_pooling

__all__ = ["LongDocument", "PairScorer"]

INTERACTIVE_PAIRS = 512  # larger calls give way to smaller ones

LongDocument = Literal["truncate", "max_passage"]


class PairScorer(Model):
    """What scores pairs: a cross-encoder, or an embedder's token vectors."""

    def __init__(
        self,
        source: ModelSource,
        embedder: Embedder | None,
        *,
        long_document: LongDocument,
        passage_overlap: int,
        vector_cache: VectorCache | str | os.PathLike[str] | None,
        mode: Mode | None,
        weights: Sequence[float] | None,
        token_pooling: int,
        llm: LLMOptions,
        **options: Any,
    ) -> None:
        """Check the options.

        Args:
            source: The model.
            embedder: The caller's embedder, which stays open when this one closes.
            long_document: `truncate` or `max_passage`.
            passage_overlap: Tokens that neighbouring passages share.
            vector_cache: Remembers the token vectors of late interaction.
            mode: What of an embedder's outputs is compared.
            weights: Of the dense, the sparse and the multi-vector score in `hybrid`.
            token_pooling: How many token vectors of a document are merged into one.
            llm: What an LLM reranker is to do.
            **options: Those of `Model`.
        """
        if long_document not in ("truncate", "max_passage"):
            raise ConfigurationError(
                f"long_document={long_document!r} is not allowed. Use 'truncate' or 'max_passage'."
            )
        self._long_document: LongDocument = long_document
        self._passage_overlap = check_count(passage_overlap, "passage_overlap")
        self._cache = check_cache(vector_cache)
        self._mode: Mode | None = mode
        self._weights = check_weights(mode, weights)
        self._token_pooling = check_token_pooling(token_pooling, mode)
        self._llm = llm
        self._embedder = embedder
        self._shares_embedder = embedder is not None
        super().__init__(source, **options)

    @property
    def method(self) -> Literal["cross_encoder", "late_interaction"]:
        """How scores arise."""
        return "late_interaction" if self.spec.kind == "embedder" else "cross_encoder"

    @property
    def embedder(self) -> Embedder:
        """The embedder whose token vectors late interaction compares.

        Raises:
            ConfigurationError: The model is a cross-encoder.
        """
        if self.method != "late_interaction":
            raise ConfigurationError(f"{self.model!r} is a cross-encoder and has no vectors. Use an embedder for them.")
        if self._embedder is None:
            self._embedder = Embedder(**self._shared_options(), token=self.source.token)
        return self._embedder

    def warm_up(self) -> Self:
        """Load the weights ahead of the first call."""
        if self.method == "late_interaction":
            self.embedder.warm_up()
        else:
            self._hold("score")
        return self

    def close(self) -> None:
        """Free the weights if nobody else holds them; an embedder that was passed in stays open."""
        super().close()
        if self._embedder is not None and not self._shares_embedder:
            self._embedder.close()

    def _check_spec(self, spec: ModelSpec) -> None:
        super()._check_spec(spec)
        if spec.kind not in ("reranker", "embedder"):
            raise ConfigurationError(f"{self.model!r} is a {spec.kind} model. Use a reranker or an embedder.")
        self._llm.check(spec, self.model)

        check_mode(spec, self._mode)
        if self._token_pooling > 1 and spec.kind != "embedder":
            raise ConfigurationError(
                f"token_pooling={self._token_pooling} is for late interaction, and {spec.id!r} is a cross-encoder, "
                "which has no token vectors. Leave it out, or use an embedder."
            )

    @property
    def mode(self) -> Mode | None:
        """What of an embedder's outputs is compared; `None` for a cross-encoder."""
        return (self._mode or "multi_vector") if self.method == "late_interaction" else None

    @property
    def token_pooling(self) -> int:
        """How many token vectors of a document are merged into one; 1 is none."""
        return self._token_pooling

    def check_token_vectors(self) -> None:
        """Refuse to be used where documents are token vectors alone.

        Raises:
            ConfigurationError: The model is a cross-encoder, or the mode compares something else.
        """
        if self.mode != "multi_vector":
            what = "a cross-encoder" if self.mode is None else f"of mode={self.mode!r}"
            raise ConfigurationError(
                f"A token index needs late interaction, and the reranker of {self.model!r} is {what}. "
                "Pass an embedder with mode='multi_vector', its default."
            )

    @property
    def document_identity(self) -> str:
        """Digest of exactly what changes the token vectors of documents; needs the model's files."""
        self.check_token_vectors()
        parts = [self._comparison.identity("document"), *([] if self._overlap is None else [self._overlap])]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def query_vectors(self, query: str) -> Steps[NDArray[np.float32]]:
        """Body that gives a query's token vectors, float32 of shape (tokens, dimension)."""
        self.check_token_vectors()
        vectors, cut = yield from query_vectors(query, self._comparison, cache=self._cache)
        self._note_truncation(cut, 1)
        return vectors

    def document_vectors(
        self,
        texts: Sequence[str],
        keep: Callable[[str, list[NDArray[np.float32]]], object],
        show_progress: bool | None,
    ) -> Steps[None]:
        """Body that reads documents and hands out their token vectors portion by portion.

        Args:
            texts: Checked, distinct texts.
            keep: Called once per text with the vectors of each of its passages (one, unless `max_passage` reads it
                in several), float32 of shape (tokens, dimension).
            show_progress: Overrides the constructor's value.
        """
        self.check_token_vectors()
        with self._progress(len(texts), show_progress) as progress:
            cut = yield from document_vectors(
                self.embedder,
                texts,
                self._comparison,
                overlap=self._overlap,
                cache=self._cache,
                keep=keep,
                on_progress=progress.update,
            )
        self._note_truncation(cut, len(texts))

    @property
    def _comparison(self) -> Comparison:
        made = comparison_of(self.embedder, self._mode or "multi_vector", self._weights, self._token_pooling)
        if made.whole_numbers and self._cache is not None and self._cache.storage != "float32":
            raise ConfigurationError(
                f"vector_cache={self._cache!r} rounds token ids, which mode={self._mode!r} needs. "
                "Use storage='float32', or mode='multi_vector'."
            )
        return made

    @property
    def _overlap(self) -> int | None:
        return self._passage_overlap if self._long_document == "max_passage" else None

    def _raw_scores(
        self, pairs: Sequence[tuple[str, str]], show_progress: bool | None, deadline: Deadline | None = None
    ) -> Steps[NDArray[np.float32]]:
        """Score checked pairs, each distinct one once; what the deadline cuts off is NaN."""
        if not pairs:
            return np.empty(0, dtype=np.float32)
        distinct, places = _distinct(pairs)
        score = self._late_scores if self.method == "late_interaction" else self._cross_scores
        scores = yield from score(distinct, show_progress, deadline)
        return scores[places]

    def _layer_scores(self, pairs: Sequence[tuple[str, str]], layers: Sequence[int]) -> Steps[NDArray[np.float32]]:
        """Score checked pairs at several layers, each distinct one once: [pairs, layers]."""
        if not pairs:
            return np.empty((0, len(layers)), dtype=np.float32)
        distinct, places = _distinct(pairs)
        scores = yield from self._columns(distinct, self._llm.output(self.spec, layers), None, None)
        return scores[places]

    def _cross_scores(
        self, pairs: Sequence[tuple[str, str]], show_progress: bool | None, deadline: Deadline | None
    ) -> Steps[NDArray[np.float32]]:
        columns = yield from self._columns(pairs, self._llm.output(self.spec), show_progress, deadline)
        return columns[:, 0]

    def _columns(
        self,
        pairs: Sequence[tuple[str, str]],
        output: Output,
        show_progress: bool | None,
        deadline: Deadline | None,
    ) -> Steps[NDArray[np.float32]]:
        """Return a column of scores, or one per layer."""
        loaded = self._hold("score")
        prompt = self._llm.prompt
        tokenizing = loaded.tokenizing if prompt is None else loaded.tokenizing.with_prompt(prompt)
        rows = yield from self._rows(
            loaded,
            pairs,
            partial(tokenizing.pairs, overlap=self._overlap),
            output,
            bulk=len(pairs) > INTERACTIVE_PAIRS,
            show_progress=show_progress,
            deadline=deadline,
        )
        self._note_truncation(rows.cut, len(pairs))
        width = len(output.layers) if isinstance(output, LayerScore) else 1
        values = np.asarray(rows.values, dtype=np.float32).reshape(len(rows.values), width)
        scores = np.full((len(pairs), width), np.nan, dtype=np.float32)
        for column in range(width):
            best = best_passages(values[:, column], rows.passages)
            scores[: len(best), column] = best
        return scores

    def _late_scores(
        self, pairs: Sequence[tuple[str, str]], show_progress: bool | None, deadline: Deadline | None
    ) -> Steps[NDArray[np.float32]]:
        with self._progress(len({document for _, document in pairs}), show_progress) as progress:
            scores, cut, asked = yield from late_scores(
                self.embedder,
                pairs,
                self._comparison,
                bulk=len(pairs) > INTERACTIVE_PAIRS,
                overlap=self._overlap,
                deadline=deadline,
                cache=self._cache,
                on_progress=progress.update,
            )
        self._note_truncation(cut, asked)
        return scores


def _distinct(pairs: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[int]]:
    """Return each pair once, and where in them each of the pairs is."""
    position = {pair: index for index, pair in enumerate(dict.fromkeys(pairs))}
    STORE.counters.add(texts=len(pairs), duplicates=len(pairs) - len(position))
    return list(position), [position[pair] for pair in pairs]
