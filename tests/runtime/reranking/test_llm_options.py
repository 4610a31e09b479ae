"""Options of LLM rerankers: what they change, how they are kept, and what is refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import bge_runtime
from bge_runtime import Reranker
from bge_runtime.backends.base import LayerScore
from bge_runtime.engine.job import Job
from bge_runtime.engine.queue import JobQueue
from bge_runtime.inputs.tokenizing import TokenSequence

GEMMA = "BAAI/bge-reranker-v2-gemma"
MINICPM = "BAAI/bge-reranker-v2-minicpm-layerwise"
LIGHT = "BAAI/bge-reranker-v2.5-gemma2-lightweight"
QUERY = "what is panda?"
DOCUMENTS = ["hi", "The giant panda is a bear."]
SIMILAR = "Predict whether passages A and B have the same meaning."


def test_only_calls_that_want_the_same_layers_share_a_batch():
    queue = JobQueue()
    ways = [
        LayerScore(layers=(8,)),
        LayerScore(layers=(28,)),
        LayerScore(layers=(8,)),
        LayerScore(layers=(8,), compress_ratio=2),
    ]
    jobs = [Job([TokenSequence([1], [0])], way, batch_tokens=100) for way in ways]
    for job in jobs:
        queue.add(job)
    batches = [queue.take_batch(pads=True, most_tokens=None) for _ in range(3)]
    assert [set(batch.by_job()) for batch in batches] == [{jobs[0], jobs[2]}, {jobs[1]}, {jobs[3]}]
    assert {str(batch.output) for batch in batches} == {"score"}


def test_the_options_are_part_of_the_identity(hub_cache):
    options = [
        {},
        {"cutoff_layers": 28},
        {"compress_ratio": 2},
        {"compress_ratio": 4},
        {"compress_ratio": 2, "compress_layers": [24, 40]},
        {"prompt": SIMILAR},
    ]
    assert len({Reranker(LIGHT, **each).identity for each in options}) == len(options)
    same = [{"cutoff_layers": 42}, {"compress_ratio": 1}, {"compress_ratio": 1, "compress_layers": [3]}]
    assert {Reranker(LIGHT, **each).identity for each in same} == {Reranker(LIGHT).identity}


def test_options_are_kept_by_copies(hub_cache):
    options = {"cutoff_layers": 28, "compress_ratio": 2, "compress_layers": [24, 40], "prompt": SIMILAR}
    reranker = Reranker(LIGHT, **options)
    assert options.items() <= reranker.options().items()
    copied = pickle.loads(pickle.dumps(reranker))
    assert copied.options() == reranker.options()
    np.testing.assert_allclose(copied.score(QUERY, DOCUMENTS), reranker.score(QUERY, DOCUMENTS), atol=1e-6)


@pytest.mark.parametrize(
    ("model", "wrong", "message"),
    [
        (MINICPM, {"cutoff_layers": 7}, "8 to 40"),
        (MINICPM, {"cutoff_layers": 41}, "8 to 40"),
        (LIGHT, {"cutoff_layers": [43]}, "8 to 42"),
        (LIGHT, {"cutoff_layers": [8, 28]}, "score_layers"),
        (LIGHT, {"cutoff_layers": []}, "whole numbers"),
        (LIGHT, {"cutoff_layers": True}, "whole numbers"),
        (LIGHT, {"cutoff_layers": "28"}, "whole numbers"),
        (LIGHT, {"compress_ratio": 3}, "1, 2, 4, 8"),
        (LIGHT, {"compress_ratio": True}, "1, 2, 4, 8"),
        (LIGHT, {"compress_ratio": 2, "compress_layers": [0]}, "1 to 41"),
        (LIGHT, {"compress_ratio": 2, "compress_layers": [42]}, "1 to 41"),
        (LIGHT, {"compress_layers": [8]}, "compress_ratio"),
        (LIGHT, {"prompt": 3}, "string"),
        (LIGHT, {"backend": "torch"}, "'llm'"),
        (GEMMA, {"backend": "packed"}, "'llm'"),
        (MINICPM, {"backend": "onnx"}, "'llm'"),
        (GEMMA, {"cutoff_layers": 8}, "no score heads"),
        (MINICPM, {"compress_ratio": 2}, "cannot compress"),
        ("BAAI/bge-reranker-base", {"cutoff_layers": 8}, "no score heads"),
        ("BAAI/bge-reranker-base", {"compress_ratio": 2}, "cannot compress"),
        ("BAAI/bge-reranker-base", {"prompt": "Is it?"}, "prompt"),
        ("BAAI/bge-reranker-base", {"backend": "llm"}, "LLM rerankers only"),
        ("BAAI/bge-small-en-v1.5", {"cutoff_layers": 8}, "no score heads"),
        ("BAAI/bge-small-en-v1.5", {"prompt": "Is it?"}, "prompt"),
    ],
)
def test_what_a_model_does_not_have_is_refused_before_anything_is_loaded(model, wrong, message, fresh_store):
    with pytest.raises(bge_runtime.ConfigurationError, match=message):
        Reranker(model, **wrong)
    assert bge_runtime.loaded_models() == []


@pytest.mark.parametrize("layers", [[7], [8, 99], [], "8", [True], 8])
def test_layers_without_a_head_are_refused(hub_cache, layers):
    with pytest.raises(bge_runtime.ConfigurationError):
        Reranker(MINICPM).score_layers(QUERY, DOCUMENTS, layers=layers)
    with pytest.raises(bge_runtime.ConfigurationError, match="no score heads"):
        Reranker("BAAI/bge-reranker-base").score_layers(QUERY, DOCUMENTS)
