"""The weights of bge-m3's three scores, fitted on half of the questions and used on the other half."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bge_runtime import InputError
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.judging import Hit, judged
from bge_runtime.evaluation.metrics import measure
from bge_runtime.evaluation.subjects import Costs, ModelSubject

__all__ = ["FittedHybrid"]

METRIC = "nDCG@10"
STEPS = 10
WAYS = ("dense", "sparse", "multi_vector")


class FittedHybrid:
    """Reranks by a weighted mean of three scores; each half of the questions by the weights that suit the other."""

    def __init__(self, label: str, ways: Mapping[str, ModelSubject]) -> None:
        """Take a subject for each of `WAYS`, alike but for how its reranker compares."""
        self.label = label
        self.costs = Costs()
        self.weights: list[tuple[float, float, float]] = []
        self._ways = ways

    @property
    def identity(self) -> str:
        """Digest of what changes the ranking; the weights come from the data."""
        return f"fitted weights of {' and '.join(way.identity for way in self._ways.values())}"

    @property
    def execution(self) -> str:
        """Backend, precision and device."""
        return next(iter(self._ways.values())).execution

    def rank(self, data: Judgements, top_k: int) -> dict[str, list[Hit]]:
        """Score the candidates in three ways, fit, and order."""
        if len(data.queries) < 4:
            raise InputError(f"{data.name!r} has {len(data.queries)} questions; weights are fitted on 4 or more.")
        hits = {name: way.rank(data, top_k) for name, way in self._ways.items()}
        self._add_costs()
        names = list(data.queries)
        halves = [names[0::2], names[1::2]]
        ordered: dict[str, list[Hit]] = {}
        for fitted, used in (halves, halves[::-1]):
            weights = self._fit(hits, data.part(fitted, data.name))
            self.weights.append(weights)
            ordered |= {query: _mixed(hits, query, weights) for query in used}
        return ordered | {query: _mixed(hits, query, self.weights[0]) for query in data.unanswerable}

    def _fit(self, hits: Mapping[str, Mapping[str, list[Hit]]], data: Judgements) -> tuple[float, float, float]:
        grades = {query: data.relevant(query) for query in data.queries}
        best, found = -1.0, (1.0, 0.0, 0.0)
        for parts in itertools.product(range(STEPS + 1), repeat=2):
            if sum(parts) > STEPS:
                continue
            dense, sparse = (part / STEPS for part in parts)
            weights = (dense, sparse, (STEPS - sum(parts)) / STEPS)
            run, _ = judged({query: _mixed(hits, query, weights) for query in grades}, data, self.label)
            values = measure(run, grades, [METRIC])[METRIC]
            if sum(values.values()) > best + 1e-9:
                best, found = sum(values.values()), weights
        return found

    def _add_costs(self) -> None:
        costs = [way.costs for way in self._ways.values()]
        self.costs.seconds = sum(each.seconds for each in costs)
        self.costs.texts_embedded = sum(each.texts_embedded for each in costs)
        self.costs.texts_per_s, self.costs.query_ms = costs[0].texts_per_s, costs[0].query_ms
        self.costs.bytes_per_vector = costs[0].bytes_per_vector
        told = [each.rerank_ms for each in costs if each.rerank_ms is not None]
        self.costs.rerank_ms = max(told) if len(told) == len(costs) else None  # one forward pass gives all three


def _mixed(
    hits: Mapping[str, Mapping[str, Sequence[Hit]]], query: str, weights: tuple[float, float, float]
) -> list[Hit]:
    """Return the candidates of a question by their weighted mean."""
    scores: dict[tuple[str, ...], NDArray[np.float64]] = {}
    texts: dict[tuple[str, ...], str] = {}
    for place, way in enumerate(WAYS):
        for hit in hits[way][query]:
            scores.setdefault(hit.ids, np.zeros(3))[place] = hit.score
            texts[hit.ids] = hit.text
    mixed = [Hit(ids=ids, score=float(each @ weights), text=texts[ids]) for ids, each in scores.items()]
    return sorted(mixed, key=lambda hit: -hit.score)
