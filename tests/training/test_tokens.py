"""Training reads exactly the tokens that inference reads, of each kind of model."""

from __future__ import annotations

import pytest
import torch

from bge_runtime import ConfigurationError, Embedder, Reranker
from bge_runtime.engine import worker
from bge_runtime.training.reading import Columns, Pairs, Texts

TEXTS = ["Where does the cat sleep?", "a river", "The market of the harbour, " * 60]
PAIRS = [(TEXTS[0], TEXTS[1]), (TEXTS[1], TEXTS[2]), (TEXTS[2], TEXTS[0])]
EMBEDDERS = [
    "BAAI/bge-small-en-v1.5",  # an instruction
    "BAAI/bge-m3",
    "BAAI/llm-embedder",  # one for documents too
    "BAAI/bge-en-icl",  # a decoder with a suffix behind queries
    "BAAI/bge-multilingual-gemma2",
]
RERANKERS = ["BAAI/bge-reranker-base", "BAAI/bge-reranker-v2-gemma"]


@pytest.fixture
def read(monkeypatch, hub_cache) -> list[list[int]]:
    """The token ids of everything that a model is given from here on."""
    seen: list[list[int]] = []
    forward = worker._forward

    def watched(backend, sequences, output):
        seen.extend(list(each.ids) for each in sequences)
        return forward(backend, sequences, output)

    monkeypatch.setattr(worker, "_forward", watched)
    return seen


def unpadded(features: dict[str, torch.Tensor], prefix: str = "") -> list[list[int]]:
    ids, mask = features[f"{prefix}input_ids"], features[f"{prefix}attention_mask"]
    return [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("name", EMBEDDERS)
def test_an_embedder_is_trained_on_the_tokens_that_it_will_read(name, read):
    embedder = Embedder(name, truncation="silent", max_length=64)
    texts = Texts(embedder, pad_id=0)
    rows = [{"line": at, "query": text, "positive": TEXTS[at - 1]} for at, text in enumerate(TEXTS)]
    for role in ("query", "document"):
        texts.add(TEXTS, role)
    batch = Columns(texts)(rows)
    embedder.encode_queries(TEXTS)
    assert sorted(read) == sorted(unpadded(batch, "query_"))
    read.clear()
    embedder.encode_documents(TEXTS)
    assert sorted(read) == sorted(unpadded(batch, "positive_"))
    assert batch["line"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", RERANKERS)
@pytest.mark.parametrize("pad_left", [False, True])
def test_a_reranker_is_trained_on_the_tokens_that_it_will_read(name, pad_left, read):
    reranker = Reranker(name, truncation="silent", max_length=64)
    pairs = Pairs(reranker, 0, pad_left=pad_left)
    pairs.add(PAIRS)
    batch = pairs(PAIRS)
    reranker.score_pairs(PAIRS)
    assert sorted(read) == sorted(unpadded(batch))
    assert bool(batch["attention_mask"][:, -1].all()) is pad_left


def test_what_reads_no_pairs_has_no_tokens_of_them(hub_cache):
    with pytest.raises(ConfigurationError, match="reads each text by itself"):
        Reranker("BAAI/bge-small-en-v1.5").tokenize(PAIRS)
