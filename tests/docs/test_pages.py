"""The pages hang together: headings, links, sections that a newcomer's search can find."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, anchor, headings, links, page_name, prose, sections

DOCS = [page for page in PAGES if page.parent.name == "docs"]
every_page = pytest.mark.parametrize("page", PAGES, ids=page_name)


@every_page
def test_a_page_has_one_title_and_no_heading_twice(page: Path) -> None:
    found = headings(page)
    assert [level for level, _ in found].count(1) == 1
    assert found[0][0] == 1
    assert [text for text, count in Counter(text for _, text in found).items() if count > 1] == []


@every_page
def test_links_lead_to_pages_and_headings_that_exist(page: Path) -> None:
    broken = []
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (fragment and fragment not in {anchor(text) for _, text in headings(target)}):
            broken.append(link)
    assert broken == []


def test_the_index_and_the_readme_link_every_page() -> None:
    expected = {page.name for page in DOCS} - {"index.md"}
    assert {link for link in links(ROOT / "docs" / "index.md") if "/" not in link} == expected
    assert {Path(link).name for link in links(ROOT / "README.md") if link.startswith("docs/")} == expected


@pytest.mark.parametrize("page", [page for page in DOCS if page.name != "index.md"], ids=page_name)
def test_a_section_is_short_enough_to_be_found_and_long_enough_to_answer(page: Path) -> None:
    lengths = {heading: len(text.split()) for heading, text in sections(page).items()}
    limits = {heading: 450 if "|---|" in sections(page)[heading] else 220 for heading in lengths}
    off = {heading: count for heading, count in lengths.items() if not 20 <= count <= limits[heading]}
    assert off == {}


def test_headings_are_unique_over_all_pages() -> None:
    counts = Counter(heading for page in DOCS for heading in sections(page))
    assert [heading for heading, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("page", [ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md"], ids=page_name)
def test_every_file_that_a_page_on_the_code_names_exists(page: Path) -> None:
    named = set(re.findall(r"`((?:bge_runtime|langchain_bge|llamaindex_bge|tests|benchmarks)/[\w./]*)`", prose(page)))
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []
