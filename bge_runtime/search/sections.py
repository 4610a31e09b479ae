"""Markdown and HTML to sections: a trail of headings, and the prose and the code below the last of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html.parser import HTMLParser
from itertools import zip_longest
from typing import NamedTuple

__all__ = ["Section", "from_html", "from_markdown"]


class Section(NamedTuple):
    """What stands under a heading.

    Attributes:
        trail: The headings, outermost first.
        text: The prose.
        code: The blocks of code.
    """

    trail: tuple[str, ...]
    text: str
    code: str = ""


class _Outline:
    """Gathers lines of prose and of code under the headings seen last."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.code: list[str] = []
        self._open: list[tuple[int, str]] = []
        self._sections: list[Section] = []

    def heading(self, level: int, title: str) -> None:
        self._close()
        self._open = [*(each for each in self._open if each[0] < level), (level, title)]

    def sections(self) -> list[Section]:
        self._close()
        return list(_without_bare_parents(self._sections))

    def _close(self) -> None:
        trail = tuple(title for _, title in self._open)
        text = "\n".join(self.lines).strip()
        code = "\n".join(self.code).strip()
        if trail or text or code:
            self._sections.append(Section(trail, text, code))
        self.lines, self.code = [], []


def _without_bare_parents(sections: list[Section]) -> Iterable[Section]:
    """Drop headings with nothing below them but deeper headings, which name them anyway."""
    for section, follower in zip_longest(sections, sections[1:]):
        is_parent = follower is not None and follower.trail[: len(section.trail)] == section.trail
        if section.text or section.code or not is_parent:
            yield section


_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))??(?:[ \t]+#+)?[ \t]*$")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_NO_PARAGRAPH = re.compile(r"[ \t]*(?:[-*+>|]|\d+[.)]|$)| {4}|\t")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")


def from_markdown(text: str) -> list[Section]:
    """Split Markdown at its headings; lines in code blocks and front matter are none."""
    lines = _without_front_matter(text.splitlines())
    outline = _Outline()
    fence = ""
    for line in lines:
        marker = _FENCE.match(line)
        if fence:
            if marker is not None and marker[1].startswith(fence) and not line.strip(" \t`~"):
                fence = ""
                outline.code.append("")
            else:
                outline.code.append(line)
        elif marker:
            fence = marker[1]
        elif found := _HEADING.match(line):
            outline.heading(len(found[1]), _without_targets(found[2] or "").strip())
        elif (found := _UNDERLINE.match(line)) and _is_paragraph(outline.lines):
            title = outline.lines.pop()
            outline.heading(1 if found[1][0] == "=" else 2, _without_targets(title).strip())
        else:
            outline.lines.append(_without_targets(line))
    return outline.sections()


def _without_front_matter(lines: list[str]) -> list[str]:
    if lines and lines[0].rstrip() == "---":
        ends = (index for index, line in enumerate(lines[1:], start=1) if line.rstrip() in ("---", "..."))
        return lines[next(ends, -1) + 1 :]
    return lines


def _is_paragraph(lines: list[str]) -> bool:
    """Whether an underline would make the line before it a heading: one line of plain text by itself."""
    is_alone = len(lines) == 1 or (len(lines) > 1 and not lines[-2].strip())
    return bool(lines) and is_alone and not _NO_PARAGRAPH.match(lines[-1])


def _without_targets(text: str) -> str:
    """Keep the words of a link and drop its address, which says nothing about the text."""
    return _LINK.sub(r"\1", text)


_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_UNREAD = frozenset({"script", "style", "noscript", "template", "svg", "nav", "select"})
_BLOCKS = frozenset(
    "address article aside blockquote body br dd details div dl dt fieldset figcaption figure footer form header "
    "hr li main ol p pre section summary table tbody tfoot thead tr ul".split()
)
_CELLS = frozenset({"td", "th"})


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.outline = _Outline()
        self._pieces: list[str] = []
        self._unread: list[str] = []
        self._heading: int | None = None
        self._in_title = False
        self._preformatted = 0
        self.title = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._unread or tag in _UNREAD:
            # Only the tag that opened the part can close it, counted for tags inside themselves.
            if not self._unread or tag == self._unread[0]:
                self._unread.append(tag)
        elif tag in _HEADINGS:
            self._flush()
            self._heading = _HEADINGS[tag]
        elif tag == "title" and not self.title:
            self._in_title = True
        elif tag in _CELLS:
            self._pieces.append(" | ")
        elif tag in _BLOCKS:
            self._flush()
            self._preformatted += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if self._unread:
            if tag == self._unread[0]:
                self._unread.pop()
        elif tag in _HEADINGS and self._heading is not None:
            self._close_heading()
        elif tag == "title":
            self._in_title = False
        elif tag in _BLOCKS:
            self._flush()
            self._preformatted -= tag == "pre" and self._preformatted > 0

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        elif not self._unread:
            self._pieces.append(data)

    def finish(self) -> None:
        self.close()
        if self._heading is not None:
            self._close_heading()
        self._flush()

    def _close_heading(self) -> None:
        title = " ".join("".join(self._pieces).split()).rstrip("¶").strip()
        self._pieces = []
        self.outline.heading(self._heading or 1, title)
        self._heading = None

    def _flush(self) -> None:
        """End a block of text; inside a heading, blocks are part of it."""
        if self._heading is not None:
            self._pieces.append(" ")
            return
        text = "".join(self._pieces)
        self._pieces = []
        if not text.strip():
            return
        if self._preformatted:
            self.outline.code += [text.strip("\n"), ""]
        else:
            self.outline.lines.append(" ".join(text.split()))


def from_html(text: str) -> list[Section]:
    """Split HTML at its headings; the page's title stands above text that has none."""
    reader = _Reader()
    reader.feed(text)
    reader.finish()
    title = " ".join(reader.title.split())
    return [
        section._replace(trail=(title,)) if title and not section.trail else section
        for section in reader.outline.sections()
    ]
