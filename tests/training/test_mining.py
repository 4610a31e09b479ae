"""Hard negatives: never an answer, the same for the same seed, and all of it counted."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from bge_runtime import ConfigurationError, Embedder, VectorCache, stats
from bge_runtime.training.examples import Example, TrainingData
from bge_runtime.training.mining import mine
from tests.training.toys import toy_data

NUMBERS = itertools.count()
DATA = toy_data(30)
DOCUMENTS = set(DATA.documents.values())


@pytest.fixture(scope="module")
def cache():
    return VectorCache()


@pytest.fixture(scope="module")
def embedder(minilm, cache):
    with Embedder(str(minilm), truncation="silent", vector_cache=cache) as held:
        yield held


class Fake:
    """A reranker that scores by a rule."""

    def __init__(self, rule):
        self.rule, self.calls, self.identity = rule, [], f"fake {next(NUMBERS)}"

    def score_pairs(self, pairs, *, show_progress=None):
        self.calls.append(list(pairs))
        return np.array([self.rule(*pair) for pair in pairs], np.float32)


def cosines(embedder, data):
    """By example: documents with their cosine, best first, and that of the lowest positive."""
    documents = list(dict.fromkeys(data.documents.values()))
    vectors = embedder.encode_documents(documents)
    found = []
    for each, query in zip(data.examples, embedder.encode_queries([each.query for each in data.examples]), strict=True):
        scores = dict(zip(documents, (vectors @ query).tolist(), strict=True))
        ranked = sorted(scores, key=lambda text: -scores[text])
        found.append((ranked, scores, min(scores[text] for text in each.positives)))
    return found


def negatives(mined):
    return [each.negatives for each in mined.data.examples]


def test_the_best_that_answer_nothing_are_the_negatives(embedder):
    mined = mine(DATA, embedder, negatives=4, relative_margin=None)
    for each, (ranked, _, _) in zip(mined.data.examples, cosines(embedder, DATA), strict=True):
        assert list(each.negatives) == [text for text in ranked if text not in each.positives][:4]
    assert (mined.short, mined.miner, mined.data.documents) == (0, embedder.identity, DATA.documents)
    assert [each.query for each in mined.data.examples] == [each.query for each in DATA.examples]


def test_no_positive_nor_the_question_itself_is_ever_a_negative(embedder):
    documents = {**DATA.documents, **{f"q{at}": each.query for at, each in enumerate(DATA.examples)}}
    data = replace(DATA, documents=documents)
    mined = mine(data, embedder, negatives=len(documents), ranks=(1, len(documents)), relative_margin=None)
    for each in mined.data.examples:
        assert not {*each.positives, each.query} & set(each.negatives)
        assert len(each.negatives) == len(documents) - 2
    assert mined.short == len(DATA.examples)


def test_what_answers_the_question_in_another_line_is_no_negative(embedder):
    texts = ("The heart pumps blood through the body.", "Blood is pumped by the heart.", "Paris is in France.")
    examples = tuple(Example(query="what pumps blood?", positives=(text,)) for text in texts[:2])
    data = TrainingData(name="two lines", examples=examples, documents=dict(zip("abc", texts, strict=True)))
    assert negatives(mine(data, embedder, relative_margin=None)) == [(texts[2],), (texts[2],)]


def test_a_document_twice_in_the_corpus_is_found_once_and_empty_ones_never(embedder):
    twice = {**DATA.documents, **{f"copy {name}": text for name, text in DATA.documents.items()}, "empty": " "}
    mined = mine(replace(DATA, documents=twice), embedder, negatives=200, ranks=(1, 300), relative_margin=None)
    for each in negatives(mined):
        assert len(each) == len(set(each)) == len(DOCUMENTS) - 1
    assert mined.dropped["empty"] == len(DATA.examples)


def test_positives_outside_the_corpus_set_the_margin_too(embedder):
    outside = replace(DATA, documents=dict(list(DATA.documents.items())[10:]))
    mined = mine(outside, embedder, negatives=200, ranks=(1, 200), relative_margin=0.2)
    for each, (ranked, scores, lowest) in zip(mined.data.examples, cosines(embedder, DATA), strict=True):
        lower = {text for text in ranked if scores[text] <= 0.8 * lowest}
        assert set(each.negatives) == (lower & set(outside.documents.values())) - set(each.positives)


@pytest.mark.parametrize(("absolute", "relative"), [(0.1, None), (None, 0.2), (0.05, 0.1), (0.0, 0.0), (None, None)])
def test_margins_keep_what_is_lower_than_the_positive_by_as_much(embedder, absolute, relative):
    mined = mine(DATA, embedder, negatives=200, ranks=(1, 200), absolute_margin=absolute, relative_margin=relative)
    for each, (ranked, scores, lowest) in zip(mined.data.examples, cosines(embedder, DATA), strict=True):
        most = min(
            np.inf if absolute is None else lowest - absolute,
            np.inf if relative is None else lowest - relative * abs(lowest),
        )
        assert set(each.negatives) == {text for text in ranked if scores[text] <= most and text not in each.positives}
    told = mined.dropped
    assert set(told) - {"positives, the question itself, or negatives already"} == {
        *([f"within {absolute:g} of the positive"] if absolute else []),
        *([f"above {1 - relative:.0%} of the positive's cosine"] if relative else []),
        *(["within 0 of the positive"] if absolute == 0 else []),
    }


def test_ranks_are_those_of_the_search(embedder):
    mined = mine(DATA, embedder, negatives=50, ranks=(4, 9), relative_margin=None)
    for each, (ranked, _, _) in zip(mined.data.examples, cosines(embedder, DATA), strict=True):
        assert list(each.negatives) == [text for text in ranked[3:9] if text not in each.positives]
    assert mined.candidates == 6 * len(DATA.examples)
    none = mine(DATA, embedder, ranks=(1000, 2000))
    assert (none.candidates, none.short, none.shown) == (0, len(DATA.examples), [])


def test_at_random_by_seed_and_question(embedder):
    options = {"negatives": 3, "ranks": (1, 30), "relative_margin": None, "choose": "random"}
    first = mine(DATA, embedder, **options)
    assert negatives(mine(DATA, embedder, **options)) == negatives(first)
    assert negatives(mine(DATA, embedder, **options, seed=1)) != negatives(first)
    turned = mine(replace(DATA, examples=DATA.examples[::-1]), embedder, **options)
    assert negatives(turned) == negatives(first)[::-1]
    places = []
    for each, (ranked, _, _) in zip(first.data.examples, cosines(embedder, DATA), strict=True):
        found = [ranked.index(text) for text in each.negatives]
        assert found == sorted(found)
        assert max(found) < 30
        places += found
    assert np.mean(places) > 10
    top = mine(DATA, embedder, **{**options, "choose": "top"})
    assert negatives(top) == negatives(mine(DATA, embedder, **{**options, "choose": "top"}, seed=5))


def test_negatives_that_are_there_already_stay_first_and_count(embedder):
    own = tuple(replace(each, negatives=("mine", "too")) for each in DATA.examples)
    mined = mine(replace(DATA, examples=own), embedder, negatives=3, relative_margin=None)
    fresh = mine(DATA, embedder, negatives=1, relative_margin=None)
    assert negatives(mined) == [("mine", "too", *each) for each in negatives(fresh)]
    assert negatives(mine(replace(DATA, examples=own), embedder, negatives=1)) == [("mine", "too")] * len(own)


def test_a_reranker_takes_out_what_it_takes_for_an_answer(embedder):
    data = replace(DATA, examples=DATA.examples[:5])
    plain = mine(data, embedder, negatives=5, relative_margin=None)
    best = {each.query: each.negatives[0] for each in plain.data.examples}
    answers = {(each.query, text) for each in data.examples for text in each.positives}

    def rule(query, text):
        if (query, text) in answers:
            return 10.0
        return 9.6 if text == best[query] else 9.4 if text.startswith("The dog") else 0.0

    fake = Fake(rule)
    mined = mine(data, embedder, negatives=5, relative_margin=None, reranker=fake)
    # 5% of the way from 10 down to 0 is 9.5.
    for each, before in zip(negatives(mined), negatives(plain), strict=True):
        assert before[0] not in each
        assert each[:4] == before[1:]
    assert mined.dropped["answers, to the reranker"] == 5
    assert len(fake.calls) == 1
    all_out = mine(data, embedder, relative_margin=None, reranker=Fake(lambda *pair: float(pair not in answers)))
    assert negatives(all_out) == [()] * 5
    assert all_out.short == 5


def test_a_teacher_scores_positives_and_negatives(embedder):
    scored = tuple(replace(each, positive_scores=(1.0,)) for each in DATA.examples)
    teacher = Fake(lambda query, text: len(query) - len(text))
    mined = mine(replace(DATA, examples=scored), embedder, negatives=2, teacher=teacher, relative_margin=None)
    for each in mined.data.examples:
        assert each.has_scores
        assert each.positive_scores == tuple(float(len(each.query) - len(text)) for text in each.positives)
        assert each.negative_scores == tuple(float(len(each.query) - len(text)) for text in each.negatives)
    bare = mine(replace(DATA, examples=scored), embedder, negatives=2)
    assert not any(each.has_scores for each in bare.data.examples)  # those of before know nothing of new negatives


def test_the_counts_of_the_report_add_up(embedder):
    mined = mine(DATA, embedder, negatives=1000, ranks=(1, 40), relative_margin=0.1, reranker=Fake(lambda *_: 1.0))
    told = mined.as_dict()
    assert told["examples"] == 30
    assert told["candidates"] == 30 * 40 == sum(told["dropped"].values()) + told["negatives"]
    assert told["negatives"] == sum(map(len, negatives(mined)))
    assert told["short"] == 30
    assert len(told["shown"]) == min(20, told["negatives"])
    own = {each.query: each for each in mined.data.examples}
    scores = {each.query: found for each, (_, found, _) in zip(DATA.examples, cosines(embedder, DATA), strict=True)}
    for each in told["shown"]:
        assert each["negative"] in own[each["query"]].negatives
        assert each["positive"] in own[each["query"]].positives
        for what in ("positive", "negative"):
            assert each[f"cosine_of_{what}"] == pytest.approx(scores[each["query"]][each[what]], abs=1e-4)


def test_a_second_run_with_the_same_cache_computes_nothing(minilm, tmp_path):
    runs = []
    for _ in range(2):
        before = stats()["inputs"]
        with Embedder(str(minilm), truncation="silent", vector_cache=tmp_path / "vectors.sqlite") as held:
            runs.append(negatives(mine(DATA, held, negatives=3)))
        runs.append(stats()["inputs"] - before)
    assert runs[0] == runs[2]
    assert runs[1] == len(DOCUMENTS) + len(DATA.examples)
    assert runs[3] == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("negatives", 0),
        ("negatives", True),
        ("ranks", (0, 5)),
        ("ranks", (5, 4)),
        ("ranks", (1,)),
        ("ranks", (1, 2.5)),
        ("absolute_margin", -0.1),
        ("absolute_margin", float("nan")),
        ("relative_margin", 1.0),
        ("relative_margin", "0.1"),
        ("choose", "best"),
    ],
)
def test_options_that_are_refused(embedder, name, value):
    with pytest.raises(ConfigurationError, match=f"^{name}=.* is not allowed"):
        mine(DATA, embedder, **{name: value})


def test_scores_that_were_computed_before_a_run_was_cut_off_are_not_computed_again(embedder, monkeypatch):
    monkeypatch.setattr("bge_runtime.evaluation.subjects.WINDOW", 50)
    teacher = Fake(lambda query, text: len(text) - len(query))
    whole = mine(DATA, embedder, negatives=4, teacher=Fake(teacher.rule))
    own = teacher.score_pairs

    def interrupted(pairs, *, show_progress=None):
        if len(teacher.calls) == 2:
            raise KeyboardInterrupt
        return own(pairs, show_progress=show_progress)

    teacher.score_pairs = interrupted
    with pytest.raises(KeyboardInterrupt):
        mine(DATA, embedder, negatives=4, teacher=teacher)
    done, teacher.calls, teacher.score_pairs = [pair for call in teacher.calls for pair in call], [], own
    again = mine(DATA, embedder, negatives=4, teacher=teacher)
    assert len(done) == 100
    assert not set(done) & {pair for call in teacher.calls for pair in call}
    assert again.data.examples == whole.data.examples
