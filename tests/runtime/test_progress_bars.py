"""No bar is made where none is shown: making one, even disabled, takes a lock of the whole process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tqdm.std import tqdm

import bge_runtime
from bge_runtime.evaluation.bench import compare
from bge_runtime.search.engine import search_folder

HOME = str(Path(bge_runtime.__file__).parent)
TEXTS = ["the dog slept", "a red house"]


@pytest.fixture
def bars(monkeypatch):
    """The bars that our own code makes, by itself or by what it calls, but for sentence-transformers' own `encode`."""
    found = []
    make = tqdm.__new__

    def spy(cls, *arguments, **options):
        frame, files = sys._getframe(1), []
        while frame is not None:
            files.append(frame.f_code.co_filename)
            frame = frame.f_back
        if any(file.startswith(HOME) for file in files) and not any("sentence_transformers" in file for file in files):
            found.append(files[0])
        return make(cls, *arguments, **options)

    monkeypatch.setattr(tqdm, "__new__", spy)
    return found


def embed(backend):
    embedder = bge_runtime.Embedder(backend=backend)
    embedder.encode_queries(TEXTS)
    embedder.encode_documents(TEXTS)


def index():
    tokens = bge_runtime.TokenIndex("BAAI/bge-small-en-v1.5")
    tokens.add(TEXTS)
    tokens.search("dog")


def search(folder, show_progress=False):
    (folder / "page.md").write_text("# The dog\n\nThe dog slept in the garden.\n", encoding="utf-8")
    search_folder(
        folder, "dog", embedder=bge_runtime.Embedder(), cache_folder=folder / "cache", show_progress=show_progress
    )


PLACES = {
    "packed": lambda _: embed("packed"),
    "torch": lambda _: embed("torch"),
    "onnx": lambda _: embed("onnx"),
    "openvino": lambda _: embed("openvino"),
    "cross-encoder": lambda _: bge_runtime.Reranker().rank("dog", TEXTS),
    "late interaction": lambda _: bge_runtime.Reranker(bge_runtime.Embedder()).rank("dog", TEXTS),
    "token index": lambda _: index(),
    "search": search,
    "bench": lambda _: compare("BAAI/bge-small-en-v1.5", TEXTS, rounds=1, modes=[("packed", "float32")]),
}


@pytest.mark.parametrize("place", PLACES)
def test_no_bar_is_made_where_none_is_shown(hub_cache, fresh_store, tmp_path, bars, place):
    if place in ("onnx", "openvino"):
        pytest.importorskip({"onnx": "onnxruntime"}.get(place, place))
    PLACES[place](tmp_path)
    assert bars == []


@pytest.mark.parametrize("place", ["call", "search"])
def test_a_bar_is_made_where_one_is_shown(hub_cache, fresh_store, tmp_path, bars, place, capsys):
    if place == "call":
        bge_runtime.Embedder(show_progress=True).encode_documents(TEXTS)
    else:
        search(tmp_path, show_progress=True)
    assert len(bars) == 1
    assert "2/2" in capsys.readouterr().err or place == "search"
