"""Raw scores to what callers see: scaled, ordered, by layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from bge_runtime.engine.deadline import Deadline
from bge_runtime.engine.flow import Steps
from bge_runtime.errors import ConfigurationError
from bge_runtime.inputs.checks import check_count, check_text, check_texts
from bge_runtime.reranking.cross_encoder import PairScorer
from bge_runtime.reranking.ranking import Ranked, Ranking, mix, order_scores, sigmoid

__all__ = ["PairRanker", "pairs_of"]


class PairRanker(PairScorer):
    """What scales and orders the scores of pairs."""

    _normalize: bool

    @property
    def normalize(self) -> bool:
        """Whether a sigmoid is applied; never to late interaction."""
        return self._normalize and self.method == "cross_encoder"

    def _score(self, pairs: Sequence[tuple[str, str]], show_progress: bool | None) -> Steps[NDArray[np.float32]]:
        raw = yield from self._raw_scores(pairs, show_progress)
        return sigmoid(raw) if self.normalize else raw

    def _score_layers(
        self, pairs: Sequence[tuple[str, str]], layers: Iterable[int] | None
    ) -> Steps[dict[int, NDArray[np.float32]]]:
        wanted = self._llm.layers(layers, self.spec, self.model)
        raw = yield from self._layer_scores(pairs, wanted)
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
    ) -> Steps[Ranking]:
        limit = check_count(top_n, "top_n")
        pairs = pairs_of(query, documents)
        self._check_dense_weight(dense_weight, score_threshold)
        budget = _check_budget(time_budget_s, dense_weight)
        if not pairs:
            return Ranking()
        partial = False
        if budget is None:
            raw = yield from self._raw_scores(pairs, None)
        else:
            self.warm_up()
            with Deadline(budget) as deadline:
                raw = yield from self._raw_scores(pairs, None, deadline)
                partial = deadline.passed and bool(np.isnan(raw).any())
        if dense_weight:
            dense = yield from self.embedder.cosine_steps(query, [document for _, document in pairs])
            raw = mix(raw, dense, dense_weight)
        # Ordered by the raw value: a sigmoid ties the best candidates once it rounds to 1.
        shown = sigmoid(raw) if self.normalize else raw
        result = [Ranked(each.index, float(shown[each.index])) for each in order_scores(raw)]
        if score_threshold is not None:
            result = [each for each in result if each.score >= score_threshold]
        return Ranking(result[:limit], partial=partial)

    def _check_dense_weight(self, dense_weight: float, score_threshold: float | None) -> None:
        if not isinstance(dense_weight, int | float) or not 0 <= dense_weight <= 1:
            raise ConfigurationError(f"dense_weight={dense_weight!r} is not allowed. Use a number from 0 to 1.")
        if dense_weight and self.method != "late_interaction":
            raise ConfigurationError(f"dense_weight={dense_weight!r} needs late interaction; {self.model!r} has none.")
        if dense_weight and score_threshold is not None:
            raise ConfigurationError("score_threshold has no meaning for the mixture that dense_weight makes. Use one.")


def pairs_of(query: str, documents: Iterable[str]) -> list[tuple[str, str]]:
    """Return the checked query with each checked document."""
    checked = check_text(query, "query")
    return [(checked, document) for document in check_texts(documents, "documents")]


def _check_budget(time_budget_s: float | None, dense_weight: float) -> float | None:
    if time_budget_s is None:
        return None
    if isinstance(time_budget_s, bool) or not isinstance(time_budget_s, int | float) or not 0 < time_budget_s < 1e6:
        raise ConfigurationError(f"time_budget_s={time_budget_s!r} is not allowed. Pass seconds above 0, or None.")
    if dense_weight:
        raise ConfigurationError(
            "dense_weight needs the scores of all documents, so time_budget_s cannot hold. Use one."
        )
    return float(time_budget_s)
