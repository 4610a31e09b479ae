"""`bge data check`, `bge mine`, `bge train` and `bge mix`: what they print, and how they end."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from bge_runtime import Embedder
from bge_runtime.cli import app
from tests.training.toys import toy_data

MODEL = "BAAI/bge-small-en-v1.5"


@pytest.fixture
def train(hub_cache, tmp_path):
    """Return a function that runs a command in a folder with toy data."""
    data = toy_data(negatives=2)
    data.write(tmp_path / "train.jsonl")
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in data.documents.items())
    )

    (tmp_path / "guard.json").write_text(json.dumps(GUARD))

    def run(*arguments):
        given = [str(tmp_path / each[1:]) if each.startswith("@") else each for each in arguments]
        return CliRunner().invoke(app, given)

    return run


# Few, since the questions of the package take longer than the training.
GUARD = {
    "queries": {"q1": "what is bread made of", "q2": "is snow cold"},
    "relevant_docs": {"q1": ["a"], "q2": ["b"]},
    "corpus": {"a": "Bread is made of flour.", "b": "Snow is cold."},
}
QUICK = ("--max-steps", "2", "--batch-size", "8", "--negatives", "1", "--evaluations", "1", "--dropout", "0")


def test_check_names_lines_and_ends_with_1_where_something_must_be_mended(train, tmp_path):
    found = train("data", "check", "@train.jsonl", "--model", MODEL, "--corpus", "@corpus.jsonl")
    assert found.exit_code == 0, found.output
    assert "60 examples" in found.output
    assert "guess:" in found.output
    with (tmp_path / "train.jsonl").open("a") as stream:
        stream.write('{"query": "q", "pos": [""]}\n')
    broken = train("data", "check", "@train.jsonl")
    assert broken.exit_code == 1
    assert "error: train.jsonl line 61: has pos=''" in broken.output


def test_mine_writes_negatives_and_shows_some(train, tmp_path):
    found = train("mine", "@train.jsonl", "--corpus", "@corpus.jsonl", "--model", MODEL, "--negatives", "4", "--out",
                  "@mined.jsonl", "--cache-dir", "@cache")  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "CANDIDATES" in found.output
    rows = [json.loads(line) for line in (tmp_path / "mined.jsonl").read_text().splitlines()]
    assert len(rows) == 60
    assert all(len(row["neg"]) <= 4 and not set(row["neg"]) & set(row["pos"]) for row in rows)


def test_train_embedder_ends_with_1_and_the_reasons_where_the_gate_is_closed(train, tmp_path):
    options = (
        "--corpus",
        "@corpus.jsonl",
        "--model",
        MODEL,
        "--cache-dir",
        "@cache",
        "--guard",
        "@guard.json",
        *QUICK,
        "--learning-rate",
        "1e-7",
    )
    closed = train("train", "embedder", "@train.jsonl", "--out", "@out", *options)
    assert closed.exit_code == 1, closed.output
    assert "not handed over: it gained nothing" in closed.output
    assert (tmp_path / "out.rejected").is_dir()
    forced = train("train", "embedder", "@train.jsonl", "--out", "@out", *options, "--force", "--json")
    assert forced.exit_code == 0, forced.output
    told = json.loads(forced.stdout)
    assert told["gate"]["forced"]
    assert Embedder(told["folder"]).query_instruction == Embedder(MODEL).query_instruction


@pytest.mark.slow
def test_train_reranker_and_query_and_mix_hand_over_folders(train, tmp_path):
    shared = ("--corpus", "@corpus.jsonl", "--cache-dir", "@cache", "--guard", "@guard.json", "--force")
    for name, arguments in {
        "reranker": ("--model", "BAAI/bge-reranker-base", "--embedder", MODEL, "--depth", "4", *QUICK),
        "query": ("--model", MODEL),
    }.items():
        found = train("train", name, "@train.jsonl", "--out", f"@{name}", *shared, *arguments)
        assert found.exit_code == 0, found.output
        assert (tmp_path / name / "bge_model.json").is_file()
    tuned = train("train", "embedder", "@train.jsonl", "--out", "@tuned", "--model", MODEL, *shared, *QUICK)
    assert tuned.exit_code == 0, tuned.output
    for number, weights in enumerate((("--weights", "0.25,0.75"), ("--examples", "@train.jsonl"))):
        found = train("mix", MODEL, "@tuned", "--out", f"@mixed{number}", *weights)
        assert found.exit_code == 0, found.output
        assert Embedder(str(tmp_path / f"mixed{number}")).encode_queries(["a"]).shape == (1, 384)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mix", MODEL, MODEL, "--out", "@x"), "one of --weights, --examples and --training"),
        (("mix", MODEL, MODEL, "--out", "@x", "--weights", "a,b"), "is not a list of numbers"),
        (("train", "embedder", "@nowhere.jsonl", "--out", "@x"), "does not exist"),
        (("train", "embedder", "@train.jsonl", "--out", "@x", "--matryoshka", "x"), "--matryoshka"),
        (("mine", "@train.jsonl", "--out", "@x", "--first", "9", "--last", "3"), "ranks=(9, 3)"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(train, arguments, message):
    found = train(*arguments)
    assert found.exit_code == 2
    assert message in found.output
    assert "Traceback" not in found.output
