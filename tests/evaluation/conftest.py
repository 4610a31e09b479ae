"""A small collection in the layout of BEIR, cut from the one under tests/data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bge_runtime.evaluation.judgements import Judgements

SCIFACT = Path(__file__).parents[1] / "data" / "scifact_small"
QUESTIONS = 12
OTHERS = 20


@pytest.fixture(scope="session")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 12 questions of SciFact, what answers them, and 20 other abstracts, their text cut short."""
    folder = tmp_path_factory.mktemp("beir") / "small"
    (folder / "qrels").mkdir(parents=True)
    rows = [line.split("\t") for line in (SCIFACT / "qrels.tsv").read_text().splitlines()[1:]]
    names = list(dict.fromkeys(query for query, _, _ in rows))[:QUESTIONS]
    kept = [row for row in rows if row[0] in names]
    wanted = {document for _, document, _ in kept}
    documents = [json.loads(line) for line in (SCIFACT / "corpus.jsonl").read_text().splitlines()]
    others = [each for each in documents if each["_id"] not in wanted][:OTHERS]
    queries = [json.loads(line) for line in (SCIFACT / "queries.jsonl").read_text().splitlines()]
    write_lines(
        folder / "corpus.jsonl", [short(each) for each in documents if each["_id"] in wanted] + list(map(short, others))
    )
    write_lines(folder / "queries.jsonl", [each for each in queries if each["_id"] in names])
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(row) for row in kept)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def data(beir: Path) -> Judgements:
    """The same, read."""
    return Judgements.read(beir)


def short(document: dict[str, str]) -> dict[str, str]:
    return {**document, "text": document["text"][:300]}


def write_lines(file: Path, rows: list[dict[str, object]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
