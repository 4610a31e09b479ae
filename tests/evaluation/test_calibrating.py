"""Calibrators from judged questions."""

from __future__ import annotations

import numpy as np
import pytest

from bge_runtime import DEFAULT_OFFLINE_MODEL, ConfigurationError, Embedder, InputError, Reranker
from bge_runtime.evaluation import calibrating
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.sources import Passage

THINGS = (
    "lamp ladder violin kettle hammer carpet bicycle mirror candle basket drum anchor pillow shovel clock teapot "
    "saddle whistle compass helmet trumpet curtain bucket sofa"
).split()


@pytest.fixture(scope="module")
def things():
    return Judgements(
        name="things",
        queries={thing: f"Where is the {thing}?" for thing in THINGS},
        grades={thing: {thing: 1} for thing in THINGS},
        documents={thing: f"The {thing} is on shelf {number}." for number, thing in enumerate(THINGS)},
        unanswerable={f"no{number}": f"Who wrote opera {number}?" for number in range(24)},
    )


@pytest.fixture(scope="module")
def embedder():
    with Embedder(DEFAULT_OFFLINE_MODEL) as embedder:
        yield embedder.warm_up()


def test_candidates_are_the_best_of_each_question_with_their_judgements(things, embedder):
    found = calibrating.candidates_of(embedder, things, candidates=3)
    assert [len(each) for each in found.scores] == [3] * 24
    assert len(found.unanswerable) == 24
    products = embedder.encode_queries(things.queries.values()) @ embedder.encode_documents(things.documents.values()).T
    assert np.allclose([each[0] for each in found.scores], products.max(axis=1), atol=1e-6)
    assert sum(int(each[0]) for each in found.labels) >= 20


def test_a_calibrator_of_an_embedder_and_of_late_interaction_holds_for_them_alone(things, embedder):
    reranker = Reranker(embedder, normalize=False)
    dense = calibrating.candidates_of(embedder, things, candidates=3)
    late = calibrating.candidates_of(embedder, things, reranker=reranker, candidates=3)
    calibrator = calibrating.calibrate(dense, random_pairs=calibrating.random_pairs_of(embedder, things))
    assert calibrator.identity == embedder.identity
    assert calibrator.fitted["unanswerable"] != "relevant candidates left out"
    assert calibrating.check_calibrator(calibrator, dense).error < 0.1
    assert calibrating.calibrate(late).identity == reranker.score_identity
    with pytest.raises(ConfigurationError):
        calibrating.check_calibrator(calibrator, late)


def test_without_labels_it_says_so(things, embedder):
    assert calibrating.calibrate_without_labels(embedder, things, candidates=3).weak


def test_what_cannot_be_calibrated_is_refused(things, embedder, hub_cache):
    with pytest.raises(ConfigurationError, match="candidates=0"):
        calibrating.candidates_of(embedder, things, candidates=0)
    with pytest.raises(ConfigurationError, match="normalize=False"):
        calibrating.candidates_of(embedder, things, reranker=Reranker("BAAI/bge-reranker-base", normalize=True))
    places = Judgements(name="p", queries={"q": "?"}, passages={"q": (Passage(quote="x"),)}, documents={"d": "x"})
    with pytest.raises(InputError, match="judges places"):
        calibrating.candidates_of(embedder, places)
