"""Formats are read by the libraries that know them: nothing visible is lost, and no input takes for ever."""

from __future__ import annotations

import json
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bge_runtime.search import documents
from bge_runtime.search.documents import KINDS, LIMITS, UnreadableFileError, read_sections
from bge_runtime.search.sections import MAX_NESTING, MAX_TITLE, Section, from_html, from_markdown
from tests.cli.documents_for_tests import pdf_with_pages

EXAMPLES = json.loads(
    (Path(__file__).parents[1] / "data" / "commonmark_examples.json").read_text(encoding="utf-8"),
)["examples"]


class VisibleText(HTMLParser):
    """The words that a page shows, and its headings, by another parser than the one that is tested."""

    def __init__(self, html):
        super().__init__()
        self.words, self.headings = [], []
        self._hidden, self._heading = 0, None
        self.feed(html)  # not closed: a tag that never ends is no text

    def handle_starttag(self, tag, attrs):
        self._hidden += tag in ("script", "style")
        if tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
            self._heading = ""
        self.handle_data(dict(attrs).get("alt") or "")

    def handle_endtag(self, tag):
        self._hidden -= tag in ("script", "style")
        if tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
            self.headings.append(words(self._heading))
            self._heading = None

    def handle_data(self, data):
        if not self._hidden:
            self.words += words(data)
            self._heading = None if self._heading is None else self._heading + data


def words(text):
    """Words without the marks that we set around code."""
    return text.replace("`", "").split()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example['section']} {example['example']}")
def test_no_visible_text_or_heading_of_the_commonmark_examples_is_lost(example):
    shown = VisibleText(example["html"])

    sections = from_markdown(example["markdown"])

    found = [word for trail, text, code in sections for word in words(" ".join((*trail, text, code)))]
    assert not Counter("".join(shown.words)) - Counter("".join(found))
    headings = [words(title) for section in sections for title in section.trail]
    assert all(heading in headings for heading in shown.headings)


def test_headings_of_the_commonmark_examples_stand_in_their_order():
    examples = [example for example in EXAMPLES if "headings" in example["section"]]
    text = "\n\n".join(f"{example['markdown']}\n\n# example {example['example']}" for example in examples)

    sections = from_markdown(text)

    marks = [section.trail[0] for section in sections if section.trail and section.trail[0].startswith("example ")]
    assert list(dict.fromkeys(marks)) == [f"example {example['example']}" for example in examples]


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("# A\n\n```pip install x```\n\n## B\n\nHearts.\n", [(("A",), "`pip install x`"), (("A", "B"), "Hearts.")]),
        ("# A\n\n<!--\n# hidden\n-->\n\nHearts.\n", [(("A",), "Hearts.")]),
        ("# A\n\nfirst\u2028# no heading\n", [(("A",), "first # no heading")]),
        ("See [w](https://e.org/Heart_(organ)) now\n", [((), "See w now")]),
        ("See [w][1] and [1]\n\n[1]: https://e.org 'title'\n", [((), "See w and 1")]),
        ("<h1 align='center'>\n\nTitle\n\n</h1>\n\ntext\n", [(("Title",), "text")]),
        ("# ![Logo](x.png) &copy; \\# `x`\n", [(("Logo © # `x`",), "")]),
        ("Use <script> or <title> here.\n\n# Next\n", [((), "Use <script> or <title> here."), (("Next",), "")]),
        ("| a | b |\n|---|---|\n| 1 | ~~2~~ |\n", [((), "| a | b |\n| 1 | 2 |")]),
        ("---\ntitle: x: y\n---\n# A\n", [(("A",), "")]),
        ("---\n\nText\n\n---\n\nmore\n", [((), "Text\n\nmore")]),
        ("---\r\na: b\r\n---\r\ntext\r\n", [((), "text")]),
        ("## Foo\n\n# Foo\n\ntext\n", [(("Foo",), ""), (("Foo",), "text")]),
        ("> " * (MAX_NESTING - 1) + "deep", [((), "deep")]),
        ("", []),
    ],
)
def test_markdown_is_read_by_the_rules_of_commonmark(text, sections):
    assert from_markdown(text) == [Section(trail, text) for trail, text in sections]


@pytest.mark.parametrize(
    ("page", "sections"),
    [
        ("<p>x<![if-x[y]]>", [((), "x")]),
        ("<h1>a<h2>b</h2>c", [(("a", "b"), "c")]),
        ("<div><nav>hidden</div><p>text", [((), "text")]),
        ("<svg><title>hidden</title></svg><title>Page</title>text", [(("Page",), "text")]),
        ("<pre>a<br>b<div>c</div></pre>", [((), "", "a\nb\nc")]),
        ("<div>" * 100_000 + "deep", [((), "deep")]),
        ("<h1>" + "a" * 10_000, [(("a" * MAX_TITLE,), "a" * 10_000)]),
        ("<div><template shadowrootmode=open>shown <slot></slot></template>light</div>", [((), "shown light")]),
    ],
)
def test_html_is_read_as_browsers_read_it(page, sections):
    assert from_html(page) == [Section(*section) for section in sections]


@pytest.mark.parametrize(
    ("declared", "text", "codec"),
    [
        ("gb2312", "朱镕基", "gbk"),
        ("utf-16", "heart", "utf-8"),
        ("latin1", "Preis 5 €", "cp1252"),
        ("x-sjis", "心臓", "shift_jis"),
        ("ks_c_5601-1987", "똠방각하", "cp949"),
        ("no-such-label", "Größe", "utf-8"),
    ],
)
def test_labels_of_encodings_mean_what_browsers_take_them_for(declared, text, codec):
    page = f'<meta charset="{declared}"><p>{text}</p>'
    longer = f"<!--{'x' * 3000}--><meta http-equiv=content-type content='text/html; charset={declared}'><p>{text}</p>"

    assert read_sections("html", page.encode(codec)) == [Section((), text)]
    assert read_sections("html", longer.encode(codec)) == [Section((), text)]


def test_a_page_that_declares_nothing_is_recognised_by_its_bytes():
    text = "这是一个没有声明编码的中文网页。"

    assert read_sections("html", f"<p>{text}</p>".encode("gbk")) == [Section((), text)]
    assert read_sections("html", "<p>Größe</p>".encode("cp1252")) == [Section((), "Größe")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("kind", ["markdown", "text", "html", "xhtml"])
def test_a_byte_order_mark_decides_before_anything_else(kind, encoding):
    (section,) = read_sections(kind, "Größe 气候".encode(encoding))

    assert section == Section((), "Größe 气候")


def test_what_xml_closes_at_once_hides_nothing():
    page = (
        '<html xmlns="http://www.w3.org/1999/xhtml"><head><title/><script src="x"/></head>'
        "<body><h1>A</h1><p>x<br/>y <![CDATA[<z>]]></p></body></html>"
    )

    assert read_sections("xhtml", page.encode()) == [Section(("A",), "x\ny <z>")]


def test_xhtml_that_is_no_xml_is_read_as_html():
    assert read_sections("xhtml", b"<h1>A</h1><p>x&nbsp;y<p>z") == [Section(("A",), "x y\n\nz")]


@pytest.mark.parametrize("kind", ["markdown", "text", "html", "xhtml"])
@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\0", b"text\0more"])
def test_binary_files_are_refused_whatever_their_name(kind, content):
    with pytest.raises(UnreadableFileError, match="not text"):
        read_sections(kind, content)


@pytest.mark.parametrize(
    ("kind", "content", "reason"),
    [
        ("html", b"<meta charset=iso-2022-kr>text", "encoding that is not supported"),
        ("markdown", b"> " * 1000 + b"deep", "nest 100 deep"),
        ("markdown", b"- " * 1000 + b"deep", "nest 100 deep"),
        ("pdf", b"%PDF-1.4\nnothing", "not readable as pdf"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(kind, content, reason):
    with pytest.raises(UnreadableFileError, match=reason):
        read_sections(kind, content)


def test_a_pdf_that_takes_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(documents, "PDF_LIMIT_S", -1.0)

    with pytest.raises(UnreadableFileError, match="first 1 pages took more than"):
        read_sections("pdf", pdf_with_pages("one", "two"))


REPEATED = {
    "markdown": ("[", "![", "[x][", "*a **a", "<", "<!--", "- a\n", "> a\n", "|", "`` a"),
    "html": ("<", "<div>", "<p><b>", "<table><td>", "<!--", "&", "<a b=", "<h1>", "<svg>"),
    "xhtml": ("<", "<a>", "<a b='"),
}


def seconds(kind, text):
    started = time.process_time()
    read_sections(kind, text.encode())
    return time.process_time() - started


@pytest.mark.parametrize(("kind", "part"), [(kind, part) for kind, parts in REPEATED.items() for part in parts])
def test_the_time_grows_with_the_size_and_no_faster(kind, part):
    small, large = (part * (count // len(part)) for count in (2_000, 16_000))

    # Quadratic time would be 64 times as much.
    assert seconds(kind, large) < 24 * min(seconds(kind, small) for _ in range(2)) + 0.25


def test_an_address_is_not_repeated_wherever_it_is_used():
    text = f"[a]: https://e.org/{'x' * 50_000}\n\n" + "[a] " * 5_000

    assert len(str(from_markdown(text))) < 20_000


def test_every_kind_of_file_has_a_limit():
    assert LIMITS.keys() == set(KINDS.values())
