"""The check of published figures: its metric, its verdict, and the figures that the documentation quotes."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from benchmarks import contestants, driver, figures, limit, published, report, workloads
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


def test_the_page_holds_the_tables_of_the_results() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "speed.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert all(f"<!-- speed: {name} -->" in page for name in report.TABLES)
    assert report.with_tables(page, results) == page


def test_texts_have_the_length_in_tokens_that_is_counted(minilm: Path) -> None:
    tokenizer = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for name in ("ingest", "short", "long", "duplicates"):
        texts = workloads.texts(name, 20)
        assert workloads.tokens(texts) == [min(512, len(tokenizer.encode(text).ids)) for text in texts]
    ((query, documents),) = workloads.pairs(1)
    counted = workloads.tokens(documents, query)
    assert counted == [len(tokenizer.encode(query, document).ids) for document in documents]


def test_rounds_have_texts_of_their_own_and_duplicates_repeat_three_in_ten() -> None:
    assert workloads.texts("ingest", 5, 0) == workloads.texts("ingest", 5, 0)
    assert not set(workloads.texts("ingest", 50, 0)) & set(workloads.texts("ingest", 50, 1))
    assert len(set(workloads.texts("duplicates", 100))) == 70
    assert len(set(workloads.queries("concurrent", 640))) == 640


def test_a_figure_is_the_median_of_ratios_within_a_round() -> None:
    incumbent, ours = "langchain-huggingface", "langchain_bge, packed float32"
    seconds = [(4.0, 2.0), (9.0, 3.0), (100.0, 10.0)]
    rounds = [{incumbent: {"seconds": theirs}, ours: {"seconds": mine}} for theirs, mine in seconds]
    found = {each["name"]: each for each in figures.figures("ingest", rounds, {"FlashRank": "no"})}
    assert found[ours]["ratio"] == 3.0
    assert found[ours]["ratio_range"] == [2.0, 10.0]
    assert found[incumbent]["ratio"] == 1.0
    assert found["FlashRank"] == {"name": "FlashRank", "surface": "plain", "reason": "no"}


def test_the_share_of_the_limit_counts_real_tokens_at_the_rate_of_the_same_round() -> None:
    ours = "langchain_bge, packed float32"
    work = limit.flops(384, 100, 10_000)
    # Twelve layers: 24 width² per token for the products, 4 width per pair of tokens for attention.
    assert work == 12 * (24 * 384**2 * 100 + 4 * 384 * 10_000)
    assert limit.flops(384, 100, 10_000, pruned=True) < work
    values = {"seconds": work / 1e11, "tokens": 100, "squares": 10_000}
    rounds = [{ours: values, contestants.LIMIT: {"seconds": 1.0, "gflops": {"float32": 200.0}}}]
    (found, *_) = [each for each in figures.figures("ingest", rounds, {}) if each["name"] == ours]
    assert found["limit_share"] == pytest.approx(0.5)


def test_every_library_has_requirements_and_an_incumbent_runs_what_it_is_compared_in() -> None:
    folder = ROOT / "benchmarks" / "requirements"
    assert {file.stem for file in folder.glob("*.txt")} == set(contestants.LIBRARIES)
    for each in contestants.CONTESTANTS:
        for workload in each.runs:
            names = [other.name for other in contestants.choose(workload, [each.library])]
            assert each.name in names
            assert each.surface == "limit" or workload == "growth" or each.incumbent in names


STAND_IN = """
import json, sys, time
print(json.dumps({"versions": "stand-in 1"}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request["workload"] == "short":
        sys.exit(3)
    if request["workload"] == "long":
        time.sleep(60)
    print(json.dumps({"seconds": 1.0 + request["turn"]}), flush=True)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[driver.Run]:
    """A run whose only environment is a script that answers, dies (short) or hangs (long)."""
    interpreter = tmp_path / "venvs" / "fastembed" / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    (tmp_path / "stand_in.py").write_text(STAND_IN, encoding="utf-8")
    interpreter.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/stand_in.py"\n', encoding="utf-8")
    interpreter.chmod(0o755)
    run = driver.Run(venvs=tmp_path / "venvs", checkpoints=tmp_path, place=tmp_path, timeout_s=2)
    yield run
    run.close()


def rounds_of(run: driver.Run, workload: str, *, rounds: int = 2, resume: bool = False) -> list[dict[str, Any]]:
    taking_part = contestants.choose(workload, ["fastembed"])
    return driver.run_workload(run, workload, taking_part, rounds, 8, log=run.place / "log", resume=resume)


def test_a_contestant_that_dies_hangs_or_is_missing_is_recorded_with_the_reason(stand_in: driver.Run) -> None:
    assert "fastembed" in rounds_of(stand_in, "ingest")[0]["measurements"]
    assert stand_in.reasons["sentence-transformers"].startswith("no environment for sentence-transformers")
    rounds_of(stand_in, "short")
    assert stand_in.reasons["fastembed"] == "its process ended with status 3"
    rounds_of(stand_in, "long")
    assert stand_in.reasons["fastembed"] == "no answer within 2 s"


def test_a_resumed_run_keeps_whole_rounds_and_drops_a_line_that_was_cut_off(stand_in: driver.Run) -> None:
    first = rounds_of(stand_in, "ingest", rounds=1)
    with (stand_in.place / "log").open("a", encoding="utf-8") as file:
        file.write('{"workload": "ingest", "turn": 1, "meas')
    both = rounds_of(stand_in, "ingest", rounds=2, resume=True)
    assert [each["turn"] for each in both] == [0, 1]
    assert both[0] == first[0]
    assert rounds_of(stand_in, "ingest", rounds=2, resume=True) == both
    assert len(rounds_of(stand_in, "ingest", rounds=2)) == 2


def test_a_partial_run_replaces_its_own_workloads_only(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    for workload, entry in (("short", {"at": "1"}), ("ingest", {"at": "2"}), ("short", {"at": "3"})):
        driver.record(path, workload, entry)
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored["workloads"] == {"ingest": {"at": "2"}, "short": {"at": "3"}}
    path.write_text(json.dumps({**stored, "machine": {"processor": "another"}}), encoding="utf-8")
    driver.record(path, "ingest", {"at": "4"})
    assert json.loads(path.read_text(encoding="utf-8"))["workloads"] == {"ingest": {"at": "4"}}
