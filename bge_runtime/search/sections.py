"""Markdown and HTML to sections: a trail of headings, and the prose and the code below the last of them.

The formats are read by the libraries that know them. Markdown is rendered to HTML first, because it may hold any of
it, so that both are read from the tree that a browser would build.
"""

from __future__ import annotations

import io
from itertools import islice
from typing import NamedTuple

import turbohtml
import yaml
from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore

from bge_runtime import InputError

__all__ = ["Section", "UnreadableFileError", "from_html", "from_markdown", "from_xhtml"]

# Blocks inside blocks, where a list counts twice; and brackets inside brackets, whose time grows with it.
MAX_NESTING = 100
MAX_INLINE_NESTING = 20
# Every section repeats the headings above it. What is longer is no heading, and is text as well.
MAX_TITLE = 300
# Characters of front matter that show what it is.
MAX_YAML = 10_000


class UnreadableFileError(InputError):
    """A file cannot be searched; the message is the reason."""


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
        self._close(is_parent=bool(self._open) and self._open[-1][0] < level)
        self._open = [*(each for each in self._open if each[0] < level), (level, title[:MAX_TITLE])]
        if len(title) > MAX_TITLE:
            self.lines.append(title)

    def sections(self) -> list[Section]:
        self._close(is_parent=False)
        return self._sections

    def _close(self, *, is_parent: bool) -> None:
        """End the section; a heading with nothing below it but deeper ones is none, since they name it anyway."""
        text = "\n".join(self.lines).strip()
        code = "\n".join(self.code).strip()
        if text or code or (self._open and not is_parent):
            self._sections.append(Section(tuple(title for _, title in self._open), text, code))
        self.lines, self.code = [], []


_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_UNREAD = frozenset("datalist iframe nav noembed noframes noscript script select style svg template".split())
_BLOCKS = frozenset(
    "address article aside blockquote body br caption center dd details dialog dir div dl dt fieldset figcaption "
    "figure footer form header hr legend li listing main menu ol p plaintext pre search section summary table tbody "
    "tfoot thead tr ul xmp".split()
)
_PARAGRAPHS = frozenset({"blockquote", "dl", "figure", "ol", "p", "pre", "table", "ul"})
_CELLS = frozenset({"td", "th"})
# Named in a sentence of Markdown, such a tag would take in all that follows; GitHub shows it as text, too.
_SWALLOWING = _UNREAD | {"plaintext", "textarea", "title", "xmp"}


_CONTAINERS = frozenset({"blockquote_open", "list_item_open"})


class _Reader:
    """Takes a page's visible text into an outline."""

    def __init__(self) -> None:
        self.outline = _Outline()
        self.title = ""
        self._pieces: list[str] = []
        self._heading: int | None = None
        self._preformatted = 0

    def read(self, page: turbohtml.Node) -> None:
        # A stack of our own: a page may nest deeper than Python's. A string is the end of the element of that tag.
        waiting: list[turbohtml.Node | str] = [page]
        while waiting:
            node = waiting.pop()
            if isinstance(node, str):
                self._end(node)
            elif isinstance(node, turbohtml.Text | turbohtml.CData):
                self._pieces.append(node.data)
            elif not isinstance(node, turbohtml.Element):
                waiting.extend(reversed(node.children))
            elif node.tag == "title":
                self.title = self.title or _one_line(node.text)
            elif node.tag not in _UNREAD:
                self._begin(node)
                waiting.append(node.tag)
                waiting.extend(reversed(node.flattened_children))
        self._flush()

    def _begin(self, element: turbohtml.Element) -> None:
        tag = element.tag
        if tag in _HEADINGS:
            self._flush()
            self._heading = _HEADINGS[tag]
        elif tag in _CELLS:
            self._pieces.append(" | ")
        elif tag == "code" and not self._preformatted:
            self._pieces.append("`")  # as it is written in text: models tell names from words by it
        elif tag == "img":
            self._pieces.append(str(element.attrs.get("alt") or ""))
        elif tag == "br" and self._preformatted:
            self._pieces.append("\n")
        elif tag in _BLOCKS:
            self._break(tag)
            self._preformatted += tag == "pre"

    def _end(self, tag: str) -> None:
        if tag in _HEADINGS:
            self._flush()
        elif tag == "code" and not self._preformatted:
            self._pieces.append("`")
        elif tag in _BLOCKS:
            if tag == "tr":
                self._pieces.append(" |")
            self._break(tag)
            self._preformatted -= tag == "pre"

    def _break(self, tag: str) -> None:
        """End a line; inside headings and code, lines are part of them."""
        if self._heading is not None:
            self._pieces.append(" ")
        elif self._preformatted and tag != "pre":
            if not "".join(self._pieces[-1:]).endswith("\n"):
                self._pieces.append("\n")
        else:
            self._flush()
            if tag in _PARAGRAPHS and self.outline.lines[-1:] not in ([], [""]):
                self.outline.lines.append("")

    def _flush(self) -> None:
        """Hand on what has been gathered: a heading, code, or a line of prose."""
        text = "".join(self._pieces)
        self._pieces = []
        if self._heading is not None:
            self.outline.heading(self._heading, _one_line(text).rstrip("¶").strip())
            self._heading = None
        elif self._preformatted and text.strip():
            self.outline.code += [text.strip("\n"), ""]
        elif text.strip().strip("| "):  # a row whose cells hold blocks leaves its bars behind
            self.outline.lines.append(_one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def from_html(markup: str | bytes) -> list[Section]:
    """Split HTML at its headings; the page's title stands above text that has none.

    Args:
        markup: The page. Bytes are decoded as browsers do: by a byte order mark, what the page declares, or the looks
            of its bytes.

    Raises:
        UnreadableFileError: It declares an encoding that no browser reads.
    """
    page = turbohtml.parse(markup, detect_encoding=True, positions=False)
    if page.encoding == "replacement":
        raise UnreadableFileError("it declares an encoding that is not supported")
    return _sections(page)


def from_xhtml(markup: str) -> list[Section]:
    """Split a page at its headings that is written in XML, or in HTML all the same."""
    try:
        return _sections(turbohtml.parse_xml(markup))
    except turbohtml.HTMLParseError:
        return from_html(markup)


def _sections(page: turbohtml.Document) -> list[Section]:
    reader = _Reader()
    reader.read(page)
    return [
        section._replace(trail=(reader.title[:MAX_TITLE],)) if reader.title and not section.trail else section
        for section in reader.outline.sections()
    ]


def from_markdown(text: str) -> list[Section]:
    """Split Markdown, with the tables and strikethroughs of GitHub, at its headings; YAML front matter is not read.

    Raises:
        UnreadableFileError: Its blocks nest too deeply.
    """
    parser = MarkdownIt("commonmark", {"maxNesting": MAX_NESTING}).enable(["table", "strikethrough"])
    parser.core.ruler.after("block", "nesting", _check_nesting)
    parser.core.ruler.push("visible", _keep_what_is_visible)
    return from_html(parser.render(_without_front_matter(text)))


def _without_front_matter(text: str) -> str:
    """Drop YAML with names and values between lines of `---` at the very start."""
    first, *lines = io.StringIO(text, newline=None).readlines() or [""]
    ends = (number for number, line in enumerate(lines) if line.rstrip() in ("---", "..."))
    end = next(ends, 0) if first.rstrip() == "---" else 0
    return "".join(lines[end + 1 :]) if _is_mapping("".join(lines[:end])) else text


def _is_mapping(text: str) -> bool:
    """Whether text is YAML with names and values, and no paragraph between two rules."""
    try:
        return any(isinstance(event, yaml.MappingStartEvent) for event in islice(yaml.parse(text[:MAX_YAML]), 3))
    except yaml.YAMLError:
        return False


def _check_nesting(state: StateCore) -> None:
    """Refuse what the parser has left out without a word: what stands in blocks that nest deeper."""
    if any(token.level >= MAX_NESTING - 1 and token.type in _CONTAINERS for token in state.tokens):
        raise UnreadableFileError(f"its blocks nest {MAX_NESTING} deep")
    state.md.options["maxNesting"] = MAX_INLINE_NESTING


def _keep_what_is_visible(state: StateCore) -> None:
    """Drop addresses, which a short text can repeat at any length; show tags that would hide what follows them."""
    for token in state.tokens:
        for child in token.children or ():
            child.attrs = {}
            if child.type == "html_inline" and _swallows(child.content):
                child.type = "text"


def _swallows(tag: str) -> bool:
    return any(element.tag in _SWALLOWING for element in turbohtml.parse_fragment(tag).iter_elements())
