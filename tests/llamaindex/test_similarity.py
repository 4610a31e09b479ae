"""Probabilities in the place of LlamaIndex's SimilarityPostprocessor."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import NodeWithScore, TextNode

from bge_runtime import DEFAULT_OFFLINE_MODEL, ConfigurationError, InputError, Reranker, ScoreCalibrator, score_facts
from llamaindex_bge import BGEEmbedding, BGERerank, BGESimilarityPostprocessor

TEXTS = ["The heart pumps blood.", "Paris is the capital of France.", "Lungs take up oxygen."]
QUERY = "Which organ moves blood?"


@pytest.fixture(scope="module")
def embed_model() -> BGEEmbedding:
    return BGEEmbedding(DEFAULT_OFFLINE_MODEL)


@pytest.fixture(scope="module")
def calibrator(embed_model: BGEEmbedding) -> ScoreCalibrator:
    identity, words = score_facts(embed_model.embedder)
    return ScoreCalibrator(method="platt", slope=10, intercept=-4, identity=identity, scorer=words)


@pytest.fixture(scope="module")
def nodes(embed_model: BGEEmbedding) -> list[NodeWithScore]:
    index = VectorStoreIndex([TextNode(text=text) for text in TEXTS], embed_model=embed_model)
    return index.as_retriever(similarity_top_k=3).retrieve(QUERY)


def scores(nodes: Any) -> list[float]:
    return [node.score for node in nodes]


async def test_cosines_become_probabilities_on_copies(embed_model: Any, calibrator: Any, nodes: Any) -> None:
    before = scores(nodes)
    keep = BGESimilarityPostprocessor(calibrator=calibrator, embed_model=embed_model)
    for found in (keep.postprocess_nodes(nodes, query_str=QUERY), await keep.apostprocess_nodes(nodes)):
        np.testing.assert_allclose(scores(found), calibrator.probabilities(before), atol=1e-6)
        assert found[0].text == TEXTS[0]
        assert found[0].node is not nodes[0].node
    assert scores(nodes) == before
    assert keep.postprocess_nodes([]) == []


def test_the_cutoff_is_a_probability(embed_model: Any, calibrator: Any, nodes: Any) -> None:
    cutoff = float(calibrator.probabilities(nodes[1].score))
    keep = BGESimilarityPostprocessor(calibrator=calibrator, embed_model=embed_model, similarity_cutoff=cutoff)
    assert [node.text for node in keep.postprocess_nodes(nodes)] == [node.text for node in nodes[:2]]


def test_dumps_pickles_and_copies_do_the_same(embed_model: Any, calibrator: Any, nodes: Any, tmp_path: Path) -> None:
    calibrator.save(tmp_path / "c.json")
    for given in (calibrator, tmp_path / "c.json"):
        keep = BGESimilarityPostprocessor(calibrator=given, embed_model=embed_model, similarity_cutoff=0.5)
        expected = scores(keep.postprocess_nodes(nodes))
        dumped = BGESimilarityPostprocessor.from_dict(json.loads(keep.to_json()))
        for same in (dumped, pickle.loads(pickle.dumps(keep)), copy.deepcopy(keep)):
            assert scores(same.postprocess_nodes(nodes)) == expected


def test_a_calibrator_of_another_embedding_is_refused(calibrator: Any, nodes: Any) -> None:
    other = BGEEmbedding(DEFAULT_OFFLINE_MODEL, precision="int8")
    keep = BGESimilarityPostprocessor(calibrator=calibrator, embed_model=other)
    with pytest.raises(ConfigurationError, match="precision 'float' there, 'int8' here"):
        keep.postprocess_nodes(nodes)


@pytest.mark.parametrize("score", [None, 3.2, float("nan")])
def test_a_score_that_is_no_cosine_is_refused(embed_model: Any, calibrator: Any, nodes: Any, score: Any) -> None:
    keep = BGESimilarityPostprocessor(calibrator=calibrator, embed_model=embed_model)
    bad = NodeWithScore(node=TextNode(text="a"), score=score)
    with pytest.raises(InputError, match=r"nodes\[3\] has the score .*, which is no cosine"):
        keep.postprocess_nodes([*nodes, bad])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity_cutoff": 2}, "similarity_cutoff=2"),
        ({"calibrator": None}, "calibrator=None"),
        ({"calibrator": 3}, "calibrator"),
        ({"embed_model": "small"}, "embed_model='small'"),
    ],
)
def test_an_option_that_is_not_allowed_is_named(
    embed_model: Any, calibrator: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        BGESimilarityPostprocessor(**{"calibrator": calibrator, "embed_model": embed_model, **options})


def test_a_rerankers_dump_holds_the_calibrator(tmp_path: Path) -> None:
    identity, words = score_facts(Reranker(DEFAULT_OFFLINE_MODEL))
    made = ScoreCalibrator(method="platt", slope=10, intercept=-4, identity=identity, scorer=words)
    made.save(tmp_path / "c.json")
    for given in (made, tmp_path / "c.json"):
        dumped = json.loads(BGERerank(DEFAULT_OFFLINE_MODEL, calibrator=given).to_json())
        assert BGERerank.from_dict(dumped).reranker.calibrator == made
