"""What is kept from training: new documents apart, new questions on known documents apart."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from bge_runtime import ConfigurationError
from bge_runtime.training.examples import Example, TrainingData
from bge_runtime.training.holding_out import LEAST, as_judgements, hold_out
from tests.training.toys import toy_data


def data_of(*pairs, **more):
    examples = [
        Example(query=query, positives=tuple(texts), where=f"line {at}") for at, (query, *texts) in enumerate(pairs)
    ]
    return TrainingData(name="some", examples=tuple(examples), **more)


def positives(judged):
    """The texts that answer each question of a development set."""
    return {
        judged.queries[query]: {judged.documents[name] for name, grade in grades.items() if grade > 0}
        for query, grades in judged.grades.items()
    }


def trained(split):
    return {text for each in split.training.examples for text in each.positives}


def parts(split):
    return {name: positives(each) for name, each in split.development.items()}


DATA = toy_data(150)


def test_unseen_questions_have_no_document_of_training_and_seen_ones_all_of_them():
    split = hold_out(DATA)
    known = trained(split)
    unseen, seen = positives(split.unseen), positives(split.seen)
    assert (len(unseen), len(seen)) == (15, 15)
    assert not set().union(*unseen.values()) & known
    assert set().union(*seen.values()) <= known
    asked = {each.query for each in split.training.examples}
    assert not asked & (unseen.keys() | seen.keys())
    assert not unseen.keys() & seen.keys()
    assert len(asked) == 150 - 30
    assert split.unseen.name == "toys (unseen)"


def test_every_example_is_in_one_part_and_keeps_its_place_and_its_positives():
    split = hold_out(DATA)
    kept = {each.query for each in split.training.examples}
    assert split.training.examples == tuple(each for each in DATA.examples if each.query in kept)
    assert split.training.documents == DATA.documents
    told = {query: texts for part in parts(split).values() for query, texts in part.items()}
    given = {each.query: set(each.positives) for each in DATA.examples}
    assert told == {query: texts for query, texts in given.items() if query not in kept}
    # All documents are searched in, so that neither set is easier.
    assert set(split.unseen.documents.values()) == set(split.seen.documents.values()) == set(DATA.documents.values())


def test_the_order_of_the_file_does_not_matter_and_the_seed_does():
    first = hold_out(DATA)
    for seed in range(3):
        mixed = random.Random(seed).sample(DATA.examples, len(DATA.examples))
        assert parts(hold_out(replace(DATA, examples=tuple(mixed)))) == parts(first)
    assert parts(hold_out(DATA, seed=0)) == parts(first)
    assert parts(hold_out(DATA, seed=1)) != parts(first)


def test_the_share_is_that_of_each_set_and_bounded():
    for share, count in ((0.05, 8), (0.2, 30)):
        split = hold_out(DATA, share=share)
        assert {len(each.queries) for each in split.development.values()} == {count}
    many = data_of(*((f"q{at}", f"p{at // 2}") for at in range(6000)))
    split = hold_out(many, share=0.4)
    assert {len(each.queries) for each in split.development.values()} == {500}


def test_without_shared_documents_there_is_no_seen_set():
    split = hold_out(data_of(*((f"q{at}", f"p{at}") for at in range(60))))
    assert (len(split.unseen.queries), split.seen) == (6, None)
    assert list(split.development) == ["unseen"]


def test_where_all_questions_hang_together_there_is_no_unseen_set():
    split = hold_out(data_of(*((f"q{at}", f"p{at % 7}", f"p{(at + 1) % 7}") for at in range(60))))
    assert (split.unseen, len(split.seen.queries)) == (None, 6)
    assert set().union(*positives(split.seen).values()) <= trained(split)


def test_questions_that_share_a_document_through_others_stay_together():
    chains = [
        pair
        for at in range(50)
        for pair in ((f"a{at}", f"p{at}"), (f"b{at}", f"p{at}", f"o{at}"), (f"c{at}", f"o{at}"))
    ]
    split = hold_out(data_of(*chains))
    unseen = positives(split.unseen)
    assert len(unseen) == 15
    assert {query[1:] for query in unseen} == {query[1:] for query in unseen if query.startswith("a")}
    # A question in two lines, too.
    split = hold_out(data_of(*(pair for at in range(50) for pair in ((f"q{at}", f"p{at}"), (f"q{at}", f"o{at}")))))
    assert not positives(split.unseen).keys() & {each.query for each in split.training.examples}


def test_a_question_in_two_lines_is_not_trained_on_and_measured():
    split = hold_out(data_of(*((f"q{at // 2}", f"p{at // 2}") for at in range(120))))
    asked = {each.query for each in split.training.examples}
    for part in parts(split).values():
        assert not part.keys() & asked


def test_a_positive_twice_in_a_line_is_no_second_question():
    split = hold_out(data_of(*((f"q{at}", f"p{at}", f"p{at}") for at in range(60))))
    assert split.seen is None


def test_a_positive_outside_the_corpus_becomes_a_document_and_equal_documents_are_one():
    examples = data_of(("one", "A", "B"), ("two", "B")).examples
    judged = as_judgements(examples, {"x": "A", "y": "A", "z": "C"}, "small")
    assert sorted(judged.documents.values()) == ["A", "B", "C"]
    assert positives(judged) == {"one": {"A", "B"}, "two": {"B"}}
    assert judged.documents["x"] == "A"


@pytest.mark.parametrize("share", [0, -0.1, 0.41, True, "0.1", None])
def test_shares_that_are_refused(share):
    with pytest.raises(ConfigurationError, match=r"share=.* is not allowed\. Pass more than 0, and at most 0\.4\."):
        hold_out(DATA, share=share)


def test_data_of_which_nothing_can_be_held_out():
    few = data_of(*((f"q{at}", f"p{at}") for at in range(40)))
    message = rf"Of the 40 examples of 'some' none can be held out .* share=0\.1 that is 4, of at least {LEAST}"
    with pytest.raises(ConfigurationError, match=message):
        hold_out(few)
    assert len(hold_out(few, share=0.2).unseen.queries) == 8
