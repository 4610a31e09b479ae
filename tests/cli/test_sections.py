"""Markdown and HTML are split at their headings."""

from __future__ import annotations

import textwrap

import pytest

from bge_runtime.search.documents import UnreadableFileError, read_sections
from bge_runtime.search.sections import Section, from_html, from_markdown


def markdown(text):
    return from_markdown(textwrap.dedent(text).strip("\n"))


def test_each_section_knows_the_headings_above_it():
    sections = markdown(
        """
        before

        # Book
        opening
        ## First ##
        one
        ### Detail
        two
        ## Second
        three
        """
    )

    assert sections == [
        Section((), "before"),
        Section(("Book",), "opening"),
        Section(("Book", "First"), "one"),
        Section(("Book", "First", "Detail"), "two"),
        Section(("Book", "Second"), "three"),
    ]


def test_a_heading_over_deeper_headings_is_no_section_of_its_own_but_an_empty_leaf_is():
    assert markdown("# Book\n## Empty\n## Full\ntext") == [
        Section(("Book", "Empty"), ""),
        Section(("Book", "Full"), "text"),
    ]


def test_a_skipped_level_ends_with_the_next_heading_above_it():
    trails = [section.trail for section in markdown("# A\n### B\nx\n## C\ny")]

    assert trails == [("A", "B"), ("A", "C")]


def test_code_is_kept_apart_and_its_comments_are_no_headings():
    (section,) = markdown("# A\nbefore\n```python\n# no heading\nx = 1\n```\nafter\n~~~~\n```\n~~~\n~~~~")

    assert section.trail == ("A",)
    assert section.text == "before\n\nafter"
    assert section.code == "# no heading\nx = 1\n\n```\n~~~"


def test_code_that_is_never_closed_reaches_to_the_end():
    (section,) = markdown("# A\n```\n# no heading")

    assert section == Section(("A",), "", "# no heading")


def test_underlined_headings():
    sections = markdown("Book\n====\none\n\nPart\n---\ntwo\n\n- item\n---\nthree")

    assert sections == [
        Section(("Book",), "one"),
        Section(("Book", "Part"), "two\n\nitem\n\nthree"),
    ]


def test_front_matter_is_not_read():
    assert markdown("---\ntitle: x\n---\n# A\ntext") == [Section(("A",), "text")]


@pytest.mark.parametrize("line", ["#hashtag", "####### seven", "    # indented"])
def test_what_only_looks_like_a_heading_is_text(line):
    assert from_markdown(f"start\n{line}") == [Section((), f"start {line.strip()}")]


def test_links_keep_their_words_only():
    assert markdown("# See [it](x.md)\nA [page](https://example.org/a_b) here") == [Section(("See it",), "A page here")]


def test_html_has_headings_text_and_code():
    sections = from_html(
        "<title>Page</title><p>intro</p><h1>Top <em>one</em></h1><div>a &amp; b<br>c</div>"
        "<pre>x = 1\n  y</pre><h2>Sub<a href='#'>¶</a></h2><table><tr><td>1</td><td>2</td></tr></table>"
    )

    assert sections == [
        Section(("Page",), "intro"),
        Section(("Top one",), "a & b\nc", "x = 1\n  y"),
        Section(("Top one", "Sub"), "| 1 | 2 |"),
    ]


@pytest.mark.parametrize("tag", ["script", "style", "nav", "template"])
def test_html_that_nobody_reads_is_left_out(tag):
    assert from_html(f"<p>a</p><{tag}>hidden <p>text</p></{tag}><p>b</p>") == [Section((), "a\n\nb")]


def test_html_that_ends_early_keeps_what_is_there():
    assert from_html("<h1>Title</h1><p>text <b>bold") == [Section(("Title",), "text bold")]


def test_html_in_its_declared_encoding():
    content = '<meta charset="iso-8859-1"><p>Größe</p>'.encode("latin-1")

    assert read_sections("html", content) == [Section((), "Größe")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_with_a_byte_order_mark(encoding):
    assert read_sections("text", "Größe 气候".encode(encoding)) == [Section((), "Größe 气候")]


@pytest.mark.parametrize("content", [b"\x89PNG\xff\xfe", b"text\x00more", "Größe".encode("latin-1")])
def test_what_is_not_text_is_refused(content):
    with pytest.raises(UnreadableFileError, match="not text"):
        read_sections("text", content)
