"""docs/models.md shows the model table as it is, with what was checked and, once measured, how fast each shape is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bge_runtime import ModelSpec, get_spec, list_models
from bge_runtime.evaluation.published import PUBLISHED
from tests.docs import model_table
from tests.docs.model_table import PAGE, TABLES, row, updated


def table(name: str) -> list[list[str]]:
    """Return the cells of a table, titles first."""
    lines = TABLES[name]().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line]


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"<!-- models: {name} -->" in page for name in TABLES)
    assert page == updated(page), "run: python tests/docs/model_table.py --write"


def test_a_page_that_is_behind_is_brought_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert updated(page.replace("| 384 |", "| 385 |")) == page != page.replace("| 384 |", "| 385 |")


@pytest.mark.parametrize("spec", list_models(), ids=lambda spec: spec.id)
def test_every_model_has_a_line(spec: ModelSpec) -> None:
    line = row(spec)
    assert line in PAGE.read_text(encoding="utf-8")
    assert line.endswith("| yes |\n" if spec.unsupported is None else f"| no: {spec.unsupported} |\n")
    assert sum(spec.basename in rows[0].split("<br>") for rows in table("memory")) == 1


@pytest.mark.parametrize("spec", list_models(), ids=lambda spec: spec.id)
def test_a_model_that_runs_is_found_by_language_task_and_size_and_by_what_was_checked(spec: ModelSpec) -> None:
    shown = spec.unsupported is None
    chosen = [cell for cells in table("choice") for cell in cells if spec.basename in cell.split("<br>")]
    checks = [text for names, text in table("checked") if spec.basename in [n.split()[0] for n in names.split("<br>")]]
    assert len(chosen) == shown
    assert checks == ([spec.checked or "nothing"] if shown else [])


def test_published_models_that_run_say_what_was_checked() -> None:
    published = [spec for spec in list_models() if spec.id.startswith(("BAAI/", "sentence-transformers/"))]
    assert [spec.id for spec in published if spec.unsupported is None and not spec.checked] == []


def test_the_number_of_printed_values_stands_beside_the_model() -> None:
    count = sum(len(value.expected) for value in PUBLISHED if value.model == "BAAI/bge-reranker-base")
    assert any(f"bge-reranker-base ({count})" in names for names, _ in table("checked"))


def test_memory_is_that_of_the_number_formats() -> None:
    rows = {cells[0]: cells[1:] for cells in table("memory")}
    # 22.7 M weights, 11.7 M of them embeddings.
    assert rows["all-MiniLM-L6-v2"][:3] == ["91 MB", "45 MB", "34 MB"]
    assert rows["bge-code-v1"][:3] == ["6.2 GB", "3.1 GB", "-"]


def test_speeds_are_taken_up_when_there_are_some(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    results = tmp_path / "model_speed.json"
    monkeypatch.setattr(model_table, "SPEED", results)
    assert table("memory")[0][-1] == "int8"
    shape = {"models": ["BAAI/bge-m3"], "texts_per_s": {"float32": 2.5, "int8": 7.25}}
    results.write_text(json.dumps({"shapes": {"m3": shape}}), encoding="utf-8")
    titles, *rows = table("memory")
    assert titles[-2:] == ["texts/s, float32", "texts/s, int8"]
    assert {cells[0]: cells[-2:] for cells in rows}["bge-m3"] == ["2.5", "7.2"]
    assert [cells[-1] for cells in rows if "bge-small-en" in cells[0]] == ["-"]


def test_another_row_changes_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = list_models()
    ran = replace(get_spec("bge-en-icl"), unsupported=None, checked="by hand")
    monkeypatch.setattr(model_table, "list_models", lambda: (*(s for s in specs if s.id != ran.id), ran))
    assert ["bge-en-icl", "by hand"] in table("checked")
    assert table("decoders")[-1][-1] == "yes"
    assert any(cells[-1].split("<br>")[-1] == "bge-en-icl" for cells in table("choice"))
