"""Decoder embedders: last-token vectors of formatted queries and bare documents, against plain transformers."""

from __future__ import annotations

import numpy as np
import pytest

import bge_runtime
from tests.decoder_checkpoints import DECODERS
from tests.runtime import references

NAMES = [checkpoint.name for checkpoint in DECODERS]
WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query."
INSTRUCT = f"<instruct>{WEB_SEARCH}\n<query>"
# What the authors put around a query.
AROUND = {
    "BAAI/bge-multilingual-gemma2": (INSTRUCT, ""),
    "BAAI/bge-en-icl": (INSTRUCT, "\n<response>"),
    "BAAI/bge-code-v1": (INSTRUCT, ""),
    "BAAI/bge-reasoner-embed-qwen3-8b-0923": (f"Instruct: {WEB_SEARCH}\nQuery: ", ""),
}
TEXTS = ["what is panda?", "x", "panda bear, a species of bear: " * 12, "Yes", "大熊猫：竹子", "1 2 3\n\nno"]


@pytest.fixture(params=NAMES, ids=lambda name: name.rsplit("/")[-1])
def name(request, hub_cache):
    return request.param


def folder_of(hub_cache, name):
    return references.snapshot_of(hub_cache, name)


def test_first(name, hub_cache):
    embedder = bge_runtime.Embedder(name)
    head, tail = AROUND[name]
    folder = folder_of(hub_cache, name)
    expected = [references.last_token_vector(folder, head + text + tail) for text in TEXTS]
    np.testing.assert_allclose(embedder.encode_queries(TEXTS), expected, atol=1e-4)
    expected = [references.last_token_vector(folder, text) for text in TEXTS]
    np.testing.assert_allclose(embedder.encode_documents(TEXTS), expected, atol=1e-4)
