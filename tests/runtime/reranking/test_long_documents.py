"""Documents that no model reads at once, and rankings that must be there in time."""

from __future__ import annotations

import asyncio
import math
import threading
import time

import numpy as np
import pytest

import bge_runtime
from bge_runtime import ConfigurationError, Reranker
from bge_runtime.engine.deadline import Deadline
from bge_runtime.inputs.tokenizing import Tokenizing
from bge_runtime.vectors.similarity import best_passages
from tests.checkpoints.encoder_tokenizers import bert_tokenizer
from tests.runtime.fakes import TIMEOUT_S

CROSS = "BAAI/bge-reranker-base"
LATE = "BAAI/bge-small-en-v1.5"
QUERY = "What is a panda?"
FILLER = "the dog slept in the garden and the cat sat on the mat while rain fell on the roof "
LONG = FILLER * 60 + "The giant panda is a bear species endemic to China." + FILLER * 60
DOCUMENTS = [LONG, "", "Paris is the capital of France", "The giant panda is a bear."]


@pytest.fixture(params=[CROSS, LATE], ids=["cross-encoder", "late interaction"])
def model(request, hub_cache):
    return request.param


@pytest.mark.parametrize("overlap", [None, 1, 3, 50])
@pytest.mark.parametrize("size", range(12))
def test_passages_hold_every_token_in_order_and_overlap(overlap, size):
    text = " ".join(["panda", "dog", "cat"][n % 3] for n in range(size))
    tokenizing = Tokenizing(bert_tokenizer())
    whole = tokenizing.texts([text], 512).sequences[0].ids.tolist()[1:-1]
    tokens = tokenizing.texts([text], 7, overlap=overlap)
    assert tokens.passages == [len(tokens.sequences)]
    parts = [sequence.ids.tolist()[1:-1] for sequence in tokens.sequences]
    if overlap is None:
        assert parts == [whole[:5]]
        assert tokens.truncated == (len(whole) > 5)
        return
    shared = min(overlap, 2)
    rebuilt = parts[0] + [token for part in parts[1:] for token in part[shared:]]
    assert rebuilt == whole
    assert tokens.truncated == 0
    assert max(map(len, parts)) <= 5


def test_the_best_passage_counts_and_missing_ones_make_no_score():
    assert best_passages([1, 5, 2, 7, 3], [2, 1, 2]).tolist() == [5, 2, 7]
    assert best_passages([1, 5, 2, 7], [2, 1, 2]).tolist() == [5, 2]
    assert best_passages([], [2]).tolist() == []


def test_max_passage_is_the_best_of_the_passages_scored_alone(model):
    reranker = Reranker(model, max_length=64, long_document="max_passage", passage_overlap=16)
    tokenizing = (reranker._runner.hold() if model == CROSS else reranker.embedder._runner.hold()).tokenizing
    query_tokens = tokenizing.count([QUERY])[0] if model == CROSS else 0
    offsets = tokenizing.offsets(LONG)
    room = 64 - query_tokens - 2 if model == CROSS else 62
    starts = range(0, len(offsets) - room + (room - 16), room - 16)
    windows = [offsets[start : start + room] for start in starts]
    passages = [LONG[window[0][0] : window[-1][1]] for window in windows]
    alone = Reranker(model, max_length=80).score(QUERY, passages)
    np.testing.assert_allclose(reranker.score(QUERY, [LONG])[0], alone.max(), atol=1e-4)
    assert reranker.truncated_count == 0


def test_what_stands_far_behind_is_found_by_passages_only(minilm):
    """The packaged weights: an answer after thousands of words."""
    long = "Stock prices fell on Monday. " * 300 + "The heart pumps blood through the body." + " It rained. " * 300
    documents = ["Rivers carry water to the sea.", long, "Blood is thicker than water, they say."]
    options = {"model": bge_runtime.DEFAULT_OFFLINE_MODEL, "truncation": "silent"}
    cut = Reranker(**options).rank("Which organ moves blood?", documents)
    whole = Reranker(**options, long_document="max_passage").rank("Which organ moves blood?", documents)
    assert cut[0].index != 1
    assert whole[0].index == 1


def test_short_documents_score_as_ever(model):
    short = DOCUMENTS[1:]
    np.testing.assert_allclose(
        Reranker(model, long_document="max_passage").score(QUERY, short), Reranker(model).score(QUERY, short), atol=1e-6
    )


def test_a_document_of_a_hundred_thousand_tokens_is_read_whole(hub_cache):
    words = "panda dog cat bear " * 25_000
    reranker = Reranker(LATE, long_document="max_passage", max_length=128, truncation="error")
    (score,) = reranker.score(QUERY, [words[:200_000]])
    assert -1 <= score <= 1
    assert reranker.truncated_count == 0


def test_the_options_are_part_of_copies_and_of_the_identity(hub_cache):
    reranker = Reranker(LATE, long_document="max_passage", passage_overlap=7)
    assert reranker.options()["long_document"] == "max_passage"
    assert Reranker(**reranker.options()).identity == reranker.identity
    assert Reranker(LATE).identity != reranker.identity
    shared = Reranker(bge_runtime.Embedder(LATE), long_document="max_passage")
    assert shared.options()["long_document"] == "max_passage"


@pytest.mark.parametrize("wrong", [{"long_document": "split"}, {"passage_overlap": 0}, {"passage_overlap": 1.5}])
def test_wrong_options_are_refused_before_anything_loads(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Reranker(LATE, **wrong)


# Time budget


def slowed(monkeypatch, seconds):
    """Let every forward pass of the packed executor take longer."""
    from bge_runtime.backends.packed.encoder import PackedBackend

    forward = PackedBackend.forward

    def slow(self, *given):
        time.sleep(seconds)
        return forward(self, *given)

    monkeypatch.setattr(PackedBackend, "forward", slow)


def test_enough_time_gives_the_whole_order(model):
    documents = [f"{text} {n}" for n in range(30) for text in DOCUMENTS[2:]]
    reranker = Reranker(model, truncation="silent")
    whole = reranker.rank(QUERY, documents)
    timed = reranker.rank(QUERY, documents, time_budget_s=60)
    assert not timed.partial
    assert not whole.partial
    assert [each.index for each in timed] == [each.index for each in whole]
    np.testing.assert_allclose([each.score for each in timed], [each.score for each in whole], atol=1e-5)


def test_when_time_runs_out_the_best_so_far_comes_first(model, monkeypatch):
    documents = [f"{DOCUMENTS[n % 4]} number {n}" for n in range(400)]
    reranker = Reranker(model, batch_size=16, truncation="silent", max_length=32)
    scores = reranker.score(QUERY, documents)
    # A machine that is busy otherwise comes to the first forward pass late.
    slowed(monkeypatch, 0.5)
    started = time.perf_counter()
    ranking = reranker.rank(QUERY, documents, time_budget_s=2)
    took = time.perf_counter() - started
    assert took < 6
    assert ranking.partial
    assert len(ranking) == 400
    scored = [each for each in ranking if not math.isnan(each.score)]
    left = ranking[len(scored) :]
    assert 0 < len(scored) < 400
    # Those scored come from the front, ordered as they always are; the others keep their order.
    assert sorted(each.index for each in scored) == list(range(len(scored)))
    np.testing.assert_allclose([each.score for each in scored], -np.sort(-scores[: len(scored)]), atol=1e-5)
    assert [each.index for each in left] == list(range(len(scored), 400))


def test_no_time_at_all_keeps_the_order_and_passes_no_threshold(hub_cache, monkeypatch):
    reranker = Reranker(CROSS).warm_up()
    slowed(monkeypatch, 0.5)
    ranking = reranker.rank(QUERY, DOCUMENTS[1:], time_budget_s=0.01)
    assert ranking.partial
    assert [each.index for each in ranking] == [0, 1, 2]
    assert reranker.rank(QUERY, DOCUMENTS[1:], time_budget_s=0.01, score_threshold=-100) == []


@pytest.mark.parametrize("count", [1, 2, 17])
def test_few_documents_are_not_waited_for_either(hub_cache, monkeypatch, count):
    reranker = Reranker(CROSS).warm_up()
    slowed(monkeypatch, 1.5)
    started = time.perf_counter()
    ranking = reranker.rank(QUERY, [f"panda {n}" for n in range(count)], time_budget_s=0.05)
    assert time.perf_counter() - started < 1
    assert ranking.partial
    assert len(ranking) == count


async def test_the_async_twin_keeps_to_the_budget(hub_cache, monkeypatch):
    reranker = Reranker(CROSS, batch_size=4).warm_up()
    slowed(monkeypatch, 0.3)
    documents = [f"panda {n}" for n in range(64)]
    ranking = await asyncio.wait_for(reranker.arank(QUERY, documents, time_budget_s=0.5), TIMEOUT_S)
    assert ranking.partial


def test_work_cut_off_leaves_the_queue_to_others(hub_cache, monkeypatch):
    reranker = Reranker(CROSS, batch_size=4).warm_up()
    slowed(monkeypatch, 0.1)
    reranker.rank(QUERY, [f"panda {n}" for n in range(400)], time_budget_s=0.2)
    started = time.perf_counter()
    reranker.score(QUERY, ["panda"])
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("budget", [0, -1, "1", True, float("nan"), float("inf")])
def test_a_budget_that_is_no_time_is_refused(hub_cache, budget):
    with pytest.raises(ConfigurationError, match="time_budget_s"):
        Reranker(CROSS).rank(QUERY, DOCUMENTS, time_budget_s=budget)


def test_a_budget_and_a_mixture_exclude_each_other(hub_cache):
    with pytest.raises(ConfigurationError, match="time_budget_s"):
        Reranker(LATE).rank(QUERY, DOCUMENTS, time_budget_s=1, dense_weight=0.3)


def test_no_timer_is_left_behind(hub_cache):
    Reranker(CROSS).rank(QUERY, DOCUMENTS[1:], time_budget_s=60)
    timers = [each for each in threading.enumerate() if isinstance(each, threading.Timer) and each.interval == 60]
    for timer in timers:
        timer.join(TIMEOUT_S)
    assert not any(timer.is_alive() for timer in timers)


def test_a_deadline_hands_results_and_errors_on():
    from concurrent.futures import Future

    with Deadline(60) as deadline:
        done, broken = Future(), Future()
        limited, failed = deadline.limit(done), deadline.limit(broken)
        done.set_result(3)
        broken.set_exception(ValueError("x"))
        assert limited.result(1) == 3
        assert isinstance(failed.exception(1), ValueError)
    with Deadline(0.01) as deadline:
        never = Future()
        assert deadline.limit(never).result(TIMEOUT_S) is None
        assert never.cancelled()
        assert deadline.passed
        late = Future()
        assert deadline.limit(late).result(TIMEOUT_S) is None
