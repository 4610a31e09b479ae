"""Exports on disk: made once, read without torch, made again when damaged, safe among processes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import bge_runtime
from bge_runtime.backends.base import LoadRequest
from bge_runtime.backends.exported.cache import cache_folder, read_entry, write_entry
from bge_runtime.backends.registry import load_backend
from bge_runtime.errors import ConfigurationError
from tests.checkpoints.files import Checkpoint
from tests.checkpoints.hub_cache import write_checkpoint
from tests.contracts.concurrency import on_own_thread

ROOT = Path(__file__).parents[3]
SMALL = Checkpoint(name="somebody/small", family="bert", hidden=64, seed=51)
TEXTS = ["the dog slept in the garden", "panda"]
START = f"""
import sys
import numpy as np
import bge_runtime

embedder = bge_runtime.Embedder(sys.argv[1], backend=sys.argv[2], precision=sys.argv[3])
np.save(sys.argv[4], embedder.encode_documents({TEXTS}))
print(*sorted({{"torch", "transformers", "sentence_transformers", "onnx"}} & set(sys.modules)))
"""


@pytest.fixture(params=["onnx", "openvino"])
def name(request):
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[request.param])
    return request.param


@pytest.fixture(autouse=True)
def exports(tmp_path, monkeypatch):
    """The folder of the exports, empty."""
    monkeypatch.setenv("BGE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "exports"


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "model", SMALL)


def load(name, folder, precision="float32"):
    request = LoadRequest(name="small", folder=folder, task="embed", device="cpu", precision=precision)
    return on_own_thread(lambda: load_backend(name, request))


def vectors(backend):
    return np.stack(backend.forward(backend.tokenizing.texts(["the dog slept", "panda"], 64).sequences, "cls"))


def start(name, folder, precision, result):
    return subprocess.Popen(
        [sys.executable, "-c", START, str(folder), name, precision, str(result)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_warm_cache_starts_without_torch_and_gives_the_same(name, folder, precision, tmp_path):
    cold = bge_runtime.Embedder(folder, backend=name, precision=precision).encode_documents(TEXTS)
    process = start(name, folder, precision, tmp_path / "warm.npy")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert out.split() == []
    np.testing.assert_array_equal(np.load(tmp_path / "warm.npy"), cold)


@pytest.mark.slow
def test_two_processes_that_export_at_once_leave_one_good_entry(name, folder, tmp_path, exports):
    processes = [start(name, folder, "float32", tmp_path / f"{turn}.npy") for turn in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
    np.testing.assert_array_equal(np.load(tmp_path / "0.npy"), np.load(tmp_path / "1.npy"))
    (entry,) = exports.iterdir()
    assert read_entry(entry) is not None


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "manifest", "format"])
def test_a_damaged_entry_is_made_again_and_said(name, folder, exports, caplog, damage):
    expected = vectors(load(name, folder))
    (entry,) = exports.iterdir()
    large = max((file for file in entry.iterdir()), key=lambda file: file.stat().st_size)
    if damage == "truncated":
        os.truncate(large, large.stat().st_size // 2)
    elif damage == "changed":
        content = bytearray(large.read_bytes())
        content[len(content) // 2] ^= 0xFF
        large.write_bytes(content)
    elif damage == "missing":
        large.unlink()
    elif damage == "manifest":
        (entry / "export.json").write_text("{", encoding="utf-8")
    else:
        manifest = json.loads((entry / "export.json").read_text(encoding="utf-8"))
        del manifest["content"]["facts"]["width"]
        (entry / "export.json").write_text(json.dumps(manifest), encoding="utf-8")
    with caplog.at_level(logging.WARNING, "bge_runtime"):
        np.testing.assert_array_equal(vectors(load(name, folder)), expected)
    assert "making it again" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "bge_runtime"):
        load(name, folder)
    assert not caplog.records
    assert [each.name for each in exports.iterdir()] == [entry.name]


def test_without_a_writable_folder_the_model_runs_from_memory_and_says_so(name, folder, tmp_path, monkeypatch, caplog):
    expected = vectors(load(name, folder))
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("BGE_CACHE_DIR", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "bge_runtime"):
        np.testing.assert_array_equal(vectors(load(name, folder)), expected)
    assert "used from memory" in caplog.text


def test_a_full_disk_leaves_nothing_behind(name, folder, exports, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bge_runtime.backends.exported.cache._digest", full)
    with caplog.at_level(logging.WARNING, "bge_runtime"):
        assert vectors(load(name, folder)).shape == (2, 64)
    assert "No space left" in caplog.text
    assert list(exports.iterdir()) == []


def test_other_weights_another_tokenizer_and_another_precision_are_other_entries(name, folder, exports, tmp_path):
    load(name, folder)
    load(name, folder)
    assert len(list(exports.iterdir())) == 1
    load(name, folder, "int8")
    load(name, write_checkpoint(tmp_path / "other", Checkpoint(name="a/b", family="bert", hidden=64, seed=52)))
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    load(name, copy)
    assert len(list(exports.iterdir())) == 3
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "do_lower_case": False}))
    load(name, copy)
    assert len(list(exports.iterdir())) == 4


def test_bfloat16_shares_the_entry_of_float32(folder, exports):
    pytest.importorskip("openvino")
    load("openvino", folder)
    load("openvino", folder, "bfloat16")
    assert len(list(exports.iterdir())) == 1


def test_a_folder_without_tokenizer_json_keeps_the_converted_one(name, folder, tmp_path, exports):
    expected = vectors(load(name, folder))
    (folder / "tokenizer.json").unlink()
    for _ in range(2):  # cold, then warm
        np.testing.assert_array_equal(vectors(load(name, folder)), expected)


def test_a_missing_package_is_named_with_its_extra(folder, name, monkeypatch):
    from importlib.metadata import PackageNotFoundError

    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr("bge_runtime.backends.exported.export.version", missing)
    with pytest.raises(ConfigurationError, match=rf'pip install "bge-integrations\[{name}\]"'):
        load(name, folder)


def test_what_a_killed_process_left_is_removed_after_a_day(exports):
    for left, age_s in ((exports / ".old", 2 * 86400), (exports / ".young", 60)):
        left.mkdir(parents=True)
        os.utime(left, (time.time() - age_s,) * 2)
    write_entry(exports / "entry", {"a": 1}, lambda made: (made / "file").write_text("x") and None)
    assert sorted(each.name for each in exports.iterdir()) == [".young", "entry"]
    assert read_entry(exports / "entry") == {"a": 1}


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("BGE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "bge" / "exports"
