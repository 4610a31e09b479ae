"""Every entrance of the runtime refuses what is no list of texts, before anything loads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import bge_runtime
from bge_runtime import Embedder, InputError, Reranker, TokenIndex, VisionEmbedder
from tests.contracts.samples import NOT_LISTS, SHOWN, TITLE

EMBEDDER, RERANKER, M3 = "BAAI/bge-small-en-v1.5", "BAAI/bge-reranker-base", "BAAI/bge-m3"
TITLE_TEXT = str.__str__(TITLE)

pytestmark = pytest.mark.usefixtures("hub_cache")

ENTRANCES: dict[str, Callable[[Any], Any]] = {
    "encode_documents": lambda given: Embedder(EMBEDDER).encode_documents(given),
    "encode_queries": lambda given: Embedder(EMBEDDER).encode_queries(given),
    "aencode_documents": lambda given: asyncio.run(Embedder(EMBEDDER).aencode_documents(given)),
    "stream_documents": lambda given: list(Embedder(EMBEDDER).stream_documents(given)),
    "encode_tokens": lambda given: Embedder(EMBEDDER).encode_tokens(given),
    "encode_sparse": lambda given: Embedder(M3).encode_sparse(given),
    "encode_all": lambda given: Embedder(M3).encode_all(given),
    "score": lambda given: Reranker(RERANKER).score("query", given),
    "score by late interaction": lambda given: Reranker(EMBEDDER).score("query", given),
    "rank": lambda given: Reranker(RERANKER).rank("query", given),
    "arank": lambda given: asyncio.run(Reranker(RERANKER).arank("query", given)),
    "score_pairs": lambda given: Reranker(RERANKER).score_pairs(given),
    "add": lambda given: TokenIndex(EMBEDDER).add(given),
    "ids": lambda given: TokenIndex(EMBEDDER).add(["cat", "dog"], given if given is not None else 3),
    "aadd": lambda given: asyncio.run(TokenIndex(EMBEDDER).aadd(given)),
    "encode_texts": lambda given: VisionEmbedder("BAAI/BGE-VL-base").encode_texts(given),
    "encode_image_texts": lambda given: VisionEmbedder("BAAI/BGE-VL-base").encode_image_texts(given),
}


@pytest.mark.parametrize("given", NOT_LISTS)
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_what_is_no_list_is_said(fresh_store, entrance, given):
    with pytest.raises(InputError, match=rf"^\w+(\[0\])? is (the single )?{SHOWN}"):
        ENTRANCES[entrance](given)
    assert bge_runtime.loaded_models() == []


@pytest.mark.parametrize("given", [{"a": "cat.png"}, {"cat.png"}, "cat.png", b"", None, 3])
def test_pictures_come_in_a_list_too(given):
    with pytest.raises(InputError, match=r"^images is .*; pass a list of pictures"):
        VisionEmbedder("BAAI/BGE-VL-base").encode_images(given)


@pytest.mark.parametrize(
    "call",
    [
        lambda text: Embedder(EMBEDDER).encode_documents([text]),
        lambda text: Embedder(EMBEDDER).encode_queries([text]),
        lambda text: Embedder(EMBEDDER, query_instruction=text).encode_queries(["cat"]),
        lambda text: Embedder(EMBEDDER, document_instruction=text).encode_documents(["cat"]),
        lambda text: Embedder("BAAI/bge-en-icl", examples=[{"query": text, "response": text}]).encode_queries(["cat"]),
        lambda text: Reranker(RERANKER).score(text, [text, "cat"]),
        lambda text: Reranker(RERANKER).score_pairs([(text, "cat")]),
        lambda text: Reranker("BAAI/bge-reranker-v2-gemma", prompt=text).score("cat", ["dog"]),
        lambda text: Embedder(EMBEDDER).count_tokens([text]),
        lambda text: Embedder(EMBEDDER).token_offsets(text),
    ],
)
def test_a_member_of_an_enumeration_is_its_characters(call):
    np.testing.assert_allclose(call(TITLE), call(TITLE_TEXT), atol=1e-6)


def test_ids_are_the_characters_too():
    index = TokenIndex(EMBEDDER)
    assert [type(id) for id in index.add(["cat", "dog"], [TITLE, "b"])] == [str, str]
    assert {type(hit.id) for hit in index.search(TITLE)} == {str}
    index.remove({TITLE_TEXT, "b"})
    assert len(index) == 0
    with pytest.raises(InputError, match="ids is dict"):
        index.remove({"a": 1})
