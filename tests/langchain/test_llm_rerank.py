"""`BGERerank` over LLM rerankers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from langchain_core.documents import Document

from bge_runtime import ConfigurationError, Reranker
from langchain_bge import BGECrossEncoder, BGERerank
from tests.runtime.llm_references import reference_score
from tests.runtime.references import snapshot_of

GEMMA = "BAAI/bge-reranker-v2-gemma"
LAYERED = ("BAAI/bge-reranker-v2-minicpm-layerwise", "BAAI/bge-reranker-v2.5-gemma2-lightweight")
QUERY = "what is panda?"
TEXTS = ["hi", "A panda is a bear of China", "passage"]


@pytest.mark.parametrize("name", [GEMMA, *LAYERED])
def test_documents_carry_the_sigmoid_of_the_authors_score(hub_cache: Path, name: str) -> None:
    layer = None if name == GEMMA else 28
    rerank = BGERerank(model=name, top_n=None, cutoff_layers=layer)
    found = rerank.compress_documents([Document(page_content=text) for text in TEXTS], QUERY)
    scores = {document.page_content: document.metadata["relevance_score"] for document in found}
    expected = [reference_score(snapshot_of(hub_cache, name), QUERY, text, layer=layer) for text in TEXTS]
    np.testing.assert_allclose([scores[text] for text in TEXTS], 1 / (1 + np.exp(-np.array(expected))), atol=1e-4)
    order = [TEXTS[index] for index in np.argsort(-np.array(expected))]
    assert [document.page_content for document in found] == order


def test_every_option_reaches_the_runtime(hub_cache: Path) -> None:
    options = {"cutoff_layers": [28], "compress_ratio": 2, "compress_layers": [24, 40], "prompt": "Is B about A?"}
    for kind in (BGERerank, BGECrossEncoder):
        ours = kind(model=LAYERED[1], normalize=False, **options)
        assert ours.reranker.identity == Reranker(LAYERED[1], **options).identity
        assert ours.reranker.identity != Reranker(LAYERED[1]).identity
    adopted = BGERerank(reranker=Reranker(LAYERED[1], **options))
    assert (adopted.compress_ratio, adopted.prompt, adopted.cutoff_layers) == (2, "Is B about A?", 28)


@pytest.mark.parametrize("wrong", [{"cutoff_layers": 7}, {"cutoff_layers": [8, 28]}, {"compress_ratio": 2}])
def test_wrong_options_are_refused_at_construction(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        BGERerank(model=LAYERED[0], **wrong)
