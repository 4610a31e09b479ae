"""The texts that the examples search: 32 encyclopedia passages, and this documentation's sections."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "examples" / "data"


def read_passages(folder=DATA):
    """Return id -> text of *.jsonl files with `id` and `text`."""
    lines = [line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text(encoding="utf-8").splitlines()]
    return {row["id"]: row["text"] for row in map(json.loads, lines)}


def read_documentation(folder=ROOT / "docs"):
    """Return "page: heading" -> text, without code and tables."""
    sections = {}
    for page in sorted(folder.glob("*.md")):
        prose = re.sub(r"```.*?\n```\n|\|[^\n]*\n", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for section in prose.split("\n## ")[1:]:
            sections[f"{page.name}: {section.splitlines()[0]}"] = section.strip()
    return sections
