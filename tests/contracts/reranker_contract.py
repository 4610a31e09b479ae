"""What every reranking class of this project does, whichever framework it speaks to.

Inherit `RerankerContract` in a class named `Test...` and give it a fixture `adapter` that returns the class of a
`RerankerAdapter`.
"""

from __future__ import annotations

import asyncio
import copy
import math
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import bge_runtime
from bge_runtime import Reranker, ScoreCalibrator, score_facts
from tests.checkpoints.hub_cache import POISON, poisoned_reranker_folder
from tests.contracts.adapters import RankedRow, RerankerAdapter
from tests.contracts.concurrency import in_threads, ticks_during
from tests.contracts.samples import NOT_LISTS, NOT_TEXTS, SHOWN, TITLE, TOLERANCE

QUERY = "What is a panda?"
DOCUMENTS = [
    "The giant panda is a bear species endemic to China.",
    "cat",
    "How do I turn the query instruction off? " * 8,
    "",
    "Paris is the capital of France",
    "the dog slept in the garden " * 30,
    "tokens, batches, threads and caches",
    "大熊猫是中国特有的熊类动物，主要以竹子为食。",
]


def assert_close(left: Sequence[float], right: Sequence[float]) -> None:
    np.testing.assert_allclose(np.asarray(left, dtype=float), np.asarray(right, dtype=float), atol=TOLERANCE)


def assert_same_ranking(left: list[RankedRow], right: list[RankedRow]) -> None:
    assert [index for index, _ in left] == [index for index, _ in right]
    assert_close([score for _, score in left], [score for _, score in right])


def own_of(adapter: type[RerankerAdapter]) -> Reranker:
    """The runtime's reranker of the model that an adapter takes by itself."""
    subject = adapter.make().subject
    return subject if isinstance(subject, Reranker) else subject.reranker


def calibrator_of(reranker: Reranker) -> ScoreCalibrator:
    """A calibrator of that reranker's scores that parts those of the seeded checkpoints."""
    identity, words = score_facts(reranker)
    return ScoreCalibrator(method="platt", slope=2.0, intercept=-0.1, identity=identity, scorer=words)


class RerankerContract:
    """Inherit and provide `adapter`."""

    @pytest.fixture
    def adapter(self) -> type[RerankerAdapter]:
        raise NotImplementedError("return the RerankerAdapter subclass under test")

    @pytest.fixture
    def reranker(self, adapter: type[RerankerAdapter], hub_cache: object) -> RerankerAdapter:
        return adapter.make(normalize=False)

    @pytest.fixture
    def poisoned(self, tmp_path: Path) -> str:
        """A model whose score is NaN for documents that hold `POISON`."""
        return str(poisoned_reranker_folder(tmp_path))

    # Order and values

    def test_the_best_document_comes_first(self, reranker):
        ranking = reranker.rank(QUERY, DOCUMENTS)
        scores = [score for _, score in ranking]
        assert scores == sorted(scores, reverse=True)
        assert sorted(index for index, _ in ranking) == list(range(len(DOCUMENTS)))
        assert scores[0] - scores[-1] > 0.05

    def test_a_score_does_not_depend_on_the_other_documents(self, reranker):
        alone = [reranker.scores(QUERY, [document])[0] for document in DOCUMENTS]
        assert_close(reranker.scores(QUERY, DOCUMENTS), alone)
        assert_close(reranker.scores(QUERY, DOCUMENTS[::-1]), alone[::-1])

    def test_the_query_matters(self, reranker):
        left, right = reranker.scores(QUERY, DOCUMENTS), reranker.scores("the weather today", DOCUMENTS)
        assert np.abs(np.subtract(left, right)).max() > 0.01

    def test_scores_are_python_floats(self, reranker):
        assert {type(score) for _, score in reranker.rank(QUERY, DOCUMENTS)} == {float}

    def test_equal_documents_keep_their_input_order(self, reranker):
        ranking = reranker.rank(QUERY, ["dog", "cat", "dog", "cat", "dog"])
        order = [index for index, _ in ranking]
        assert [index for index in order if index % 2 == 0] == [0, 2, 4]
        assert [index for index in order if index % 2] == [1, 3]
        assert len({score for _, score in ranking}) == 2

    def test_no_documents_give_an_empty_ranking(self, reranker):
        assert list(reranker.rank(QUERY, [])) == []

    def test_no_documents_load_no_weights(self, adapter, hub_cache, fresh_store):
        adapter.make().rank(QUERY, [])
        assert len(bge_runtime.loaded_models()) == 0

    def test_empty_texts_are_scored(self, reranker):
        assert math.isfinite(reranker.scores(QUERY, [""])[0])
        assert math.isfinite(reranker.scores("", ["panda"])[0])

    def test_normalize_puts_the_raw_score_through_a_sigmoid(self, adapter, reranker):
        raw = np.asarray(reranker.scores(QUERY, DOCUMENTS))
        squashed = adapter.make(normalize=True)
        assert_close(squashed.scores(QUERY, DOCUMENTS), 1 / (1 + np.exp(-raw)))
        assert [row[0] for row in squashed.rank(QUERY, DOCUMENTS)] == [
            row[0] for row in reranker.rank(QUERY, DOCUMENTS)
        ]

    @pytest.mark.parametrize("normalize", [False, True])
    def test_a_calibrator_makes_probabilities_in_the_order_of_raw_scores(self, adapter, reranker, tmp_path, normalize):
        made = calibrator_of(own_of(adapter))
        made.save(tmp_path / "calibrator.json")
        raw = np.asarray(reranker.scores(QUERY, DOCUMENTS))
        for given in (made, tmp_path / "calibrator.json", made.as_dict()):
            calibrated = adapter.make(calibrator=given, normalize=normalize)
            assert_close(calibrated.scores(QUERY, DOCUMENTS), made.probabilities(raw))
            assert [row[0] for row in calibrated.rank(QUERY, DOCUMENTS)] == list(np.argsort(-raw, kind="stable"))

    def test_a_threshold_beside_a_calibrator_is_a_probability(self, adapter, reranker):
        made = calibrator_of(own_of(adapter))
        middle = float(np.median(reranker.scores(QUERY, DOCUMENTS)))
        calibrated = adapter.make(calibrator=made)
        kept = calibrated.rank(QUERY, DOCUMENTS, score_threshold=float(made.probabilities(middle)))
        assert len(kept) == len(DOCUMENTS) // 2

    @pytest.mark.parametrize(
        "options", [{"precision": "int8"}, {"max_length": 64}, {"model": "BAAI/bge-small-en-v1.5"}]
    )
    async def test_a_calibrator_of_another_scorer_is_refused_before_weights_load(
        self, adapter, hub_cache, fresh_store, options
    ):
        own = own_of(adapter)
        calibrated = adapter.make(calibrator=calibrator_of(own), **options)
        (value,) = options.values()
        name = re.escape(own.model)
        wanted = rf"fitted on '{name}'.*(float|512|{name})' there, .*{value}' here"
        with pytest.raises(bge_runtime.ConfigurationError, match=wanted):
            calibrated.rank(QUERY, DOCUMENTS)
        with pytest.raises(bge_runtime.ConfigurationError, match=wanted):
            await calibrated.arank(QUERY, DOCUMENTS)
        assert len(bge_runtime.loaded_models()) == 0

    def test_a_calibrator_goes_along_in_pickles_and_copies(self, adapter, hub_cache):
        calibrated = adapter.make(calibrator=calibrator_of(own_of(adapter)))
        expected = calibrated.rank(QUERY, DOCUMENTS)
        for copied in (pickle.loads(pickle.dumps(calibrated.subject)), copy.deepcopy(calibrated.subject)):
            assert_same_ranking(adapter(copied).rank(QUERY, DOCUMENTS), expected)

    def test_a_calibrators_file_that_was_edited_is_refused_at_construction(self, adapter, hub_cache, tmp_path):
        file = tmp_path / "calibrator.json"
        calibrator_of(own_of(adapter)).save(file)
        file.write_text(file.read_text().replace('"slope": 2.0', '"slope": 3.0'))
        with pytest.raises(bge_runtime.ConfigurationError, match="was changed after it was saved"):
            adapter.make(calibrator=file)

    def test_an_embedder_reranks_by_late_interaction(self, adapter, hub_cache):
        late = adapter.make(model="BAAI/bge-small-en-v1.5", normalize=True)
        same, other = late.scores(QUERY, [QUERY, "Paris is the capital of France"])
        assert same == pytest.approx(1, abs=TOLERANCE)
        assert 0 < other < 0.95

    # Selection

    @pytest.mark.parametrize("top_n", [1, 2, 5])
    def test_top_n_keeps_the_best(self, reranker, top_n):
        assert_same_ranking(reranker.rank(QUERY, DOCUMENTS, top_n=top_n), reranker.rank(QUERY, DOCUMENTS)[:top_n])

    @pytest.mark.parametrize("top_n", [None, len(DOCUMENTS), 1000])
    def test_a_large_top_n_or_none_keeps_all(self, reranker, top_n):
        assert len(reranker.rank(QUERY, DOCUMENTS, top_n=top_n)) == len(DOCUMENTS)

    @pytest.mark.parametrize("top_n", [0, -1, 2.5, "3", True])
    def test_a_top_n_that_is_no_positive_number_is_refused(self, reranker, top_n):
        with pytest.raises(bge_runtime.ConfigurationError, match="top_n"):
            reranker.rank(QUERY, DOCUMENTS, top_n=top_n)

    def test_a_threshold_drops_what_lies_below(self, reranker):
        ranking = reranker.rank(QUERY, DOCUMENTS)
        threshold = (ranking[2][1] + ranking[3][1]) / 2
        assert_same_ranking(reranker.rank(QUERY, DOCUMENTS, score_threshold=threshold), ranking[:3])
        assert_same_ranking(reranker.rank(QUERY, DOCUMENTS, score_threshold=threshold, top_n=2), ranking[:2])
        assert reranker.rank(QUERY, DOCUMENTS, score_threshold=ranking[0][1] + 1) == []

    @pytest.mark.parametrize("options", [{}, {"score_threshold": -1e9}], ids=["all", "threshold"])
    def test_a_score_that_is_not_finite_is_an_error_that_names_the_document(self, adapter, poisoned, options):
        reranker = adapter.make(model=poisoned, normalize=False)
        documents = [DOCUMENTS[1], f"the {POISON} today", *DOCUMENTS[4:], f"{POISON} in China"]
        with pytest.raises(bge_runtime.BackendError, match=rf"documents\[1\] 'the {POISON} today'"):
            reranker.rank(QUERY, documents, **options)
        assert len(reranker.rank(QUERY, DOCUMENTS, top_n=2, **options)) == 2

    async def test_async_calls_name_it_too(self, adapter, poisoned):
        with pytest.raises(bge_runtime.BackendError, match=rf"documents\[1\] '{POISON}'"):
            await adapter.make(model=poisoned, normalize=False).arank(QUERY, ["cat", POISON])

    # Bad input

    @pytest.mark.parametrize("value", NOT_TEXTS)
    def test_a_document_that_is_no_text_is_named_by_its_position(self, reranker, value):
        with pytest.raises(bge_runtime.InputError, match=r"\[2\]"):
            reranker.rank(QUERY, ["panda", "cat", value, "dog"])

    @pytest.mark.parametrize("value", NOT_TEXTS)
    def test_a_query_that_is_no_text_is_refused(self, reranker, value):
        with pytest.raises(bge_runtime.InputError, match="query"):
            reranker.rank(value, DOCUMENTS)

    @pytest.mark.parametrize("documents", NOT_LISTS)
    async def test_documents_that_are_no_list_are_refused(self, reranker, documents):
        with pytest.raises(bge_runtime.InputError, match=rf"^\w+.* {SHOWN}"):
            reranker.rank(QUERY, documents)
        with pytest.raises(bge_runtime.InputError, match=rf"^\w+.* {SHOWN}"):
            await reranker.arank(QUERY, documents)

    def test_a_member_of_an_enumeration_is_its_characters(self, reranker):
        text = str.__str__(TITLE)
        assert_close(reranker.scores(TITLE, ["cat", TITLE]), reranker.scores(text, ["cat", text]))

    async def test_async_calls_refuse_what_sync_calls_refuse(self, reranker):
        with pytest.raises(bge_runtime.InputError, match=r"\[1\]"):
            await reranker.arank(QUERY, ["panda", None])

    def test_bad_input_is_refused_before_weights_load(self, adapter, hub_cache, fresh_store):
        with pytest.raises(bge_runtime.InputError):
            adapter.make().rank(QUERY, ["panda", None])
        with pytest.raises(bge_runtime.InputError):
            adapter.make().rank(None, ["panda"])
        assert len(bge_runtime.loaded_models()) == 0

    def test_a_bad_document_costs_no_other_caller_its_result(self, reranker):
        expected = reranker.scores(QUERY, DOCUMENTS)
        bad = [lambda: reranker.rank(QUERY, ["panda", None])] * 2
        results = in_threads([*[lambda: reranker.scores(QUERY, DOCUMENTS)] * 6, *bad])
        for scores in results[:6]:
            assert_close(scores, expected)
        assert all(isinstance(error, bge_runtime.InputError) for error in results[6:])

    def test_lone_surrogates_are_read_as_the_replacement_character(self, reranker):
        assert_close(reranker.scores(QUERY, ["a\ud800b"]), reranker.scores(QUERY, ["a\ufffdb"]))
        assert_close(reranker.scores("a\ud800b", ["cat"]), reranker.scores("a\ufffdb", ["cat"]))

    def test_a_document_of_a_megabyte_is_cut_and_reported(self, reranker, caplog):
        long = "the dog slept in the garden " * 40_000
        with caplog.at_level("WARNING", logger="bge_runtime"):
            scores = reranker.scores(QUERY, [long, "cat"])
        assert_close(scores[:1], reranker.scores(QUERY, [long[:6000]]))
        assert len([record for record in caplog.records if "1 of 2" in record.getMessage()]) == 1

    def test_an_unknown_model_is_answered_with_the_nearest_name(self, adapter):
        with pytest.raises(bge_runtime.ModelNotFoundError, match="BAAI/bge-reranker-base"):
            adapter.make(model="bge-reranker-bas")

    @pytest.mark.parametrize(
        ("option", "value"),
        [("device", "gpu0"), ("precision", "float8"), ("batch_size", 0), ("max_length", 513), ("truncation", "no")],
    )
    def test_a_wrong_option_is_refused_at_construction(self, adapter, option, value):
        with pytest.raises(bge_runtime.ConfigurationError, match=option):
            adapter.make(**{option: value})

    def test_an_unknown_option_is_answered_with_the_valid_ones(self, adapter):
        with pytest.raises(bge_runtime.UnknownArgumentError, match="batch_size"):
            adapter.make(batchsize=8)

    # Weights and copies

    def test_constructing_loads_nothing(self, adapter, hub_cache, fresh_store):
        adapter.make()
        assert len(bge_runtime.loaded_models()) == 0

    def test_rerankers_with_other_options_share_the_weights(self, adapter, hub_cache, fresh_store):
        adapter.make(normalize=True).rank(QUERY, ["panda"])
        adapter.make(normalize=False, max_length=64).rank(QUERY, ["panda"])
        assert len(bge_runtime.loaded_models()) == 1

    def test_a_pickle_holds_options_and_no_weights(self, adapter, hub_cache):
        reranker = adapter.make(normalize=False, max_length=64)
        expected = reranker.rank(QUERY, DOCUMENTS)
        frozen = pickle.dumps(reranker.subject)
        assert len(frozen) < 20_000
        assert_same_ranking(adapter(pickle.loads(frozen)).rank(QUERY, DOCUMENTS), expected)

    def test_a_deep_copy_shares_the_weights(self, adapter, hub_cache, fresh_store):
        reranker = adapter.make(normalize=False)
        expected = reranker.rank(QUERY, DOCUMENTS)
        assert_same_ranking(adapter(copy.deepcopy(reranker.subject)).rank(QUERY, DOCUMENTS), expected)
        assert len(bge_runtime.loaded_models()) == 1

    # Concurrency

    def test_eight_threads_get_what_one_thread_gets(self, reranker):
        shares = [[f"{document} {number}" for document in DOCUMENTS[number % 3 :]] for number in range(8)]
        expected = [reranker.rank(QUERY, share) for share in shares]
        results = in_threads([lambda share=share: reranker.rank(QUERY, share) for share in shares])
        for ranking, wanted in zip(results, expected, strict=True):
            assert_same_ranking(ranking, wanted)

    async def test_16_async_calls_get_what_sync_calls_get(self, reranker):
        queries = [f"{QUERY} {number}" for number in range(16)]
        expected = [reranker.rank(query, DOCUMENTS) for query in queries]
        rankings = await asyncio.gather(*(reranker.arank(query, DOCUMENTS) for query in queries))
        for ranking, wanted in zip(rankings, expected, strict=True):
            assert_same_ranking(ranking, wanted)

    async def test_an_async_call_does_not_block_the_event_loop(self, reranker):
        documents = [f"{DOCUMENTS[5]} {number}" for number in range(200)]
        ranking, ticks = await ticks_during(reranker.arank(QUERY, documents))
        assert len(ranking) == 200
        assert ticks > 10

    async def test_a_cancelled_call_leaves_the_next_one_right(self, reranker):
        expected = reranker.rank(QUERY, DOCUMENTS)
        calls = [asyncio.create_task(reranker.arank(QUERY, [DOCUMENTS[5]] * 8)) for _ in range(4)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert_same_ranking(await reranker.arank(QUERY, DOCUMENTS), expected)
