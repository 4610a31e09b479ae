"""Each numbered defect of LangChain's own embedding classes, as behaviour of ours. DEFECTS.md is the table.

    BGE_TESTS_INCUMBENT=1 python -m pytest -o addopts= -o filterwarnings= tests/langchain/test_defects*.py

runs the same bodies on the incumbent classes, in an environment that has them; there they fail.
"""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from packaging.requirements import Requirement
from tokenizers import normalizers, pre_tokenizers

import bge_runtime
from tests.checkpoints.encoder_tokenizers import bert_tokenizer
from tests.checkpoints.files import to_json
from tests.checkpoints.hub_cache import Checkpoint, fine_tuned_folder, write_checkpoint
from tests.contracts.samples import ENGLISH
from tests.langchain.conftest import EMBEDDER
from tests.langchain.subjects import Subjects

Same = Callable[[Any, Any], bool]


@pytest.fixture
def plain_folder(tmp_path: Path) -> str:
    """A model that does not normalise by itself."""
    checkpoint = Checkpoint(name="somebody/plain", family="bert", hidden=64, seed=41, modules=False)
    return str(write_checkpoint(tmp_path / "plain", checkpoint))


@pytest.fixture
def line_reader(tmp_path: Path) -> str:
    """A model whose tokenizer splits at spaces only, and so tells a newline from a space."""
    tokenizer = bert_tokenizer()
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "model_max_length": 512}
    changes = {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": to_json(settings)}
    checkpoint = Checkpoint(name="somebody/lines", family="bert", hidden=64, seed=43)
    return str(write_checkpoint(tmp_path / "lines", checkpoint, **changes))


# HuggingFaceBgeEmbeddings


@pytest.mark.defect(1)
def test_the_english_instruction_says_sentence(subjects: Subjects, same: Same) -> None:
    model = subjects.bge_embeddings(model_name=EMBEDDER)
    assert same(model.embed_query("panda"), model.embed_documents([f"{ENGLISH}panda"])[0])


@pytest.mark.defect(2)
@pytest.mark.parametrize("instruction", ["", "find: "])
def test_the_callers_instruction_wins_whatever_the_folder_is_called(
    subjects: Subjects, same: Same, tmp_path: Path, instruction: str
) -> None:
    folder = fine_tuned_folder(tmp_path / "my-zh-tw-notes")
    model = subjects.bge_embeddings(model_name=str(folder), query_instruction=instruction)
    assert same(model.embed_query("panda"), model.embed_documents([f"{instruction}panda"])[0])


@pytest.mark.defect(2)
def test_a_name_with_zh_in_it_makes_no_model_chinese(subjects: Subjects, same: Same, tmp_path: Path) -> None:
    folder = fine_tuned_folder(tmp_path / "my-zh-tw-notes")
    model = subjects.bge_embeddings(model_name=str(folder))
    assert same(model.embed_query("panda"), model.embed_documents([f"{ENGLISH}panda"])[0])


@pytest.mark.defect(3)
def test_bge_m3_gets_no_instruction(subjects: Subjects, same: Same) -> None:
    model = subjects.bge_embeddings(model_name="BAAI/bge-m3")
    assert same(model.embed_query("panda"), model.embed_documents(["panda"])[0])


@pytest.mark.defect(4)
def test_query_instruction_none_takes_the_models_own(subjects: Subjects, same: Same) -> None:
    model = subjects.bge_embeddings(model_name=EMBEDDER, query_instruction=None)
    assert same(model.embed_query("panda"), model.embed_documents([f"{ENGLISH}panda"])[0])


@pytest.mark.defect(4)
def test_a_fine_tuned_bge_folder_is_normalised(subjects: Subjects, tmp_path: Path) -> None:
    model = subjects.bge_embeddings(model_name=str(fine_tuned_folder(tmp_path / "tuned")))
    assert np.linalg.norm(model.embed_documents(["panda"])) == pytest.approx(1, abs=1e-5)


@pytest.mark.defect(4)
@pytest.mark.defect(10)
@pytest.mark.parametrize("role", ["query", "document"])
def test_newlines_reach_the_tokenizer(subjects: Subjects, same: Same, line_reader: str, role: str) -> None:
    model = subjects.bge_embeddings(model_name=line_reader, query_instruction="")
    embed = model.embed_query if role == "query" else lambda text: model.embed_documents([text])[0]
    assert not same(embed("cat\ndog"), embed("cat dog"))


@pytest.mark.defect(4)
def test_nested_model_kwargs_are_taken(subjects: Subjects) -> None:
    nested = {"model_kwargs": {"torch_dtype": "float16"}}
    half = subjects.bge_embeddings(model_name=EMBEDDER, model_kwargs=nested).embed_documents(["panda"])
    full = subjects.bge_embeddings(model_name=EMBEDDER).embed_documents(["panda"])
    assert 1e-5 < np.abs(np.subtract(half, full)).max() < 0.05


@pytest.mark.defect(5)
def test_a_client_is_refused_and_not_overwritten(subjects: Subjects) -> None:
    with pytest.raises(bge_runtime.ConfigurationError, match="embedder="):
        subjects.bge_embeddings(model_name=EMBEDDER, client=object())


@pytest.mark.defect(5)
def test_neither_repr_nor_dump_holds_the_loaded_model(subjects: Subjects) -> None:
    model = subjects.bge_embeddings(model_name=EMBEDDER)
    model.embed_query("panda")
    assert "Transformer" not in repr(model)
    assert json.loads(json.dumps(model.model_dump()))["model_name"] == EMBEDDER


@pytest.mark.defect(5)
def test_constructing_loads_nothing(subjects: Subjects) -> None:
    # Not in the cache of these tests.
    assert subjects.bge_embeddings(model_name="BAAI/bge-base-en-v1.5").model_name == "BAAI/bge-base-en-v1.5"


# HuggingFaceEmbeddings


@pytest.mark.defect(6)
def test_queries_of_a_bge_model_get_its_instruction(subjects: Subjects, same: Same) -> None:
    model = subjects.embeddings(model=EMBEDDER)
    assert same(model.embed_query("panda"), model.embed_documents([f"{ENGLISH}panda"])[0])


@pytest.mark.defect(7)
def test_query_encode_kwargs_keep_what_they_do_not_name(subjects: Subjects, plain_folder: str) -> None:
    model = subjects.embeddings(
        model=plain_folder, encode_kwargs={"normalize_embeddings": True}, query_encode_kwargs={"batch_size": 1}
    )
    assert np.linalg.norm(model.embed_query("panda")) == pytest.approx(1, abs=1e-5)


@pytest.mark.defect(8)
def test_a_pool_of_processes_per_call_is_refused(subjects: Subjects) -> None:
    with pytest.raises(bge_runtime.ConfigurationError, match="multi_process"):
        subjects.embeddings(model=EMBEDDER, multi_process=True)


@pytest.mark.defect(9)
def test_a_bare_string_is_no_list_of_texts(subjects: Subjects) -> None:
    with pytest.raises(TypeError, match="abc"):
        subjects.embeddings(model=EMBEDDER).embed_documents("abc")


@pytest.mark.defect(9)
@pytest.mark.parametrize("value", [None, 7, Document(page_content="panda")], ids=["none", "int", "document"])
def test_what_is_no_text_is_named_by_its_position(subjects: Subjects, value: Any) -> None:
    with pytest.raises(TypeError, match=r"\[1\]"):
        subjects.embeddings(model=EMBEDDER).embed_documents(["panda", value])


@pytest.mark.defect(9)
def test_a_lone_surrogate_costs_no_other_text_its_vector(subjects: Subjects, same: Same) -> None:
    model = subjects.embeddings(model=EMBEDDER)
    assert same(model.embed_documents(["panda", "a\ud800b"])[0], model.embed_documents(["panda"])[0])


@pytest.mark.defect(10)
def test_a_text_that_is_cut_is_reported(subjects: Subjects, caplog: pytest.LogCaptureFixture) -> None:
    model = subjects.embeddings(model=EMBEDDER)
    with caplog.at_level(logging.WARNING):
        model.embed_documents(["panda", "the dog slept in the garden " * 100])
    assert [record for record in caplog.records if "1 of 2 texts were cut" in record.getMessage()]


@pytest.mark.defect(11)
@pytest.mark.parametrize(
    ("encode_kwargs", "named"),
    [
        ({"batchsize": 8}, "batch_size"),
        ({"convert_to_numpy": False}, "convert_to_numpy"),
        ({"precision": "int8"}, "precision"),
        ({"precision": "binary"}, "precision"),
    ],
    ids=["typo", "lists", "int8", "binary"],
)
def test_a_bad_encode_option_is_refused_at_construction(
    subjects: Subjects, encode_kwargs: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        subjects.embeddings(model=EMBEDDER, encode_kwargs=encode_kwargs)


@pytest.mark.defect(11)
def test_show_progress_bar_may_be_an_encode_option(subjects: Subjects) -> None:
    model = subjects.embeddings(model=EMBEDDER, encode_kwargs={"show_progress_bar": False})
    assert len(model.embed_query("panda")) == 384


@pytest.mark.defect(11)
def test_device_is_an_option(subjects: Subjects) -> None:
    assert len(subjects.embeddings(model=EMBEDDER, device="cpu").embed_query("panda")) == 384


@pytest.mark.defect(12)
def test_two_objects_hold_the_weights_once(subjects: Subjects, fresh_store: None) -> None:
    first = subjects.embeddings(model=EMBEDDER)
    second = subjects.embeddings(model=EMBEDDER, encode_kwargs={"batch_size": 8})
    for model in (first, second):
        model.embed_query("panda")
    assert subjects.copies(first, second) == 1


@pytest.mark.defect(12)
def test_a_model_can_be_handed_in(subjects: Subjects, same: Same) -> None:
    embedder = bge_runtime.Embedder(EMBEDDER, query_instruction="find: ")
    model = subjects.embeddings(embedder=embedder)
    assert same([model.embed_query("panda")], embedder.encode_queries(["panda"]))


@pytest.mark.defect(12)
def test_a_pickle_holds_no_weights(subjects: Subjects, same: Same) -> None:
    model = subjects.embeddings(model=EMBEDDER)
    expected = model.embed_query("panda")
    frozen = pickle.dumps(model)
    assert len(frozen) < 20_000
    assert same(pickle.loads(frozen).embed_query("panda"), expected)


@pytest.mark.defect(13)
def test_equal_texts_are_computed_once(subjects: Subjects) -> None:
    model = subjects.embeddings(model=EMBEDDER)
    model.embed_query("warm")
    counted = subjects.count(model)
    assert len(model.embed_documents(["panda"] * 10)) == 10
    assert counted()[1] == 1


@pytest.mark.defect(14)
def test_the_extra_goes_with_the_installed_sentence_transformers(subjects: Subjects) -> None:
    needed = [Requirement(line) for line in requires(subjects.distribution) or ()]
    chosen = [each for each in needed if each.marker is None or each.marker.evaluate({"extra": subjects.extra})]
    stack = [each for each in chosen if each.name in ("sentence-transformers", "transformers", "torch")]
    assert stack
    assert [str(each) for each in stack if not each.specifier.contains(version(each.name), prereleases=True)] == []
