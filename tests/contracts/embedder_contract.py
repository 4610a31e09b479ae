"""What every embedding class of this project does, whichever framework it speaks to.

Inherit `EmbedderContract` in a class named `Test...` and give it a fixture `adapter` that returns the class of
an `EmbedderAdapter`.
"""

from __future__ import annotations

import asyncio
import copy
import pickle

import numpy as np
import pytest

import bge_runtime
from tests.checkpoints.hub_cache import POISON, poisoned_folder
from tests.contracts.adapters import EmbedderAdapter
from tests.contracts.concurrency import in_threads, ticks_during
from tests.contracts.samples import ENGLISH, NOT_LISTS, NOT_TEXTS, SHOWN, TEXTS, TITLE, TOLERANCE, array, assert_same


class EmbedderContract:
    """Inherit and provide `adapter`."""

    @pytest.fixture
    def adapter(self) -> type[EmbedderAdapter]:
        raise NotImplementedError("return the EmbedderAdapter subclass under test")

    @pytest.fixture
    def embedder(self, adapter: type[EmbedderAdapter], hub_cache: object) -> EmbedderAdapter:
        return adapter.make()

    # Values

    def test_documents_come_back_in_input_order(self, embedder):
        one_by_one = [embedder.embed_documents([text])[0] for text in TEXTS]
        assert_same(embedder.embed_documents(TEXTS), one_by_one)
        assert_same(embedder.embed_documents(TEXTS[::-1]), one_by_one[::-1])

    def test_queries_come_back_in_input_order(self, embedder):
        one_by_one = [embedder.embed_queries([text])[0] for text in TEXTS]
        assert_same(embedder.embed_queries(TEXTS), one_by_one)

    def test_different_texts_get_different_vectors(self, embedder):
        vectors = array(embedder.embed_documents(TEXTS))
        similarity = vectors @ vectors.T - np.eye(len(TEXTS))
        assert similarity.max() < 0.995

    def test_equal_texts_get_equal_vectors(self, embedder):
        vectors = array(embedder.embed_documents(["cat", "dog", "cat", "cat"]))
        assert (vectors[0] == vectors[2]).all()
        assert (vectors[0] == vectors[3]).all()
        assert np.abs(vectors[0] - vectors[1]).max() > 0.01

    def test_no_texts_give_no_vectors(self, embedder):
        assert len(embedder.embed_documents([])) == 0
        assert len(embedder.embed_queries([])) == 0

    def test_an_empty_text_embeds(self, embedder):
        vectors = array([*embedder.embed_documents([""]), *embedder.embed_queries([""])])
        assert vectors.shape == (2, 384)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=TOLERANCE)

    def test_vectors_have_length_one(self, embedder):
        vectors = array([*embedder.embed_documents(TEXTS), *embedder.embed_queries(TEXTS)])
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=TOLERANCE)

    def test_normalize_false_gives_the_same_directions_and_other_lengths(self, adapter, embedder):
        raw = array(adapter.make(normalize=False).embed_documents(TEXTS))
        lengths = np.linalg.norm(raw, axis=1, keepdims=True)
        assert np.abs(lengths - 1).min() > 0.1
        assert_same(raw / lengths, embedder.embed_documents(TEXTS))

    def test_truncate_dim_keeps_the_leading_dimensions_and_then_normalises(self, adapter, embedder):
        cut = array(embedder.embed_documents(TEXTS))[:, :32]
        expected = cut / np.linalg.norm(cut, axis=1, keepdims=True)
        assert_same(adapter.make(truncate_dim=32).embed_documents(TEXTS), expected)

    # Instructions

    def test_the_models_instruction_is_on_queries_only(self, adapter, embedder):
        plain = adapter.make(query_instruction="")
        assert_same(embedder.embed_queries(["panda"]), plain.embed_documents([f"{ENGLISH}panda"]))
        assert_same(embedder.embed_documents(["panda"]), plain.embed_documents(["panda"]))
        assert np.abs(array(embedder.embed_queries(["panda"])) - embedder.embed_documents(["panda"])).max() > 0.01

    def test_an_empty_instruction_turns_it_off(self, adapter):
        plain = adapter.make(query_instruction="")
        assert_same(plain.embed_queries(["panda"]), plain.embed_documents(["panda"]))

    def test_an_explicit_query_instruction_wins(self, adapter, embedder):
        own = adapter.make(query_instruction="search: ")
        assert_same(own.embed_queries(["panda"]), embedder.embed_documents(["search: panda"]))
        assert_same(own.embed_documents(["panda"]), embedder.embed_documents(["panda"]))

    def test_an_explicit_document_instruction_is_on_documents_only(self, adapter, embedder):
        own = adapter.make(document_instruction="passage: ")
        assert_same(own.embed_documents(["panda"]), embedder.embed_documents(["passage: panda"]))
        assert_same(own.embed_queries(["panda"]), embedder.embed_queries(["panda"]))

    def test_a_chinese_model_gets_the_full_width_colon(self, adapter):
        chinese = adapter.make(model="BAAI/bge-small-zh-v1.5")
        instruction = "为这个句子生成表示以用于检索相关文章"
        assert_same(chinese.embed_queries(["熊"]), chinese.embed_documents([f"{instruction}\uff1a熊"]))
        ascii_colon = chinese.embed_documents([f"{instruction}:熊"])
        assert np.abs(array(chinese.embed_queries(["熊"])) - ascii_colon).max() > 0.001

    def test_llm_embedder_has_an_instruction_on_both_sides(self, adapter):
        model = adapter.make(model="BAAI/llm-embedder", query_instruction="", document_instruction="")
        tuned = adapter.make(model="BAAI/llm-embedder")
        query = "Represent this query for retrieving relevant documents: panda"
        document = "Represent this document for retrieval: panda"
        assert_same(tuned.embed_queries(["panda"]), model.embed_documents([query]))
        assert_same(tuned.embed_documents(["panda"]), model.embed_documents([document]))

    # Bad input

    @pytest.mark.parametrize("value", NOT_TEXTS)
    def test_a_document_that_is_no_text_is_named_by_its_position(self, embedder, value):
        with pytest.raises(bge_runtime.InputError, match=r"\[2\]"):
            embedder.embed_documents(["panda", "cat", value, "dog"])

    @pytest.mark.parametrize("value", NOT_TEXTS)
    def test_a_query_that_is_no_text_is_refused(self, embedder, value):
        with pytest.raises(bge_runtime.InputError):
            embedder.embed_queries([value])

    @pytest.mark.parametrize("texts", NOT_LISTS)
    async def test_documents_that_are_no_list_are_refused(self, embedder, texts):
        with pytest.raises(bge_runtime.InputError, match=rf"^texts.* {SHOWN}"):
            embedder.embed_documents(texts)
        with pytest.raises(bge_runtime.InputError, match=rf"^texts.* {SHOWN}"):
            await embedder.aembed_documents(texts)

    def test_a_member_of_an_enumeration_is_its_characters(self, embedder):
        assert_same(embedder.embed_documents([TITLE]), embedder.embed_documents([str.__str__(TITLE)]))
        assert_same(embedder.embed_queries([TITLE]), embedder.embed_queries([str.__str__(TITLE)]))

    @pytest.mark.parametrize("name", ["query_instruction", "document_instruction"])
    def test_an_instruction_that_is_a_member_of_an_enumeration_too(self, adapter, name):
        ours, same = adapter.make(**{name: TITLE}), adapter.make(**{name: str.__str__(TITLE)})
        assert_same(ours.embed_documents(["cat"]), same.embed_documents(["cat"]))
        assert_same(ours.embed_queries(["cat"]), same.embed_queries(["cat"]))
        assert ours.identity() == same.identity()

    async def test_async_calls_refuse_what_sync_calls_refuse(self, embedder):
        with pytest.raises(bge_runtime.InputError, match=r"\[1\]"):
            await embedder.aembed_documents(["panda", None])
        with pytest.raises(bge_runtime.InputError):
            await embedder.aembed_queries([None])

    def test_bad_input_is_refused_before_weights_load(self, adapter, hub_cache, fresh_store):
        embedder = adapter.make()
        with pytest.raises(bge_runtime.InputError):
            embedder.embed_documents(["panda", None])
        with pytest.raises(bge_runtime.InputError):
            embedder.embed_queries([None])
        assert len(bge_runtime.loaded_models()) == 0

    def test_a_bad_text_costs_no_other_caller_its_result(self, embedder):
        expected = embedder.embed_documents(TEXTS)
        bad = [lambda: embedder.embed_documents(["panda", None])] * 2
        results = in_threads([*[lambda: embedder.embed_documents(TEXTS)] * 6, *bad])
        for vectors in results[:6]:
            assert_same(vectors, expected)
        assert all(isinstance(error, bge_runtime.InputError) for error in results[6:])

    def test_a_lone_surrogate_is_read_as_the_replacement_character(self, embedder):
        assert_same(embedder.embed_documents(["a\ud800b"]), embedder.embed_documents(["a\ufffdb"]))
        assert_same(embedder.embed_queries(["a\udfffb"]), embedder.embed_queries(["a\ufffdb"]))

    def test_a_text_of_a_megabyte_is_cut_and_reported(self, embedder, caplog):
        long = "the dog slept in the garden " * 40_000
        with caplog.at_level("WARNING", logger="bge_runtime"):
            vector = embedder.embed_documents([long, "cat"])[0]
        assert_same([vector], embedder.embed_documents([long[:6000]]))
        cut = [record for record in caplog.records if "1 of 2 texts" in record.getMessage()]
        assert len(cut) == 1

    async def test_a_vector_that_is_not_finite_is_an_error_that_names_the_text(self, adapter, tmp_path):
        embedder = adapter.make(model=str(poisoned_folder(tmp_path)))
        for embed in (embedder.embed_documents, embedder.embed_queries):
            with pytest.raises(bge_runtime.BackendError, match=rf"'the {POISON} today'"):
                embed(["cat", f"the {POISON} today"])
        for aembed in (embedder.aembed_documents, embedder.aembed_queries):
            with pytest.raises(bge_runtime.BackendError, match=rf"'the {POISON} today'"):
                await aembed(["cat", f"the {POISON} today"])
        assert np.isfinite(array(embedder.embed_documents(["cat"]))).all()

    def test_truncation_error_refuses_a_long_text(self, adapter):
        with pytest.raises(bge_runtime.InputTooLongError, match="512"):
            adapter.make(truncation="error").embed_documents(["dog " * 600])

    @pytest.mark.parametrize("name", ["BAAI/bge-smal-en-v1.5", "bge-smal-en-v1.5"])
    def test_an_unknown_model_is_answered_with_the_nearest_name(self, adapter, name):
        with pytest.raises(bge_runtime.ModelNotFoundError, match=r"BAAI/bge-small-en-v1\.5"):
            adapter.make(model=name).embed_documents(["panda"])

    def test_an_unknown_bare_name_is_refused_at_construction(self, adapter):
        with pytest.raises(bge_runtime.ModelNotFoundError):
            adapter.make(model="bge-smal-en-v1.5")

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("device", "gpu0"),
            ("precision", "float8"),
            ("backend", "tensorflow"),
            ("batch_size", 0),
            ("max_length", -1),
            ("max_length", 513),
            ("truncate_dim", 385),
            ("truncation", "maybe"),
            ("query_instruction", 7),
        ],
    )
    def test_a_wrong_option_is_refused_at_construction(self, adapter, option, value):
        with pytest.raises(bge_runtime.ConfigurationError, match=option) as caught:
            adapter.make(**{option: value})
        assert isinstance(caught.value, ValueError)

    def test_an_unknown_option_is_answered_with_the_valid_ones(self, adapter):
        with pytest.raises(bge_runtime.UnknownArgumentError, match="batch_size") as caught:
            adapter.make(batchsize=8)
        assert isinstance(caught.value, TypeError)

    # Weights, copies, identity

    def test_constructing_loads_nothing(self, adapter, hub_cache, fresh_store):
        adapter.make()
        assert len(bge_runtime.loaded_models()) == 0

    def test_two_instructions_share_one_copy_of_the_weights(self, adapter, hub_cache, fresh_store):
        adapter.make().embed_queries(["panda"])
        adapter.make(query_instruction="search: ").embed_queries(["panda"])
        adapter.make(normalize=False, max_length=128, truncate_dim=64).embed_documents(["panda"])
        assert len(bge_runtime.loaded_models()) == 1

    def test_a_pickle_holds_options_and_no_weights(self, adapter, hub_cache):
        embedder = adapter.make(query_instruction="search: ", max_length=64)
        expected = [embedder.embed_queries(TEXTS), embedder.embed_documents(TEXTS)]
        frozen = pickle.dumps(embedder.subject)
        assert len(frozen) < 20_000
        thawed = adapter(pickle.loads(frozen))
        assert_same(thawed.embed_queries(TEXTS), expected[0])
        assert_same(thawed.embed_documents(TEXTS), expected[1])

    def test_a_deep_copy_shares_the_weights(self, adapter, hub_cache, fresh_store):
        embedder = adapter.make(query_instruction="search: ")
        expected = embedder.embed_queries(TEXTS)
        copied = adapter(copy.deepcopy(embedder.subject))
        assert_same(copied.embed_queries(TEXTS), expected)
        assert len(bge_runtime.loaded_models()) == 1

    def test_identity_changes_with_what_changes_vectors_and_with_nothing_else(self, adapter, hub_cache):
        base = adapter.make().identity()
        assert base == adapter.make().identity()
        assert base == adapter.make(batch_size=3, device="cpu", show_progress=True).identity()
        others = [
            adapter.make(**options).identity()
            for options in (
                {"query_instruction": ""},
                {"document_instruction": "passage: "},
                {"normalize": False},
                {"truncate_dim": 64},
                {"max_length": 64},
                {"model": "BAAI/bge-small-zh-v1.5"},
            )
        ]
        assert len({base, *others}) == 7

    def test_identity_survives_pickling_and_use(self, adapter, hub_cache):
        embedder = adapter.make()
        before = embedder.identity()
        embedder.embed_documents(["panda"])
        assert embedder.identity() == before
        assert adapter(pickle.loads(pickle.dumps(embedder.subject))).identity() == before

    # Concurrency

    def test_eight_threads_get_what_one_thread_gets(self, embedder):
        shares = [[f"{text} {number}" for text in TEXTS[number % 3 :]] for number in range(8)]
        expected = [embedder.embed_documents(share) for share in shares]
        results = in_threads([lambda share=share: embedder.embed_documents(share) for share in shares])
        for vectors, wanted in zip(results, expected, strict=True):
            assert_same(vectors, wanted)

    async def test_32_async_calls_get_what_sync_calls_get(self, embedder):
        texts = [f"{TEXTS[number % len(TEXTS)]} {number}" for number in range(32)]
        queries, documents = embedder.embed_queries(texts), embedder.embed_documents(texts)
        async_queries = await asyncio.gather(*(embedder.aembed_queries([text]) for text in texts))
        async_documents = await asyncio.gather(*(embedder.aembed_documents([text]) for text in texts))
        assert_same([rows[0] for rows in async_queries], queries)
        assert_same([rows[0] for rows in async_documents], documents)

    async def test_an_async_call_does_not_block_the_event_loop(self, embedder):
        texts = [f"{TEXTS[5]} {number}" for number in range(48)]
        vectors, ticks = await ticks_during(embedder.aembed_documents(texts))
        assert len(vectors) == 48
        assert ticks > 10

    async def test_a_cancelled_call_leaves_the_next_one_right(self, embedder):
        expected = embedder.embed_documents(["panda"])
        calls = [asyncio.create_task(embedder.aembed_documents([TEXTS[5]] * 8)) for _ in range(4)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert_same(await embedder.aembed_documents(["panda"]), expected)
