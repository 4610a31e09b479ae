"""Queries and documents to relevance scores."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Sequence
from typing import Any, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from bge_runtime.backends.remote import no_files
from bge_runtime.embedding.embedder import Embedder
from bge_runtime.embedding.settings import digest
from bge_runtime.engine.deadline import Deadline
from bge_runtime.engine.flow import Flow
from bge_runtime.errors import ConfigurationError, check_choice, check_count, check_flag, public
from bge_runtime.inputs.checks import check_pairs, pairs_of
from bge_runtime.inputs.tokenizing import TokenSequence
from bge_runtime.loading.model import Model
from bge_runtime.loading.options import LoadingOptions, with_loading_options
from bge_runtime.loading.remote_source import source_of
from bge_runtime.loading.runner import Runner, Truncation
from bge_runtime.loading.source import ModelSource
from bge_runtime.loading.store import arun, run
from bge_runtime.locks import cached_property
from bge_runtime.models.spec import DEFAULT_RERANKER, ModelSpec
from bge_runtime.reranking.base import LongDocument, Method, Pairs
from bge_runtime.reranking.calibrator import Calibrating, ScoreCalibrator
from bge_runtime.reranking.comparison import Mode, check_mode, check_weights, comparison_of
from bge_runtime.reranking.cross_encoder import CrossEncoder
from bge_runtime.reranking.late_interaction import LateInteraction
from bge_runtime.reranking.llm_options import LLMOptions
from bge_runtime.reranking.ranking import Ranked, Ranking, check_budget, mix, order_scores, sigmoid
from bge_runtime.vectors.cache import VectorCache, check_cache
from bge_runtime.vectors.token_pooling import check_token_pooling

__all__ = ["Reranker"]


@public
class Reranker(Model):
    """A reranking model: a query and documents in, one relevance score per document out.

    A cross-encoder reads query and document together. Given an embedder instead (its name, or an `Embedder`), the
    score is late interaction: the mean over the query's token vectors of the best cosine with the document's.
    """

    @with_loading_options
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
        calibrator: Calibrating | None = None,
        max_length: int | None = None,
        truncation: Truncation = "warn",
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        show_progress: bool = False,
        **loading: Unpack[LoadingOptions],
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
            calibrator: Makes probabilities of raw scores, in the place of the sigmoid, whatever `normalize` says: a
                `ScoreCalibrator` that was fitted on this scorer, the path of its file, or what its `as_dict` returns.
                Another scorer's is refused before the first score.
            max_length: Longest pair in tokens (late interaction: longest text); `None` takes the model's own. The
                prompt of an LLM reranker comes on top.
            truncation: What to do about longer inputs: cut `silent`, cut and `warn` the first time, or `error`.
            batch_size: Most inputs in a forward pass; `None` sets no limit.
            batch_tokens: Most padded tokens in a forward pass; `None` takes the device's default.
            show_progress: Whether to show a progress bar on standard error.
            **loading: See `LoadingOptions`.

        Raises:
            ConfigurationError: An argument has a wrong value, or stands beside an `Embedder` that has its own.
            ModelNotFoundError: The name cannot be a model.
            UnsupportedModelError: The model's kind cannot run.
        """
        if isinstance(model, Embedder) and model.source.is_remote:
            raise ConfigurationError(
                f"{model.model!r} runs on the server {model.source.base_url!r}, which compares texts itself. "
                "Pass its name and base_url= to the reranker."
            )
        source = source_of(model.model if isinstance(model, Embedder) else model, loading)
        if isinstance(model, Embedder):
            # What the embedder settles cannot be said a second time here, where it would be ignored.
            own = max_length or batch_size or batch_tokens or truncation != "warn"
            if own or source != ModelSource(model=model.model):
                raise ConfigurationError(
                    "Reranker(model=Embedder(...)) takes the embedder's own options. Set device, lengths, truncation, "
                    "batching and loading options on the embedder, or pass its name as model=."
                )
            source = model.source
            truncation = model.options()["truncation"]
        # For late interaction this one holds no weights, which are the embedder's: it tells of progress and truncation.
        super().__init__(
            Runner(
                source,
                "score",
                max_length=max_length,
                truncation=truncation,
                batch_size=batch_size,
                batch_tokens=batch_tokens,
                show_progress=show_progress,
            )
        )
        check_choice(long_document, "long_document", ("truncate", "max_passage"))
        self._handed_in = model if isinstance(model, Embedder) else None
        self._normalize = check_flag(normalize, "normalize")
        self._long_document: LongDocument = long_document
        self._passage_overlap = check_count(passage_overlap, "passage_overlap")
        self._cache = check_cache(vector_cache)
        self._mode: Mode | None = mode
        self._weights = check_weights(mode, weights)
        self._token_pooling = check_token_pooling(token_pooling, mode)
        self._llm = LLMOptions.checked(cutoff_layers, compress_ratio, compress_layers, prompt)
        self._calibrator = None if calibrator is None else ScoreCalibrator.of(calibrator)
        if source.is_remote:
            self._check_remote()
        self._check_known()

    @property
    def method(self) -> Method:
        """How scores arise."""
        return "late_interaction" if self.spec.kind == "embedder" else "cross_encoder"

    @property
    def normalize(self) -> bool:
        """Whether a sigmoid is applied; never to late interaction."""
        return self._normalize and self.method == "cross_encoder"

    @property
    def mode(self) -> Mode | None:
        """What of an embedder's outputs is compared; `None` for a cross-encoder."""
        return (self._mode or "multi_vector") if self.method == "late_interaction" else None

    @property
    def token_pooling(self) -> int:
        """How many token vectors of a document are merged into one; 1 is none."""
        return self._token_pooling

    @property
    def long_document(self) -> LongDocument:
        """What becomes of a document that does not fit."""
        return self._long_document

    @property
    def embedder(self) -> Embedder:
        """The embedder whose token vectors late interaction compares.

        Raises:
            ConfigurationError: The model is a cross-encoder.
        """
        return self._late.embedder

    @property
    def document_identity(self) -> str:
        """Digest of exactly what changes what late interaction reads of documents; needs the model's files.

        Raises:
            ConfigurationError: The model is a cross-encoder.
        """
        return self._late.document_identity

    @cached_property
    def scorer(self) -> CrossEncoder | LateInteraction:
        """What scores pairs, chosen once by the model's kind.

        Raises:
            ConfigurationError: The vector cache rounds numbers that the mode needs whole.
        """
        overlap = self._passage_overlap if self._long_document == "max_passage" else None
        if self.method == "cross_encoder" or self.source.is_remote:  # a server compares by itself
            return CrossEncoder(self._runner, self._llm, overlap)
        embedder = self._handed_in or Embedder(**self._runner.options(), token=self.source.token)
        comparison = comparison_of(embedder, self._mode, self._weights, self._token_pooling)
        if comparison.whole_numbers and self._cache is not None and self._cache.storage != "float32":
            raise ConfigurationError(
                f"vector_cache={self._cache!r} rounds token ids, which mode={self._mode!r} needs. "
                "Use storage='float32', or mode='multi_vector'."
            )
        return LateInteraction(
            embedder,
            comparison,
            self._runner,
            owns_embedder=self._handed_in is None,
            overlap=overlap,
            cache=self._cache,
        )

    @property
    def calibrator(self) -> ScoreCalibrator | None:
        """What makes probabilities of raw scores."""
        return self._calibrator

    @property
    def identity(self) -> str:
        """Digest of exactly what changes scores; needs the model's files, not its weights in memory."""
        if self._calibrator is not None:
            return digest([self.score_identity, "calibrated", self._calibrator.digest])
        return self._identity(self.normalize)

    @property
    def score_identity(self) -> str:
        """The `identity` of raw scores, before any sigmoid or calibrator: what a calibrator is fitted on."""
        return self._identity(normalize=False)

    @property
    def score_options(self) -> dict[str, Any]:
        """What beside model, precision and length changes raw scores, by name; needs the model's files."""
        passages = self._long_document == "max_passage"
        facts = {
            "mode": self.mode,
            "weights_of_outputs": self._weights if self.mode == "hybrid" else None,
            "token_pooling": self._token_pooling if self._token_pooling > 1 else None,
            "long_document": self._long_document if passages else None,
            "passage_overlap": self._passage_overlap if passages else None,
            **self._llm.as_arguments(),
        }
        return {name: value for name, value in facts.items() if value is not None}

    def _identity(self, normalize: bool) -> str:
        source = self.source
        parts = [
            source.weights_digest,
            self.method,
            self.max_length,
            normalize,
            source.precision_class,
            source.vector_arguments,
            *([self._passage_overlap] if self._long_document == "max_passage" else []),
            *([self.mode, *self._weights] if "multi_vector" in self.spec.outputs else []),
            *([] if self._token_pooling == 1 else [f"pooled {self._token_pooling}"]),
            *self._llm.identity(self.spec),
        ]
        return digest(parts)

    def score(self, query: str, documents: Iterable[str], *, show_progress: bool | None = None) -> NDArray[np.float32]:
        """Score documents against one query.

        Args:
            query: The query, without any instruction.
            documents: Any iterable of strings.
            show_progress: Overrides the constructor's value.

        Returns:
            Array float32 of shape (number of documents,), in input order: raw logits, or 0 to 1 with `normalize`;
            -1 to 1 for late interaction, where two blank texts score 0. With a calibrator, probabilities.

        Raises:
            ConfigurationError: The calibrator is another scorer's.
            InputError: Something is not a string, or too long with `truncation="error"`.
            BackendError: The computation failed, or a document's score is not finite; the message names it.
        """
        return run(self._score(pairs_of(query, documents), show_progress))

    def score_pairs(
        self, pairs: Iterable[tuple[str, str]], *, show_progress: bool | None = None
    ) -> NDArray[np.float32]:
        """Score (query, document) pairs of any number of queries in shared batches; see `score`."""
        return run(self._score(check_pairs(pairs), show_progress))

    def tokenize(self, pairs: Iterable[tuple[str, str]]) -> list[TokenSequence]:
        """Return the tokens that a cross-encoder reads of each (query, document) pair, special tokens included, cut.

        Returns:
            Token ids, and segment ids, of each pair, in input order and without padding.

        Raises:
            ConfigurationError: The model is an embedder, which reads no pairs.
        """
        scorer = self.scorer
        _ = self.source.folder  # what a server's tokenizer makes of them is not known here
        if not isinstance(scorer, CrossEncoder):
            raise ConfigurationError(
                f"{self.model!r} reads each text by itself, so it has no tokens of a pair. Use Embedder.tokenize."
            )
        return scorer.tokenize(check_pairs(pairs))

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
            ConfigurationError: The model has no such layers, or there is a calibrator, which holds for one layer.
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
        """Order documents by relevance, best first; equal scores keep their order.

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
            BackendError: The computation failed, or a document's score is not finite; the message names it.
        """
        return run(self._rank(query, documents, top_n, score_threshold, dense_weight, time_budget_s))

    async def ascore(
        self, query: str, documents: Iterable[str], *, show_progress: bool | None = None
    ) -> NDArray[np.float32]:
        """Score without blocking the event loop; see `score`."""
        return await arun(self._score(pairs_of(query, documents), show_progress))

    async def ascore_pairs(
        self, pairs: Iterable[tuple[str, str]], *, show_progress: bool | None = None
    ) -> NDArray[np.float32]:
        """Score pairs without blocking the event loop; see `score_pairs`."""
        return await arun(self._score(check_pairs(pairs), show_progress))

    async def ascore_layers(
        self, query: str, documents: Iterable[str], layers: Iterable[int] | None = None
    ) -> dict[int, NDArray[np.float32]]:
        """Score by layer without blocking the event loop; see `score_layers`."""
        return await arun(self._score_layers(pairs_of(query, documents), layers))

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
        return await arun(self._rank(query, documents, top_n, score_threshold, dense_weight, time_budget_s))

    def warm_up(self) -> Self:
        """Load the weights ahead of the first call."""
        self.scorer.warm_up()
        return self

    def close(self) -> None:
        """Free the weights if nobody else holds them; an embedder that was passed in stays open."""
        super().close()
        if "scorer" in self.__dict__:  # cached_property: none is made to be closed
            self.scorer.close()

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments, without the access token."""
        shared = self._runner.options()
        if self._handed_in is not None:
            shared = {"model": self._handed_in, "show_progress": shared["show_progress"]}
        own = {
            "long_document": self._long_document,
            "passage_overlap": self._passage_overlap,
            "mode": self._mode,
            "weights": self._weights if self._mode == "hybrid" else None,
            "token_pooling": self._token_pooling,
            "vector_cache": self._cache,
            "calibrator": self._calibrator,
            **self._llm.as_arguments(),
        }
        return {**shared, **own, "normalize": self._normalize}

    def __repr__(self) -> str:
        """Show the model and the scale of its scores."""
        known = self.source.known_spec is not None
        shown = f", method={self.method!r}, normalize={self.normalize}" if known else ""
        return f"Reranker({self.model!r}{shown})"

    def _check_remote(self) -> None:
        """Refuse what cannot be asked of a server.

        Raises:
            ConfigurationError: Names it.
        """
        source = self.source
        told = {**self.options(), "normalize": False, "cutoff_layers": None, "calibrator": None}
        usual = inspect.signature(Reranker).parameters
        own = {name: value for name, value in told.items() if name not in {*LoadingOptions.__annotations__, "model"}}
        shared = {"batch_size", "batch_tokens", "show_progress", "truncation"}
        if source.api != "bge":
            own |= {"cutoff_layers": self._llm.cutoff_layer}
        for name, value in own.items():
            if name not in shared and value != usual[name].default:
                raise ConfigurationError(
                    f"{name}={value!r} beside base_url= is the server's to settle. Leave it out here."
                )
        if source.api == "openai":
            raise ConfigurationError("api='openai' has no reranking. Use 'bge', 'tei' or 'cohere'.")
        if source.api != "bge" and self._runner.refuses_long:
            raise ConfigurationError(
                f"truncation='error' needs a server that says what it cuts, and api={source.api!r} does not. "
                "Use truncation='warn', or a server of ours."
            )

    @property
    def _late(self) -> LateInteraction:
        if self.source.is_remote:
            raise no_files(self.model, str(self.source.base_url))
        if not isinstance(self.scorer, LateInteraction):
            raise ConfigurationError(f"{self.model!r} is a cross-encoder and has no vectors. Use an embedder for them.")
        return self.scorer

    def _check_spec(self, spec: ModelSpec) -> None:
        super()._check_spec(spec)
        if spec.kind not in ("reranker", "embedder"):
            raise ConfigurationError(f"{self.model!r} is a {spec.kind} model. Use a reranker or an embedder.")
        self._llm.check(spec, self.model)
        check_mode(spec, self._mode, self._weights)
        if self._token_pooling > 1 and spec.kind != "embedder":
            raise ConfigurationError(
                f"token_pooling={self._token_pooling} is for late interaction, and {spec.id!r} is a cross-encoder, "
                "which has no token vectors. Leave it out, or use an embedder."
            )

    def _raw_scores(
        self, pairs: Pairs, show_progress: bool | None, deadline: Deadline | None = None
    ) -> Flow[NDArray[np.float32]]:
        """Score checked pairs; what the deadline cuts off is NaN."""
        if not pairs:
            return np.empty(0, dtype=np.float32)
        _ = self._checked_calibrator
        return (yield from self.scorer.scores(pairs, show_progress, deadline))

    def _score(self, pairs: Pairs, show_progress: bool | None) -> Flow[NDArray[np.float32]]:
        raw = yield from self._raw_scores(pairs, show_progress)
        return self.shown(raw)

    @cached_property
    def _checked_calibrator(self) -> ScoreCalibrator | None:
        if self._calibrator is not None:
            self._calibrator.check(self)
        return self._calibrator

    def shown(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return raw scores on the scale that `score` returns: probabilities, sigmoids, or as they are.

        Raises:
            ConfigurationError: The calibrator is another scorer's.
        """
        if (calibrator := self._checked_calibrator) is not None:
            return calibrator.probabilities(raw).astype(np.float32)
        return sigmoid(raw) if self.normalize else raw

    def _score_layers(self, pairs: Pairs, layers: Iterable[int] | None) -> Flow[dict[int, NDArray[np.float32]]]:
        wanted = self._llm.layers(layers, self.spec, self.model)
        if self._calibrator is not None:
            raise ConfigurationError(
                f"A calibrator holds for one layer, and score_layers would score at {wanted}. "
                "Use score, or a Reranker without calibrator=."
            )
        assert isinstance(self.scorer, CrossEncoder)  # no other model has layers
        raw = np.empty((0, len(wanted)), dtype=np.float32)
        if pairs:
            raw = yield from self.scorer.layer_scores(pairs, wanted)
        shown = sigmoid(raw) if self.normalize else raw
        return {layer: np.ascontiguousarray(shown[:, column]) for column, layer in enumerate(wanted)}

    def _rank(
        self,
        query: str,
        documents: Iterable[str],
        top_n: int | None,
        score_threshold: float | None,
        dense_weight: float,
        time_budget_s: float | None,
    ) -> Flow[Ranking]:
        limit = check_count(top_n, "top_n")
        pairs = pairs_of(query, documents)
        self._check_dense_weight(dense_weight, score_threshold)
        budget = check_budget(time_budget_s, dense_weight)
        if not pairs:
            return Ranking()
        partial = False
        if budget is None:
            raw = yield from self._raw_scores(pairs, None)
        else:
            self.warm_up()  # loading does not count
            with Deadline(budget) as deadline:
                raw = yield from self._raw_scores(pairs, None, deadline)
                partial = deadline.passed and bool(np.isnan(raw).any())
        if dense_weight:
            dense = yield from self.embedder.read_cosines(query, [document for _, document in pairs])
            raw = mix(raw, dense, dense_weight)
        # Ordered by the raw value: a sigmoid ties the best candidates once it rounds to 1, a calibrator more of them.
        shown = self.shown(raw)
        result = [Ranked(each.index, float(shown[each.index])) for each in order_scores(raw)]
        if score_threshold is not None:
            result = [each for each in result if each.score >= score_threshold]
        return Ranking(result[:limit], partial=partial)

    def _check_dense_weight(self, dense_weight: float, score_threshold: float | None) -> None:
        if not isinstance(dense_weight, int | float) or not 0 <= dense_weight <= 1:
            raise ConfigurationError(f"dense_weight={dense_weight!r} is not allowed. Use a number from 0 to 1.")
        if dense_weight and self.method != "late_interaction":
            raise ConfigurationError(f"dense_weight={dense_weight!r} needs late interaction; {self.model!r} has none.")
        if dense_weight and self._calibrator is not None:
            raise ConfigurationError(
                f"dense_weight={dense_weight!r} makes a mixture that the calibrator was not fitted on. Use one of both."
            )
        if dense_weight and score_threshold is not None:
            raise ConfigurationError("score_threshold has no meaning for the mixture that dense_weight makes. Use one.")
