"""How many calls of our own code two texts cost, over a model that does nothing. `-s` prints the way, call by call."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import bge_runtime
from bge_runtime.engine.engine import Engine
from bge_runtime.engine.hooks import Place
from bge_runtime.engine.worker import Replica
from bge_runtime.inputs.tokenizing import Tokenizing, TokenSequence
from bge_runtime.loading.loaded import LoadedModel
from bge_runtime.loading.store import STORE, LoadedModelInfo
from tests.runtime.fake_tokenizer import FakeTokenizer

HOME = str(Path(bge_runtime.__file__).parent)
PLACE = Place(model="fake", backend="fake", device="cpu", precision="float32")
MOST_TO_EMBED, MOST_TO_RANK = 120, 140


class FakeModel:
    pads = False
    bytes = 4

    def forward(self, batch: list[TokenSequence], output: Any) -> list[np.ndarray]:
        return [np.float32(1) if output == "score" else np.ones(8, np.float32) for _ in batch]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine([Replica(FakeModel(), PLACE)], "fake", STORE.counters, STORE.hooks)
    info = LoadedModelInfo(
        name="fake", folder="", task="embed", device="cpu", precision="float32", backend="fake", parameters=1, bytes=4
    )
    model = LoadedModel(info, Tokenizing(FakeTokenizer()), engine, 1000, weakref.WeakKeyDictionary())
    monkeypatch.setattr(STORE, "acquire", lambda *_: model)
    yield
    engine.close()


def calls_of(function: Callable[[], object]) -> list[str]:
    """Call a function and return the calls of our own code that it leads to, on all threads."""
    found: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(HOME):
            found.append(f"{frame.f_code.co_filename[len(HOME) + 1 :]}:{frame.f_code.co_qualname}")

    def on_the_worker(frame: FrameType, event: str, argument: Any) -> None:
        if watching.is_set():
            note(frame, event, argument)

    watching = threading.Event()
    threading.setprofile(on_the_worker)  # of threads that start from here on: the worker does in the first call
    try:
        function()
        time.sleep(0.2)  # until the worker waits again: what it does after it has answered counts too
        found.clear()
        watching.set()
        sys.setprofile(note)
        function()
        sys.setprofile(None)
        time.sleep(0.2)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        watching.clear()
    sys.stdout.write("\n".join([f"{len(found)} calls", *found, ""]))
    return found


def test_two_texts_are_embedded_in_few_calls(loaded: None) -> None:
    embedder = bge_runtime.Embedder("BAAI/bge-small-en-v1.5")
    calls = calls_of(lambda: embedder.encode_documents(["one text", "two text"]))
    assert any("Worker._compute" in each for each in calls)
    assert len(calls) <= MOST_TO_EMBED


def test_two_documents_are_ranked_in_few_calls(loaded: None) -> None:
    reranker = bge_runtime.Reranker("BAAI/bge-reranker-base")
    calls = calls_of(lambda: reranker.rank("q", ["one text", "two text"]))
    assert any("Worker._compute" in each for each in calls)
    assert len(calls) <= MOST_TO_RANK
