"""The tables of docs/models.md, made from the model table.

    python tests/docs/model_table.py [--write]

Prints the page as it should be, or with --write brings it up to date. Speeds come from
benchmarks/results/model_speed.json (python -m benchmarks.model_speed); without it their columns are left out.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bge_runtime import ModelSpec, list_models
from bge_runtime.evaluation.published import PUBLISHED

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "models.md"
SPEED = ROOT / "benchmarks" / "results" / "model_speed.json"
NOTHING = "-"
# Upper limit of parameters -> heading.
SIZES = {5e7: "to 50 M", 2e8: "to 200 M", 1e9: "to 1 B", float("inf"): "larger"}
TASKS = {"embedder": "embed", "reranker": "rerank", "vision": "images"}
# Rows of the embedding table, which is by far the largest part of a small model.
VOCABULARIES = {("bert", "en"): 30_522, ("bert", "zh"): 21_128, ("xlm-roberta", None): 250_002}
_MARKED = re.compile(r"(<!-- models: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def size(count: int) -> str:
    """Return a number of parameters in words."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"


def memory(count: float) -> str:
    """Return a number of bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def runs(spec: ModelSpec) -> str:
    """Return whether a model runs, or why not."""
    return "yes" if spec.unsupported is None else f"no: {spec.unsupported}"


def row(spec: ModelSpec) -> str:
    """Return the line of one model in the table of its kind."""
    vectors = [] if spec.kind == "reranker" else [str(spec.dimension)]
    outputs = [", ".join(spec.outputs).replace("_", "-")] if spec.kind == "embedder" else []
    facts = [str(spec.max_length), ", ".join(spec.languages), spec.license, *outputs, runs(spec)]
    return _line([f"`{spec.id}`", size(spec.parameters), *vectors, *facts])


def _kind(wanted: Callable[[ModelSpec], bool], titles: Sequence[str]) -> Callable[[], str]:
    def make() -> str:
        lines = [row(spec) for spec in list_models() if wanted(spec)]
        return "".join([_line(titles), _line(["---"] * len(titles)), *lines])

    return make


def _choice() -> str:
    titles = ["languages", "task", *SIZES.values()]
    rows: dict[tuple[str, str], dict[str, list[str]]] = {}
    for spec in list_models():
        if spec.unsupported is None:
            heading = next(name for limit, name in SIZES.items() if spec.parameters <= limit)
            cells = rows.setdefault((", ".join(spec.languages), TASKS[spec.kind]), {})
            cells.setdefault(heading, []).append(spec.basename)
    return _table(
        titles,
        ([*key, *("<br>".join(cells.get(name, [NOTHING])) for name in titles[2:])] for key, cells in rows.items()),
    )


def int8_bytes(spec: ModelSpec) -> int | None:
    """Return the weights' size with int8 matrices and bfloat16 embeddings, or `None` where int8 does not run."""
    language = spec.languages[0] if spec.architecture == "bert" else None
    vocabulary = VOCABULARIES.get((spec.architecture, language))
    if vocabulary is None:
        return None
    width = spec.dimension or (768 if spec.parameters < 3e8 else 1024)
    return spec.parameters + vocabulary * width


def _memory() -> str:
    speeds = _speeds()
    columns = list(dict.fromkeys(precision for each in speeds.values() for precision in each))
    groups: dict[tuple[Any, ...], list[ModelSpec]] = {}
    for spec in list_models():
        speed = tuple(speeds.get(spec.id, {}).get(precision) for precision in columns)
        groups.setdefault((spec.parameters, int8_bytes(spec), speed), []).append(spec)
    rows = []
    for (parameters, int8, speed), specs in sorted(groups.items(), key=lambda item: item[0][0]):
        cells = [memory(4 * parameters), memory(2 * parameters), NOTHING if int8 is None else memory(int8)]
        measured = [NOTHING if value is None else f"{value:.1f}" for value in speed]
        rows.append(["<br>".join(spec.basename for spec in specs), *cells, *measured])
    titles = ["model", "float32", "float16, bfloat16", "int8", *(f"texts/s, {precision}" for precision in columns)]
    return _table(titles, rows)


def _speeds() -> dict[str, dict[str, float]]:
    """Return texts per second by model and precision; nothing when nothing was measured."""
    if not SPEED.is_file():
        return {}
    shapes = json.loads(SPEED.read_text(encoding="utf-8"))["shapes"].values()
    return {model: shape["texts_per_s"] for shape in shapes for model in shape["models"]}


def _checked() -> str:
    groups: dict[str, list[ModelSpec]] = {}
    for spec in list_models():
        if spec.unsupported is None:
            groups.setdefault(spec.checked or "nothing", []).append(spec)
    numbers: dict[str, int] = {}
    for value in PUBLISHED:
        numbers[value.model] = numbers.get(value.model, 0) + len(value.expected)
    rows = []
    for text, specs in groups.items():
        names = (f"{spec.basename} ({numbers[spec.id]})" if spec.id in numbers else spec.basename for spec in specs)
        rows.append(["<br>".join(names), text])
    return _table(["models (values of the authors)", "what was checked"], rows)


VECTOR_TITLES = ("model", "parameters", "dimension", "tokens", "languages", "licence")
# Name in the page's markers -> what writes it.
TABLES: dict[str, Callable[[], str]] = {
    "choice": _choice,
    "encoders": _kind(
        lambda spec: spec.kind == "embedder" and spec.pooling != "last", (*VECTOR_TITLES, "outputs", "runs")
    ),
    "decoders": _kind(
        lambda spec: spec.kind == "embedder" and spec.pooling == "last", (*VECTOR_TITLES, "outputs", "runs")
    ),
    "rerankers": _kind(
        lambda spec: spec.kind == "reranker", ("model", "parameters", "tokens", "languages", "licence", "runs")
    ),
    "vision": _kind(lambda spec: spec.kind == "vision", (*VECTOR_TITLES, "runs")),
    "memory": _memory,
    "checked": _checked,
}


def updated(page: str) -> str:
    """Return the page with its tables made anew."""
    return _MARKED.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}{match[3]}", page)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(_line(cells) for cells in (titles, ["---"] * len(titles), *rows))


def _line(cells: Sequence[str]) -> str:
    return f"|{'|'.join(cells)}|\n" if set(cells) == {"---"} else f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    text = updated(PAGE.read_text(encoding="utf-8"))
    if "--write" in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
