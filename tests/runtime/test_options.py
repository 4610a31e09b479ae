"""Options of the runtime's own classes: what they say, stream, round-trip and refuse."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import bge_runtime
from bge_runtime.embedding.instructions import Instructions
from bge_runtime.loading.options import LoadingOptions
from bge_runtime.loading.source import ModelSource

ENGLISH = "Represent this sentence for searching relevant passages: "
TEXTS = [f"the dog slept in the garden {number}" for number in range(25)]


def test_facts_are_known_without_loading(fresh_store):
    embedder = bge_runtime.Embedder("bge-m3")
    assert (embedder.dimension, embedder.max_length, embedder.normalize) == (1024, 8192, True)
    assert (embedder.query_instruction, embedder.document_instruction) == ("", "")
    reranker = bge_runtime.Reranker("bge-reranker-v2-m3")
    assert (reranker.max_length, reranker.method, reranker.normalize) == (8192, "cross_encoder", False)
    assert len(bge_runtime.loaded_models()) == 0


def test_the_representation_shows_model_and_instruction():
    assert ENGLISH in repr(bge_runtime.Embedder())
    assert "'search: '" in repr(bge_runtime.Embedder("bge-m3", query_instruction="search: "))
    assert "late_interaction" in repr(bge_runtime.Reranker("bge-small-en-v1.5"))


def test_the_access_token_is_in_neither_options_nor_representation():
    for model in (bge_runtime.Embedder(token="hf_secret"), bge_runtime.Reranker(token="hf_secret")):
        assert "hf_secret" not in repr(model)
        assert "hf_secret" not in str(model.options())


@pytest.mark.parametrize("kind", ["Embedder", "Reranker"])
def test_options_are_the_constructors_arguments(kind):
    build = getattr(bge_runtime, kind)
    arguments = set(inspect.signature(build).parameters) - {"token"}
    model = build(max_length=100, batch_size=7, device="cpu")
    assert set(model.options()) == arguments
    assert build(**model.options()).options() == model.options()


@pytest.mark.parametrize(("window", "sizes"), [(10, [10, 10, 5]), (25, [25]), (2048, [25])])
def test_a_stream_gives_windows_in_input_order(hub_cache, window, sizes):
    embedder = bge_runtime.Embedder()
    blocks = list(embedder.stream_documents((text for text in TEXTS), window=window))
    assert [len(block) for block in blocks] == sizes
    np.testing.assert_allclose(np.concatenate(blocks), embedder.encode_documents(TEXTS), atol=1e-5)


def test_a_stream_reads_no_further_than_it_must(hub_cache):
    taken = []

    def texts():
        for text in TEXTS:
            taken.append(text)
            yield text

    stream = bge_runtime.Embedder().stream_documents(texts(), window=5)
    next(stream)
    assert len(taken) <= 10
    stream.close()


def test_a_stream_of_nothing_is_empty_and_a_bare_string_is_refused(hub_cache):
    embedder = bge_runtime.Embedder()
    assert list(embedder.stream_documents([])) == []
    with pytest.raises(bge_runtime.InputError):
        list(embedder.stream_documents("panda"))
    with pytest.raises(bge_runtime.ConfigurationError, match="window"):
        list(embedder.stream_documents(TEXTS, window=0))


@pytest.mark.parametrize(
    "make", [tuple, iter, lambda texts: dict.fromkeys(texts).keys()], ids=["tuple", "iterator", "keys"]
)
def test_any_iterable_of_texts_is_accepted(hub_cache, make):
    embedder = bge_runtime.Embedder()
    np.testing.assert_allclose(embedder.encode_documents(make(TEXTS)), embedder.encode_documents(TEXTS), atol=1e-6)


def test_results_are_float32_of_the_stated_shape(hub_cache):
    embedder = bge_runtime.Embedder(truncate_dim=100)
    for vectors in (embedder.encode_queries([]), embedder.encode_documents(TEXTS[:3])):
        assert vectors.dtype == np.float32
        assert vectors.shape[1] == embedder.dimension == 100
    reranker = bge_runtime.Reranker()
    assert (reranker.score("dog", []).shape, reranker.score_pairs([]).dtype) == ((0,), np.float32)


async def test_async_scores_equal_sync_scores(hub_cache):
    reranker = bge_runtime.Reranker()
    pairs = [("dog", text) for text in TEXTS]
    np.testing.assert_allclose(await reranker.ascore("dog", TEXTS), reranker.score("dog", TEXTS), atol=1e-6)
    np.testing.assert_allclose(await reranker.ascore_pairs(pairs), reranker.score_pairs(pairs), atol=1e-6)


@pytest.mark.parametrize(
    "pairs", ["ab", None, [("query",)], ["ab"], [("query", None)], [("a", "b", "c")], [None]], ids=repr
)
def test_pairs_that_are_none_are_refused(hub_cache, pairs):
    with pytest.raises(bge_runtime.InputError, match="pairs"):
        bge_runtime.Reranker().score_pairs(pairs)


def test_progress_is_shown_on_standard_error_only_when_asked_for(hub_cache, capsys):
    embedder = bge_runtime.Embedder()
    embedder.encode_documents(TEXTS)
    assert capsys.readouterr() == ("", "")
    embedder.encode_documents(TEXTS, show_progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "25/25" in err


def test_document_identity_leaves_the_query_side_out(hub_cache):
    left, right = bge_runtime.Embedder(), bge_runtime.Embedder(query_instruction="search: ")
    assert left.document_identity == right.document_identity
    assert left.identity != right.identity
    assert left.document_identity != bge_runtime.Embedder(document_instruction="passage: ").document_identity


def test_identity_does_not_depend_on_where_the_weights_are(hub_cache, tmp_path):
    from tests.checkpoints.hub_cache import BY_NAME, write_checkpoint

    folder = write_checkpoint(tmp_path / "bge-small-en-v1.5", BY_NAME["BAAI/bge-small-en-v1.5"])
    assert bge_runtime.Embedder(folder).identity == bge_runtime.Embedder().identity


def test_an_unknown_task_is_answered_with_the_tasks():
    with pytest.raises(bge_runtime.ConfigurationError, match="'icl'"):
        bge_runtime.Embedder("llm-embedder", task="summary")
    with pytest.raises(bge_runtime.ConfigurationError, match="none for this model"):
        bge_runtime.Embedder("bge-m3", task="qa")


def test_an_explicit_instruction_wins_over_the_tasks():
    embedder = bge_runtime.Embedder("llm-embedder", task="icl", query_instruction="")
    assert embedder.query_instruction == ""
    assert embedder.document_instruction == "Convert this example into vector for retrieval: "


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{instruction}{text}", "find: {text} {instruction}"),
        ("<instruct>{instruction}\n<query>{text}", "<instruct>find: \n<query>{text} {instruction}"),
        ("Instruct: {instruction}\nQuery: {text}", "Instruct: find: \nQuery: {text} {instruction}"),
    ],
)
def test_a_query_that_looks_like_a_template_stays_as_it_is(template, expected):
    rules = Instructions(query="find: ", document="", query_format=template)
    assert rules.apply("{text} {instruction}", "query") == expected
    assert rules.apply("{text}", "document") == "{text}"


def test_no_instruction_leaves_the_query_bare_in_every_format():
    rules = Instructions(query="", document="", query_format="<instruct>{instruction}\n<query>{text}")
    assert rules.apply("panda", "query") == "panda"


def test_a_spec_handed_in_is_used_as_it_is(hub_cache):
    from dataclasses import replace

    spec = replace(bge_runtime.get_spec("bge-small-en-v1.5"), query_instruction="ask: ")
    own, plain = bge_runtime.Embedder(spec), bge_runtime.Embedder()
    np.testing.assert_allclose(own.encode_queries(["panda"]), plain.encode_documents(["ask: panda"]), atol=1e-6)


@pytest.mark.parametrize("kind", [bge_runtime.Embedder, bge_runtime.VisionEmbedder, bge_runtime.Reranker])
def test_help_and_signature_show_every_loading_option(kind):
    names = set(LoadingOptions.__annotations__)
    assert names == set(ModelSource.__dataclass_fields__) - {"model"}
    assert names < set(inspect.signature(kind).parameters)
    assert "loading" not in inspect.signature(kind).parameters
    told = inspect.getdoc(kind.__init__)
    assert [name for name in names if f"\n    {name}: " not in told] == []


@pytest.mark.parametrize("kind", [bge_runtime.Embedder, bge_runtime.Reranker])
def test_defaults_of_loading_options_are_those_of_the_source(kind):
    shown = {name: each.default for name, each in inspect.signature(kind).parameters.items()}
    own = {name: each.default for name, each in ModelSource.__dataclass_fields__.items() if name != "model"}
    assert {name: shown[name] for name in own if not name.endswith("_kwargs")} == {
        name: default for name, default in own.items() if not name.endswith("_kwargs")
    }
