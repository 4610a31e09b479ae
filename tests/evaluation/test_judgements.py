"""Questions and judgements, in every format in which they come."""

from __future__ import annotations

import json
import tarfile
import zipfile

import pytest

from bge_runtime import BGEError, ConfigurationError, InputError
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.judging import Hit, covers, judged
from bge_runtime.evaluation.questions import make_questions, write_questions
from bge_runtime.evaluation.sources import Passage


def write(folder, name, text):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_folder_an_archive_and_a_zip_give_the_same(beir, tmp_path, data):
    with tarfile.open(tmp_path / "small.tar.gz", "w:gz") as tar:
        tar.add(beir, "small")
    with zipfile.ZipFile(tmp_path / "small.zip", "w") as archive:
        for file in beir.rglob("*.*"):
            archive.write(file, f"small/{file.relative_to(beir)}")
    for name in ("small.tar.gz", "small.zip"):
        read = Judgements.read(tmp_path / name)
        assert (read.digest, read.name) == (data.digest, "small")
    assert len(data.queries) == 12


def test_title_and_text_are_joined_as_mteb_does(beir, data):
    row = json.loads((beir / "corpus.jsonl").read_text().splitlines()[0])
    assert data.documents[row["_id"]] == f"{row['title']} {row['text']}".strip()


def test_trec_queries_and_judgements_of_three_and_four_columns(tmp_path):
    queries = write(tmp_path, "queries.tsv", "1\tWhich organ?\n2\tWhich city?\n")
    for text in ("1 0 a 2\n2 0 b 1\n", "query-id\tcorpus-id\tscore\n1\ta\t2\n2\tb\t1\n"):
        read = Judgements.read(queries, qrels=write(tmp_path, "qrels", text))
        assert read.grades == {"1": {"a": 2}, "2": {"b": 1}}
        assert read.queries["2"] == "Which city?"


def test_the_json_of_llamaindex(tmp_path):
    # As `EmbeddingQAFinetuneDataset.save_json` wrote it, which is no part of llama_index.core any more.
    given = {"queries": {"q": "Which?"}, "corpus": {"n": "The heart."}, "relevant_docs": {"q": ["n"]}, "mode": "text"}
    write(tmp_path, "set.json", json.dumps(given))
    read = Judgements.read(tmp_path / "set.json")
    assert (read.queries, read.grades, read.documents) == ({"q": "Which?"}, {"q": {"n": 1}}, {"n": "The heart."})


def test_other_json_is_refused_with_what_it_should_be(tmp_path):
    with pytest.raises(InputError, match=r"EmbeddingQAFinetuneDataset\.save_json"):
        Judgements.read(write(tmp_path, "set.json", "[1]"))
    with pytest.raises(ConfigurationError, match="of no format that is known"):
        Judgements.read(write(tmp_path, "set.xml", "x"))
    with pytest.raises(ConfigurationError, match="does not exist"):
        Judgements.read(tmp_path / "none")


def test_json_lines_with_documents_spans_quotes_and_nothing(tmp_path):
    corpus = write(tmp_path, "corpus.jsonl", lines({"_id": "d", "title": "T", "text": "The heart pumps blood."}))
    file = write(
        tmp_path,
        "asked.jsonl",
        lines(
            {"id": "a", "query": "one", "positives": ["d"]},
            {"id": "b", "query": "two", "positives": [{"document": "d", "start": 6, "end": 11, "grade": 2}]},
            {"query": "three", "positives": [{"quote": "pumps blood"}]},
            {"query": "four", "positives": []},
        ),
    )
    read = Judgements.read(file, corpus=corpus)
    assert read.grades == {"a": {"d": 1}}
    assert read.passages["b"] == (Passage(document="d", start=6, end=11, quote="heart", grade=2),)
    assert read.passages["3"][0].quote == "pumps blood"
    assert read.unanswerable == {"4": "four"}
    assert "1 questions that no document answers" in read.notes


def test_what_is_written_is_read_again(tmp_path):
    folder = tmp_path / "docs"
    write(
        folder, "a.md", "# Vector caches\n\nA vector cache is a file that remembers every vector that was computed.\n"
    )
    write(folder, "b.md", "# Other words\n\nSee [how vectors are remembered](a.md) for the file that is used there.\n")
    made = make_questions(folder)
    made.write(tmp_path / "asked.jsonl")
    read = Judgements.read(tmp_path / "asked.jsonl", corpus=folder)
    assert read.is_weak
    assert any("without a reader" in note for note in read.notes)
    assert (read.queries, read.passages, read.grades) == (made.queries, made.passages, made.grades)
    assert {"What is vector cache?", "how vectors are remembered"} <= set(read.queries.values())


def test_a_language_model_of_either_framework_writes_a_question_per_passage(tmp_path):
    from langchain_core.language_models import FakeListChatModel
    from llama_index.core.llms import MockLLM

    write(tmp_path, "a.md", "# Heart\n\nThe heart is the organ that pumps blood through all of the body.\n")
    made = write_questions(tmp_path, FakeListChatModel(responses=["What pumps\n blood?"]))
    assert list(made.queries.values()) == ["What pumps blood?"]
    assert made.is_weak
    assert len(write_questions(tmp_path, MockLLM(max_tokens=8)).queries) == 1
    with pytest.raises(ConfigurationError, match="writes no questions"):
        write_questions(tmp_path, 5)


CORPUS = {"_id": "d", "text": "words"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"corpus.jsonl": lines(CORPUS, CORPUS)}, r"corpus.jsonl line 2 has the id 'd' a second time"),
        ({"corpus.jsonl": "{not json}\n"}, r"corpus.jsonl line 1 is not JSON"),
        ({"corpus.jsonl": lines({"_id": "d"})}, r"corpus.jsonl line 1 has text=None"),
        ({"corpus.jsonl": lines({"text": "x"})}, r"corpus.jsonl line 1 has _id=None"),
        ({"queries.jsonl": lines({"_id": "q", "text": " "})}, r"queries.jsonl line 1 has text=' '"),
        ({"qrels/test.tsv": "q\td\tmany\n"}, r"qrels/test.tsv line 1 is .* whole number"),
        (
            {"qrels/test.tsv": "q\td\t1\nq\td\t2\n"},
            r"test.tsv line 2 judges 'd' for 'q' with 2, a line above it with 1",
        ),
        ({"qrels/test.tsv": "q\td\t0\n"}, r"all of its questions are unanswerable"),
        ({"qrels/test.tsv": "other\td\t1\n"}, r"it has no judged question"),
        ({"qrels/test.tsv": None, "qrels/dev.tsv": "q\td\t1\n"}, r"has no qrels/test.tsv. Name one .*'dev'"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_a_bad_line_is_named(tmp_path, files, message):
    whole = {
        "corpus.jsonl": lines(CORPUS),
        "queries.jsonl": lines({"_id": "q", "text": "Which?"}),
        "qrels/test.tsv": "q\td\t1\n",
    }
    for name, text in {**whole, **files}.items():
        if text is not None:
            write(tmp_path, name, text)
    with pytest.raises(BGEError, match=message):
        Judgements.read(tmp_path)


@pytest.mark.parametrize(
    "positive",
    [7.5, "", {}, {"start": 0, "end": 5}, {"document": "d", "start": 5, "end": 5}, {"quote": " "}, None],
    ids=repr,
)
def test_a_positive_that_says_nothing_is_an_error_with_its_line(tmp_path, positive):
    file = write(
        tmp_path, "asked.jsonl", lines({"query": "one", "positives": ["d"]}, {"query": "two", "positives": [positive]})
    )
    with pytest.raises(InputError, match=r"asked\.jsonl line 2"):
        Judgements.read(file)


def test_a_place_beyond_its_document_is_an_error(tmp_path):
    corpus = write(tmp_path, "corpus.jsonl", lines(CORPUS))
    positive = {"document": "d", "start": 0, "end": 99}
    file = write(tmp_path, "asked.jsonl", lines({"query": "one", "positives": [positive]}))
    with pytest.raises(InputError, match="which has 5"):
        Judgements.read(file, corpus=corpus)


def test_oddities_of_the_data_are_counted(tmp_path):
    write(tmp_path, "corpus.jsonl", lines(CORPUS))
    write(tmp_path, "queries.jsonl", lines({"_id": "q", "text": "Which?"}, {"_id": "r", "text": "Other?"}))
    write(tmp_path, "qrels/test.tsv", "q\td\t1\nq\tgone\t1\nlost\td\t1\n")
    notes = " ".join(Judgements.read(tmp_path).notes)
    for expected in (
        "1 judged questions without a text",
        "1 judged documents that are not",
        "1 questions without",
        "every ranking is right",
    ):
        assert expected in notes


def hits(*found):
    return [Hit(ids=(name,), score=1 - at / 10, text=text) for at, (name, text) in enumerate(found)]


def places(**passages):
    return Judgements(name="places", queries=dict.fromkeys(passages, "?"), passages=passages)


def test_chunks_of_any_size_and_with_any_ids_are_judged_alike():
    quote = "The heart pumps blood through the body of each animal."
    text = f"Lungs take up air. {quote} Paris is a city."
    data = places(q=(Passage(quote=quote),))
    relevant = data.passages["q"][0].name
    for cut in (20, 45, 90):
        for names in ("first", "second"):
            pieces = [text[at : at + cut] for at in range(0, len(text), cut)]
            run, _ = judged({"q": hits(*((f"{names}{at}", piece) for at, piece in enumerate(pieces)))}, data, "x")
            assert [name for name, _ in run["q"]].count(relevant) == 1


def test_a_chunk_stands_for_all_the_places_that_it_holds_and_a_second_one_for_none():
    data = places(q=(Passage(quote="heart pumps"), Passage(quote="Lungs take")))
    run, _ = judged({"q": hits(("a", "The heart pumps. Lungs take air."), ("b", "the heart  pumps"))}, data, "x")
    assert [name for name, _ in run["q"]] == [*(each.name for each in data.passages["q"]), "b"]


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [("abcdefghij", True), ("xxabcdef", True), ("efghijxx", True), ("xxabcd", False), ("ghijxx", False), ("", False)],
)
def test_half_of_a_passage_at_a_chunk_s_border_is_enough(chunk, expected):
    assert covers(chunk, "abcdefghij") is expected


def test_a_question_that_is_a_document_is_not_found_by_itself_and_equal_ids_alone_are_nothing():
    data = Judgements(
        name="arguments",
        queries={"1": "Cats sleep.", "2": "Dogs bark."},
        grades={"1": {"2": 1}, "2": {"1": 1}},
        documents={"1": "On cats Cats sleep.", "2": "Birds sing."},
    )
    found = {query: [Hit(ids=(name,), score=1 - int(name) / 10) for name in ("1", "2")] for query in ("1", "2")}
    run, notes = judged(found, data, "x")
    assert [name for name, _ in run["1"]] == ["2"]
    assert [name for name, _ in run["2"]] == ["1", "2"]
    assert any("found themselves" in note for note in notes)


def test_ids_that_nobody_judged_are_an_error_that_shows_both():
    data = Judgements(name="d", queries={"q": "?"}, grades={"q": {"known": 1}})
    with pytest.raises(InputError, match=r"'uuid-1'.*'known'.*id_key="):
        judged({"q": [Hit(ids=("uuid-1",), score=1.0)]}, data, "Store")
