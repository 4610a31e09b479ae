"""Questions over this repository's own documentation, each with the section that answers it.

`questions.json` was written before anything was measured and stays as it is. `tuning_questions.json` is what
chunks and ranking were chosen on.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bge_runtime import DEFAULT_OFFLINE_MODEL, Embedder, Reranker
from bge_runtime.search import search_folder

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
ASKED = json.loads((HERE / "questions.json").read_text(encoding="utf-8"))
TUNING = json.loads((HERE / "tuning_questions.json").read_text(encoding="utf-8"))


class RememberingEmbedder(Embedder):
    """Computes the token vectors of a text once, since every question is compared with the same chunks."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.known = {}

    def encode_tokens(self, texts, *, role="document"):
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        self.known.update(zip(new, super().encode_tokens(new, role=role), strict=True))
        return [self.known[text] for text in texts]


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    """A cache folder of the module's: whoever asks first makes the index of the documentation."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def misses(minilm, shared_cache):
    """Return the questions whose section does not come first."""
    embedder = RememberingEmbedder(DEFAULT_OFFLINE_MODEL)
    reranker = Reranker(embedder)

    def ask(questions):
        missed = {}
        for each in questions:
            result = search_folder(
                DOCS, each["question"], embedder=embedder, reranker=reranker, cache_folder=shared_cache, k=1
            )
            if (result.hits[0].file, result.hits[0].heading[-1]) != (each["file"], each["heading"]):
                missed[each["question"]] = (result.hits[0].file, result.hits[0].heading[-1])
        return missed

    yield ask
    embedder.close()


@pytest.mark.parametrize("each", [ASKED["asked"], *ASKED["questions"], *TUNING], ids=lambda each: each["question"])
def test_the_expected_section_exists(each):
    lines = (DOCS / each["file"]).read_text(encoding="utf-8").splitlines()

    assert f"## {each['heading']}" in lines


@pytest.mark.slow
def test_the_instruction_question_finds_its_section_first(bge, embedder, shared_cache, monkeypatch):
    monkeypatch.setenv("BGE_CACHE_DIR", str(shared_cache))
    first = bge("search", DOCS, ASKED["asked"]["question"])
    second = bge("search", DOCS, ASKED["asked"]["question"])

    best, headings = first.stdout.splitlines()[:2]
    assert best.startswith(f"1. {ASKED['asked']['file']} ")
    assert headings.endswith(f" > {ASKED['asked']['heading']}")
    assert "embedded 0 of" in second.stderr
    assert second.stdout == first.stdout


@pytest.mark.slow
def test_eight_of_ten_questions_find_their_section_first(misses):
    missed = misses(ASKED["questions"])

    assert len(ASKED["questions"]) == 10
    assert len(missed) <= 2, missed


@pytest.mark.slow
def test_the_tuning_questions_do_not_get_worse(misses):
    missed = misses(TUNING)

    assert np.mean([each["question"] not in missed for each in TUNING]) >= 0.6, missed
