"""A tokenizer that knows more than the weights: the text concerned is an error on every backend."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bge_runtime import BackendError, Embedder, Reranker
from tests.checkpoints.files import Checkpoint
from tests.checkpoints.hub_cache import write_checkpoint

BACKENDS = ["packed", "torch", "onnx", "openvino"]


@pytest.fixture(scope="module", autouse=True)
def export_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BGE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param in ("onnx", "openvino"):
        pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[request.param])
    return request.param


def with_a_new_token(folder: Path) -> str:
    """Add a token to the tokenizer of a folder, and no row to the table."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    rows = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    facts = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    content["added_tokens"].append({"id": rows, "content": "<new>", **facts})
    file.write_text(json.dumps(content), encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def embedder_folder(tmp_path_factory):
    checkpoint = Checkpoint(name="a/m", family="bert", hidden=64, seed=11)
    return with_a_new_token(write_checkpoint(tmp_path_factory.mktemp("tables") / "m", checkpoint))


def test_the_text_is_an_error_and_the_others_get_their_vectors(embedder_folder, backend):
    embedder = Embedder(embedder_folder, backend=backend)
    expected = embedder.encode_documents(["cat"])

    def call(number):
        try:
            return embedder.encode_documents(["cat <new>" if number % 2 else "cat"])
        except BackendError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(call, range(16)))
    for error in results[1::2]:
        assert "table of tokens" in str(error)
    for vectors in results[::2]:
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_token_vectors_and_int8_are_errors_too(embedder_folder, backend):
    with pytest.raises(BackendError, match="table of tokens"):
        Embedder(embedder_folder, backend=backend).encode_tokens(["cat <new>"])
    if backend in ("onnx", "openvino"):
        with pytest.raises(BackendError, match="table of tokens"):
            Embedder(embedder_folder, backend=backend, precision="int8").encode_documents(["cat <new>"])


def test_a_pair_is_an_error_too(tmp_path, backend):
    checkpoint = Checkpoint(name="a/r", family="xlmr", hidden=64, seed=12, positions=514, head=1, modules=False)
    reranker = Reranker(with_a_new_token(write_checkpoint(tmp_path / "r", checkpoint)), backend=backend)
    with pytest.raises(BackendError, match="table of tokens"):
        reranker.score("cat", ["dog", "cat <new>"])
    assert np.isfinite(reranker.score("cat", ["dog"])).all()
