"""Every example runs offline on the packaged weights, and what it prints is true."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints.hub_cache import Checkpoint, write_checkpoint
from tests.docs.pages import ROOT

# The stores' own packages warn about each other.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fresh_store: None) -> Callable[..., str]:
    """Run an example by the beginning of its name; return what it prints."""

    def start(name: str, *arguments: str) -> str:
        (file,) = (each for each in EXAMPLES if each.name.startswith(name))
        monkeypatch.setattr(sys, "argv", [str(file), *arguments])
        monkeypatch.syspath_prepend(str(file.parent))
        runpy.run_path(str(file), run_name="__main__")
        return capsys.readouterr().out

    return start


def test_each_example_is_short_and_tested_here() -> None:
    source = (ROOT / "tests" / "docs" / "test_examples.py").read_text(encoding="utf-8")
    for file in EXAMPLES:
        assert len(file.read_text(encoding="utf-8").splitlines()) < 80, file.name
        if not file.name.startswith("01"):  # test_demo.py
            assert f'run("{file.name[:2]}"' in source, file.name


def test_the_chain_cites_the_passage_that_it_was_given(run: Callable[..., str]) -> None:
    printed = run("02")
    assert "(a fake model's)" in printed
    assert re.search(r"^\[1\] a12p00, relevance 0\.\d+: Oxygen was discovered independently", printed, re.MULTILINE)


def test_the_agent_calls_the_tool_and_gets_the_right_passage_first(run: Callable[..., str]) -> None:
    lines = run("03").splitlines()
    assert lines[0].startswith("human: ")
    assert lines[1] == "ai calls search_encyclopedia('Why are fossils of comb jellies so rare?')  (scripted)"
    assert re.match(r"tool: a17p03 \(0\.\d+\), a17p01 \(0\.\d+\)", lines[2])
    assert lines[3].endswith("(scripted)")


def test_the_query_engine_shows_both_scores(run: Callable[..., str]) -> None:
    printed = run("04")
    rows = re.findall(r"^(0\.\d+) \(retrieval (-?0\.\d+)\)  \[(\w+)\]", printed, re.MULTILINE)
    assert len(rows) == 3
    assert rows[0][2] == "a12p00"
    assert [float(row[0]) for row in rows] == sorted((float(row[0]) for row in rows), reverse=True)
    assert "a mock model was given" in printed


def test_the_chat_engine_looks_up_every_message(run: Callable[..., str]) -> None:
    printed = run("05")
    assert re.findall(r"^  \d\.\d+  \[(\w+)\]", printed, re.MULTILINE)[::2] == ["a12p00", "a17p03"]
    assert "messages in the conversation: 4" in printed


@pytest.mark.slow
def test_the_ingestion_computes_nothing_twice(run: Callable[..., str]) -> None:
    printed = run("06").splitlines()
    assert printed == [
        "2 workers: 32 chunks, 32 vectors stored",
        "again: 0 computed, same vectors: yes",
        "one passage changed: 1 computed",
    ]


def test_hybrid_retrieval_finds_by_words_and_by_meaning(run: Callable[..., str]) -> None:
    first, second = run("07").split("question: ")[1:]
    assert re.findall(r"hybrid: .*\[(\w+)\]", first)[0] == "a39p02"
    assert re.findall(r"hybrid: .*\[(\w+)\]", second)[0] == "a17p03"


def test_faiss_refuses_another_model(run: Callable[..., str]) -> None:
    printed = run("08")
    assert "saved: ['bge-index.json', 'index.faiss', 'index.pkl']" in printed
    assert re.search(r"^0\.\d+  \[a12p00\]", printed, re.MULTILINE)
    assert "refused: They differ in: dimension 384 there, 128 here" in printed
    assert "another query instruction: accepted" in printed


@pytest.mark.slow
def test_chroma_filters_and_computes_no_document_again(run: Callable[..., str]) -> None:
    printed = run("09")
    assert "[instructions.md: Turn the query instruction off]" in printed
    assert re.search(r"^encyclopedia: 20 candidates", printed, re.MULTILINE)
    computed = int(re.findall(r"computed after reopening: (\d+) queries", printed)[0])
    assert computed == 2 + 2 * (1 + 20)  # each question embedded, then read with its 20 candidates


@pytest.mark.slow
def test_qdrant_filters_and_deletes(run: Callable[..., str]) -> None:
    printed = run("10")
    assert re.search(r"^encyclopedia: 0\.\d+ \[a12p00\]", printed, re.MULTILINE)
    assert re.search(r"^after deleting the encyclopedia: \[\w+\.md: ", printed, re.MULTILINE)


def test_both_frameworks_share_weights_and_vectors(run: Callable[..., str]) -> None:
    printed = run("11")
    assert "LangChain:  33 texts computed" in printed
    assert "LlamaIndex: 0 texts computed" in printed
    assert "models loaded: 1; same answer: yes" in printed


def test_hybrid_search_needs_one_forward_pass_per_text_in_both_frameworks(
    run: Callable[..., str], tmp_path: Path
) -> None:
    small = Checkpoint(
        name="BAAI/bge-m3", family="xlmr", hidden=64, seed=71, positions=8194, pickled=True, m3_heads=True
    )
    printed = run("12", "--model", str(write_checkpoint(tmp_path / "bge-m3", small)))
    assert printed.count("32 forward passes for dense and sparse vectors of 32 texts") == 2
    first, second = re.findall(r"((?:  \d\.\d+  \[\w+\]\n){3})", printed)
    assert re.findall(r"\[\w+\]", first) == re.findall(r"\[\w+\]", second)
    assert "models loaded: 1" in printed
