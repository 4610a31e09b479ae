"""`legacy=True`: texts as the older classes read them, for indexes that they filled."""

from __future__ import annotations

import numpy as np
import pytest

from bge_runtime import Embedder, get_spec
from bge_runtime.embedding.instructions import resolve_instructions

QUESTION = "Represent this question for searching relevant passages: "
ENGLISH = "BAAI/bge-small-en-v1.5"


@pytest.mark.parametrize(
    ("model", "options", "read"),
    [
        (ENGLISH, {}, QUESTION + "a b"),
        (ENGLISH, {"query_instruction": ""}, "a b"),
        (ENGLISH, {"query_instruction": "find: "}, "find: a b"),
        ("BAAI/bge-small-zh-v1.5", {}, "为这个句子生成表示以用于检索相关文章：a b"),
        ("BAAI/bge-m3", {}, "a b"),
    ],
)
def test_the_instruction_is_the_older_one_where_it_was_in_force(model, options, read):
    assert resolve_instructions(get_spec(model), legacy=True, **options).apply("a\nb", "query") == read


def test_newlines_are_kept_without_it_and_become_spaces_with_it():
    spec = get_spec(ENGLISH)
    assert resolve_instructions(spec).apply("a\nb", "document") == "a\nb"
    assert resolve_instructions(spec, legacy=True).apply("a\nb", "document") == "a b"


def test_query_vectors_change_and_are_those_of_the_older_instruction(hub_cache):
    old, new = Embedder(ENGLISH, legacy=True), Embedder(ENGLISH)
    asked = ["Which organ moves blood?"]
    spelt_out = Embedder(ENGLISH, query_instruction=QUESTION).encode_queries(asked)
    np.testing.assert_allclose(old.encode_queries(asked), spelt_out, atol=1e-6)
    assert np.abs(new.encode_queries(asked) - spelt_out).max() > 1e-4


def test_it_is_part_of_the_identity(hub_cache):
    old, new = Embedder(ENGLISH, legacy=True), Embedder(ENGLISH)
    assert old.identity != new.identity
    assert old.document_identity != new.document_identity
