"""Every entrance of the LangChain classes says what it was given in place of a list."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.documents import Document

import bge_runtime
from bge_runtime import InputError
from langchain_bge import BGECrossEncoder, BGEEmbeddings, BGERerank, BGESparseEmbeddings, BGETokenRetriever
from tests.langchain.conftest import EMBEDDER, RERANKER

pytestmark = pytest.mark.usefixtures("hub_cache")

ENTRANCES: dict[str, Callable[[Any], Any]] = {
    "embed_documents": lambda given: BGEEmbeddings(EMBEDDER).embed_documents(given),
    "aembed_documents": lambda given: asyncio.run(BGEEmbeddings(EMBEDDER).aembed_documents(given)),
    "embed_image": lambda given: BGEEmbeddings("BAAI/BGE-VL-base").embed_image(given),
    "sparse": lambda given: BGESparseEmbeddings().embed_documents(given),
    "rerank": lambda given: BGERerank(RERANKER).rerank(given, "query"),
    "arerank": lambda given: asyncio.run(BGERerank(RERANKER).arerank(given, "query")),
    "compress_documents": lambda given: BGERerank(RERANKER).compress_documents(given, "query"),
    "invoke": lambda given: BGERerank(RERANKER).invoke({"documents": given, "query": "query"}),
    "cross encoder": lambda given: BGECrossEncoder(RERANKER).score(given),
    "from_documents": lambda given: BGETokenRetriever.from_documents(given, EMBEDDER),
    "from_texts": lambda given: BGETokenRetriever.from_texts(given, EMBEDDER),
    "ids": lambda given: BGETokenRetriever.from_texts(["a"], EMBEDDER, ids=given),
    "metadatas": lambda given: BGETokenRetriever.from_texts(["a"], EMBEDDER, given),
}
GIVEN = {
    "dict": {"q1": "The heart pumps blood."},
    "dict of Documents": {"q1": Document("The heart pumps blood.")},
    "dict of pairs": {("query", "document"): 1},
    "set": {"a", "b"},
    "str": "text",
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_what_is_no_list_is_said(fresh_store, entrance, given):
    with pytest.raises(InputError, match=rf"^\w+ is (the single )?{type(given).__name__} .*; pass a list of"):
        ENTRANCES[entrance](given)
    assert bge_runtime.loaded_models() == []


def test_metadatas_are_dictionaries():
    with pytest.raises(InputError, match=r"metadatas\[1\] is str"):
        BGETokenRetriever.from_texts(["a", "b"], EMBEDDER, [{}, "b"])
