"""Write the tables of docs/benchmarks.md and the chart from benchmarks/results/speed.json.

python -m benchmarks.report
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contestants import INCUMBENTS, LIMIT
from benchmarks.workloads import WORKLOADS

__all__ = ["TABLES", "draw", "main", "tables", "with_tables"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "speed.json"
PAGE = ROOT / "docs" / "benchmarks.md"
CORPORA = ("ingest", "short", "long", "duplicates")
NOTHING = "-"
UNMEASURED = "No run is recorded yet."
REASON_WORDS = 30
_MARKED = re.compile(r"(<!-- speed: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Results = dict[str, Any]
Figure = dict[str, Any]


def tables(results: Results) -> dict[str, str]:
    """Return name -> Markdown for every place in the page."""
    return {name: make(results) for name, make in TABLES.items()}


def with_tables(page: str, results: Results) -> str:
    """Return the page with its tables written anew."""
    made = tables(results)
    return _MARKED.sub(lambda match: f"{match[1]}{made[match[2]]}\n{match[3]}", page)


def _figures(results: Results, workload: str, surface: str | None = None) -> list[Figure]:
    entry = results["workloads"].get(workload, {"figures": []})
    return [each for each in entry["figures"] if surface in (None, each["surface"]) and each["name"] != LIMIT]


def _corpora(surface: str) -> Callable[[Results], str]:
    def make(results: Results) -> str:
        columns = [name for name in CORPORA if _figures(results, name, surface)]
        by_name = {name: {each["name"]: each for each in _figures(results, name, surface)} for name in columns}
        names = list(dict.fromkeys(each for column in by_name.values() for each in column))
        rows = []
        for name in names:
            found = [by_name[column].get(name, {}) for column in columns]
            if any("ratio" in each for each in found):
                cosines = [each["cosine"] for each in found if "cosine" in each]
                rows.append([name, *map(_ratio, found), _cosine(min(cosines)) if cosines else NOTHING])
        return _table(["", *(WORKLOADS[name].title for name in columns), "lowest cosine"], rows)

    return make


def _rerank(results: Results) -> str:
    rows = [
        [each["name"], _ratio(each), f"{each['seconds']:.1f}", _small(each.get("difference"))]
        for each in _figures(results, "rerank")
        if "ratio" in each
    ]
    return _table(["", "times as fast", "seconds", "largest difference of scores"], rows)


def _queries(results: Results) -> str:
    together = {each["name"]: each for each in _figures(results, "concurrent") if "ratio" in each}
    lone = {each["name"]: each for each in _figures(results, "lone") if "ratio" in each}
    rows = []
    for name in dict.fromkeys([*together, *lone]):
        many, one = together.get(name), lone.get(name)
        cells = [f"{many['queries_per_s']:.0f}", _ratio(many), *_ms(many)] if many else [NOTHING] * 4
        rows.append([name, *cells, *([_ms(one)[0], _ratio(one)] if one else [NOTHING] * 2)])
    titles = ["64 at once: queries/s", "times as fast", "p50 ms", "p99 ms", "alone: ms", "times as fast"]
    return _table(["", *titles], rows)


def _busy(results: Results) -> str:
    rows = [
        [each["name"], *(f"{1000 * each[name]:.0f}" for name in ("idle_p50_s", "idle_p99_s", "p50_s", "p99_s"))]
        for each in _figures(results, "busy")
        if "ratio" in each
    ]
    return _table(["", "idle: p50 ms", "idle: p99 ms", "ingesting: p50 ms", "ingesting: p99 ms"], rows)


def _start(results: Results) -> str:
    start, imported = ({each["name"]: each for each in _figures(results, name)} for name in ("start", "import"))
    rows = []
    for name in dict.fromkeys([*start, *imported]):
        cells = [_seconds(found.get(name, {})) for found in (start, imported)]
        if cells != [NOTHING, NOTHING]:
            rows.append([name, *cells])
    return _table(["", "start to first embedding, s", "import, s"], rows)


def _growth(results: Results) -> str:
    rows = []
    for each in _figures(results, "growth"):
        for step in each.get("steps", []):
            over = f"{(each['peak_bytes'] - each['model_bytes']) / 1e6:.0f}"
            last = step is each["steps"][-1]
            cells = [f"{step['texts']:,}", f"{step['us_per_text']:.0f}", f"{step['resident_bytes'] / 1e6:.0f}"]
            rows.append([each["name"], *cells, over if last else ""])
    return _table(["", "texts", "µs per text", "memory, MB", "peak above the model, MB"], rows)


def _limit(results: Results) -> str:
    rows = []
    for workload in ("ingest", "rerank"):
        entry = results["workloads"].get(workload, {"figures": []})
        limit = next((each for each in entry["figures"] if each["name"] == LIMIT and "gflops" in each), None)
        if limit is None:
            continue
        for each in _figures(results, workload):
            if "limit_share" in each:
                precision = "bfloat16" if "bfloat16" in each["name"] else "float32"
                shares = [f"{100 * each[name]:.0f}%" for name in ("limit_share", "limit_share_pruned")]
                cells = [f"{limit['gflops'][precision]:.0f}", f"{each['tokens_per_s']:,.0f}", *shares]
                rows.append([f"{workload}: {each['name']}", *cells])
    return _table(["", "limit, GFLOP/s", "tokens/s", "share", "share, last layer pruned"], rows)


def _setting(results: Results) -> str:
    here = results.get("machine")
    if here is None:
        return UNMEASURED
    flags = ", ".join(here["flags"]) or "none of AVX2, AVX-512, VNNI, AMX"
    lines = [f"{here['processor']}, {here['cores']} cores ({flags}), {here['memory_gb']} GB, {here['system']}.", ""]
    rows = []
    for name, entry in results["workloads"].items():
        cells = [
            f"{entry['count']:,}",
            str(entry["rounds"]),
            str(entry["minutes"]),
            _foreign(entry["foreign_cpu_share"]),
        ]
        rows.append([WORKLOADS[name].title, *cells])
    return "\n".join(lines) + _table(["", "size of a round", "rounds", "minutes", "work of other processes"], rows)


def _reasons(results: Results) -> str:
    found: dict[str, dict[str, list[str]]] = {}
    for workload in results.get("workloads", {}):
        for each in _figures(results, workload):
            if "reason" in each:
                found.setdefault(each["reason"], {}).setdefault(each["name"], []).append(workload)
    lines = []
    for reason, names in found.items():
        who = "; ".join(f"{name} ({', '.join(workloads)})" for name, workloads in names.items())
        lines.append(f"- {who}: {' '.join(reason.split()[:REASON_WORDS])}")
    return "\n".join(lines) or "Everything ran."


# Name in the page's markers -> what writes it.
TABLES: dict[str, Callable[[Results], str]] = {
    "setting": _setting,
    **{surface: _corpora(surface) for surface in INCUMBENTS},
    "rerank": _rerank,
    "queries": _queries,
    "busy": _busy,
    "start": _start,
    "growth": _growth,
    "limit": _limit,
    "reasons": _reasons,
}


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return UNMEASURED
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(_line(each) for each in lines)


def _line(cells: Sequence[str]) -> str:
    return f"|{'|'.join(cells)}|" if set(cells) == {"---"} else f"| {' | '.join(cells)} |"


def _ratio(figure: Figure) -> str:
    if "ratio" not in figure:
        return NOTHING
    if figure["name"] in INCUMBENTS.values():
        return "1"
    low, high = figure["ratio_range"]
    return f"{figure['ratio']:.2f} ({low:.2f}–{high:.2f})"


def _ms(figure: Figure) -> list[str]:
    return [f"{1000 * figure[name]:.1f}" for name in ("p50_s", "p99_s")]


def _seconds(figure: Figure) -> str:
    return f"{figure['seconds']:.2f}" if "seconds" in figure else NOTHING


def _foreign(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.0f}%"


def _small(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0e}"


def _cosine(value: float) -> str:
    return "1" if value > 1 - 1e-7 else f"{value:.6f}"


def _bars(results: Results) -> Iterator[tuple[str, list[Figure]]]:
    for workload in (*CORPORA, "rerank", "concurrent"):
        rows = [each for each in _figures(results, workload, "langchain") if "ratio" in each]
        if rows:
            yield WORKLOADS[workload].title, rows


def draw(results: Results, path: Path) -> None:
    """Draw what goes through LangChain as bars, one panel per workload."""
    panels = list(_bars(results))
    if not panels:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    height = sum(0.3 * len(rows) + 0.6 for _, rows in panels)
    ratios = [len(rows) + 1 for _, rows in panels]
    picture, grid = pyplot.subplots(
        len(panels), figsize=(9, height + 0.6), layout="constrained", squeeze=False, height_ratios=ratios
    )
    for (title, rows), axes in zip(panels, grid[:, 0], strict=True):
        bars = axes.barh([each["name"] for each in rows], [each["ratio"] for each in rows], color="#3b6ea5")
        axes.bar_label(bars, fmt="%.1f", padding=3)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_title(title, loc="left", fontsize=10)
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.spines[["top", "right"]].set_visible(False)
    grid[-1, 0].set_xlabel("times as fast as langchain-huggingface in the same round")
    picture.savefig(path, dpi=120)
    pyplot.close(picture)


def main(given: Sequence[str] | None = None) -> None:
    """Write page and chart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args(given)
    results = json.loads(asked.results.read_text(encoding="utf-8"))
    page = asked.page.read_text(encoding="utf-8")
    asked.page.write_text(with_tables(page, results), encoding="utf-8")
    draw(results, asked.results.with_suffix(".png"))


if __name__ == "__main__":
    main()
