"""The demo answers three questions through both frameworks, on one set of weights."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

DEMO = ROOT / "examples" / "01_quickstart.py"
QUESTIONS = 3


@dataclass(frozen=True)
class Answer:
    """What one framework returned for one question: (score, retrieval score, passage) rows."""

    framework: str
    rows: list[tuple[str, str, str]]


def answers(output: str) -> list[Answer]:
    """Read the answers from what the demo prints, in order."""
    found: list[Answer] = []
    for line in output.splitlines():
        hit = re.fullmatch(r" {4}(-?[\d.]+) \(retrieval (-?[\d.]+)\) {2}\[(.+?)\] .*", line)
        if line.strip() in ("LangChain", "LlamaIndex"):
            found.append(Answer(line.strip(), []))
        elif hit:
            found[-1].rows.append((hit[1], hit[2], hit[3]))
    return found


def run_demo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", [str(DEMO), *arguments])
    monkeypatch.syspath_prepend(str(DEMO.parent))
    runpy.run_path(str(DEMO), run_name="__main__")
    return capsys.readouterr().out


def assert_complete(output: str) -> None:
    """Three questions, each with the same passages and scores from both frameworks."""
    assert output.count("Question: ") == QUESTIONS
    assert output.count("same passages from both: yes") == QUESTIONS
    found = answers(output)
    assert [answer.framework for answer in found] == ["LangChain", "LlamaIndex"] * QUESTIONS
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert len(first.rows) == 2
        assert [row[2] for row in first.rows] == [row[2] for row in second.rows]
        values = [[float(cell) for row in answer.rows for cell in row[:2]] for answer in (first, second)]
        assert values[0] == pytest.approx(values[1], abs=2e-4)


@pytest.fixture(scope="module")
def printed() -> str:
    """What the demo prints in a process of its own."""
    result = subprocess.run([sys.executable, str(DEMO)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_demo_runs_by_itself_on_one_set_of_weights(printed: str) -> None:
    assert_complete(printed)
    assert "embedding model: sentence-transformers/all-MiniLM-L6-v2" in printed
    assert "reranking: late interaction with sentence-transformers/all-MiniLM-L6-v2" in printed
    assert printed.rstrip().endswith("models loaded: 1")


def test_the_right_passages_come_first(printed: str) -> None:
    assert [answer.rows[0][2] for answer in answers(printed)[::2]] == [
        "instructions.md: Turn the query instruction off",
        "a12p00",
        "a17p03",
    ]


@pytest.mark.usefixtures("fresh_store")
@pytest.mark.slow
def test_a_changed_passage_changes_the_output_of_both_frameworks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, printed: str
) -> None:
    original = (DEMO.parent / "data" / "passages.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in original.splitlines()]
    changed = [{**row, "text": "A text about something else."} if row["id"] == "a12p00" else row for row in rows]
    lines = [json.dumps(row) for row in changed]
    (tmp_path / "passages.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.syspath_prepend(str(DEMO.parent))
    # The passages alone: the documentation's sections take longest and have no part in this.
    monkeypatch.setattr("corpus.read_documentation", dict)

    before, after = answers(printed), answers(run_demo(monkeypatch, capsys, "--data", str(tmp_path)))

    for oxygen in (2, 3):  # the second question, through LangChain and through LlamaIndex
        assert "a12p00" in [row[2] for row in before[oxygen].rows]
        assert "a12p00" not in [row[2] for row in after[oxygen].rows]


@pytest.mark.slow
@pytest.mark.usefixtures("hub_cache", "fresh_store")
def test_the_same_program_runs_bge_models_from_the_hub(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run_demo(monkeypatch, capsys, "--model", "BAAI/bge-small-en-v1.5", "--reranker", "BAAI/bge-reranker-base")
    assert output.count("same passages from both: yes") == QUESTIONS
    assert "reranking: cross encoder with BAAI/bge-reranker-base" in output
    assert output.rstrip().endswith("models loaded: 2")


@pytest.mark.usefixtures("hub_cache")
def test_a_model_that_cannot_be_had_ends_the_demo_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_demo(monkeypatch, capsys, "--model", "BAAI/bge-smal-en-v1.5")
    assert str(ended.value.code).startswith("Error: ")
    assert "Did you mean 'BAAI/bge-small-en-v1.5'" in str(ended.value.code)
