"""Queries and documents to relevance scores."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from bge_runtime.embedder import Embedder
from bge_runtime.errors import ConfigurationError
from bge_runtime.inputs import check_count, check_pairs, check_text, check_texts
from bge_runtime.late_interaction import late_scores
from bge_runtime.loading import STORE
from bge_runtime.model import Model, Truncation
from bge_runtime.ranking import Ranked, mix, order_scores, sigmoid
from bge_runtime.source import ModelSource
from bge_runtime.spec import DEFAULT_RERANKER, ModelSpec
from bge_runtime.steps import Steps, arun, run

__all__ = ["Reranker"]

INTERACTIVE_PAIRS = 512  # larger calls give way to smaller ones


class Reranker(Model):
    """A reranking model: a query and documents in, one relevance score per document out.

    A cross-encoder reads query and document together. Given an embedder instead (its name, or an `Embedder`), the
    score is late interaction: the mean over the query's token vectors of the best cosine with the document's.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | ModelSpec | Embedder = DEFAULT_RERANKER,
        *,
        normalize: bool = False,
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
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Describe the model; errors that need no files are raised here.

        Args:
            model: Name, folder or spec of a reranker or an embedder, or an `Embedder`, whose own options then hold.
            normalize: Whether a cross-encoder's scores go through a sigmoid, to lie between 0 and 1. Late interaction
                is a cosine already and stays as it is.
            max_length: Longest pair in tokens (late interaction: longest text); `None` takes the model's own.
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
            model_kwargs=model_kwargs or {},
            processor_kwargs=processor_kwargs or {},
            config_kwargs=config_kwargs or {},
        )
        self._embedder = model if isinstance(model, Embedder) else None
        self._shares_embedder = self._embedder is not None
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
            max_length=max_length,
            truncation=truncation,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            show_progress=show_progress,
        )

    @property
    def method(self) -> Literal["cross_encoder", "late_interaction"]:
        """How scores arise."""
        return "late_interaction" if self.spec.kind == "embedder" else "cross_encoder"

    @property
    def normalize(self) -> bool:
        """Whether a sigmoid is applied; never to late interaction."""
        return self._normalize and self.method == "cross_encoder"

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
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

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
        return run(self._score(_pairs(query, documents), show_progress))

    def score_pairs(
        self, pairs: Iterable[tuple[str, str]], *, show_progress: bool | None = None
    ) -> NDArray[np.float32]:
        """Score (query, document) pairs of any number of queries in shared batches; see `score`."""
        return run(self._score(check_pairs(pairs), show_progress))

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        dense_weight: float = 0.0,
    ) -> list[Ranked]:
        """Order documents by relevance, best first; equal scores keep their order, NaN comes last.

        Args:
            query: The query.
            documents: Any iterable of strings.
            top_n: How many to return; `None` returns all.
            score_threshold: Lowest score to return, on the scale that `score` returns.
            dense_weight: For late interaction: the share, 0 to 1, of the embedder's own cosine, both scores being
                standardised over these documents first. The scores returned are then that mixture, which a
                threshold cannot be applied to.

        Raises:
            ConfigurationError: `top_n` is not positive, or `dense_weight` does not fit.
            InputError: Something is not a string.
        """
        return run(self._rank(query, documents, top_n, score_threshold, dense_weight))

    async def ascore(
        self, query: str, documents: Iterable[str], *, show_progress: bool | None = None
    ) -> NDArray[np.float32]:
        """Score without blocking the event loop; see `score`."""
        return await arun(self._score(_pairs(query, documents), show_progress), STORE.pool)

    async def ascore_pairs(
        self, pairs: Iterable[tuple[str, str]], *, show_progress: bool | None = None
    ) -> NDArray[np.float32]:
        """Score pairs without blocking the event loop; see `score_pairs`."""
        return await arun(self._score(check_pairs(pairs), show_progress), STORE.pool)

    async def arank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        dense_weight: float = 0.0,
    ) -> list[Ranked]:
        """Rank without blocking the event loop; see `rank`."""
        return await arun(self._rank(query, documents, top_n, score_threshold, dense_weight), STORE.pool)

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

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments, without the access token."""
        if self._shares_embedder:
            return {"model": self._embedder, "normalize": self._normalize, "show_progress": self._show_progress}
        return {**self._shared_options(), "normalize": self._normalize}

    def __repr__(self) -> str:
        """Show the model and the scale of its scores."""
        known = self.source.known_spec is not None
        shown = f", method={self.method!r}, normalize={self.normalize}" if known else ""
        return f"Reranker({self.model!r}{shown})"

    def _check_spec(self, spec: ModelSpec) -> None:
        super()._check_spec(spec)
        if spec.kind not in ("reranker", "embedder"):
            raise ConfigurationError(f"{self.model!r} is a {spec.kind} model. Use a reranker or an embedder.")

    def _score(self, pairs: Sequence[tuple[str, str]], show_progress: bool | None) -> Steps[NDArray[np.float32]]:
        raw = yield from self._raw_scores(pairs, show_progress)
        return sigmoid(raw) if self.normalize else raw

    def _rank(
        self,
        query: str,
        documents: Iterable[str],
        top_n: int | None,
        score_threshold: float | None,
        dense_weight: float,
    ) -> Steps[list[Ranked]]:
        limit = check_count(top_n, "top_n")
        pairs = _pairs(query, documents)
        self._check_dense_weight(dense_weight, score_threshold)
        if not pairs:
            return []
        raw = yield from self._raw_scores(pairs, None)
        if dense_weight:
            dense = yield from self.embedder.cosine_steps(query, [document for _, document in pairs])
            raw = mix(raw, dense, dense_weight)
        # Ordered by the raw value: a sigmoid ties the best candidates once it rounds to 1.
        shown = sigmoid(raw) if self.normalize else raw
        result = [Ranked(each.index, float(shown[each.index])) for each in order_scores(raw)]
        if score_threshold is not None:
            result = [each for each in result if each.score >= score_threshold]
        return result[:limit]

    def _check_dense_weight(self, dense_weight: float, score_threshold: float | None) -> None:
        if not isinstance(dense_weight, int | float) or not 0 <= dense_weight <= 1:
            raise ConfigurationError(f"dense_weight={dense_weight!r} is not allowed. Use a number from 0 to 1.")
        if dense_weight and self.method != "late_interaction":
            raise ConfigurationError(f"dense_weight={dense_weight!r} needs late interaction; {self.model!r} has none.")
        if dense_weight and score_threshold is not None:
            raise ConfigurationError("score_threshold has no meaning for the mixture that dense_weight makes. Use one.")

    def _raw_scores(self, pairs: Sequence[tuple[str, str]], show_progress: bool | None) -> Steps[NDArray[np.float32]]:
        if not pairs:
            return np.empty(0, dtype=np.float32)
        distinct = list(dict.fromkeys(pairs))
        STORE.counters.add(texts=len(pairs), duplicates=len(pairs) - len(distinct))
        if self.method == "late_interaction":
            embedder, bulk = self.embedder, len(distinct) > INTERACTIVE_PAIRS
            with self._progress(len({document for _, document in distinct}), show_progress) as progress:
                scores, cut, asked = yield from late_scores(embedder, distinct, bulk=bulk, on_progress=progress.update)
            self._note_truncation(cut, asked)
        else:
            loaded = self._hold("score")
            rows, cut = yield from self._rows(
                loaded,
                distinct,
                loaded.tokenizing.pairs,
                "score",
                bulk=len(distinct) > INTERACTIVE_PAIRS,
                show_progress=show_progress,
            )
            self._note_truncation(cut, len(distinct))
            scores = np.asarray(rows, dtype=np.float32)
        position = {pair: index for index, pair in enumerate(distinct)}
        return scores[[position[pair] for pair in pairs]]


def _pairs(query: str, documents: Iterable[str]) -> list[tuple[str, str]]:
    checked = check_text(query, "query")
    return [(checked, document) for document in check_texts(documents, "documents")]
