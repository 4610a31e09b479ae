"""Each numbered defect of LlamaIndex's rerankers, as behaviour of ours; see test_defects.py."""

from __future__ import annotations

import json
import pickle
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode

from bge_runtime import BackendError
from tests.checkpoints.hub_cache import POISON, Checkpoint, poisoned_reranker_folder, two_label_folder, write_checkpoint
from tests.llamaindex.conftest import Callbacks, Recorder
from tests.llamaindex.subjects import Subjects
from tests.runtime.llm_references import reference_score
from tests.runtime.references import snapshot_of

QUERY = "What is a panda?"
DOCUMENTS = ["The giant panda is a bear", "the dog slept in the garden", "Paris is the capital of France"]


@pytest.fixture
def nodes() -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text), score=0.9 - index / 10) for index, text in enumerate(DOCUMENTS)]


@pytest.mark.defect("4.1")
def test_a_second_query_leaves_the_first_result_alone(subjects: Subjects, nodes: Any) -> None:
    reranker = subjects.reranker(top_n=3)
    first = reranker.postprocess_nodes(nodes, query_str=QUERY)
    before = [(node.node_id, node.score) for node in first]
    reranker.postprocess_nodes(nodes, query_str="the weather in Paris")
    assert [(node.node_id, node.score) for node in first] == before


@pytest.mark.defect("4.1")
def test_the_start_event_keeps_the_scores_of_the_retrieval(subjects: Subjects, nodes: Any, events: Recorder) -> None:
    subjects.reranker(top_n=3).postprocess_nodes(nodes, query_str=QUERY)
    (start,) = events.named("ReRankStartEvent")
    assert [node.score for node in start.nodes] == [0.9, 0.8, 0.7]


@pytest.mark.defect("4.2")
def test_keeping_the_retrieval_score_leaves_the_shared_node_alone(subjects: Subjects, nodes: Any) -> None:
    before = [(node.node.hash, dict(node.metadata)) for node in nodes]
    subjects.reranker(top_n=3, keep_retrieval_score=True).postprocess_nodes(nodes, query_str=QUERY)
    assert [(node.node.hash, dict(node.metadata)) for node in nodes] == before


@pytest.mark.defect("4.2")
@pytest.mark.parametrize("mode", [MetadataMode.EMBED, MetadataMode.LLM])
def test_the_retrieval_score_is_in_no_text_that_a_model_reads(
    subjects: Subjects, nodes: Any, mode: MetadataMode
) -> None:
    reranker = subjects.reranker(top_n=3, keep_retrieval_score=True)
    reranked = reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert sorted(node.get_content(mode) for node in reranked) == sorted(DOCUMENTS)
    assert sorted(node.metadata["retrieval_score"] for node in reranked) == [0.7, 0.8, 0.9]


@pytest.mark.defect("4.2")
def test_reranking_twice_changes_nothing(subjects: Subjects, nodes: Any) -> None:
    reranker = subjects.reranker(top_n=3, keep_retrieval_score=True)
    once = reranker.postprocess_nodes(nodes, query_str=QUERY)
    shown = [(node.text, node.score, dict(node.metadata)) for node in once]
    twice = reranker.postprocess_nodes(once, query_str=QUERY)
    assert [(node.text, node.score, dict(node.metadata)) for node in twice] == shown


@pytest.fixture
def poisoned(tmp_path: Path) -> str:
    return str(poisoned_reranker_folder(tmp_path))


@pytest.mark.defect("4.3")
def test_a_nan_score_gives_no_wrong_order(subjects: Subjects, poisoned: str) -> None:
    texts = ["cat", f"the {POISON} today", "Paris is the capital of France", f"{POISON} in China", "dog"]
    for order in (texts, texts[::-1]):
        nodes = [NodeWithScore(node=TextNode(text=text), score=0.5) for text in order]
        with pytest.raises(BackendError, match=rf"documents\[1\] .*{POISON}"):
            subjects.reranker(poisoned, top_n=5).postprocess_nodes(nodes, query_str=QUERY)


@pytest.mark.defect("4.3")
def test_a_nan_score_passes_no_threshold(subjects: Subjects, poisoned: str) -> None:
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.5) for text in ("cat", f"the {POISON} today")]
    reranker = subjects.reranker(poisoned, top_n=5, score_threshold=-1e9)
    with pytest.raises(BackendError, match=rf"documents\[1\] .*{POISON}"):
        reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert [node.text for node in reranker.postprocess_nodes(nodes[:1], query_str=QUERY)] == ["cat"]


@pytest.mark.defect("4.3")
def test_a_cutoff_of_zero_keeps_what_was_reranked(subjects: Subjects, nodes: Any) -> None:
    reranked = subjects.reranker(like="flag", top_n=3).postprocess_nodes(nodes, query_str=QUERY)
    assert len(SimilarityPostprocessor(similarity_cutoff=0.0).postprocess_nodes(reranked)) == 3


@pytest.mark.defect("4.4")
def test_no_nodes_give_a_start_and_an_end(subjects: Subjects, events: Recorder) -> None:
    assert subjects.reranker().postprocess_nodes([], query_str=QUERY) == []
    assert [event.class_name() for event in events.named("ReRankStartEvent", "ReRankEndEvent")] == [
        "ReRankStartEvent",
        "ReRankEndEvent",
    ]


@pytest.mark.defect("4.4")
def test_an_error_gives_a_start_and_an_end(subjects: Subjects, nodes: Any, events: Recorder, monkeypatch: Any) -> None:
    reranker = subjects.reranker()
    subjects.break_forward(monkeypatch)
    with pytest.raises(RuntimeError, match="device lost"):
        reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert len(events.named("ReRankStartEvent")) == len(events.named("ReRankEndEvent")) == 1


@pytest.mark.defect("4.4")
def test_reranking_sends_events_and_a_callback(
    subjects: Subjects, nodes: Any, events: Recorder, callbacks: Callbacks
) -> None:
    reranker = subjects.reranker(like="core")
    reranker.callback_manager = callbacks.manager()
    reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert callbacks.balanced()
    assert len(events.named("ReRankStartEvent")) == len(events.named("ReRankEndEvent")) == 1


@pytest.mark.defect("4.5")
def test_a_classifier_with_two_labels_ranks(subjects: Subjects, nodes: Any, tmp_path: Path) -> None:
    reranked = subjects.reranker(str(two_label_folder(tmp_path)), top_n=3).postprocess_nodes(nodes, query_str=QUERY)
    assert [type(node.score) for node in reranked] == [float] * 3


@pytest.mark.defect("4.5")
def test_scores_can_be_written_as_json(subjects: Subjects, nodes: Any) -> None:
    reranked = subjects.reranker(like="core", top_n=3).postprocess_nodes(nodes, query_str=QUERY)
    assert len(json.loads(json.dumps([node.score for node in reranked]))) == 3


@pytest.mark.defect("4.6")
def test_code_of_a_repository_does_not_run_by_default(subjects: Subjects, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    checkpoint = Checkpoint(name="x/y", family="bert", hidden=64, seed=32, head=1, modules=False)
    folder = write_checkpoint(tmp_path / "remote", checkpoint)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "remote_code.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "remote_code.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import BertForSequenceClassification as Model, BertConfig\n"
    )
    reranker = subjects.reranker(str(folder), like="core")
    reranker.postprocess_nodes([NodeWithScore(node=TextNode(text="panda"))], query_str=QUERY)
    assert not ran.exists()


@pytest.mark.defect("4.7")
def test_the_device_is_in_the_dump(subjects: Subjects) -> None:
    assert subjects.reranker(device="cpu").to_dict()["device"] == "cpu"


@pytest.mark.defect("4.7")
def test_a_pickled_reranker_holds_no_weights(subjects: Subjects, nodes: Any) -> None:
    reranker = subjects.reranker()
    reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert len(pickle.dumps(reranker)) < 20_000


@pytest.mark.defect("4.8")
def test_every_pair_is_computed_once(subjects: Subjects, nodes: Any, monkeypatch: Any) -> None:
    reranker = subjects.reranker(like="flag")
    counted = subjects.counting(monkeypatch)
    reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert counted()[1] == 3


@pytest.mark.defect("4.8")
def test_an_error_of_the_device_reaches_the_caller_as_it_is(subjects: Subjects, nodes: Any, monkeypatch: Any) -> None:
    reranker = subjects.reranker(like="flag")
    subjects.break_forward(monkeypatch)
    with pytest.raises(RuntimeError, match="device lost"):
        reranker.postprocess_nodes(nodes, query_str=QUERY)


@pytest.mark.defect("4.9")
@pytest.mark.parametrize("model", ["BAAI/bge-reranker-v2-gemma", "BAAI/bge-reranker-v2-minicpm-layerwise"])
def test_an_llm_reranker_reads_its_prompt(subjects: Subjects, hub_cache: Path, nodes: Any, model: str) -> None:
    folder = snapshot_of(hub_cache, model)
    found = subjects.reranker(model, like="flag", top_n=3).postprocess_nodes(nodes, query_str=QUERY)
    for node in found:
        prompted, bare = (reference_score(folder, QUERY, node.text, prompt=prompt) for prompt in (None, ""))
        assert node.score == pytest.approx(1 / (1 + np.exp(-prompted)), abs=1e-4)
        assert abs(prompted - bare) > 1e-2


@pytest.mark.defect("4.10")
def test_the_packages_are_typed(subjects: Subjects) -> None:
    assert all((files(package) / "py.typed").is_file() for package in subjects.packages)
