"""Chunks fit the model, counted in its own tokens, and nothing is lost."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bge_runtime import ConfigurationError, Embedder
from bge_runtime.search.documents import find_files, read_sections
from bge_runtime.search.sections import Section
from bge_runtime.search.splitting import Splitter, readable

DOCS = Path(__file__).parents[2] / "docs"
SENTENCE = "Retrieval compares one vector per query with one vector per document. "
TEXTS = {
    "prose": SENTENCE * 60,
    "paragraphs": f"{SENTENCE * 4}\n\n" * 12,
    "one word": "Donaudampfschifffahrt" * 400,
    "base64": "QUJD/+09" * 3000,
    "chinese": "向量检索把每个查询与每篇文档比较。" * 80,
    "identifiers": "HuggingFaceBgeEmbeddings max_position_embeddings loadIndexFromStorage " * 60,
    "symbols": "|---|" * 500,
    "emoji": "🧑‍🚀🎉" * 300,
    "spaces": "a" + " \n" * 3000 + "b",
}


@pytest.fixture(scope="module", params=["minilm", "xlm-roberta"])
def splitter(request, embedder, hub_cache):
    """Splitters of a word-piece and of a sentence-piece model."""
    model = embedder if request.param == "minilm" else Embedder("BAAI/bge-m3")
    return Splitter(model)


def covered(text, bodies):
    """Whether the bodies, in order, leave out nothing of `text` but white space."""
    position = 0
    for body in bodies:
        gap = len(text[position:]) - len(text[position:].lstrip())
        start = text.rfind(body, 0, position + gap + len(body))
        if start < 0:
            return False
        position = max(position, start + len(body))
    return not text[position:].strip()


@pytest.mark.parametrize("name", TEXTS)
def test_no_chunk_is_longer_than_the_limit_with_its_headings(splitter, name):
    trail = ("A manual", "The SentenceTransformerRerank class")

    chunks = list(splitter.split([Section(trail, TEXTS[name])]))

    lengths = splitter.embedder.count_tokens([chunk.text for chunk in chunks])
    assert max(lengths) <= splitter.limit <= splitter.embedder.max_length
    assert all(chunk.text.startswith(readable(" > ".join(trail))) for chunk in chunks)


@pytest.mark.parametrize("name", ["prose", "paragraphs", "one word", "chinese", "identifiers", "spaces"])
def test_a_long_text_becomes_several_chunks_that_hold_all_of_it(splitter, name):
    # Numbered, so that each place in the text is distinct.
    text = "".join(f"{start}{TEXTS[name][start : start + 30]}" for start in range(0, len(TEXTS[name]), 30))

    bodies = [chunk.body for chunk in splitter.split([Section((), text)])]

    assert len(bodies) > 1
    assert covered(text, bodies)


def test_neighbouring_chunks_share_a_little(embedder):
    text = " ".join(f"Sentence number {number} says something." for number in range(120))

    bodies = [chunk.body for chunk in Splitter(embedder).split([Section((), text)])]

    for before, after in pairwise(bodies):
        assert any(before.endswith(after[:size]) for size in range(10, 150))


def test_chunks_end_at_sentences_where_there_are_some(embedder):
    chunks = list(Splitter(embedder).split([Section((), TEXTS["prose"])]))

    assert all(chunk.body.endswith(".") for chunk in chunks)


def test_a_text_a_little_too_long_is_halved(embedder):
    text = " ".join(f"word{number}" for number in range(80))
    splitter = Splitter(embedder, 150)

    sizes = splitter.embedder.count_tokens([chunk.body for chunk in splitter.split([Section((), text)])])

    assert len(sizes) == 2
    assert min(sizes) > max(sizes) / 2


def test_prose_and_code_are_chunks_of_their_own(embedder):
    chunks = list(Splitter(embedder).split([Section(("T",), "some prose", "x = 1")]))

    assert [chunk.body for chunk in chunks] == ["some prose", "x = 1"]
    assert {chunk.trail for chunk in chunks} == {("T",)}


def test_an_empty_section_is_found_by_its_heading(embedder):
    (chunk,) = Splitter(embedder).split([Section(("Book", "Appendix"), "")])

    assert (chunk.text, chunk.body) == ("Book > Appendix", "")


def test_a_long_trail_leaves_half_the_room(embedder):
    trail = tuple(f"Chapter {number} with quite a long title" for number in range(60))

    chunks = list(Splitter(embedder).split([Section(trail, SENTENCE * 20)]))

    assert max(embedder.count_tokens([chunk.text for chunk in chunks])) <= 200
    assert all(chunk.trail == trail for chunk in chunks)
    assert all("Chapter 59" in chunk.heading and "Chapter 0 " not in chunk.heading for chunk in chunks)


def test_a_document_instruction_takes_its_share(minilm):
    plain = Splitter(Embedder(minilm, max_length=64))
    instructed = Splitter(Embedder(minilm, max_length=64, document_instruction="one two three four "))

    assert (plain.limit, instructed.limit) == (64, 60)


@pytest.mark.parametrize("size", [0, 15, 257])
def test_sizes_that_the_model_cannot_read_are_refused(embedder, size):
    with pytest.raises(ConfigurationError, match="Use 16 to 256"):
        Splitter(embedder, size)


def test_every_chunk_of_the_documentation_fits(embedder):
    splitter = Splitter(embedder)
    sections = [section for file in find_files(DOCS) for section in read_sections(file.kind, file.read())]

    texts = [chunk.text for chunk in splitter.split(sections)]

    assert len(texts) >= len(sections)
    assert max(embedder.count_tokens(texts)) <= splitter.limit


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=400), size=st.integers(16, 40))
def test_any_text_is_split_without_loss(embedder, text, size):
    splitter = Splitter(embedder, size)

    chunks = list(splitter.split([Section(("Title",), text)]))

    assert covered(text, [chunk.body for chunk in chunks])
    assert all(length <= size for length in embedder.count_tokens([chunk.text for chunk in chunks]))
