"""`bge eval` and `bge calibrate`."""

from __future__ import annotations

import json

import pytest

from tests.evaluation.conftest import write_lines

DOCUMENTS = {"heart": "The heart pumps blood.", "paris": "Paris is a city.", "bread": "Bread is baked from flour."}


@pytest.fixture
def asked(tmp_path):
    """Questions about three documents, as files."""
    corpus = tmp_path / "corpus.jsonl"
    write_lines(corpus, [{"_id": name, "text": text} for name, text in DOCUMENTS.items()])
    file = tmp_path / "asked.jsonl"
    rows = [("Which organ moves blood?", "heart"), ("Where is it urban?", "paris"), ("What is made of flour?", "bread")]
    write_lines(file, [{"query": query, "positives": [name]} for query, name in rows])
    return file, corpus


def test_json_names_metrics_queries_texts_identity_and_seconds_and_a_second_run_embeds_nothing(bge, asked, embedder):
    file, corpus = asked
    runs = [bge("eval", file, "--corpus", corpus, "--json") for _ in range(2)]
    first, second = (json.loads(run.stdout) for run in runs)
    assert first["metrics"].keys() >= {"nDCG@10", "R@100", "RR@10", "AP@100", "success@1"}
    assert (first["queries"], first["texts_embedded"], second["texts_embedded"]) == (3, 6, 0)
    assert first["identity"] == embedder.identity
    assert second["metrics"] == first["metrics"]
    assert first["seconds"] > 0


def test_a_table_and_a_report(bge, asked, tmp_path):
    file, corpus = asked
    result = bge("eval", file, "--corpus", corpus, "--out", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert "nDCG@10" in result.stdout
    assert "report: " in result.stdout
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000
    again = bge("eval", file, "--corpus", corpus, "--run", tmp_path / "report" / "runs" / "01.trec", "--json")
    assert json.loads(again.stdout)["metrics"]["R@100"] == 1


def test_a_comparison_says_what_to_take(bge, asked):
    file, corpus = asked
    result = bge("eval", file, "--corpus", corpus, "--compare", "bits=float32,binary")
    assert result.exit_code == 0, result.output
    assert "1 to 2" in result.stdout
    assert "\ntake: embeddings = BGEEmbeddings(" in result.stdout
    assert "Nothing here is significant" in result.stdout


def test_questions_are_made_and_answered_at_three_sizes_of_chunks(bge, library, tmp_path):
    made = bge("eval", "--make-questions", library, "--out", tmp_path / "q.jsonl")
    assert made.exit_code == 0, made.output
    assert "without a reader" in made.stdout
    result = bge("eval", tmp_path / "q.jsonl", "--corpus", library, "--compare", "chunk_tokens=16,32,whole", "--json")
    values = json.loads(result.stdout)
    assert [each["label"] for each in values["entries"]] == ["chunk_tokens=16", "chunk_tokens=32", "chunk_tokens=whole"]
    assert all(any("without a reader" in note for note in each["notes"]) for each in values["entries"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name the data"),
        (["none.jsonl"], "does not exist"),
        (["{file}", "--compare", "nonsense=1"], "AXIS=VALUE"),
        (["{file}", "--compare", "bits=int8", "--reranker", "x"], "as an axis"),
        (["{file}"], "has no documents"),
        (["--make-questions", "{folder}", "--out", "{folder}"], "is a folder"),
        (["{file}", "--corpus", "{folder}/corpus.jsonl", "--cache-dir", "/proc/none"], "cannot be made"),
    ],
    ids=str,
)
def test_a_wrong_use_is_one_line(bge, asked, tmp_path, arguments, message):
    told = [each.format(file=asked[0], folder=tmp_path) for each in arguments]
    result = bge("eval", *told)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_calibrator_is_written_with_its_thresholds_and_checked(bge, tmp_path, embedder):
    words = [f"{name} {number}" for name in ("lamp", "drum", "sofa", "clock") for number in range(8)]
    folder = tmp_path / "things"
    (folder / "qrels").mkdir(parents=True)
    write_lines(folder / "corpus.jsonl", [{"_id": word, "text": f"The {word} is here."} for word in words])
    write_lines(folder / "queries.jsonl", [{"_id": word, "text": f"Where is {word}?"} for word in words])
    for split in ("train", "test"):
        (folder / "qrels" / f"{split}.tsv").write_text("".join(f"{word}\t{word}\t1\n" for word in words))
    out = tmp_path / "calibrator.json"
    result = bge("calibrate", folder, "--split", "train", "--test-split", "test", "--candidates", 4, "--out", out)
    assert result.exit_code == 0, result.output
    assert "expected calibration error" in result.stdout
    values = json.loads(out.read_text())
    assert values["identity"] == embedder.identity
    weak = bge("calibrate", folder, "--split", "train", "--without-labels", "--out", out, "--json")
    assert json.loads(weak.stdout)["weak"] is True
