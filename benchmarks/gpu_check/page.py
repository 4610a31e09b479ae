"""The page and the picture of a run, from its JSON file; what was not measured does not stand there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_check.contestants import OURS, THEIRS

__all__ = ["draw", "fastest", "render", "write"]

Results = dict[str, Any]
Entry = dict[str, Any]
Way = tuple[str, str]  # backend and precision

NOISE = 0.05  # share of a core that other processes may compute before the page says so
TITLES = {
    "small-en": "bge-small-en",
    "base": "bge-base",
    "large": "bge-large",
    "reranker-base": "bge-reranker-base",
    "m3": "bge-reranker-large, bge-reranker-v2-m3",
}


def write(file: Path) -> list[Path]:
    """Write page and picture beside the JSON file of a run and return them; no picture without matplotlib."""
    results = json.loads(file.read_text(encoding="utf-8"))
    picture, page = file.with_suffix(".png"), file.with_suffix(".md")
    drawn = draw(results, picture)
    if not drawn:
        picture.unlink(missing_ok=True)
    page.write_text(render(results, picture.name if drawn else None), encoding="utf-8")
    return [page, picture] if drawn else [page]


def render(results: Results, picture: str | None) -> str:
    """Return the page, in Markdown."""
    parts = [
        "# GPU check" if results["gpu"] else "# GPU check, on a machine without a GPU",
        *_setting(results),
        *_verdict(results),
        *_decision(results),
        *([f"![Tokens per second and share of the matrix rate]({picture})"] if picture else []),
        *_speed(results),
        *_accuracy(results),
        *_other_checks(results),
        *_left_out(results),
        "## Time\n",
        _table(
            ["section", "seconds", "at most", ""],
            [[each["name"], each.get("seconds", ""), each["budget_s"], _state(each)] for each in results["sections"]],
        ),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _setting(results: Results) -> Iterator[str]:
    device, here = results["device"], results["machine"]
    facts = [
        f"{device['kind']}, {device['memory_gb']} GB, capability {device['capability']}, CUDA {device['cuda']}"
        if "kind" in device
        else device["name"],
        f"{here['processor']}, {here['cores']} cores, {here['memory_gb']} GB, {here['system']}, "
        f"Python {here['python']}",
        ", ".join(f"{name} {number}" for name, number in results["versions"].items()),
        f"{results['at']}, {results['seconds']:.0f} seconds",
    ]
    yield "\n".join(f"- {fact}" for fact in facts)
    if not results["gpu"]:
        yield (
            "No GPU was found: what needs one was left out, the models that are timed are reduced to two layers, and "
            "nothing here says anything about GPUs."
        )


def _verdict(results: Results) -> Iterator[str]:
    failed = [each for each in results["checks"] if not each["passed"]]
    unfinished = [each for each in results["sections"] if each["state"] not in ("done", "left out")]
    passed = len(results["checks"]) - len(failed)
    yield f"## Checks\n\n{passed} of {len(results['checks'])} checks passed."
    lines = [f"- FAILED: {each['name']}: {_found(each)}" for each in failed]
    lines += [f"- {_state(each)}: section {each['name']}" for each in unfinished]
    if lines:
        yield "\n".join(lines)


def _decision(results: Results) -> Iterator[str]:
    best = fastest(results)
    if not best["cells"]:
        return
    default = _way((results["default"]["backend"], results["default"]["precision"]))
    yield "## The fastest within the bounds"
    yield (
        "Of our own ways, those whose vectors and scores stay within the bounds below; the default on this device is "
        f"{default}. Each cell holds the fastest way, and how many times as fast as the default it is."
    )
    lengths = sorted({tokens for _, tokens in best["cells"]})
    rows = []
    for shape in dict.fromkeys(shape for shape, _ in best["cells"]):
        found = [best["cells"].get((shape, tokens)) for tokens in lengths]
        rows.append([TITLES[shape], *(f"{_way(each[0])}: {_times(each[1])}" if each else "" for each in found)])
    yield _table(["model", *(f"{tokens} tokens" for tokens in lengths)], rows)
    if best["overall"]:
        count = best["count"]
        told = "; ".join(f"{_way(way)} {_times(ratio)}" for way, ratio in best["overall"].items())
        yield f"Over the {count} cells that all of them have, against the default (geometric mean): {told}."


def fastest(results: Results) -> dict[str, Any]:
    """Find out which of our ways is the fastest, of those that are within the bounds.

    Returns:
        `cells`: shape and tokens -> the fastest way and its speed over the default's, `None` where the default was not
        measured. `overall`: way -> geometric mean of its speed over the default's, over the `count` cells that all
        ways were measured in, the fastest first; without those that are beyond the bounds for any shape.
    """
    within = _within(results)
    default: Way = (results["default"]["backend"], results["default"]["precision"])
    speeds: dict[tuple[str, int], dict[Way, float]] = {}
    for each in results["speed"]:
        way = (each["backend"], each["precision"])
        if each["library"] == OURS and within.get((each["shape"], *way)):
            speeds.setdefault((each["shape"], each["tokens"]), {})[way] = each["per_s"]
    cells = {}
    for cell, found in speeds.items():
        best = max(found, key=lambda way: found[way])
        cells[cell] = (best, found[best] / found[default] if default in found else None)
    beyond = {(backend, precision) for (_, backend, precision), passed in within.items() if not passed}
    ways = {way for found in speeds.values() for way in found} - beyond
    whole = [found for found in speeds.values() if ways <= set(found) and default in found]
    means = {
        way: float(np.exp(np.mean([np.log(each[way] / each[default]) for each in whole]))) for way in ways if whole
    }
    return {"cells": cells, "overall": dict(sorted(means.items(), key=lambda item: -item[1])), "count": len(whole)}


def _within(results: Results) -> dict[tuple[str, str, str], bool]:
    """Return whether each shape, backend and precision passed every check of its values."""
    found: dict[tuple[str, str, str], bool] = {}
    for each in results["checks"]:
        if "shape" in each:
            key = (each["shape"], each["backend"], each["precision"])
            found[key] = each["passed"] and found.get(key, True)
    return found


def _speed(results: Results) -> Iterator[str]:
    if not results["speed"]:
        return
    yield "## Speed"
    rates = results.get("matrix", {}).get("tflops", {})
    if rates:
        size = results["matrix"]["size"]
        told = ", ".join(f"{rate:g} TFLOP/s in {precision}" for precision, rate in rates.items())
        yield f"A product of two matrices of {size} by {size} ran at {told}."
    yield (
        "Weights are random, texts and pairs have exactly the length that is stated, and everyone computes the same "
        "ones in turn, from strings to an array. A cell holds inputs per second (the median of the rounds), how many "
        "times that is of sentence-transformers in the same precision at its better size of batch, and the share of "
        "the matrix rate in that precision; every layer is counted whole, and padding not at all. Memory is that of "
        "the weights and the most beside them, at any length."
    )
    for shape in dict.fromkeys(each["shape"] for each in results["speed"]):
        mine = [each for each in results["speed"] if each["shape"] == shape]
        first = mine[0]
        what = "pairs" if first["kind"] == "score" else "texts"
        yield f"### {TITLES[shape]}\n\n{first['layers']} layers of {first['width']}, {what} per second:"
        yield _shape_table(mine)
    yield from _tokenising(results)


def _shape_table(mine: Sequence[Entry]) -> str:
    lengths = sorted({each["tokens"] for each in mine})
    rows = []
    for name in dict.fromkeys(_contestant(each) for each in mine):
        found = {each["tokens"]: each for each in mine if _contestant(each) == name}
        peaks = [each["peak_bytes"] for each in found.values() if "peak_bytes" in each]
        memory = [f"{max(peaks) / 1e9:.2f}"] if peaks else []
        rows.append([name, *(_cell(found.get(tokens), mine) for tokens in lengths), *memory])
    titles = [
        "",
        *(f"{tokens} tokens" for tokens in lengths),
        *(["GB"] if max(map(len, rows)) > len(lengths) + 1 else []),
    ]
    return _table(titles, rows)


def _contestant(entry: Entry) -> str:
    """Return the name of a line: batches of texts that fill a budget have one name at all lengths."""
    name = f"{entry['library']}, {entry['precision']}"
    if entry["library"] == OURS:
        return _way((entry["backend"], entry["precision"]))
    return f"{name}, batches of {'32' if entry['batch_size'] == 32 else 'our size'}"


def _cell(entry: Entry | None, mine: Sequence[Entry]) -> str:
    if entry is None:
        return ""
    parts = [f"{entry['per_s']:,.4g}" if entry["per_s"] < 1000 else f"{entry['per_s']:,.0f}"]
    ratio = _ratio(entry, mine)
    if ratio is not None and entry["library"] != THEIRS:
        parts.append(_times(ratio))
    if "share" in entry:
        parts.append(f"{100 * entry['share']:.2g}%" if entry["share"] < 0.1 else f"{100 * entry['share']:.0f}%")
    return ", ".join(parts)


def _ratio(entry: Entry, others: Iterable[Entry]) -> float | None:
    """Return the speed over that of sentence-transformers in the same precision, at its better size of batch."""
    theirs = [
        each["per_s"]
        for each in others
        if each["library"] == THEIRS and all(each[name] == entry[name] for name in ("shape", "tokens", "precision"))
    ]
    return entry["per_s"] / max(theirs) if theirs else None


def _tokenising(results: Results) -> Iterator[str]:
    parts = [each["forward_part"] for each in results["speed"] if "forward_part" in each]
    if parts:
        yield (
            f"Of our own time, {100 * min(parts):.0f}% to {100 * max(parts):.0f}% are forward passes, by model and "
            "length (`forward_part` in the JSON file); the rest is tokenising, queueing and putting rows in order."
        )
    foreign = results.get("foreign_cpu_share", 0.0)
    if foreign > NOISE:
        yield f"Other processes computed {foreign:.0%} of a processor's core meanwhile, which disturbs these figures."


def _accuracy(results: Results) -> Iterator[str]:
    told = [each for each in results["checks"] if "output" in each and "value" in each]
    if not told:
        return
    yield "## Distance from float32 on the CPU"
    yield (
        "The worst of inputs of mixed lengths, over the bound that it has to keep. For vectors it is 1 − cosine, for "
        "scores the largest difference in standard deviations of the scores, for lexical weights the largest "
        "difference. Random weights spread rounding further than trained ones do, so these are comparisons, not what "
        "a precision costs."
    )
    groups: dict[tuple[str, str], dict[str, Entry]] = {}
    for each in told:
        where = each.get("device", results["device"]["name"])
        subject = f"{TITLES[each['shape']]}, {each['layers']} layers" if "shape" in each else each["subject"]
        model = f"{subject}: {each['output']}"
        groups.setdefault((model, f"{each['backend']} on {where}"), {})[each["precision"]] = each
    columns = [
        name for name in ("float32", "float16", "bfloat16", "int8") if any(name in row for row in groups.values())
    ]
    rows = [
        [model, way, *(_distance(found.get(precision)) for precision in columns)]
        for (model, way), found in groups.items()
    ]
    yield _table(["model and output", "way", *columns], rows)
    theirs = results.get("others", [])
    if theirs:
        lines = [
            [TITLES[each["shape"]], f"{each['library']}, {each['precision']}", f"{each['value']:.1e}"]
            for each in theirs
        ]
        yield "The same of the other libraries, which are not judged:"
        yield _table(["model", "", "distance"], lines)


def _distance(entry: Entry | None) -> str:
    if entry is None:
        return ""
    shown = f"{entry['value']:.1e} / {entry['most']:.0e}"
    return shown if entry["passed"] else f"**{shown}**"


def _other_checks(results: Results) -> Iterator[str]:
    rest = [each for each in results["checks"] if "output" not in each]
    if not rest:
        return
    yield "## Attention, memory, copies, refusals"
    used = results.get("attention", {})
    if used:
        yield (
            "The packed backend's attention here: " + "; ".join(f"{how} in {name}" for name, how in used.items()) + "."
        )
    yield _table(
        ["check", "found", ""],
        [[each["name"], _found(each), "passed" if each["passed"] else "FAILED"] for each in rest],
    )


def _found(entry: Entry) -> str:
    if "value" in entry:
        limits = [
            f"{word.replace('least', 'at least').replace('most', 'at most')} {entry[word]:g}"
            for word in ("least", "most")
            if word in entry
        ]
        return f"{entry['value']:.2g} ({', '.join(limits)})"
    return str(entry.get("told", "not a number" if "most" in entry or "least" in entry else "yes"))


def _left_out(results: Results) -> Iterator[str]:
    if not results["left_out"]:
        return
    by_reason: dict[str, list[str]] = {}
    for each in results["left_out"]:
        by_reason.setdefault(each["reason"].rstrip("."), []).append(f"{each['what']} ({each['section']})")
    yield "## Left out"
    yield "\n".join(f"- {reason}: {'; '.join(whats)}" for reason, whats in by_reason.items())


def _state(section: Entry) -> str:
    return f"{section['state']}: {section['reason']}" if "reason" in section else str(section["state"])


def _way(way: Way) -> str:
    return f"{way[0]} in {way[1]}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}×"


def _table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def draw(results: Results, path: Path) -> bool:
    """Draw tokens per second and the share of the matrix rate, a row per model; `False` where nothing can be drawn."""
    if not results["speed"]:
        return False
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = list(dict.fromkeys(each["shape"] for each in results["speed"]))
    names = list(dict.fromkeys(_contestant(each) for each in results["speed"]))
    colours = {name: pyplot.get_cmap("tab20")(at) for at, name in enumerate(names)}
    figure, grid = pyplot.subplots(
        len(models), 2, figsize=(12, 2.2 * len(models) + 1.2), layout="constrained", squeeze=False
    )
    for row, shape in zip(grid, models, strict=True):
        mine = [each for each in results["speed"] if each["shape"] == shape]
        bars = [(each, each["per_s"] * each["tokens"] / 1000) for each in mine]
        _bars(row[0], bars, colours)
        _bars(row[1], [(each, 100 * each["share"]) for each in mine if "share" in each], colours)
        row[0].set_ylabel("1,000 tokens a second")
        row[1].set_ylabel("% of the matrix rate")
        row[0].set_title(TITLES[shape], loc="left", fontsize=10)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colours[name]) for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    device = results["device"]
    figure.suptitle(device.get("kind", f"{device['name']}, two layers of each model"), fontsize=11)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _bars(axes: Any, bars: Sequence[tuple[Entry, float]], colours: dict[str, Any]) -> None:
    """Draw one panel: a group of bars for each length, in the order of the names."""
    names = list(colours)
    lengths = sorted({each["tokens"] for each, _ in bars})
    width = 0.84 / len(names)
    for each, value in bars:
        name = _contestant(each)
        place = lengths.index(each["tokens"]) + (names.index(name) - (len(names) - 1) / 2) * width
        axes.bar(place, value, width * 0.95, color=colours[name])
    axes.set_xticks(range(len(lengths)), [f"{tokens} tokens" for tokens in lengths])
    axes.set_xlim(-0.5, len(lengths) - 0.5)
    axes.spines[["top", "right"]].set_visible(False)
