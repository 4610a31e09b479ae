"""Finding and fetching files; each script has the hub's client to itself, which reads its environment once."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest

import bge_runtime
from tests.checkpoints.hub_cache import (
    BY_NAME,
    Checkpoint,
    files_of,
    pickled_folder,
    place_in_hub_cache,
    write_checkpoint,
)
from tests.runtime import references

ROOT = Path(__file__).parents[3]
HEADER = """
import os, sys, time
from pathlib import Path
from tests.runtime.hub_server import HubServer

root = Path(sys.argv[1])
hub = HubServer(root, {"somebody/gated": 403, "somebody/private": 401, "somebody/broken": 500})
os.environ["HF_ENDPOINT"] = hub.endpoint
import bge_runtime

def error_of(call):
    started = time.monotonic()
    try:
        call()
    except bge_runtime.BGEError as error:
        assert time.monotonic() - started < 10, "took longer than ten seconds"
        return type(error).__name__, str(error)
    raise AssertionError("no error")
"""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """A folder of repositories as a hub has them."""
    root = tmp_path_factory.mktemp("repositories")
    small = write_checkpoint(root / "BAAI/bge-small-en-v1.5", BY_NAME["BAAI/bge-small-en-v1.5"])
    (small / "onnx").mkdir()
    for name in ("pytorch_model.bin", "onnx/model.onnx", "README.md"):
        (small / name).write_bytes(b"content")
    pickled_folder(root / "somebody/pickled")
    for path in (
        "lora/adapter_config.json",
        "lora/adapter_model.safetensors",
        "lora/adapter_model.bin",
        "pickled-lora/adapter_config.json",
        "pickled-lora/adapter_model.bin",
    ):
        (root / "somebody" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "somebody" / path).write_bytes(b'{"peft_type": "LORA"}')
    pickled_folder(root / "BAAI/bge-m3-unsupervised")
    return root


@pytest.fixture
def run_script(tmp_path, repositories):
    """Run a script that sees an empty cache and a hub on the loopback interface."""

    def run(body):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            [sys.executable, "-c", HEADER + textwrap.dedent(body), str(repositories)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    return run


def test_a_closed_port_is_an_unreachable_hub_and_names_the_offline_package(run_script):
    run_script(
        """
        hub.stop()
        for call in (
            lambda: bge_runtime.Embedder().encode_queries(["panda"]),
            lambda: bge_runtime.Reranker().score("panda", ["panda"]),
            lambda: bge_runtime.download("bge-m3"),
        ):
            name, message = error_of(call)
            assert name == "HubUnreachableError", name
            assert "sentence-transformers/all-MiniLM-L6-v2" in message
            assert "bge-integrations[offline]" in message
            assert "HF_ENDPOINT" in message
        """
    )


def test_a_hub_that_never_answers_is_given_up_within_ten_seconds(run_script):
    run_script(
        """
        bge_runtime.choose_device()  # imports torch, whose time is not the hub's
        hub.answer = lambda path: time.sleep(60)
        name, message = error_of(lambda: bge_runtime.Embedder().encode_queries(["panda"]))
        assert name == "HubUnreachableError", name
        os._exit(0)  # the hub's client has a thread that still waits
        """
    )


def test_a_download_without_a_progress_bar_makes_none(run_script):
    run_script(
        """
        from tqdm.std import tqdm

        bars, make = [], tqdm.__new__

        def spy(cls, *arguments, **options):
            bars.append(cls)
            return make(cls, *arguments, **options)

        tqdm.__new__ = spy
        bge_runtime.download("BAAI/bge-small-en-v1.5", show_progress=False)
        assert not bars, bars
        bge_runtime.download("BAAI/bge-small-en-v1.5", force=True, show_progress=True)
        assert bars
        """
    )


def test_a_download_fetches_what_is_needed_and_works_without_the_hub_afterwards(run_script):
    run_script(
        """
        assert bge_runtime.locate("bge-small-en-v1.5") is None
        folder = bge_runtime.download("baai/BGE-small-en-v1.5", show_progress=False)
        fetched = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        source = root / "BAAI/bge-small-en-v1.5"
        offered = {str(file.relative_to(source)) for file in source.rglob("*") if file.is_file()}
        assert offered - fetched == {"pytorch_model.bin", "onnx/model.onnx"}, offered - fetched
        assert not any("pytorch_model" in path or "onnx" in path for path in hub.requests), hub.requests
        hub.stop()
        assert bge_runtime.locate("BAAI/bge-small-en-v1.5") == folder
        assert bge_runtime.Embedder("bge-small-en-v1.5").encode_queries(["panda"]).shape == (1, 384)
        """
    )


def test_an_adapter_is_fetched_like_a_model_and_never_as_a_pickle(run_script):
    run_script(
        """
        name, message = error_of(lambda: bge_runtime.Embedder(adapter="somebody/pickled-lora").identity)
        assert (name, "safetensors" in message) == ("UnsafeWeightsError", True), (name, message)
        name, message = error_of(lambda: bge_runtime.Embedder(adapter="somebody/none").identity)
        assert name == "ModelNotFoundError", (name, message)
        identity = bge_runtime.Embedder(adapter="somebody/lora").identity
        assert not any(path.endswith("adapter_model.bin") for path in hub.requests), hub.requests
        hub.stop()
        assert bge_runtime.Embedder(adapter="somebody/lora", local_files_only=True).identity == identity
        assert bge_runtime.Embedder(local_files_only=True).identity != identity
        folder = bge_runtime.locate("somebody/lora")
        assert bge_runtime.Embedder(adapter=folder, local_files_only=True).identity == identity
        assert "torch" not in sys.modules
        """
    )


def test_a_first_use_downloads_by_itself(run_script):
    run_script(
        """
        assert bge_runtime.Embedder().encode_queries(["panda"]).shape == (1, 384)
        count = len(hub.requests)
        bge_runtime.unload_models()
        assert bge_runtime.Embedder().encode_queries(["panda"]).shape == (1, 384)
        assert len(hub.requests) == count, "a cached model needs no request"
        """
    )


def test_pickles_of_an_unknown_repository_are_refused_before_they_are_fetched(run_script):
    run_script(
        """
        for call in (
            lambda: bge_runtime.download("somebody/pickled"),
            lambda: bge_runtime.Embedder("somebody/pickled").encode_queries(["panda"]),
        ):
            name, message = error_of(call)
            assert name == "UnsafeWeightsError", name
            assert "safetensors" in message
        assert not any("/resolve/" in path for path in hub.requests), hub.requests
        """
    )


def test_pickles_of_a_model_of_the_table_are_fetched(run_script):
    run_script(
        """
        folder = bge_runtime.download("bge-m3-unsupervised", show_progress=False)
        assert (folder / "pytorch_model.bin").exists()
        """
    )


def test_refusals_of_the_hub_say_what_to_do(run_script):
    run_script(
        """
        name, message = error_of(lambda: bge_runtime.download("BAAI/bge-smal-en-v1.5"))
        assert (name, "BAAI/bge-small-en-v1.5" in message) == ("ModelNotFoundError", True), (name, message)
        for repository in ("somebody/gated", "somebody/private"):
            name, message = error_of(lambda: bge_runtime.download(repository))
            assert (name, "token=" in message) == ("ModelNotFoundError", True), (name, message)
        name, message = error_of(lambda: bge_runtime.download("somebody/broken"))
        assert name == "HubUnreachableError", (name, message)
        name, message = error_of(lambda: bge_runtime.download("bge-m3", source="elsewhere"))
        assert (name, "modelscope" in message) == ("ConfigurationError", True), (name, message)
        """
    )


def test_local_files_only_asks_no_hub(run_script):
    run_script(
        """
        name, message = error_of(lambda: bge_runtime.Embedder(local_files_only=True).encode_queries(["panda"]))
        assert name == "HubUnreachableError", name
        assert "bge download" in message
        assert hub.requests == []
        """
    )


def test_a_model_in_the_cache_is_located(hub_cache):
    folder = references.snapshot_of(hub_cache, "BAAI/bge-small-en-v1.5")
    assert bge_runtime.locate("BGE-small-en-v1.5") == folder
    assert bge_runtime.locate("BAAI/bge-large-en-v1.5") is None
    assert bge_runtime.locate("BAAI/bge-small-en-v1.5", revision="other") is None


def test_the_packaged_model_is_located_and_no_other_takes_its_place(minilm):
    assert bge_runtime.locate("all-MiniLM-L6-v2") == minilm
    assert bge_runtime.locate("somebody/all-MiniLM-L6-v2") is None


def test_a_cache_folder_of_the_callers_own_is_used(tmp_path):
    files = {"config.json": b"{}"}
    place_in_hub_cache(tmp_path, "somebody/half", files)
    assert bge_runtime.locate("somebody/half", cache_folder=str(tmp_path)) is None
    source = write_checkpoint(tmp_path / "folder", Checkpoint(name="x", family="bert", hidden=64, seed=9))
    whole = {str(file.relative_to(source)): file.read_bytes() for file in source.rglob("*") if file.is_file()}
    snapshot = place_in_hub_cache(tmp_path, "somebody/whole", whole)
    assert bge_runtime.locate("somebody/whole", cache_folder=str(tmp_path)) == snapshot
    vectors = bge_runtime.Embedder("somebody/whole", cache_folder=str(tmp_path)).encode_queries(["panda"])
    assert vectors.shape == (1, 64)


def test_a_snapshot_with_a_missing_shard_is_not_complete(tmp_path):
    checkpoint = BY_NAME["BAAI/bge-small-zh-v1.5"]
    folder = write_checkpoint(tmp_path / "folder", checkpoint, **{"model.safetensors": None})
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    files["model-00001-of-00002.safetensors"] = b"weights"
    place_in_hub_cache(tmp_path, checkpoint.name, files)
    assert bge_runtime.locate(checkpoint.name, cache_folder=str(tmp_path)) is None


SMALL_FILES = (
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)


@pytest.fixture(scope="module")
def strangers():
    """The files of an embedder outside the table; by the small ones alone is it known how it pools."""
    return files_of(Checkpoint(name="somebody/cls", family="bert", hidden=64, seed=11))


def left_by_transformers(files):
    return {name: content for name, content in files.items() if name not in SMALL_FILES}


@pytest.mark.parametrize("missing", SMALL_FILES)
def test_a_snapshot_without_small_files_that_change_vectors_is_not_whole(tmp_path, strangers, missing):
    some = {name: content for name, content in strangers.items() if name != missing}
    snapshot = place_in_hub_cache(tmp_path, "somebody/cls", some)
    assert bge_runtime.locate("somebody/cls", cache_folder=tmp_path) is None
    embedder = bge_runtime.Embedder("somebody/cls", cache_folder=tmp_path, local_files_only=True)
    with pytest.raises(bge_runtime.HubUnreachableError, match=r"in part.*bge download somebody/cls --cache-folder"):
        embedder.encode_queries(["panda"])
    (snapshot / missing).parent.mkdir(exist_ok=True)
    (snapshot / missing).write_bytes(strangers[missing])
    assert bge_runtime.locate("somebody/cls", cache_folder=tmp_path) == snapshot


def test_a_snapshot_is_whole_where_the_cache_knows_that_the_repository_has_no_more(tmp_path, strangers):
    snapshot = place_in_hub_cache(tmp_path, "somebody/cls", left_by_transformers(strangers))
    marks = snapshot.parents[1] / ".no_exist" / snapshot.name
    marks.mkdir(parents=True)
    for name in SMALL_FILES[:3]:
        assert bge_runtime.locate("somebody/cls", cache_folder=tmp_path) is None
        (marks / name).touch()
    assert bge_runtime.locate("somebody/cls", cache_folder=tmp_path) == snapshot


def test_a_snapshot_that_was_fetched_whole_is_whole_without_small_files(tmp_path, strangers):
    files = {**left_by_transformers(strangers), ".gitattributes": b"*.safetensors filter=lfs"}
    snapshot = place_in_hub_cache(tmp_path, "somebody/cls", files)
    assert bge_runtime.locate("somebody/cls", cache_folder=tmp_path) == snapshot


def test_where_the_hub_cannot_be_asked_the_facts_of_a_named_base_do(tmp_path, strangers):
    place_in_hub_cache(tmp_path, "somebody/cls", left_by_transformers(strangers))
    for options in ({"local_files_only": True}, {}):  # the tests' hub is offline
        embedder = bge_runtime.Embedder("somebody/cls", cache_folder=tmp_path, base_model="bge-m3", **options)
        assert embedder.encode_queries(["panda"]).shape == (1, 64)
        assert (embedder.spec.pooling, embedder.normalize) == ("cls", True)


def test_models_of_the_table_need_no_small_files_and_m3_its_heads(tmp_path):
    files = left_by_transformers(files_of(BY_NAME["BAAI/bge-small-en-v1.5"]))
    snapshot = place_in_hub_cache(tmp_path, "BAAI/bge-small-en-v1.5", files)
    assert bge_runtime.locate("BAAI/bge-small-en-v1.5", cache_folder=tmp_path) == snapshot
    with_heads = files_of(BY_NAME["BAAI/bge-m3"])
    without = {name: content for name, content in with_heads.items() if "linear" not in name}
    assert len(without) < len(with_heads)
    snapshot = place_in_hub_cache(tmp_path, "BAAI/bge-m3", without)
    assert bge_runtime.locate("BAAI/bge-m3", cache_folder=tmp_path) is None
    embedder = bge_runtime.Embedder("BAAI/bge-m3", cache_folder=tmp_path, local_files_only=True)
    assert embedder.encode_queries(["panda"]).shape == (1, embedder.dimension)  # dense needs none
    place_in_hub_cache(tmp_path / "whole", "BAAI/bge-m3", with_heads)
    assert bge_runtime.locate("BAAI/bge-m3", cache_folder=tmp_path / "whole") is not None


@pytest.mark.slow
def test_what_a_half_filled_cache_lacks_is_asked_for_once_and_paths_are_the_same_everywhere(run_script):
    run_script(
        """
        from tests.checkpoints.hub_cache import Checkpoint, files_of, place_in_hub_cache, write_checkpoint

        checkpoint = Checkpoint(name="somebody/cls", family="bert", hidden=64, seed=11)
        write_checkpoint(root / "somebody/cls", checkpoint)
        home = Path(os.environ["HF_HOME"])
        os.environ["HOME"] = str(home)
        own = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
        part = {k: v for k, v in files_of(checkpoint).items() if "/" not in k and k not in own}
        folder = place_in_hub_cache(home / "models", "somebody/cls", part)
        weights = (folder / "model.safetensors").resolve().stat()
        embedder = bge_runtime.Embedder("somebody/cls", cache_folder="~/models")
        assert embedder.spec.pooling == "cls"
        assert embedder.source.folder == folder, embedder.source.folder
        assert (folder / "model.safetensors").resolve().stat().st_mtime_ns == weights.st_mtime_ns, "not fetched again"
        asked = len(hub.requests)
        for where in ("~/models", home / "models"):
            assert bge_runtime.locate("somebody/cls", cache_folder=where) == folder
            offline = bge_runtime.Embedder("somebody/cls", cache_folder=where, local_files_only=True)
            assert offline.identity == embedder.identity
        os.environ["SENTENCE_TRANSFORMERS_HOME"] = "~/models"
        assert bge_runtime.locate("somebody/cls") == folder
        assert len(hub.requests) == asked

        # A link of the cache whose blob is gone is no file.
        (folder / "model.safetensors").resolve().unlink()
        assert bge_runtime.locate("somebody/cls") is None
        name, message = error_of(lambda: bge_runtime.Embedder("somebody/cls", local_files_only=True).identity)
        assert name == "HubUnreachableError", (name, message)
        assert bge_runtime.Embedder("somebody/cls").identity == embedder.identity
        """
    )


@pytest.fixture
def client(monkeypatch):
    """Let the hub's client answer as told."""
    import huggingface_hub
    from huggingface_hub.hf_api import ModelInfo

    def answers(*, listed=None, fetched=None):
        def model_info(self, *arguments, **options):
            if listed is not None:
                raise listed
            return ModelInfo(id="somebody/small", siblings=[{"rfilename": "model.safetensors"}])

        def snapshot_download(*arguments, **options):
            raise fetched

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    return answers


def asked(**options):
    with pytest.raises(bge_runtime.BGEError) as caught:
        bge_runtime.download("somebody/small", show_progress=False, **options)
    return caught.value


OF_THE_WAY = [
    ValueError("Unknown scheme for proxy URL URL('socks://127.0.0.1:7890')"),
    ImportError("Using SOCKS proxy, but the 'socksio' package is not installed."),
    ConnectionRefusedError(111, "Connection refused"),
    TimeoutError("timed out"),
    OSError(101, "Network is unreachable"),
    ssl.SSLError(1, "certificate verify failed"),
    socket.gaierror(-2, "Name or service not known"),
    RuntimeError("Cannot send a request, as the client has been closed."),
    FileNotFoundError(2, "No such file or directory", "/etc/ssl/missing.pem"),
]


@pytest.mark.parametrize("error", OF_THE_WAY, ids=repr)
def test_whatever_the_way_to_the_hub_says_is_an_error_of_ours_that_names_the_proxies(client, monkeypatch, error):
    monkeypatch.setenv("ALL_PROXY", "socks://somebody:secret@127.0.0.1:7890")
    monkeypatch.setenv("NO_PROXY", "localhost")
    client(listed=error)
    found = asked()
    assert isinstance(found, bge_runtime.HubUnreachableError)
    assert found.__cause__ is error
    assert "all socks://127.0.0.1:7890" in str(found)
    assert "secret" not in str(found)
    for name in ("ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    client(fetched=ConnectionResetError(104, "Connection reset by peer"))
    assert "proxies" not in str(asked())


OF_THE_DISK = [
    OSError(errno.ENOSPC, "No space left on device"),
    PermissionError(errno.EACCES, "Permission denied"),
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
    NotADirectoryError(errno.ENOTDIR, "Not a directory"),
    OSError(errno.EROFS, "Read-only file system"),
    OSError(errno.ENAMETOOLONG, "File name too long"),
]


@pytest.mark.parametrize("error", OF_THE_DISK, ids=repr)
@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_an_error_of_the_disk_names_the_folder_and_the_disks_reason(client, monkeypatch, tmp_path, error, source):
    client(fetched=error)
    monkeypatch.setitem(sys.modules, "modelscope", types.SimpleNamespace(snapshot_download=raiser(error)))
    found = asked(source=source, cache_folder=tmp_path)
    assert type(found) is bge_runtime.ModelNotFoundError
    assert str(tmp_path) in str(found)
    assert str(error) in str(found)
    assert "cannot be reached" not in str(found)


def test_modelscope_gets_paths_written_out_and_its_other_errors_are_of_the_way(monkeypatch):
    seen = []

    def snapshot_download(*arguments, cache_dir, **options):
        seen.append(cache_dir)
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "modelscope", types.SimpleNamespace(snapshot_download=snapshot_download))
    assert isinstance(asked(source="modelscope", cache_folder="~/models"), bge_runtime.HubUnreachableError)
    assert seen == [os.path.expanduser("~/models")]


def raiser(error):
    def call(*arguments, **options):
        raise error

    return call
