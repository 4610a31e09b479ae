"""The check of published figures: its metric, its verdict, and the figures that the documentation quotes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks import published
from tests.docs.pages import ROOT, sections

DOCUMENTS = {
    "heart": "The heart pumps blood through the body.",
    "paris": "Paris is the capital of France.",
    "rain": "Clouds of water vapour bring rain.",
    "prime": "A prime number has no divisors but one and itself.",
}
QUERIES = {"q1": ("Which organ moves blood?", "heart"), "q2": ("What is the capital of France?", "paris")}


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """A folder with one small collection in the BEIR layout, "mini"."""
    folder = tmp_path / "mini"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": name, "title": "", "text": text} for name, text in DOCUMENTS.items()]
    queries = [{"_id": name, "text": text} for name, (text, _) in QUERIES.items()]
    for file, rows in (("corpus.jsonl", corpus), ("queries.jsonl", queries)):
        (folder / file).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    judged = "".join(f"{query}\t{document}\t1\n" for query, (_, document) in QUERIES.items())
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", encoding="utf-8")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, data: Path, expected: float, *arguments: str) -> int:
    target = published.Target(name="mini", published=expected, late_interaction=0.9)
    monkeypatch.setattr(published, "TARGETS", (target,))
    return published.main(["--data", str(data), "--results", str(data / "results"), *arguments])


def test_the_metric_is_that_of_trec_eval() -> None:
    import pytrec_eval

    dice = random.Random(0)
    names = [f"d{number}" for number in range(40)]
    judgements = {f"q{at}": {name: dice.randrange(3) for name in dice.sample(names, 12)} for at in range(20)}
    judgements = {query: {**grades, "d0": 1} for query, grades in judgements.items()}
    # Few distinct scores: ties are the difficult part.
    ranking = {query: [(name, dice.randrange(8) / 8) for name in names] for query in judgements}
    expected = pytrec_eval.RelevanceEvaluator(judgements, {"ndcg_cut.10"}).evaluate(
        {query: dict(hits) for query, hits in ranking.items()}
    )
    mean = sum(row["ndcg_cut_10"] for row in expected.values()) / len(expected)
    assert published.ndcg_at_10(ranking, judgements) == pytest.approx(mean, abs=1e-12)


def test_a_figure_that_is_off_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, collection, 1.0) == 0
    assert run(monkeypatch, collection, 0.5) == 1
    assert "mini: langchain gives 1.0, published is 0.5" in capsys.readouterr().err


def test_a_finished_collection_is_not_computed_again(
    monkeypatch: pytest.MonkeyPatch, collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, collection, 1.0)
    assert "in published.json already" not in capsys.readouterr().out
    run(monkeypatch, collection, 1.0)
    assert "in published.json already" in capsys.readouterr().out
    run(monkeypatch, collection, 1.0, "--fresh")
    assert "in published.json already" not in capsys.readouterr().out


def test_a_missing_collection_says_what_is_expected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"mini\.tar\.gz or mini/"):
        run(monkeypatch, tmp_path, 1.0)


def test_the_documentation_quotes_the_measured_figures() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "published.json").read_text(encoding="utf-8"))
    table = sections(ROOT / "docs" / "benchmarks.md")["Measured nDCG@10"]
    assert set(results) == {target.name for target in published.TARGETS}
    for target in published.TARGETS:
        figures = results[target.name]["ndcg_at_10"]
        assert list(published.problems(target, results[target.name])) == []
        late = f"{figures['late_interaction']:.4f}" if "late_interaction" in figures else "-"
        cells = [f"{target.published:.4f}", f"{figures['langchain']:.4f}", f"{figures['llamaindex']:.4f}", late]
        assert f"| {target.name} | {' | '.join(cells)} |" in table
