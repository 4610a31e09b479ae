"""What is wrong with training data, all of it in one report."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bge_runtime import ConfigurationError, Embedder, InputError, VectorCache
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.sources import Passage
from bge_runtime.training import checking, embedder
from bge_runtime.training.checking import check_data
from bge_runtime.training.examples import Example, TrainingData
from bge_runtime.training.settings import TrainingSettings
from tests.training.toys import toy_data


def written(folder, *rows):
    file = folder / "train.jsonl"
    file.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in rows))
    return file


def data_of(*examples, **more):
    return TrainingData(name="some", examples=tuple(Example(**each) for each in examples), **more)


def told(report, kind):
    return [(each.where, each.message) for each in report.findings if each.kind == kind]


def places(report, kind):
    return [where for where, _ in told(report, kind)]


def kinds(report):
    return {each.kind for each in report.findings}


@pytest.fixture(scope="module")
def model(minilm):
    with Embedder(str(minilm), truncation="silent") as held:
        yield held


def test_good_data_has_no_finding():
    data = toy_data(150)
    report = check_data(data)
    assert (report.name, report.examples, report.findings, report.guess) == ("toys", 150, (), None)
    assert report.errors == ()


def test_all_lines_that_cannot_be_used_are_told_and_the_others_counted(tmp_path):
    file = written(
        tmp_path,
        {"query": "What pumps blood?", "pos": ["The heart."], "neg": ["The liver.", "The heart."]},
        "{broken",
        ["a list"],
        {"query": " ", "pos": ["x"]},
        {"query": "q", "pos": []},
        "",
        {"query": "q", "pos": ["x"], "neg": ["x"]},
        {"query": "q", "pos": ["x"], "pos_scores": [1, 2]},
        {"query": "r", "pos": ["x"], "neg": ["y"], "pos_scores": [1]},
        {"query": "r", "pos": ["x", ""]},
        {"query": "s", "pos": ["x"], "prompt": 5},
    )
    report = check_data(file)
    assert (report.name, report.examples) == ("train", 1)
    assert [where for where, _ in told(report, "unusable")] == [
        f"train.jsonl line {number}" for number in (2, 3, 4, 5, 7, 8, 9, 10, 11)
    ]
    assert "is not JSON" in told(report, "unusable")[0][1]
    assert "has query=' '. Write a text that is not empty." in told(report, "unusable")[2][1]
    assert told(report, "negative-is-positive") == [
        ("train.jsonl line 1", "1 of its negatives are among its positives, left out")
    ]
    first = len(report.errors)
    assert [each.is_error for each in report.findings] == [True] * first + [False] * (len(report.findings) - first)
    assert {each.kind for each in report.errors} == {"unusable", "nothing-held-out"}


def test_many_lines_of_one_kind_are_capped_and_do_not_hide_another(tmp_path):
    rows = [{"query": "", "pos": ["x"]}] * 50
    report = check_data(written(tmp_path, {"query": "q", "pos": ["x"]}, *rows, "{", *rows))
    found = told(report, "unusable")
    assert [where for where, _ in found] == [
        *(f"train.jsonl line {number}" for number in range(2, 7)),
        "95 more lines",
        "train.jsonl line 52",
    ]
    assert found[5][1] == "have the same problem as the 5 before (unusable)"


def test_a_file_without_a_line_that_can_be_used_is_reported(tmp_path):
    report = check_data(written(tmp_path, "{", "["))
    assert (report.name, report.examples, len(report.errors)) == ("train", 0, 2)
    (tmp_path / "latin.jsonl").write_bytes(b'{"query": "caf\xe9", "pos": ["x"]}')
    report = check_data(tmp_path / "latin.jsonl")
    assert [(each.where, each.kind) for each in report.errors] == [("latin.jsonl", "unreadable")]
    assert "Save it as UTF-8" in report.errors[0].message
    with pytest.raises(ConfigurationError, match="does not exist"):
        check_data(tmp_path / "none.jsonl")


def test_examples_made_by_hand_go_through_the_same_checks():
    report = check_data(
        data_of({"query": "p", "positives": ("x",), "negatives": ("x",)}, {"query": "q", "positives": ("x",)})
    )
    assert report.examples == 1
    assert places(report, "unusable") == ["example 1"]


def test_judged_questions_and_what_was_left_out_of_them(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"_id": "a", "text": "The heart."}\n{"_id": "b", "text": "The liver."}\n')
    rows = [{"query": "one", "positives": ["a"]}, {"query": "two", "positives": ["b"]}]
    rows.append({"query": "three", "positives": ["gone"]})
    file = written(tmp_path, *rows)
    report = check_data(file, corpus=corpus)
    assert report.examples == 2
    assert any("1 questions whose documents have no text" in message for _, message in told(report, "note"))
    wrong = check_data(written(tmp_path, *rows, {"query": ""}), corpus=corpus)
    assert (wrong.examples, wrong.errors[0].kind) == (0, "unreadable")
    assert "train.jsonl line 4 has query=''" in wrong.errors[0].message


def test_what_stands_in_the_data_twice(tmp_path):
    file = written(
        tmp_path,
        {"query": "What pumps blood?", "pos": ["The heart."], "neg": ["The liver."]},
        {"query": "what  pumps blood?", "pos": ["the heart."]},
        {"query": "What pumps blood?", "pos": ["It is the heart."]},
        {"query": "q", "pos": ["x", "x"], "neg": ["y", "z", "Y", "y"]},
    )
    report = check_data(file)
    assert places(report, "pair-twice") == ["train.jsonl line 2", "train.jsonl line 4"]
    assert "of train.jsonl line 1 again" in told(report, "pair-twice")[0][1]
    assert places(report, "question-twice") == ["train.jsonl line 3"]
    assert told(report, "negative-twice") == [("train.jsonl line 4", "2 of its negatives stand in it already")]
    assert not any(each.is_error for each in report.findings if "twice" in each.kind)


def test_a_negative_that_is_a_positive_of_the_same_question_in_another_line(tmp_path):
    file = written(
        tmp_path,
        {"query": "q", "pos": ["x"], "neg": ["y"]},
        {"query": "Q", "pos": ["y"], "neg": ["z"]},
        {"query": "other", "pos": ["z"], "neg": ["x", "y"]},
    )
    report = check_data(file)
    assert places(report, "negative-is-positive-elsewhere") == ["train.jsonl line 1"]
    assert "of the same question in train.jsonl line 2" in told(report, "negative-is-positive-elsewhere")[0][1]


def test_leaks_of_questions_and_of_documents_are_not_confused():
    train = data_of(
        {"query": "What pumps blood?", "positives": ("The heart.",), "where": "a line 1"},
        {"query": "What is in France?", "positives": ("Paris is.",), "where": "a line 2"},
        {"query": "What else is there?", "positives": ("Paris is.",), "where": "a line 3"},
    )
    test = data_of(
        {"query": "what pumps  blood?", "positives": ("A muscle.",)},
        {"query": "A city?", "positives": ("Paris is.", "Rome.")},
    )
    report = check_data(train, test=test)
    [(where, message)] = told(report, "question-in-test")
    assert (where, message.startswith("1 of the 2 questions of 'some' are trained on.")) == ("a line 1", True)
    [(where, message)] = told(report, "document-in-test")
    assert (where, message.startswith("1 of the 3 texts that answer 'some' are positives here")) == ("a line 2", True)
    assert "How the model does on new documents it does not tell" in message
    assert not kinds(check_data(train, test=toy_data(5))) & {"question-in-test", "document-in-test"}


def test_leaks_into_judgements_with_documents_quotes_and_unanswerable_questions():
    train = data_of(
        *({"query": f"q{at}", "positives": (f"Text {at}, in full.",), "where": f"line {at}"} for at in range(9))
    )
    test = Judgements(
        name="asked",
        queries={"1": "new", "2": "other"},
        grades={"1": {"d": 1, "e": 0}},
        passages={"2": (Passage(document="f", quote="text 3,"), Passage(quote="unknown"))},
        documents={"d": "Text 2, in full.", "e": "Text 5, in full."},
        unanswerable={"3": "Q7"},
    )
    report = check_data(train, test=test)
    assert places(report, "question-in-test") == ["line 7"]
    assert places(report, "document-in-test") == ["line 2, line 3"]
    assert "2 of the 3 texts" in told(report, "document-in-test")[0][1]
    everything = replace(test, queries={f"{at}": f"q{at}" for at in range(9)}, grades={}, unanswerable={})
    assert places(check_data(train, test=everything), "question-in-test") == [
        "line 0, line 1, line 2, line 3, line 4 and 4 more"
    ]


def test_a_test_is_read_from_any_file(tmp_path):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "a", "text": "The heart."}\n{"_id": "b", "text": "Paris."}\n')
    (folder / "queries.jsonl").write_text('{"_id": "1", "text": "one"}\n{"_id": "2", "text": "two"}\n')
    (folder / "qrels" / "train.tsv").write_text("q\td\ts\n1\ta\t1\n".replace("q\td\ts", "query-id\tcorpus-id\tscore"))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n2\ta\t1\n")
    report = check_data(folder, test=folder)
    assert places(report, "document-in-test") == ["beir question 1"]
    assert "question-in-test" not in kinds(report)
    lines = tmp_path / "test.jsonl"
    lines.write_text('{"query": "ONE", "pos": ["x"]}\n')
    assert places(check_data(folder, test=lines), "question-in-test") == ["beir question 1"]
    lines.write_text('{"query": "three", "positives": ["a"]}\n')
    report = check_data(written(tmp_path, {"query": "q", "pos": ["the heart."]}), test=lines, corpus=folder)
    assert places(report, "document-in-test") == ["train.jsonl line 1"]
    lines.write_text("{\n")
    with pytest.raises(InputError, match=r"test\.jsonl line 1: is not JSON"):
        check_data(folder, test=lines)


@pytest.mark.parametrize(
    ("settings", "loss", "is_zero"),
    [
        ({"batch_size": 1, "negatives": 0}, "contrastive", True),
        ({"batch_size": 2, "negatives": 0}, "contrastive", False),
        ({"batch_size": 1, "negatives": 1}, "contrastive", False),
        ({"negatives": 0}, "kl", True),
        ({"negatives": 0}, "margin_mse", True),
        ({"negatives": 1}, "contrastive_kl", False),
    ],
)
def test_settings_under_which_the_loss_is_always_zero(settings, loss, is_zero):
    data = toy_data(120, negatives=2, scores=True)
    report = check_data(data, settings=TrainingSettings(**settings), loss=loss)
    assert [each.kind for each in report.errors] == (["loss-is-zero"] if is_zero else [])


def test_one_text_that_answers_everything_teaches_nothing():
    data = data_of(*({"query": f"q{at}", "positives": ("x",)} for at in range(120)))
    assert "loss-is-zero" in {each.kind for each in check_data(data).errors}
    mined = replace(data, examples=tuple(replace(each, negatives=("y",)) for each in data.examples))
    assert check_data(mined).errors == ()


def test_scores_that_are_missing_or_too_few_or_all_the_same():
    data = toy_data(120, negatives=2, scores=True)
    two = TrainingSettings(negatives=2)
    assert check_data(data, settings=two, loss="kl").findings == ()
    bare = replace(
        data, examples=(replace(data.examples[0], positive_scores=(), negative_scores=()), *data.examples[1:])
    )
    report = check_data(bare, settings=two, loss="margin_mse")
    assert [(each.where, each.kind) for each in report.errors] == [("toys line 1", "no-scores")]
    assert check_data(bare, settings=two).findings == ()
    report = check_data(data, settings=TrainingSettings(negatives=3), loss="kl")
    assert places(report, "few-scored-negatives")[-1] == "115 more lines"
    flat = tuple(replace(each, positive_scores=(1.0,), negative_scores=(1.0, 1.0)) for each in data.examples)
    report = check_data(replace(data, examples=flat), settings=two, loss="kl")
    assert [each.kind for each in report.errors] == ["constant-scores"]
    report = check_data(replace(data, examples=(*flat[1:], data.examples[0])), settings=two, loss="kl")
    assert report.errors == ()


def test_few_examples_and_none_that_can_be_held_out():
    report = check_data(toy_data(99))
    assert [(each.kind, each.is_error) for each in report.findings] == [("few-examples", False)]
    report = check_data(toy_data(20))
    assert [(each.kind, each.is_error) for each in report.findings] == [
        ("nothing-held-out", True),
        ("few-examples", False),
    ]
    assert "Pass a larger share" in report.errors[0].message


def test_texts_longer_than_the_model_reads(model):
    long = "word " * 400
    rows = [{"query": f"q{at}", "positives": (f"text {at}",), "where": f"line {at}"} for at in range(99)]
    rows.append({"query": "one", "positives": ("x " * 300,), "negatives": (long, "z " * 500), "where": "line 99"})
    report = check_data(data_of(*rows), model=model, settings=TrainingSettings(negatives=1))
    [(where, message)] = told(report, "long-documents")
    assert where == "line 99"
    assert message.startswith("2 of 101 documents (2.0%) are longer than the 256 tokens")
    assert "has 402." in message  # the second negative is not read
    assert "long-queries" not in kinds(report)
    asked = Embedder(
        model.model, truncation="silent", max_length=16, query_instruction="find a text that answers this: "
    )
    [(where, message)] = told(check_data(toy_data(120), model=asked), "long-queries")
    assert where.startswith("toys line")
    assert "longer than the 16 tokens" in message
    assert "long-documents" not in kinds(check_data(toy_data(120), model=asked))


def test_a_prompt_that_the_model_does_not_get(model):
    data = toy_data(120)
    own = tuple(replace(each, prompt="ask: ") for each in data.examples[:1])
    mixed = replace(data, examples=(*own, *data.examples[1:]))
    assert places(check_data(mixed, model=model), "prompt") == ["toys line 1"]
    same = Embedder(model.model, query_instruction="ask: ", truncation="silent")
    assert check_data(mixed, model=same).errors == ()


def test_the_guess_follows_the_settings(model):
    data = toy_data(120, negatives=3)
    plain = TrainingSettings(batch_size=64, mini_batch_size=32, negatives=3)

    def guess(**changes):
        loss = changes.pop("loss", "contrastive")
        return check_data(data, model=model, settings=replace(plain, **changes), loss=loss).guess

    first = guess()
    # 22.7 million weights by 16 bytes, and what 32 short texts leave.
    assert 363 < first.memory_mb < 500
    assert first.memory_mb < guess(mini_batch_size=64).memory_mb
    assert guess(lora_rank=8).memory_mb < first.memory_mb / 2
    assert guess(dropout=0.0).memory_mb < first.memory_mb
    assert guess(precision="bfloat16").memory_mb < first.memory_mb
    assert guess(gradient_checkpointing=True).memory_mb < first.memory_mb
    assert guess(loss="contrastive_kl").memory_mb > first.memory_mb  # its gradients are not cached
    assert 0 < first.minutes < 5
    assert guess(epochs=50.0).minutes > 5 * first.minutes
    assert guess(max_steps=1, batch_size=1).minutes < first.minutes / 3
    assert str(first).startswith(f"roughly {first.memory_mb} MB of memory and ")
    assert str(first).endswith(" minutes on cpu")


def test_the_guess_is_not_of_a_cache(model, monkeypatch):
    cache = VectorCache()
    cached = Embedder(model.model, vector_cache=cache, truncation="silent")
    assert check_data(toy_data(120), model=cached).guess.minutes > 0
    assert (cache.stats.hits, cache.stats.entries) == (0, 0)


def test_a_model_by_its_name_and_the_report_as_json(hub_cache):
    report = check_data(toy_data(99), model="BAAI/bge-small-en-v1.5")
    value = json.loads(json.dumps(report.as_dict()))
    assert value["guess"]["is_rough"] is True
    assert value["guess"]["device"] == "cpu"
    assert value["findings"][0] | {"message": ""} == {
        "where": "toys",
        "kind": "few-examples",
        "message": "",
        "is_error": False,
    }
    assert (value["name"], value["examples"]) == ("toys", 99)


def test_losses_are_those_of_the_trainer():
    assert checking.LOSSES == embedder.LOSSES
    with pytest.raises(ConfigurationError, match=r"loss='mse' is not allowed\. Use 'contrastive'"):
        check_data(toy_data(10), loss="mse")
