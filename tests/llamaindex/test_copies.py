"""Copies, pickles and dumps hold the configuration: no weights, no token."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager
from llama_index.core.storage.kvstore import SimpleKVStore

from llamaindex_bge import BGEEmbedding, BGERerank
from tests.llamaindex.conftest import Callbacks

CLASSES = pytest.mark.parametrize("kind", [BGEEmbedding, BGERerank])


@CLASSES
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_keep_the_configuration(kind: Any, duplicate: Any, callbacks: Callbacks) -> None:
    model = kind(max_length=77, device="cpu", callback_manager=callbacks.manager())
    again = duplicate(model)
    assert type(again) is kind
    assert again.to_dict() == model.to_dict()
    assert again.device == "cpu"
    assert isinstance(again.callback_manager, CallbackManager)


def test_deep_copy_shares_callbacks_and_stores(callbacks: Callbacks) -> None:
    store, manager = SimpleKVStore(), callbacks.manager()
    embedding = copy.deepcopy(BGEEmbedding(embeddings_cache=store, callback_manager=manager))
    assert embedding.embeddings_cache is store
    assert embedding.callback_manager is manager


def test_deep_copy_can_still_reach_private_models() -> None:
    embedding = BGEEmbedding(token="hf_secret")
    assert copy.deepcopy(embedding).embedder is embedding.embedder


def test_pickle_leaves_out_what_does_not_pickle(callbacks: Callbacks) -> None:
    callbacks.unpicklable = lambda: None  # type: ignore[attr-defined]
    embedding = BGEEmbedding(callback_manager=callbacks.manager(), embeddings_cache=SimpleKVStore())
    again = pickle.loads(pickle.dumps(embedding))
    assert again.callback_manager.handlers == []
    assert again.embeddings_cache is None


@CLASSES
def test_dump_round_trips(kind: Any) -> None:
    model = kind(max_length=64, revision="main")
    assert kind.from_dict(model.to_dict()).to_dict() == model.to_dict()
    assert kind.from_json(model.to_json()).to_dict() == model.to_dict()


def test_reranker_dump_keeps_the_device_and_all_choices() -> None:
    chosen = {"top_n": None, "score_threshold": 0.2, "normalize": False, "keep_retrieval_score": True, "device": "cpu"}
    dump = BGERerank(**chosen).to_dict()
    assert {name: dump[name] for name in chosen} == chosen
    assert BGERerank.from_dict(dump).reranker.options()["normalize"] is False


@CLASSES
def test_token_is_in_no_dump_repr_or_pickle(kind: Any) -> None:
    model = kind(token="hf_secret")
    shown = [repr(model), str(model.to_dict()), model.to_json(), str(model.model_dump())]
    assert not any("hf_secret" in each for each in shown)
    assert b"hf_secret" not in pickle.dumps(model)
