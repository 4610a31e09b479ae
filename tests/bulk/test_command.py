"""`bge embed`: what it prints, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from bge_runtime import bulk
from bge_runtime.cli import app
from tests.bulk.corpora import MODEL, ids_of, sentences, vectors_of, write_lines


@pytest.fixture
def embed(embedder, tmp_path):
    """Run `bge embed` on a corpus of seven texts."""
    write_lines(tmp_path / "corpus.jsonl", sentences(7), key=list("abcdefg"))

    def run(*arguments):
        given = [str(tmp_path / each[1:]) if each.startswith("@") else each for each in arguments]
        return CliRunner().invoke(app, ["embed", *given, "--model", MODEL], prog_name="bge")

    return run


def test_it_embeds_and_says_what_it_did(embed, tmp_path):
    done = embed("@corpus.jsonl", "--out", "@out", "--part-rows", "3")
    assert done.exit_code == 0, done.output
    assert "7 texts in 3 parts" in done.stdout
    assert "embedded now: 7" in done.stdout
    again = embed("@corpus.jsonl", "--out", "@out", "--part-rows", "3")
    assert again.exit_code == 0
    assert again.stdout.startswith("Nothing to do: this run is finished.")


def test_json_tells_rows_parts_and_rates(embed):
    done = embed("@corpus.jsonl", "--out", "@out", "--json")
    told = json.loads(done.stdout)
    assert (told["rows"], told["parts"], told["computed"], told["recomputed"], told["truncated"]) == (7, 1, 7, 0, 0)
    assert told["texts_per_second"] > 0
    assert told["seconds"] > 0


def test_every_option_reaches_the_run(embed, embedder, tmp_path):
    done = embed("@corpus.jsonl", "--out", "@out", "--role", "query", "--id-column", "key", "--format", "float16",
                 "--output", "dense", "--max-length", "12", "--dimension", "16", "--device", "cpu",
                 "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert ids_of(tmp_path / "out") == list("abcdefg")
    assert vectors_of(tmp_path / "out").shape == (7, 16)
    told = bulk.read_manifest(tmp_path / "out").settings
    assert (told.role, told.format, told.outputs, told.dimension) == ("query", "float16", ("dense",), 16)
    assert json.loads(done.stdout)["truncated"] > 0


def test_errors_are_one_line_with_status_2(embed):
    missing = embed("@corpus.jsonl")
    assert missing.exit_code == 2
    assert "bge embed INPUT --out FOLDER" in missing.stderr
    wrong = embed("@corpus.jsonl", "--out", "@out", "--text-column", "body")
    assert wrong.exit_code == 2
    assert "'corpus.jsonl', row 1: there is no column 'body'; there are: 'text', 'key'" in wrong.stderr
    both = embed("--plan", "5", "--out", "@out")
    assert both.exit_code == 2
    assert "--plan writes nothing" in both.stderr


def test_a_plan_is_a_table_with_what_is_assumed(embed, tmp_path):
    done = embed("@corpus.jsonl", "--plan", "1000000", "--plan-seconds", "0.2")
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines()[1:5]] == ["DEVICES", "1", "8", "64"]
    assert "assumed: all texts are like the 7 of the sample" in done.stdout
    told = json.loads(embed("--plan", "1000000", "--plan-seconds", "0.2", "--json").stdout)
    assert [each["devices"] for each in told["estimates"]] == [1, 8, 64]


def test_a_terminal_sees_how_far_it_is(embed, monkeypatch, tmp_path):
    monkeypatch.setattr("bge_runtime.cli.bulk.on_terminal", lambda: True)
    done = embed("@corpus.jsonl", "--out", "@out", "--part-rows", "2")
    assert "7/7" in done.stderr


def test_without_pyarrow_it_names_the_extra():
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from bge_runtime.cli import app\n"
        "app(['embed', 'a.jsonl', '--out', 'out'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert 'embed_to_parquet needs pyarrow: pip install "bge-integrations[bulk]"' in done.stderr


def test_the_wing_and_the_command_line_are_light():
    code = (
        "import sys, bge_runtime.bulk, bge_runtime.cli.commands; "
        "print(sorted({'pyarrow', 'numpy', 'torch', 'tqdm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_names_of_the_wing_exist():
    assert sorted(bulk.__all__) == list(bulk.__all__)
    assert all(getattr(bulk, name) is not None for name in bulk.__all__)
