"""The Markdown pages of the repository: their headings, links and code blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced code block, without the indentation of its fence."""

    language: str
    text: str
    line: int


def page_name(page: Path) -> str:
    """Return the path below the root, for test ids and messages."""
    return page.relative_to(ROOT).as_posix()


def code_blocks(page: Path, language: str | None = None) -> list[Block]:
    """Return the code blocks of a page in order, those of one language if it is given."""
    text = page.read_text(encoding="utf-8")
    blocks = []
    for fence in _FENCE.finditer(text):
        body = re.sub(f"^{fence['indent']}", "", fence["text"], flags=re.MULTILINE)
        blocks.append(Block(fence["language"], body, text.count("\n", 0, fence.start()) + 2))
    return [block for block in blocks if language in (None, block.language)]


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def headings(page: Path) -> list[tuple[int, str]]:
    """Return (level, text) of every heading."""
    found = re.findall(r"^(#+) (.+)$", prose(page), flags=re.MULTILINE)
    return [(len(marks), text) for marks, text in found]


def sections(page: Path) -> dict[str, str]:
    """Return heading -> text for the sections of the second level, code included."""
    parts = page.read_text(encoding="utf-8").split("\n## ")[1:]
    return {part.splitlines()[0]: part.partition("\n")[2] for part in parts}


def anchor(heading: str) -> str:
    """Return the anchor that a heading gets on the usual hosts."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def links(page: Path) -> list[str]:
    """Return the targets of the links of a page."""
    return _LINK.findall(prose(page))


def shell_lines(page: Path) -> list[str]:
    """Return the command lines of the bash blocks of a page, without comments."""
    lines = [line for block in code_blocks(page, "bash") for line in block.text.splitlines()]
    stripped = [re.sub(r"\s+# .*$", "", line).strip() for line in lines]
    return [line for line in stripped if line and not line.startswith("#")]
