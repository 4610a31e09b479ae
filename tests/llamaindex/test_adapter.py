"""`adapter=` of the LlamaIndex classes: peft's numbers, dumps and ingestion keys."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.schema import NodeWithScore, TextNode

from bge_runtime import ConfigurationError
from llamaindex_bge import BGEEmbedding, BGERerank
from tests.checkpoints.lora import adapted_score, adapted_states, embedder_adapter, reranker_adapter
from tests.llamaindex.conftest import EMBEDDER, RERANKER
from tests.runtime.references import snapshot_of, unit

TEXTS = ["panda", "the dog slept in the garden", "The giant panda is a bear"]


@pytest.fixture(scope="module")
def adapter(hub_cache: Path, tmp_path_factory: Any) -> Path:
    return embedder_adapter(tmp_path_factory.mktemp("adapter"), snapshot_of(hub_cache, EMBEDDER))


def test_embeddings_are_those_of_peft(hub_cache: Path, adapter: Path) -> None:
    base = snapshot_of(hub_cache, EMBEDDER)
    embedding = BGEEmbedding(EMBEDDER, adapter=adapter, query_instruction="")
    expected = [unit(adapted_states(base, adapter, text)[0]) for text in TEXTS]
    np.testing.assert_allclose(embedding.get_text_embedding_batch(TEXTS), expected, atol=1e-4)
    np.testing.assert_allclose(embedding.get_query_embedding(TEXTS[1]), expected[1], atol=1e-4)


def test_scores_are_those_of_peft(hub_cache: Path, tmp_path: Path) -> None:
    base = snapshot_of(hub_cache, RERANKER)
    head = reranker_adapter(tmp_path / "head", base)
    expected = [adapted_score(base, head, "panda", text) for text in TEXTS]
    rerank = BGERerank(RERANKER, adapter=head, normalize=False, top_n=None)
    best = rerank.postprocess_nodes([NodeWithScore(node=TextNode(text=text)) for text in TEXTS], query_str="panda")
    assert [each.text for each in best] == [TEXTS[row] for row in np.argsort(expected)[::-1]]
    np.testing.assert_allclose([each.score for each in best], sorted(expected, reverse=True), atol=1e-4)


def test_the_ingestion_key_changes_with_the_adapter_and_with_its_files(adapter: Path, tmp_path: Path) -> None:
    nodes = [TextNode(text="panda", id_="1")]
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    plain, adapted = BGEEmbedding(EMBEDDER), BGEEmbedding(EMBEDDER, adapter=folder)
    keys = {get_transformation_hash(nodes, each) for each in (plain, adapted)}
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 16'))
    changed = BGEEmbedding(EMBEDDER, adapter=folder)
    assert len(keys | {get_transformation_hash(nodes, changed)}) == 3
    assert "adapter" not in plain.to_dict()
    assert BGEEmbedding.from_dict(changed.to_dict()).to_dict() == changed.to_dict()


def test_an_adapter_of_another_model_is_refused_at_construction(hub_cache: Path, adapter: Path) -> None:
    with pytest.raises(ConfigurationError, match="was trained"):
        BGERerank(RERANKER, adapter=adapter)
