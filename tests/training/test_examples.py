"""Examples to learn from, in every format in which they come, and every line that is none."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pytest

from bge_runtime import ConfigurationError, InputError
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.training.examples import Example, Problem, TrainingData, own_rows, read_examples

SCIFACT = Path(__file__).parents[1] / "data" / "scifact_small"


def write(folder, name, text):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def lines(*rows):
    return "".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in rows)


def shown(data):
    return [(each.query, each.positives, each.negatives) for each in data.examples]


def test_flagembedding_with_scores_prompt_and_type(tmp_path):
    file = write(
        tmp_path,
        "train.jsonl",
        lines(
            {
                "query": "What pumps blood?",
                "pos": ["The heart.", "A muscle."],
                "neg": ["The liver."],
                "pos_scores": [9, 8.5],
                "neg_scores": [-1],
                "prompt": "find: ",
                "type": "normal",
            },
            "",
            {"query": "Which city?", "pos": "Paris.", "neg": [], "pos_scores": [], "prompt": "", "type": None},
        ),
    )
    read = TrainingData.read(file)
    assert read.name == "train"
    assert read.examples == (
        Example(
            query="What pumps blood?",
            positives=("The heart.", "A muscle."),
            negatives=("The liver.",),
            positive_scores=(9.0, 8.5),
            negative_scores=(-1.0,),
            prompt="find: ",
            kind="normal",
            where="train.jsonl line 1",
        ),
        Example(query="Which city?", positives=("Paris.",), where="train.jsonl line 3"),
    )
    assert [each.has_scores for each in read.examples] == [True, False]
    assert read.documents == {"d1": "The heart.", "d2": "A muscle.", "d3": "The liver.", "d4": "Paris."}


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"anchor": "q", "positive": "p", "negative": "n"}, ("q", ("p",), ("n",))),
        ({"anchor": "q", "positive": "p"}, ("q", ("p",), ())),
        ({"anchor": "q", "positive": "p", "negative_2": "n2", "negative_1": "n1"}, ("q", ("p",), ("n1", "n2"))),
        ({"anchor": "q", "positive": "p", "negative": "n", "negative_1": "m"}, ("q", ("p",), ("n", "m"))),
        ({"query": "q", "positive": ["p", "o"], "negative": ["n"]}, ("q", ("p", "o"), ("n",))),
        ({"question": "q", "answer": "a"}, ("q", ("a",), ())),
        ({"question": "q", "context": "c", "answer": "a"}, ("q", ("c",), ())),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_the_columns_of_other_tools_by_line_and_as_a_list(tmp_path, row, wanted, ending):
    text = lines(row, row) if ending == "jsonl" else json.dumps([row, row])
    read = TrainingData.read(write(tmp_path, f"set.{ending}", text))
    assert shown(read) == [wanted, wanted]
    what = "line" if ending == "jsonl" else "item"
    assert [each.where for each in read.examples] == [f"set.{ending} {what} 1", f"set.{ending} {what} 2"]


def beir(folder):
    """The extract of SciFact in the layout of BEIR, its judgements as those to train on."""
    (folder / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl"):
        (folder / name).write_bytes((SCIFACT / name).read_bytes())
    rows = (SCIFACT / "qrels.tsv").read_text().splitlines()
    first, document = rows[1].split("\t")[0], rows[-1].split("\t")[1]
    (folder / "qrels" / "train.tsv").write_text("\n".join([*rows, f"{first}\t{document}\t0"]) + "\n")
    return first, document


def test_a_beir_folder_and_an_archive_of_it(tmp_path):
    first, document = beir(tmp_path / "scifact")
    read = TrainingData.read(tmp_path / "scifact")
    judged = Judgements.read(tmp_path / "scifact", split="train")
    assert (read.name, len(read.examples)) == ("scifact", 40)
    assert read.documents == judged.documents
    for each, query in zip(read.examples, judged.queries, strict=True):
        assert each.query == judged.queries[query]
        assert each.where == f"scifact question {query}"
        relevant = [name for name, grade in judged.grades[query].items() if grade > 0]
        assert set(each.positives) == {judged.documents[name] for name in relevant}
        assert each.negatives == ((judged.documents[document],) if query == first else ())
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "scifact", "scifact")
    assert shown(TrainingData.read(tmp_path / "packed.tar.gz")) == shown(read)
    with pytest.raises(ConfigurationError, match=r"has no qrels/dev\.tsv\. Name one of its splits: 'train'"):
        TrainingData.read(tmp_path / "scifact", split="dev")


def test_grades_give_the_order_of_positives_and_what_is_judged_wrong():
    documents = {"a": "A", "b": "B", "c": "C", "d": " ", "e": "A"}
    judged = Judgements(
        name="graded",
        queries={"1": "one", "2": "two"},
        grades={"1": {"a": 1, "b": 2, "c": 0, "d": 1, "e": 0}, "2": {"d": 1}},
        documents=documents,
        notes=("odd",),
    )
    read = TrainingData.of(judged)
    assert shown(read) == [("one", ("B", "A"), ("C",))]
    assert read.documents == documents
    assert read.notes == ("odd", "1 questions whose documents have no text, left out")


def test_the_question_data_set_of_llamaindex(tmp_path):
    given = {"queries": {"q": "Which?"}, "corpus": {"n": "The heart."}, "relevant_docs": {"q": ["n"]}, "mode": "text"}
    read = TrainingData.read(write(tmp_path, "set.json", json.dumps(given)))
    assert shown(read) == [("Which?", ("The heart.",), ())]
    assert read.documents == {"n": "The heart."}


def test_tab_separated_queries_with_judgements_of_trec(tmp_path):
    corpus = write(tmp_path, "corpus.jsonl", lines({"_id": "a", "text": "The heart."}, {"_id": "b", "text": "Paris."}))
    queries = write(tmp_path, "queries.tsv", "1\tWhich organ?\n")
    read = TrainingData.read(queries, qrels=write(tmp_path, "qrels", "1 0 a 1\n1 0 b 0\n"), corpus=corpus)
    assert shown(read) == [("Which organ?", ("The heart.",), ("Paris.",))]


def test_judged_questions_with_quotes_and_with_documents_of_a_corpus(tmp_path):
    asked = lines(
        {"query": "one", "positives": [{"quote": "pumps blood"}, {"quote": "not this", "grade": 0}]},
        {"query": "two", "positives": ["d"]},
        {"query": "nobody knows", "positives": []},
    )
    file = write(tmp_path, "asked.jsonl", asked)
    corpus = write(tmp_path, "corpus.jsonl", lines({"_id": "d", "title": "T", "text": "The heart pumps blood."}))
    read = TrainingData.read(file, corpus=corpus)
    assert shown(read) == [("one", ("pumps blood",), ()), ("two", ("T The heart pumps blood.",), ())]
    assert read.documents == {"d": "T The heart pumps blood."}
    bare = TrainingData.read(file)
    assert shown(bare) == [("one", ("pumps blood",), ())]
    assert "1 questions whose documents have no text, left out" in bare.notes


def test_places_in_the_documents_of_a_corpus(tmp_path):
    file = write(
        tmp_path, "asked.jsonl", lines({"query": "one", "positives": [{"document": "d", "start": 4, "end": 9}]})
    )
    corpus = write(tmp_path, "corpus.jsonl", lines({"_id": "d", "text": "The heart pumps blood."}))
    assert shown(TrainingData.read(file, corpus=corpus)) == [("one", ("heart",), ())]


def test_a_corpus_of_ones_own_takes_the_place_of_the_texts(tmp_path):
    file = write(tmp_path, "train.jsonl", lines({"query": "q", "pos": ["p"]}))
    corpus = write(tmp_path, "corpus.jsonl", lines({"_id": "a", "text": "The heart."}))
    assert TrainingData.read(file, corpus=corpus).documents == {"a": "The heart."}
    assert TrainingData.read(file, corpus=corpus).digest == TrainingData.read(file).digest


def test_what_is_written_is_read_again(tmp_path):
    rows = (
        {"query": "What pumps blööd?", "pos": ["The\nheart.", "A muscle."], "neg": ["x"]},
        {"query": "q", "pos": ["p"], "neg": ["n", "m"], "pos_scores": [0.1], "neg_scores": [-1e-9, 3]},
        {"query": "r", "pos": ["p"], "neg": [], "prompt": "find: ", "type": "symmetric_sts"},
    )
    first = TrainingData.read(write(tmp_path, "train.jsonl", lines(*rows)))
    first.write(tmp_path / "new" / "again.jsonl")
    again = TrainingData.read(tmp_path / "new" / "again.jsonl")
    assert again.digest == first.digest
    assert again.documents == first.documents
    assert [each.where for each in again.examples] == [f"again.jsonl line {at}" for at in (1, 2, 3)]
    assert [json.loads(line) for line in (tmp_path / "new" / "again.jsonl").read_text().splitlines()] == list(rows)
    assert first.digest != TrainingData(name="x", examples=first.examples[:2]).digest
    with pytest.raises(ConfigurationError, match="cannot be written"):
        first.write(tmp_path)


WRONG = [
    ("{broken", "is not JSON"),
    (["q", "p"], "is list, not an object. Write {"),
    ({"query": "", "pos": ["p"]}, "has query=''. Write a text that is not empty."),
    ({"pos": ["p"]}, "has query=None. Write a text"),
    ({"query": 5, "pos": ["p"]}, "has query=5. Write a text"),
    ({"query": "q", "pos": []}, "has no positive: pos=[]. Write {"),
    ({"query": "q", "neg": ["n"]}, "has no positive: pos=None. Write {"),
    ({"query": "q", "pos": ["p", " "]}, "has pos=' '. Write a text that is not empty."),
    ({"query": "q", "pos": {"p": 1}}, "has pos={'p': 1}. Write a list of texts."),
    ({"query": "q", "pos": [["p"]]}, "has pos=['p']. Write a text"),
    ({"query": "q", "pos": ["p"], "neg": [None]}, "has neg=None. Write a text"),
    ({"query": "q", "pos": ["p"], "negative_1": ""}, "has neg=''. Write a text"),
    ({"query": "q", "pos": ["p"], "neg": ["p", "p"]}, "has negatives that are all among its positives: neg=['p', 'p']"),
    ({"query": "q", "pos": ["p"], "pos_scores": [1, 2]}, "has pos_scores=[1, 2] for 1 texts. Write one finite number"),
    ({"query": "q", "pos": ["p"], "pos_scores": 1}, "has pos_scores=1 for 1 texts"),
    ({"query": "q", "pos": ["p"], "pos_scores": [True]}, "has pos_scores=[True] for 1 texts"),
    ({"query": "q", "pos": ["p"], "pos_scores": ["1"]}, "has pos_scores=['1'] for 1 texts"),
    ('{"query": "q", "pos": ["p"], "pos_scores": [NaN]}', "has pos_scores=[nan] for 1 texts"),
    ({"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [1], "neg_scores": [1, 2]}, "neg_scores=[1, 2] for 1"),
    ({"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [1]}, "has only one of pos_scores and neg_scores."),
    ({"query": "q", "pos": ["p"], "neg": ["n"], "neg_scores": [1]}, "has only one of pos_scores and neg_scores."),
    ({"query": "q", "pos": ["p"], "prompt": 5}, "has prompt=5. Write a text, or leave it out."),
    ({"query": "q", "pos": ["p"], "type": ["a"]}, "has type=['a']. Write a text, or leave it out."),
]


@pytest.mark.parametrize(("row", "message"), WRONG)
def test_each_line_that_is_no_example_is_named_with_the_reason(tmp_path, row, message):
    file = write(tmp_path, "bad.jsonl", lines({"query": "q", "pos": ["p"]}, "", row))
    with pytest.raises(InputError, match=rf"^bad\.jsonl line 3: .*{re.escape(message)}"):
        TrainingData.read(file)
    if not isinstance(row, str):
        file = write(tmp_path, "bad.json", json.dumps([{"query": "q", "pos": ["p"]}, row]))
        with pytest.raises(InputError, match=rf"^bad\.json item 2: .*{re.escape(message)}"):
            TrainingData.read(file)


def test_all_lines_are_reported_and_the_good_ones_come_out():
    rows = [(f"line {at}", row) for at, (row, _) in enumerate(WRONG) if not isinstance(row, str)]
    good = ("good", {"query": "q", "pos": ["p"], "neg": ["p", "n"], "pos_scores": [3], "neg_scores": [2, 1]})
    found, notes = [], []
    [example] = read_examples([*rows, good], found.append, note=notes.append)
    assert [each.where for each in found] == [where for where, _ in rows]
    assert notes == [Problem("good", "1 of its negatives are among its positives, left out")]
    assert (example.negatives, example.negative_scores) == (("n",), (1.0,))  # its score goes with it


def test_the_number_of_further_lines_is_told(tmp_path):
    file = write(tmp_path, "bad.jsonl", lines({"query": "q", "pos": ["p"]}, "{", "{", "{"))
    with pytest.raises(InputError, match=r"line 2: is not JSON .* \(2 more lines have a problem\)$"):
        TrainingData.read(file)


def test_files_that_cannot_be_read_at_all(tmp_path):
    with pytest.raises(ConfigurationError, match="does not exist"):
        TrainingData.read(tmp_path / "none.jsonl")
    with pytest.raises(ConfigurationError, match=r"corpus=.* does not exist"):
        TrainingData.read(write(tmp_path, "a.jsonl", lines({"query": "q", "pos": ["p"]})), corpus=tmp_path / "none")
    with pytest.raises(ConfigurationError, match="of no format that is known"):
        TrainingData.read(write(tmp_path, "a.xml", "x"))
    with pytest.raises(InputError, match=r"a\.json is not JSON"):
        TrainingData.read(write(tmp_path, "a.json", "[{]"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"query": "caf\xe9"}')
    with pytest.raises(InputError, match=r"latin\.jsonl is not UTF-8 .* Save it as UTF-8"):
        TrainingData.read(tmp_path / "latin.jsonl")
    with pytest.raises(InputError, match="'nothing' has no example to learn from"):
        TrainingData(name="nothing", examples=())


def test_own_rows_leaves_other_formats_alone(tmp_path):
    assert own_rows(write(tmp_path, "asked.jsonl", lines({"query": "q", "positives": ["d"]}))) == []
    assert own_rows(write(tmp_path, "set.json", '{"queries": {}}')) == []
    assert own_rows(write(tmp_path, "windows.jsonl", '{"query": "q", "pos": ["p"]}\r\n\r\n')) == [
        ("windows.jsonl line 1", {"query": "q", "pos": ["p"]})
    ]


def test_a_first_line_that_is_wrong_does_not_hide_the_format(tmp_path):
    file = write(tmp_path, "train.jsonl", lines({"query": "q"}, {"query": "q", "pos": ["p"]}))
    with pytest.raises(InputError, match=r"^train\.jsonl line 1: has no positive: pos=None"):
        TrainingData.read(file)


@pytest.mark.parametrize("text", ["5", "null", "true"])
def test_json_that_is_no_list_is_refused(tmp_path, text):
    with pytest.raises(InputError, match=r"set\.json"):
        TrainingData.read(write(tmp_path, "set.json", text))


def test_half_a_character_is_read_as_the_runtime_reads_it(tmp_path):
    read = TrainingData.read(write(tmp_path, "train.jsonl", '{"query": "so \\ud83d", "pos": ["p"]}'))
    assert read.examples[0].query == "so \ufffd"
    read.write(tmp_path / "again.jsonl")
    assert TrainingData.read(tmp_path / "again.jsonl").digest == read.digest


def test_negatives_in_columns_come_in_the_order_of_their_numbers(tmp_path):
    row = {"anchor": "q", "positive": "p", **{f"negative_{at}": f"n{at}" for at in range(1, 12)}}
    read = TrainingData.read(write(tmp_path, "train.jsonl", lines(row)))
    assert read.examples[0].negatives == tuple(f"n{at}" for at in range(1, 12))


@pytest.mark.parametrize("row", ["[" * 100_000, '{"query": "q", "pos": ["p"], "pos_scores": [1%s]}' % ("0" * 400)])
def test_lines_that_python_itself_gives_up_on_are_named(tmp_path, row):
    with pytest.raises(InputError, match=r"^train\.jsonl line 2: "):
        TrainingData.read(write(tmp_path, "train.jsonl", lines({"query": "q", "pos": ["p"]}, row)))


@pytest.mark.parametrize("text", [None, 5, "", "  "], ids=repr)
@pytest.mark.parametrize("place", ["query", "positives", "negatives"])
def test_an_example_made_by_hand_is_checked_like_one_that_was_read(place, text):
    given = {"query": "q", "positives": ("p",), "negatives": ("n",)}
    given[place] = text if place == "query" else ("x", text)
    with pytest.raises(InputError, match=r"example 1 of 'few' has the text"):
        TrainingData(name="few", examples=(Example(**given),))


def test_an_example_without_a_positive_is_none():
    with pytest.raises(InputError, match=r"example 1 of 'few' has no positive"):
        TrainingData(name="few", examples=(Example(query="q", positives=()),))
