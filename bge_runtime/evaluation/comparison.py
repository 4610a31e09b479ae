"""Which way of retrieving to take: every one on the same questions, with what it costs and what chance could do."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bge_runtime import ConfigurationError, VectorCache
from bge_runtime.evaluation.evaluation import Evaluation, evaluate_subject
from bge_runtime.evaluation.hybrid import WAYS, FittedHybrid
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.metrics import METRICS
from bge_runtime.evaluation.settings import FITTED, Setting, settings_of
from bge_runtime.evaluation.statistics import Difference, compare_paired, holm
from bge_runtime.evaluation.subjects import ModelSubject, Subject

__all__ = ["Comparison", "Entry", "Pair", "Recommendation", "compare", "compare_evaluations", "shown_number"]

SIGNIFICANT = 0.05
METRIC = "nDCG@10"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One way of retrieving, and what it reached.

    Attributes:
        label: What tells it from the others.
        evaluation: Its figures.
        code: The line that asks for it.
        reranks: Label of the entry that is the same without its reranker, if there is one.
        on_front: Whether no other one is at least as good and at least as cheap, and better in one of them.
    """

    label: str
    evaluation: Evaluation
    code: str
    reranks: str | None = None
    on_front: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two entries, question by question.

    Attributes:
        first: Label of the one.
        second: Label of the other.
        difference: The second's metric less the first's.
        adjusted: Its p-value, adjusted by Holm for the number of pairs.
    """

    first: str
    second: str
    difference: Difference
    adjusted: float

    @property
    def is_significant(self) -> bool:
        """Whether chance would show so much in fewer than 5% of such comparisons."""
        return self.adjusted < SIGNIFICANT


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommendation:
    """What to take.

    Attributes:
        label: The entry.
        code: The line that asks for it.
        reason: Why, in words.
    """

    label: str
    code: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that was compared.

    Attributes:
        metric: The metric of the tests.
        data: Name of the collection.
        questions: How many were asked.
        entries: In the order in which they were asked for.
        pairs: Every two of them.
        recommendation: What to take.
        warnings: What else the figures say.
    """

    metric: str
    data: str
    questions: int
    entries: tuple[Entry, ...]
    pairs: tuple[Pair, ...]
    recommendation: Recommendation
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything but single questions, for JSON."""
        return {
            "metric": self.metric,
            "data": self.data,
            "questions": self.questions,
            "entries": [
                {**each.evaluation.as_dict(), "label": each.label, "code": each.code, "on_front": each.on_front}
                for each in self.entries
            ],
            "pairs": [
                {
                    "first": each.first,
                    "second": each.second,
                    **asdict(each.difference),
                    "p_adjusted": each.adjusted,
                    "significant": each.is_significant,
                }
                for each in self.pairs
            ],
            "recommendation": asdict(self.recommendation),
            "warnings": list(self.warnings),
        }


def compare(
    model: str,
    data: Judgements,
    axes: Mapping[str, Sequence[str]],
    *,
    metric: str = METRIC,
    top_k: int = 100,
    vector_cache: VectorCache | None = None,
    folder: str | os.PathLike[str] | None = None,
    show_progress: bool = False,
    notify: Callable[[str], None] = lambda message: None,
) -> Comparison:
    """Evaluate every combination of the axes' values, and say which to take.

    Args:
        model: The embedding model, unless `model` is an axis.
        data: Judgements with documents.
        axes: Values by axis, as `parse_axes` reads them; see `AXES`.
        metric: What is compared.
        top_k: How many results of each question are looked at.
        vector_cache: Remembers vectors and reranker scores.
        folder: Where each combination is kept when it is done, so that a comparison that was cut off goes on.
        show_progress: Whether to show progress bars on standard error.
        notify: Called with a line before each combination.

    Raises:
        ConfigurationError: An axis or value is not allowed, or a combination cannot run; it is named.
        BGEError: A model cannot be loaded or run.
    """
    settings = settings_of(model, axes)
    subjects = [_subject(each, vector_cache, show_progress) for each in settings]  # wrong ones fail before any runs
    metrics = tuple(dict.fromkeys([metric, *METRICS]))
    evaluations = {}
    for number, (setting, subject) in enumerate(zip(settings, subjects, strict=True), start=1):
        label = setting.label(axes)
        notify(f"{number} of {len(settings)}: {label}")
        timed = setting.subject(None)
        evaluations[label] = _evaluated(subject, timed, data, top_k, metrics, folder)
    base = {each.label(axes): _without_reranker(each, settings, axes) for each in settings}
    codes = {each.label(axes): each.code() for each in settings}
    return compare_evaluations(evaluations, metric=metric, codes=codes, reranks=base)


def compare_evaluations(
    evaluations: Mapping[str, Evaluation],
    *,
    metric: str = METRIC,
    codes: Mapping[str, str] | None = None,
    reranks: Mapping[str, str | None] | None = None,
) -> Comparison:
    """Compare what was evaluated on the same questions.

    Args:
        evaluations: By label.
        metric: What is compared.
        codes: The line that asks for each.
        reranks: For each with a reranker, the label of the same without.

    Raises:
        ConfigurationError: They are of different questions, or lack the metric.
    """
    first = next(iter(evaluations.values()))
    for label, each in evaluations.items():
        if metric not in each.per_query or each.per_query[metric].keys() != first.per_query[metric].keys():
            raise ConfigurationError(f"{label!r} was not measured by {metric} on the questions of {first.label!r}.")
    questions = list(first.per_query[metric])
    values = {label: [each.per_query[metric][query] for query in questions] for label, each in evaluations.items()}
    compared = [
        (one, other, compare_paired(values[one], values[other]))
        for one, other in itertools.combinations(evaluations, 2)
    ]
    adjusted = holm([difference.p for _, _, difference in compared])
    pairs = tuple(
        Pair(first=one, second=other, difference=difference, adjusted=p)
        for (one, other, difference), p in zip(compared, adjusted, strict=True)
    )
    front = _front(evaluations, metric)
    entries = tuple(
        Entry(
            label=label,
            evaluation=each,
            code=(codes or {}).get(label, label),
            reranks=(reranks or {}).get(label),
            on_front=label in front,
        )
        for label, each in evaluations.items()
    )
    return Comparison(
        metric=metric,
        data=first.data,
        questions=len(questions),
        entries=entries,
        pairs=pairs,
        recommendation=_recommended(entries, pairs, metric, len(questions)),
        warnings=tuple(_warnings(entries, pairs, metric, len(questions))),
    )


def _subject(setting: Setting, cache: VectorCache | None, show_progress: bool) -> Subject:
    if setting.weights != FITTED:
        return setting.subject(cache, show_progress=show_progress)
    ways = {way: setting.subject(cache, show_progress=show_progress, mode=way) for way in WAYS}
    return FittedHybrid(f"{setting.model} with fitted weights", ways)


def _evaluated(
    subject: Subject,
    timed: ModelSubject,
    data: Judgements,
    top_k: int,
    metrics: Sequence[str],
    folder: str | os.PathLike[str] | None,
) -> Evaluation:
    """Return what an earlier run kept, if it is of this subject and data; else evaluate, time, and keep it."""
    told = f"{subject.identity} {subject.execution} {data.digest} {top_k}"
    name = hashlib.sha256(told.encode()).hexdigest()[:16]
    if folder is not None:
        known = Evaluation.load(Path(folder) / f"{name}.json")
        if known is not None and set(metrics) <= known.per_query.keys():
            return known
    evaluation = evaluate_subject(subject, data, top_k=top_k, metrics=metrics)
    # Apart from the run, in which some come from the cache: what is compared is measured alike.
    with timed.embedder:
        timed.measure(data, evaluation.run)
    costs, measured = evaluation.costs, timed.costs
    costs.query_ms, costs.texts_per_s, costs.rerank_ms = measured.query_ms, measured.texts_per_s, measured.rerank_ms
    if folder is not None:
        evaluation.save(folder, name)
    return evaluation


def _without_reranker(setting: Setting, settings: Sequence[Setting], axes: Mapping[str, Any]) -> str | None:
    if setting.rerank is None:
        return None
    plain = setting.without_reranker()
    return plain.label(axes) if plain in settings else None


def _milliseconds(evaluation: Evaluation) -> float:
    costs = evaluation.costs
    return sum(each or 0.0 for each in (costs.query_ms, costs.search_ms, costs.rerank_ms))


def _front(evaluations: Mapping[str, Evaluation], metric: str) -> set[str]:
    """Return the labels that no other one beats: quality, time per question and bytes per document."""
    told = {
        label: (-each.metrics[metric], _milliseconds(each), each.costs.bytes_per_vector or 0)
        for label, each in evaluations.items()
    }
    return {
        label
        for label, own in told.items()
        if not any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in told.values())
    }


def _recommended(entries: Sequence[Entry], pairs: Sequence[Pair], metric: str, questions: int) -> Recommendation:
    """Take the cheapest of those that the questions cannot tell from the best."""
    best = max(entries, key=lambda each: each.evaluation.metrics[metric])
    worse = {
        label
        for pair in pairs
        if pair.is_significant and best.label in (pair.first, pair.second)
        for label in (pair.first, pair.second)
        if label != best.label
    }
    alike = [each for each in entries if each.label not in worse]
    cheapest = min(
        alike, key=lambda each: (_milliseconds(each.evaluation), each.evaluation.costs.bytes_per_vector or 0)
    )
    value = best.evaluation.metrics[metric]
    reason = f"{best.label} is the best with {metric} {value:.4f}"
    if len(worse) == len(entries) - 1:
        reason += ", and significantly better than every other one."
    elif cheapest.label == best.label:
        reason += f", and the cheapest of the {len(alike)} that {questions} questions cannot tell apart."
    else:
        reason = (
            f"{cheapest.label} reaches {metric} {cheapest.evaluation.metrics[metric]:.4f}; {reason}, which "
            f"{questions} questions cannot tell from it. It is the cheapest of these: {_cost(cheapest)} against "
            f"{_cost(best)}."
        )
    return Recommendation(label=cheapest.label, code=cheapest.code, reason=reason)


def _cost(entry: Entry) -> str:
    return (
        f"{_milliseconds(entry.evaluation):.3g} ms for a question and {entry.evaluation.costs.bytes_per_vector} bytes"
    )


def shown_number(value: float) -> str:
    """Return a figure with three digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _warnings(entries: Sequence[Entry], pairs: Sequence[Pair], metric: str, questions: int) -> list[str]:
    """Say what a table does not say by itself."""
    told = []
    if pairs:
        smallest = sorted(pair.difference.smallest for pair in pairs)[len(pairs) // 2]
        told.append(
            f"{questions} questions can tell {smallest:.2g} of {metric} apart, not {smallest / 2:.2g} (four times in "
            "five, in the middle of these pairs)."
        )
        if not any(pair.is_significant for pair in pairs):
            told.append("Nothing here is significant: choose by cost, or add questions.")
    known = {each.label: each.evaluation.metrics[metric] for each in entries}
    for each in entries:
        if each.reranks is not None and known[each.label] < known[each.reranks]:
            pair = next(pair for pair in pairs if {pair.first, pair.second} == {each.label, each.reranks})
            sure = "significantly" if pair.is_significant else "which may be chance"
            told.append(
                f"Reranking lowers quality: {each.label} has {known[each.label]:.4f}, {each.reranks} without it "
                f"{known[each.reranks]:.4f} ({sure}). Leave it out."
            )
    return told
