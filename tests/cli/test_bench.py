"""`bge bench`: the user's own texts against plain sentence-transformers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

import bge_runtime
from bge_runtime import ConfigurationError, InputError
from bge_runtime.evaluation.bench import INCUMBENT, compare, read_queries, read_texts
from tests.checkpoints.hub_cache import BY_NAME, write_checkpoint

LINES = ["The heart pumps blood.", "Paris is in France.", "Rain falls from clouds over the sea.", "Bread is baked."]
MODES = (("packed", "float32"), ("packed", "bfloat16"), ("packed", "float16"), ("torch", "int8"))


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """A file with four distinct texts, one of them twice."""
    file = tmp_path / "texts.txt"
    file.write_text("\n".join([*LINES, "", LINES[0]]), encoding="utf-8")
    return file


@pytest.fixture
def reranker(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "reranker", BY_NAME["BAAI/bge-reranker-base"])


def test_texts_come_from_lines_json_lines_and_folders(lines: Path, library: Path, tmp_path: Path) -> None:
    objects = tmp_path / "texts.jsonl"
    objects.write_text("\n".join(json.dumps({"text": text}) for text in LINES), encoding="utf-8")
    assert read_texts(lines) == LINES
    assert read_texts(objects) == LINES
    assert any("heart pumps blood" in text for text in read_texts(library))


def test_a_limit_picks_texts_evenly(tmp_path: Path) -> None:
    file = tmp_path / "numbers.txt"
    file.write_text("\n".join(map(str, range(100))), encoding="utf-8")
    assert read_texts(file, 4) == ["0", "25", "50", "75"]
    assert len(read_texts(file, 1000)) == 100


def test_without_queries_the_first_words_stand_for_one(lines: Path) -> None:
    assert read_queries(None, ["one two three four five six seven eight nine"]) == [
        "one two three four five six seven eight"
    ]
    assert read_queries(lines, ["unused"]) == LINES


@pytest.mark.parametrize("content", ["", "\n \n"], ids=["empty", "blank"])
def test_a_file_without_text_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "empty.txt"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="holds no text"):
        read_texts(file)


def test_json_lines_without_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"title": "x"}', encoding="utf-8")
    with pytest.raises(InputError, match="JSON lines whose objects have 'text'"):
        read_texts(file)


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        read_texts(tmp_path / "nothing")


@pytest.mark.usefixtures("fresh_store")
def test_an_embedder_is_compared_in_every_mode_with_its_error(minilm: Path) -> None:
    result = compare(bge_runtime.DEFAULT_OFFLINE_MODEL, LINES, rounds=2, modes=MODES)

    rows = {row.name: row for row in result.rows}
    assert list(rows) == [INCUMBENT, "packed float32", "packed bfloat16", "packed float16", "torch int8"]
    assert (result.kind, result.texts, result.rounds) == ("embedder", 4, 2)
    assert result.tokens == sum(bge_runtime.Embedder(bge_runtime.DEFAULT_OFFLINE_MODEL).count_tokens(LINES))
    assert rows[INCUMBENT].ratio == 1.0
    assert rows[INCUMBENT].cosine_min == pytest.approx(1, abs=1e-5)
    assert rows["packed float32"].difference == 0
    assert 0.999 < (rows["packed bfloat16"].cosine_min or 0) < 1
    assert "int8" in (rows["torch int8"].reason or "")
    low, high = rows["packed float32"].ratio_range or (0, 0)
    assert low <= (rows["packed float32"].ratio or 0) <= high


@pytest.mark.usefixtures("fresh_store")
def test_a_reranker_is_compared_by_its_scores(reranker: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    result = compare(
        str(reranker), LINES, queries=["Which organ moves blood?", "Where is Paris?"], rounds=1, modes=MODES[:2]
    )

    assert (result.kind, result.texts) == ("reranker", 8)
    rows = {row.name: row for row in result.rows}
    assert (rows[INCUMBENT].difference or 0) < 1e-5
    assert rows["packed bfloat16"].cosine_min is None
    assert (rows["packed bfloat16"].difference or 0) > 0


@pytest.mark.usefixtures("fresh_store")
def test_nothing_stays_in_memory(minilm: Path) -> None:
    compare(bge_runtime.DEFAULT_OFFLINE_MODEL, LINES[:1], rounds=1, modes=MODES[:1])
    assert bge_runtime.loaded_models() == []


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two modes in place of all."""
    monkeypatch.setattr("bge_runtime.evaluation.bench.MODES", (MODES[0], MODES[3]))


@pytest.mark.usefixtures("quick", "minilm", "fresh_store")
def test_the_command_prints_a_table_and_the_reasons(bge: Callable[..., Result], lines: Path) -> None:
    result = bge("bench", "--data", lines, "--rounds", 1)

    assert result.exit_code == 0, result.output
    shown = result.stdout.splitlines()
    assert shown[0].startswith(f"{bge_runtime.DEFAULT_OFFLINE_MODEL} on cpu: 4 texts, ")
    assert shown[1].split()[:3] == ["WAY", "TEXTS/S", "TOKENS/S"]
    assert shown[2].startswith(INCUMBENT)
    assert shown[3].startswith("packed float32")
    assert any(line.startswith("torch int8 does not run: ") for line in shown)
    assert "%" in result.stderr  # a progress bar


@pytest.mark.usefixtures("quick", "minilm", "fresh_store")
def test_the_command_prints_json(bge: Callable[..., Result], lines: Path) -> None:
    values: dict[str, Any] = json.loads(bge("bench", "--data", lines, "--rounds", 1, "--json").stdout)

    assert [row["name"] for row in values["rows"]] == [INCUMBENT, "packed float32", "torch int8"]
    assert values["rows"][1]["ratio_range"][0] == values["rows"][1]["ratio"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "does not exist"),
        (["--data", ".", "--model", "BAAI/bge-smal-en"], "bge-smal-en"),
        (["--data", ".", "--rounds", "0"], "rounds"),
        ([], "--data"),
    ],
    ids=["data", "model", "rounds", "nothing"],
)
def test_wrong_use_ends_with_status_2_and_no_traceback(
    bge: Callable[..., Result], lines: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(lines.parent)

    result = bge("bench", *arguments)

    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
