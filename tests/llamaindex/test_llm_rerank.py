"""`BGERerank` over LLM rerankers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from llama_index.core.schema import NodeWithScore, TextNode

from bge_runtime import ConfigurationError, Reranker
from llamaindex_bge import BGERerank
from tests.runtime.llm_references import reference_score
from tests.runtime.references import snapshot_of

GEMMA = "BAAI/bge-reranker-v2-gemma"
LAYERED = ("BAAI/bge-reranker-v2-minicpm-layerwise", "BAAI/bge-reranker-v2.5-gemma2-lightweight")
QUERY = "what is panda?"
TEXTS = ["hi", "A panda is a bear of China", "passage"]


@pytest.mark.parametrize("name", [GEMMA, *LAYERED])
def test_nodes_carry_the_sigmoid_of_the_authors_score(hub_cache: Path, name: str) -> None:
    layer = None if name == GEMMA else 28
    rerank = BGERerank(model=name, top_n=None, cutoff_layers=layer)
    found = rerank.postprocess_nodes([NodeWithScore(node=TextNode(text=text)) for text in TEXTS], query_str=QUERY)
    scores = {node.text: node.score for node in found}
    expected = [reference_score(snapshot_of(hub_cache, name), QUERY, text, layer=layer) for text in TEXTS]
    np.testing.assert_allclose([scores[text] for text in TEXTS], 1 / (1 + np.exp(-np.array(expected))), atol=1e-4)
    assert [node.text for node in found] == [TEXTS[index] for index in np.argsort(-np.array(expected))]


def test_every_option_reaches_the_runtime(hub_cache: Path) -> None:
    options = {"cutoff_layers": [28], "compress_ratio": 2, "compress_layers": [24, 40], "prompt": "Is B about A?"}
    ours = BGERerank(model=LAYERED[1], normalize=False, **options)
    assert ours.reranker.identity == Reranker(LAYERED[1], **options).identity
    assert ours.reranker.identity != Reranker(LAYERED[1]).identity
    assert options.items() <= ours.to_dict().items()
    adopted = BGERerank(reranker=Reranker(LAYERED[1], **options))
    assert (adopted.compress_ratio, adopted.prompt, adopted.cutoff_layers) == (2, "Is B about A?", 28)


@pytest.mark.parametrize("wrong", [{"cutoff_layers": 7}, {"cutoff_layers": [8, 28]}, {"compress_ratio": 2}])
def test_wrong_options_are_refused_at_construction(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        BGERerank(model=LAYERED[0], **wrong)
