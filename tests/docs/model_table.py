"""The tables of docs/models.md, made from the model table.

    python tests/docs/model_table.py [--write]

Prints the page as it should be, or with --write brings it up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from bge_runtime import ModelSpec, list_models

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
SECTIONS = {"Embedding models": "embedder", "Reranking models": "reranker", "Image and text models": "vision"}


def size(count: int) -> str:
    """Return a number of parameters in words."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"


def row(spec: ModelSpec) -> str:
    """Return the line of one model."""
    dimension = [] if spec.dimension is None else [str(spec.dimension)]
    runs = "yes" if spec.unsupported is None else "not yet"
    length, languages = str(spec.max_length), ", ".join(spec.languages)
    cells = [f"`{spec.id}`", size(spec.parameters), *dimension, length, languages, spec.license, runs]
    return f"| {' | '.join(cells)} |\n"


def updated(page: str) -> str:
    """Return the page with its tables made anew."""
    for heading, kind in SECTIONS.items():
        rows = "".join(row(spec) for spec in list_models() if spec.kind == kind)
        page = re.sub(
            rf"(## {heading}\n.*?\n\|[-|]+\|\n)(?:\|[^\n]*\n)*",
            lambda match, rows=rows: match[1] + rows,
            page,
            count=1,
            flags=re.DOTALL,
        )
    return page


if __name__ == "__main__":
    text = updated(PAGE.read_text(encoding="utf-8"))
    if "--write" in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
