"""Weights that transformers places or quantises itself: `device_map` and `quantization_config`."""

from __future__ import annotations

import numpy as np
import pytest

import bge_runtime
from bge_runtime.backends import torch as backend

MODEL = "BAAI/bge-code-v1"


@pytest.fixture
def loads(monkeypatch):
    """What sentence-transformers is asked for; the weights are then loaded plainly."""
    seen = []
    load = backend.SentenceTransformer

    def spy(folder, **options):
        seen.append(options)
        return load(folder, device="cpu", local_files_only=True)

    monkeypatch.setattr(backend, "SentenceTransformer", spy)
    return seen


@pytest.fixture
def accelerate(monkeypatch):
    """Whether accelerate is installed, as the tests say."""
    installed = {"accelerate": True}
    monkeypatch.setattr(
        "bge_runtime.loading.source.find_module", lambda name: object() if installed.get(name) else None
    )
    return installed


@pytest.fixture
def no_memory(monkeypatch):
    monkeypatch.setattr("bge_runtime.backends.devices._free_bytes", lambda device: 0)


def test_loading_arguments_reach_transformers(hub_cache, fresh_store, loads):
    bge_runtime.Embedder(MODEL, model_kwargs={"attn_implementation": "eager"}).warm_up()
    assert loads[0]["model_kwargs"]["attn_implementation"] == "eager"
    assert loads[0]["device"] == "cpu"


@pytest.mark.parametrize(
    ("given", "device_map"),
    [
        ({"device_map": "auto"}, "auto"),
        ({"quantization_config": {"load_in_8bit": True}}, {"": "cpu"}),
        ({"device_map": "balanced", "quantization_config": {"load_in_8bit": True}}, "balanced"),
    ],
    ids=["placed", "quantised", "both"],
)
def test_placed_weights_are_neither_weighed_nor_moved(
    hub_cache, fresh_store, loads, accelerate, no_memory, given, device_map
):
    embedder = bge_runtime.Embedder(MODEL, model_kwargs=given)
    vector = embedder.encode_queries(["what is panda?"])[0]
    asked = loads[0]["model_kwargs"]
    assert {**given, "device_map": device_map}.items() <= asked.items()
    assert loads[0]["device"] is None
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_other_weights_are_weighed(hub_cache, fresh_store, no_memory):
    with pytest.raises(bge_runtime.OutOfMemoryError, match="GB free"):
        bge_runtime.Embedder(MODEL).warm_up()


def test_placed_encoders_run_on_torch_too(hub_cache, fresh_store, loads, accelerate):
    bge_runtime.Embedder(model_kwargs={"device_map": "auto"}).warm_up()
    (info,) = bge_runtime.loaded_models()
    assert info.backend == "torch"


def test_without_accelerate_placing_says_what_to_install(hub_cache, fresh_store, accelerate):
    accelerate["accelerate"] = False
    with pytest.raises(bge_runtime.ConfigurationError, match="pip install accelerate"):
        bge_runtime.Embedder(MODEL, model_kwargs={"device_map": "cpu"}).warm_up()
    bge_runtime.Embedder(MODEL, model_kwargs={"device_map": None}).warm_up()


@pytest.mark.parametrize("place", [{"device": "cpu"}, {"devices": ["cpu", "cpu"]}], ids=["device", "devices"])
def test_two_ways_of_placing_are_refused_at_construction(place):
    with pytest.raises(bge_runtime.ConfigurationError, match="Pass one of them"):
        bge_runtime.Embedder(MODEL, model_kwargs={"device_map": "auto"}, **place)


def test_a_backend_that_cannot_take_placed_weights_is_refused_at_construction():
    with pytest.raises(bge_runtime.ConfigurationError, match="backend='torch'"):
        bge_runtime.Embedder(model_kwargs={"quantization_config": {"load_in_8bit": True}}, backend="packed")


def test_quantised_vectors_have_an_identity_of_their_own(hub_cache):
    plain = bge_runtime.Embedder(MODEL)
    placed = bge_runtime.Embedder(MODEL, model_kwargs={"device_map": "auto"})
    quantised = bge_runtime.Embedder(MODEL, model_kwargs={"quantization_config": {"load_in_8bit": True}})
    assert placed.identity == plain.identity
    assert quantised.document_identity != plain.document_identity
