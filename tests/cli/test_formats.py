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
