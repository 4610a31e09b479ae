"""An index remembers who filled it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from bge_runtime import ConfigurationError, Embedder, IndexIdentityError, bind_index, index_record

SMALL = "BAAI/bge-small-en-v1.5"
OTHER = "BAAI/bge-small-zh-v1.5"

pytestmark = pytest.mark.usefixtures("hub_cache")


def test_the_same_embedder_may_come_again(tmp_path):
    bind_index(tmp_path / "index", Embedder(SMALL))
    bind_index(tmp_path / "index", Embedder(SMALL))
    record = json.loads((tmp_path / "index" / "bge-index.json").read_text())
    assert record["model"] == SMALL
    assert record["identity"] == Embedder(SMALL).document_identity


def test_nothing_is_loaded_to_tell(tmp_path, fresh_store):
    import bge_runtime

    bind_index(tmp_path / "index", Embedder(SMALL))
    assert bge_runtime.loaded_models() == []


def test_another_model_is_refused_and_both_are_named(tmp_path):
    bind_index(tmp_path / "index", Embedder(SMALL))
    with pytest.raises(IndexIdentityError) as caught:
        bind_index(tmp_path / "index", Embedder(OTHER))
    for part in (SMALL, OTHER, Embedder(SMALL).document_identity[:12], "on_mismatch", "weights"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"document_instruction": "passage: "}, "document_instruction"),
        ({"normalize": False}, "normalize"),
        ({"truncate_dim": 16}, "dimension"),
        ({"max_length": 64}, "max_length"),
        ({"precision": "int8"}, "precision"),
    ],
)
def test_whatever_changes_documents_is_refused_and_said(tmp_path, option, named):
    bind_index(tmp_path, Embedder(SMALL))
    with pytest.raises(IndexIdentityError, match=named):
        bind_index(tmp_path, Embedder(SMALL, **option))


@pytest.mark.parametrize("option", [{"query_instruction": ""}, {"precision": "bfloat16"}, {"batch_size": 3}])
def test_what_leaves_documents_alone_is_welcome(tmp_path, option):
    bind_index(tmp_path, Embedder(SMALL))
    bind_index(tmp_path, Embedder(SMALL, **option))


def test_a_warning_on_request(tmp_path, caplog):
    bind_index(tmp_path, Embedder(SMALL))
    with caplog.at_level(logging.WARNING, "bge_runtime"):
        bind_index(tmp_path, Embedder(OTHER), on_mismatch="warn")
    assert OTHER in caplog.text
    bind_index(tmp_path, Embedder(SMALL))


def test_a_record_is_replaced_on_request(tmp_path):
    bind_index(tmp_path, Embedder(SMALL))
    bind_index(tmp_path, Embedder(OTHER), on_mismatch="replace")
    bind_index(tmp_path, Embedder(OTHER))
    with pytest.raises(IndexIdentityError):
        bind_index(tmp_path, Embedder(SMALL))


def test_collections_of_one_folder_are_apart(tmp_path):
    bind_index(tmp_path, Embedder(SMALL), collection="english")
    bind_index(tmp_path, Embedder(OTHER), collection="chinese")
    with pytest.raises(IndexIdentityError):
        bind_index(tmp_path, Embedder(OTHER), collection="english")


def test_a_file_has_its_record_beside_it(tmp_path):
    (tmp_path / "index.db").write_bytes(b"")
    bind_index(tmp_path / "index.db", Embedder(SMALL))
    assert (tmp_path / "index.db.bge-index.json").exists()
    assert (tmp_path / "index.db").read_bytes() == b""


def test_a_path_that_turns_out_to_be_a_folder_keeps_its_record(tmp_path):
    bind_index(tmp_path / "index.v1", Embedder(SMALL))
    (tmp_path / "index.v1").mkdir()
    with pytest.raises(IndexIdentityError):
        bind_index(tmp_path / "index.v1", Embedder(OTHER))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}', '{"format": 1, "identity": null}'])
def test_a_damaged_record_is_an_error_and_not_a_guess(tmp_path, content):
    (tmp_path / "bge-index.json").write_text(content)
    with pytest.raises(IndexIdentityError, match="damaged"):
        bind_index(tmp_path, Embedder(SMALL))
    bind_index(tmp_path, Embedder(SMALL), on_mismatch="replace")
    bind_index(tmp_path, Embedder(SMALL))


@pytest.mark.parametrize("wrong", [{"on_mismatch": "ignore"}, {"collection": "a/b"}, {"collection": ""}])
def test_wrong_arguments_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        bind_index(tmp_path, Embedder(SMALL), **wrong)
    with pytest.raises(ConfigurationError, match="embedder"):
        bind_index(tmp_path, SMALL)


def test_of_two_that_come_at_once_one_wins(tmp_path):
    def attempt(number):
        try:
            bind_index(tmp_path, Embedder(SMALL if number % 2 else OTHER))
        except IndexIdentityError:
            return None
        return number % 2

    with ThreadPoolExecutor(8) as pool:
        winners = {each for each in pool.map(attempt, range(16)) if each is not None}
    assert len(winners) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["bge-index.json"]


def test_a_file_system_without_links_will_do(tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    bind_index(tmp_path, Embedder(SMALL))
    with pytest.raises(IndexIdentityError):
        bind_index(tmp_path, Embedder(OTHER))


def test_a_new_process_knows_it_too(tmp_path, hub_cache):
    bind_index(tmp_path, Embedder(SMALL))
    code = f"from bge_runtime import *; bind_index({str(tmp_path)!r}, Embedder({OTHER!r}))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert "IndexIdentityError: The index at" in ended.stderr


def test_a_place_that_cannot_be_written_is_an_error_of_ours(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written or read"):
        bind_index(tmp_path / "file" / "index", Embedder(SMALL))


@pytest.mark.parametrize("name", ["index", "index.db"])
def test_an_index_without_content_is_said_to_be_only_reserved(tmp_path, name):
    path = tmp_path / name
    bind_index(path, Embedder(SMALL))
    with pytest.raises(IndexIdentityError, match=r"is reserved for .*Nothing is stored there yet"):
        bind_index(path, Embedder(OTHER))
    if path.is_dir():
        (path / "vectors.bin").write_bytes(b"x")
    else:
        path.write_bytes(b"x")
    with pytest.raises(IndexIdentityError, match="was filled by") as caught:
        bind_index(path, Embedder(OTHER))
    assert "Nothing is stored" not in str(caught.value)


def test_every_flipped_bit_that_matters_is_noticed(tmp_path):
    bind_index(tmp_path, Embedder(SMALL))
    file = tmp_path / "bge-index.json"
    whole = file.read_bytes()
    # What names the model is for messages; the rest decides.
    for place in range(whole.index(b'"model"')):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 7
        file.write_bytes(damaged)
        if json_of(damaged) == json_of(whole):  # a line end more or less
            continue
        with pytest.raises(IndexIdentityError):
            bind_index(tmp_path, Embedder(SMALL))


def json_of(content):
    try:
        return json.loads(content)
    except ValueError:
        return None


@pytest.mark.parametrize("content", ["[" * 100_000, '{"format": 1, "identity": "abc"}', " " * 2**21, "\xff"])
def test_what_cannot_be_a_record_is_damage(tmp_path, content):
    (tmp_path / "bge-index.json").write_text(content, encoding="latin-1")
    with pytest.raises(IndexIdentityError, match="damaged"):
        bind_index(tmp_path, Embedder(SMALL))


def test_a_pipe_is_no_record(tmp_path):
    os.mkfifo(tmp_path / "bge-index.json")
    with pytest.raises(IndexIdentityError, match="damaged"):
        bind_index(tmp_path, Embedder(SMALL))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
@pytest.mark.parametrize("on_mismatch", ["raise", "replace"])
def test_the_record_may_be_read_by_whom_the_umask_says(tmp_path, umask, mode, on_mismatch):
    before = os.umask(umask)
    try:
        bind_index(tmp_path / "index", Embedder(SMALL), on_mismatch=on_mismatch)
    finally:
        os.umask(before)
    assert (tmp_path / "index" / "bge-index.json").stat().st_mode & 0o777 == mode


def test_the_record_can_be_read_and_reading_writes_nothing(tmp_path):
    assert index_record(tmp_path / "index") is None
    assert list(tmp_path.iterdir()) == []
    bind_index(tmp_path / "index", Embedder(SMALL), collection="facts")
    assert index_record(tmp_path / "index") is None
    record = index_record(tmp_path / "index", collection="facts")
    assert (record["model"], record["identity"]) == (SMALL, Embedder(SMALL).document_identity)


def test_a_damaged_record_cannot_be_read(tmp_path):
    (tmp_path / "bge-index.json").write_text("{}")
    with pytest.raises(IndexIdentityError, match="damaged"):
        index_record(tmp_path)
