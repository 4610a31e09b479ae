"""The pictures of a report: readable without colour, as PNG files and as SVG that a page can hold."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Chart", "bars", "by_threshold", "curves", "distributions", "quality_and_cost", "reliability"]

# Inches and points that a telephone of 390 pixels shows without shrinking them much.
SIZE = (4.6, 3.4)
STYLE: Any = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.grid": True,
    "grid.alpha": 0.3,
    "svg.fonttype": "none",
    "svg.hashsalt": "bge",
    "figure.figsize": SIZE,
    "figure.constrained_layout.use": True,
}
DARK, LIGHT = "#1f4e79", "#c55a11"
NO_PICTURES = 'Pictures need an extra: pip install "bge-integrations[eval]"'
_PROLOGUE = re.compile(r"^.*?(?=<svg)", re.DOTALL)

Numbers = NDArray[np.float64]


class Chart:
    """A picture."""

    def __init__(self, name: str, title: str, figure: Figure) -> None:
        """Take a figure, with the name of its file and what it shows."""
        self.name = name
        self.title = title
        self._figure = figure

    @property
    def png(self) -> bytes:
        """The picture as a file's content."""
        stream = io.BytesIO()
        with _styled():
            self._figure.savefig(stream, dpi=150, format="png")
        return stream.getvalue()

    @property
    def svg(self) -> str:
        """The picture as an element of a page, as wide as its place."""
        stream = io.StringIO()
        with _styled():
            self._figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
        element = _PROLOGUE.sub("", stream.getvalue(), count=1)
        # Ids of several pictures on one page must differ.
        element = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{self.name}-", element)
        return element.replace("<svg ", f'<svg role="img" aria-label="{self.title}" ', 1)


def quality_and_cost(
    values: Sequence[float], milliseconds: Sequence[float], on_front: Sequence[bool], metric: str
) -> Chart:
    """Draw quality against the time per question; numbers are those of the table, filled points the Pareto front."""
    figure, axes = _figure()
    order = np.argsort(milliseconds)
    front = [at for at in order if on_front[at]]
    axes.plot([milliseconds[at] for at in front], [values[at] for at in front], "--", color=DARK, linewidth=1)
    for at, (value, cost) in enumerate(zip(values, milliseconds, strict=True)):
        axes.plot(cost, value, "o", color=DARK, markerfacecolor=DARK if on_front[at] else "white", markersize=8)
    for place, label in _labels(values, milliseconds):
        axes.annotate(label, place, textcoords="offset points", xytext=(7, 5))
    if min(milliseconds) > 0 and max(milliseconds) > 10 * min(milliseconds):
        axes.set_xscale("log")
    axes.margins(0.15)
    axes.set_xlabel("milliseconds per question")
    axes.set_ylabel(metric)
    return Chart("quality_and_cost", f"{metric} against milliseconds per question", figure)


def _labels(values: Sequence[float], milliseconds: Sequence[float]) -> list[tuple[tuple[float, float], str]]:
    """Return where to write numbers: those of points that lie on each other share a label."""
    spread = (max(values) - min(values)) or 1.0
    ratio = np.log(np.maximum(milliseconds, 1e-6))
    width = (ratio.max() - ratio.min()) or 1.0
    groups: list[list[int]] = []
    for at, (value, place) in enumerate(zip(values, ratio, strict=True)):
        for group in groups:
            first = group[0]
            if abs(values[first] - value) < 0.07 * spread and abs(ratio[first] - place) < 0.12 * width:
                group.append(at)
                break
        else:
            groups.append([at])
    return [((milliseconds[group[0]], values[group[0]]), ", ".join(str(at + 1) for at in group)) for group in groups]


def distributions(relevant: Numbers, others: Numbers, name: str) -> Chart:
    """Draw how often which score is given to relevant results, and to others."""
    figure, axes = _figure()
    low, high = (float(each) for each in (min(relevant.min(), others.min()), max(relevant.max(), others.max())))
    edges = np.linspace(low, high if high > low else low + 1, 31)
    for scores, label, colour, style in ((others, "others", LIGHT, "--"), (relevant, "relevant", DARK, "-")):
        shares = np.histogram(scores, edges)[0] / len(scores)
        axes.stairs(shares, edges, color=colour, linestyle=style, linewidth=1.8, label=f"{label} ({len(scores)})")
    axes.set_xlabel(name)
    axes.set_ylabel("share")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=9)
    return Chart("score_distributions", "Scores of relevant and of other results", figure)


def by_threshold(relevant: Numbers, others: Numbers, name: str) -> Chart:
    """Draw precision and recall of what is kept, by the score from which it is kept."""
    figure, axes = _figure()
    thresholds = np.quantile(np.concatenate([relevant, others]), np.linspace(0, 0.995, 120))
    kept = np.array([(relevant >= each).sum() for each in thresholds])
    wrong = np.array([(others >= each).sum() for each in thresholds])
    axes.plot(thresholds, kept / np.maximum(kept + wrong, 1), "-", color=DARK, label="precision")
    axes.plot(thresholds, kept / len(relevant), "--", color=LIGHT, label="recall")
    axes.set_xlabel(f"{name}, from which results are kept")
    axes.set_ylabel("share")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=9)
    return Chart("precision_and_recall", "Precision and recall by threshold", figure)


def reliability(stated: Numbers, seen: Numbers, counts: Sequence[int], name: str) -> Chart:
    """Draw how often results were relevant, by the probability that was stated for them; larger points hold more."""
    figure, axes = _figure()
    axes.plot([0, 1], [0, 1], ":", color="#555555", label="as stated")
    sizes = 20 + 180 * np.asarray(counts, float) / max(max(counts), 1)
    axes.scatter(stated, seen, s=sizes, color=DARK, zorder=3)
    axes.plot([], [], "o", color=DARK, label="seen")
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(name)
    axes.set_ylabel("share relevant")
    axes.legend(fontsize=9, loc="upper left")
    return Chart("reliability", "Stated probability against the share that was relevant", figure)


def curves(losses: Sequence[tuple[int, float]], scores: Sequence[tuple[int, float]], metric: str) -> Chart:
    """Draw the loss of each step of a training, and the development score where it was measured."""
    figure, axes = _figure()
    handles = []
    if losses:
        steps, values = np.array(losses, float).T
        # Of many steps the mean of neighbours is what can be seen.
        width = max(len(values) // 50, 1)
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        axes.plot(steps, values, "-", color=DARK, alpha=0.25, linewidth=0.8)
        handles += axes.plot(steps[width - 1 :], smooth, "-", color=DARK, label="loss")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    if scores:
        other = axes.twinx()
        other.grid(False)
        handles += other.plot(*np.array(scores, float).T, "o--", color=LIGHT, label=metric)
        other.set_ylabel(metric)
    axes.legend(handles=handles, fontsize=9, loc="lower center")
    return Chart("curves", "Loss and development score by step", figure)


def bars(rows: Mapping[str, Mapping[str, float]], metric: str) -> Chart:
    """Draw a group of bars for each collection, one bar for each system."""
    figure, axes = _figure()
    collections = list(next(iter(rows.values())))
    width = 0.8 / len(rows)
    shades = np.linspace(0.25, 1.0, len(rows))
    for number, (name, values) in enumerate(rows.items()):
        places = np.arange(len(collections)) + (number - (len(rows) - 1) / 2) * width
        heights = [values[each] for each in collections]
        axes.bar(places, heights, width, color=DARK, alpha=shades[number], label=name)
        for place, height in zip(places, heights, strict=True):
            axes.text(place, height + 0.01, f"{height:.2f}"[1:], ha="center", fontsize=6)
    axes.set_xticks(range(len(collections)), [each.replace("_", " ").replace(" ", "\n") for each in collections])
    axes.set_ylabel(metric)
    axes.set_ylim(0, 1.12)
    axes.grid(axis="x", visible=False)
    axes.legend(fontsize=8, ncols=len(rows), loc="upper center", columnspacing=1, handlelength=1)
    return Chart("bars", f"{metric} of {', '.join(rows)}", figure)


def _styled() -> Any:
    import matplotlib

    return matplotlib.rc_context(STYLE)


def _figure() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError(NO_PICTURES) from error
    with _styled():
        figure = Figure(figsize=SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.add_subplot()
