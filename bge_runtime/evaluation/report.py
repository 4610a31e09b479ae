"""An evaluation or a comparison as one page that needs nothing else, and its pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime import ConfigurationError
from bge_runtime.evaluation import charts
from bge_runtime.evaluation.charts import Chart
from bge_runtime.evaluation.comparison import Comparison, Entry, shown_number
from bge_runtime.evaluation.evaluation import Evaluation, write_whole
from bge_runtime.evaluation.judgements import Judgements

__all__ = ["write_report"]

WORST = 20
SHOWN = 3
SNIPPET = 280
BINS = 10
NO_PAGES = 'Reports need an extra: pip install "bge-integrations[eval]"'

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    label: str
    values: list[str]
    milliseconds: str
    texts_per_s: str
    bytes: str
    on_front: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Question:
    question: str
    value: float
    wanted: list[str]
    found: list[str]


def write_report(
    folder: str | os.PathLike[str],
    result: Evaluation | Comparison,
    data: Judgements,
    *,
    command: str = "",
    reliability: tuple[Sequence[float], Sequence[float], Sequence[int]] | None = None,
) -> Path:
    """Write `report.html`, `results.json`, the runs and the pictures into a folder.

    Args:
        folder: Made where it is missing; files of an earlier report are replaced.
        result: What was measured.
        data: What it was measured on.
        command: What was typed, for the page.
        reliability: Of a calibrated score: stated probabilities, shares that were relevant, and how many, by bin.

    Returns:
        The page.

    Raises:
        ConfigurationError: matplotlib or jinja2 is not installed, or the disk or the folder refuses.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ConfigurationError(NO_PAGES) from error
    place = Path(folder)
    comparison = result if isinstance(result, Comparison) else None
    entries = (
        comparison.entries if comparison else (Entry(label=_only(result).label, evaluation=_only(result), code=""),)
    )
    shown = _shown(entries, comparison)
    metrics = list(shown.evaluation.metrics)
    pictures = list(_charts(comparison, shown, data, reliability))
    template = files("bge_runtime.evaluation").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(
        title=f"{'Comparison' if comparison else 'Evaluation'} on {data.name}",
        data=data,
        notes=list(dict.fromkeys(note for each in entries for note in each.evaluation.notes)),
        comparison=comparison,
        metrics=metrics,
        rows=[_row(each, metrics) for each in entries],
        charts=pictures,
        worst=_worst(shown.evaluation, data, metrics[0]),
        worst_of=shown.label,
        machine=_machine(shown.evaluation.machine),
        commands=command or "bge_runtime.evaluation, from Python",
        versions="; ".join(f"{name} {version}" for name, version in shown.evaluation.versions.items()),
    )
    for number, each in enumerate(entries, start=1):
        each.evaluation.save(place / "runs", f"{number:02}")
    write_whole(place / "results.json", json.dumps(result.as_dict(), ensure_ascii=False, indent=1))
    for picture in pictures:
        write_whole(place / f"{picture.name}.png", picture.png)
    file = place / "report.html"
    write_whole(file, page)
    return file


def _only(result: Evaluation | Comparison) -> Evaluation:
    assert isinstance(result, Evaluation)
    return result


def _shown(entries: Sequence[Entry], comparison: Comparison | None) -> Entry:
    """Return the entry whose scores and questions are shown: the one that is recommended."""
    wanted = comparison.recommendation.label if comparison else entries[0].label
    return next(each for each in entries if each.label == wanted)


def _row(entry: Entry, metrics: Sequence[str]) -> _Row:
    costs = entry.evaluation.costs
    told = [each for each in (costs.query_ms, costs.search_ms, costs.rerank_ms) if each is not None]
    return _Row(
        label=entry.label,
        values=[f"{entry.evaluation.metrics[name]:.4f}" for name in metrics],
        milliseconds=shown_number(sum(told)) if costs.query_ms is not None else "-",
        texts_per_s=shown_number(costs.texts_per_s) if costs.texts_per_s is not None else "-",
        bytes=str(costs.bytes_per_vector or "-"),
        on_front=entry.on_front,
    )


def _charts(
    comparison: Comparison | None,
    shown: Entry,
    data: Judgements,
    reliability: tuple[Sequence[float], Sequence[float], Sequence[int]] | None,
) -> list[Chart]:
    found = []
    if comparison is not None and len(comparison.entries) > 1:
        costs = [each.evaluation.costs for each in comparison.entries]
        found.append(
            charts.quality_and_cost(
                [each.evaluation.metrics[comparison.metric] for each in comparison.entries],
                [sum(ms or 0.0 for ms in (each.query_ms, each.search_ms, each.rerank_ms)) for each in costs],
                [each.on_front for each in comparison.entries],
                comparison.metric,
            )
        )
    relevant, others = _scores(shown.evaluation, data)
    if len(relevant) and len(others):
        found += [charts.distributions(relevant, others, "score"), charts.by_threshold(relevant, others, "score")]
        stated, seen, counts = reliability or _share_by_score(relevant, others)
        label = "stated probability" if reliability else "score, taken as a probability"
        found.append(charts.reliability(np.asarray(stated), np.asarray(seen), counts, label))
    return found


def _scores(evaluation: Evaluation, data: Judgements) -> tuple[Numbers, Numbers]:
    """Return the scores of results that are judged relevant, and of the others."""
    told: tuple[list[float], list[float]] = [], []
    for query, found in evaluation.run.items():
        grades = data.relevant(query)
        for document, score in found:
            told[0 if grades.get(document, 0) > 0 else 1].append(score)
    return np.asarray(told[0]), np.asarray(told[1])


def _share_by_score(relevant: Numbers, others: Numbers) -> tuple[Numbers, Numbers, list[int]]:
    """Return, for parts of equal width of the scores: their mean, the share that is relevant, and how many."""
    scores = np.concatenate([relevant, others])
    labels = np.concatenate([np.ones(len(relevant)), np.zeros(len(others))])
    edges = np.linspace(scores.min(), scores.max(), BINS + 1)
    place = np.clip(np.digitize(scores, edges) - 1, 0, BINS - 1)
    parts = [np.flatnonzero(place == number) for number in range(BINS)]
    parts = [part for part in parts if len(part)]
    return (
        np.array([scores[part].mean() for part in parts]),
        np.array([labels[part].mean() for part in parts]),
        [len(part) for part in parts],
    )


def _worst(evaluation: Evaluation, data: Judgements, metric: str) -> list[_Question]:
    values = evaluation.per_query[metric]
    queries = sorted(values, key=lambda query: (values[query], query))[:WORST]
    return [
        _Question(
            question=data.queries[query],
            value=values[query],
            wanted=[_told(name, data, query) for name in list(data.relevant(query))[:SHOWN]],
            found=[f"{score:.4f} {_told(name, data, query)}" for name, score in evaluation.run[query][:SHOWN]],
        )
        for query in queries
    ]


def _told(name: str, data: Judgements, query: str) -> str:
    """Return an id and the beginning of its text."""
    quotes = {each.name: each.quote for each in data.passages.get(query, ())}
    text = " ".join((quotes.get(name) or data.documents.get(name, "")).split())
    mark = " [relevant]" if data.relevant(query).get(name, 0) > 0 else ""
    cut = f"{text[:SNIPPET].rsplit(' ', 1)[0]} ..." if len(text) > SNIPPET else text
    return f"{name}{mark}: {cut}" if cut else f"{name}{mark}"


def _machine(told: Mapping[str, Any]) -> str:
    return f"{told.get('processor', 'this machine')}, {told.get('cores', '?')} cores, {told.get('device', 'cpu')}"
