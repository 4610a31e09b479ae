"""The report: one page that needs nothing else, the same numbers as the objects, and pictures beside it."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path

import pytest

from bge_runtime import ConfigurationError
from bge_runtime.evaluation.comparison import compare_evaluations
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.report import write_report
from tests.evaluation.pages import QUESTIONS, comparison, judgements


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("report")
    write_report(place, comparison(), judgements(), command="bge eval made --compare bits=float32,binary")
    return place


def test_the_page_holds_every_figure_and_asks_for_nothing(folder):
    page = (folder / "report.html").read_text()
    found = comparison()
    for each in found.entries:
        assert f"{each.evaluation.metrics['nDCG@10']:.4f}" in page
    for pair in found.pairs:
        assert f"{pair.difference.mean:+.4f}" in page
    assert "bge eval made --compare bits=float32,binary" in page
    assert not re.search(r"""(?:src|href)=["'](?!#)|@import|url\((?!#)""", page)
    assert "<script" not in page
    assert page.count("<svg") == page.count("</figure>") == 4
    assert page.count("<details") == 20


def test_ids_of_the_pictures_do_not_clash(folder):
    ids = re.findall(r'\bid="([^"]+)"', (folder / "report.html").read_text())
    assert len(ids) == len(set(ids))


def test_pictures_runs_and_json_lie_beside_the_page(folder):
    names = {file.name for file in folder.iterdir()}
    assert names == {
        "report.html", "results.json", "runs", "precision_and_recall.png", "quality_and_cost.png", "reliability.png",
        "score_distributions.png",
    }  # fmt: skip
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(comparison().as_dict()))
    assert sorted(file.name for file in (folder / "runs").iterdir()) == ["01.json", "01.trec", "02.json", "02.trec"]
    for file in folder.glob("*.png"):
        assert file.read_bytes().startswith(b"\x89PNG")


def test_words_of_the_data_are_words_on_the_page_and_no_markup(tmp_path):
    data = judgements()
    asked = {**data.queries, QUESTIONS[0]: "<script>alert(1)</script> & {{ 7 * 7 }}"}
    hostile = Judgements(name="<b>made</b>", queries=asked, grades=data.grades, documents=data.documents)
    page = write_report(tmp_path, compare_evaluations({"a": comparison().entries[1].evaluation}), hostile).read_text()
    assert "<script" not in page
    assert "<b>made" not in page
    assert "{{ 7 * 7 }}" in page


def test_a_single_evaluation_has_a_page_too(tmp_path):
    page = write_report(tmp_path, comparison().entries[0].evaluation, judgements()).read_text()
    assert "Evaluation on made" in page
    assert "What to take" not in page


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_the_page_that_is_there(folder, monkeypatch):
    before = (folder / "report.html").read_text()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigurationError, match=r"cannot be written \(No space left on device\)"):
        write_report(folder, comparison(), judgements())
    assert (folder / "report.html").read_text() == before
    assert not list(folder.rglob(".*"))
