"""Texts to Parquet: what stands in the parts, what a second call does, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bge_runtime
from bge_runtime import ConfigurationError, Embedder, IndexIdentityError, InputError, search_quantized
from bge_runtime.bulk import embed_to_parquet, read_manifest
from bge_runtime.evaluation.journal import locked
from tests.bulk.corpora import MODEL, ids_of, parts_of, read, sentences, vectors_of, write_lines

TEXTS = sentences(23)


@pytest.fixture
def corpus(tmp_path):
    return write_lines(tmp_path / "corpus.jsonl", TEXTS)


@pytest.fixture
def embed(corpus, tmp_path, embedder):
    """Embed the corpus in parts of five."""

    def run(out="out", source=corpus, embedder=embedder, **options):
        return embed_to_parquet(source, tmp_path / out, embedder, **{"part_rows": 5, **options})

    return run


def test_parts_hold_ids_and_vectors_in_the_order_of_the_input(embed, embedder, tmp_path):
    result = embed()
    assert (result.rows, result.parts, result.computed, result.recomputed, result.changed) == (23, 5, 23, 0, True)
    assert [file.name for file in parts_of(result.folder)] == [f"part-0000{number}.parquet" for number in range(5)]
    assert [pq.read_metadata(file).num_rows for file in parts_of(result.folder)] == [5, 5, 5, 5, 3]
    assert ids_of(result.folder) == [f"corpus.jsonl:{number}" for number in range(1, 24)]
    assert read(result.folder).schema.field("vector").type == pa.list_(pa.field("element", pa.float32()), 384)
    np.testing.assert_allclose(vectors_of(result.folder), embedder.encode_documents(TEXTS), atol=1e-6)


def test_a_run_leaves_parts_and_manifest_and_nothing_else_that_is_seen(embed):
    folder = embed().folder
    seen = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert seen == {"manifest.json", *(file.name for file in parts_of(folder))}
    told = json.loads((folder / "manifest.json").read_text())
    assert told["finished"]
    assert [(part["file"], part["first_row"], part["rows"]) for part in told["parts"]][-1] == (
        "part-00004.parquet",
        20,
        3,
    )
    assert told["input"][0]["rows"] == 23


def test_queries_get_their_instruction(embed, embedder):
    folder = embed(role="query").folder
    np.testing.assert_allclose(vectors_of(folder), embedder.encode_queries(TEXTS), atol=1e-6)
    assert np.abs(vectors_of(folder) - embedder.encode_documents(TEXTS)).max() > 1e-3


def test_float16_is_half_as_large_and_as_good_as_it_can_be(embed, embedder):
    vectors = vectors_of(embed(format="float16").folder)
    assert vectors.dtype == np.float16
    np.testing.assert_allclose(vectors, embedder.encode_documents(TEXTS), atol=1e-3)


def test_int8_is_searched_with_the_ranges_of_the_manifest(embed, embedder):
    folder = embed(format="int8", part_rows=12).folder
    vectors, ranges = vectors_of(folder), read_manifest(folder).ranges
    first = embedder.encode_documents(TEXTS[:12])
    np.testing.assert_allclose(ranges, np.stack((first.min(axis=0), first.max(axis=0))), atol=1e-6)
    assert vectors.dtype == np.int8
    found, _ = search_quantized(embedder.encode_documents(TEXTS), vectors, top_k=1, ranges=ranges)
    assert (found[:, 0] == np.arange(23)).mean() > 0.9


def test_binary_has_a_bit_for_each_dimension(embed, embedder):
    bits = vectors_of(embed(format="binary").folder)
    assert bits.dtype == np.uint8
    expected = np.packbits(embedder.encode_documents(TEXTS) > 0, axis=1)
    assert np.unpackbits(bits ^ expected).sum() <= 2  # of numbers that are almost 0


@pytest.mark.parametrize("format", ["int8", "binary"])
def test_a_byte_takes_about_a_byte_in_the_file(tmp_path, embedder, format):
    file = tmp_path / "many.txt"
    file.write_text("\n".join(sentences(300)))
    folder = embed_to_parquet(file, tmp_path / "out", embedder, format=format).folder
    sizes = [pq.read_metadata(part).row_group(0).column(1).total_compressed_size for part in parts_of(folder)]
    assert sum(sizes) < 1.3 * vectors_of(folder).nbytes


def test_all_outputs_of_a_model_with_heads(hub_cache, corpus, tmp_path):
    outputs = ("multi_vector", "dense", "sparse")
    with Embedder("BAAI/bge-m3", truncate_dim=None) as embedder:
        folder = embed_to_parquet(corpus, tmp_path / "out", embedder, outputs=outputs, part_rows=9).folder
        expected = embedder.encode_all(TEXTS)
    table = read(folder)
    assert table.column_names == ["id", "vector", "sparse", "multi_vector"]
    np.testing.assert_allclose(vectors_of(folder), expected.dense, atol=1e-5)
    for row, weights, tokens in zip(table.to_pylist(), expected.sparse, expected.multi_vector, strict=True):
        found = {each["token"]: each["weight"] for each in row["sparse"]}
        assert found == pytest.approx(weights, abs=1e-5)
        np.testing.assert_allclose(np.asarray(row["multi_vector"]), tokens, atol=1e-5)
    with Embedder("BAAI/bge-m3") as embedder:
        only = embed_to_parquet(corpus, tmp_path / "sparse", embedder, outputs=["sparse"]).folder
    assert read(only).column_names == ["id", "sparse"]


def test_other_outputs_of_the_same_model_are_another_setting(hub_cache, corpus, tmp_path):
    with Embedder("BAAI/bge-m3") as embedder:
        embed_to_parquet(corpus, tmp_path / "out", embedder)
        with pytest.raises(
            ConfigurationError, match=r"outputs is \('dense',\) there and \('dense', 'sparse'\) here"
        ) as told:
            embed_to_parquet(corpus, tmp_path / "out", embedder, outputs=["dense", "sparse"])
    assert not isinstance(told.value, IndexIdentityError)


def test_texts_that_are_cut_are_counted_over_all_runs(tmp_path, hub_cache):
    file = tmp_path / "a.txt"
    file.write_text("\n".join(["short", "a " * 20, "also short", "b " * 20, "c " * 20]))
    with Embedder(MODEL, max_length=8, truncation="silent") as embedder:
        assert embed_to_parquet(file, tmp_path / "out", embedder, part_rows=2).truncated == 3
        (tmp_path / "out" / "part-00001.parquet").unlink()
        again = embed_to_parquet(file, tmp_path / "out", embedder, part_rows=2)
    assert (again.computed, again.truncated) == (2, 3)


def test_empty_texts_and_texts_that_stand_twice_have_a_row_each(tmp_path, embedder):
    file = write_lines(tmp_path / "a.jsonl", ["", "same", "same", " "], id=["a", "b", "c", "d"])
    folder = embed_to_parquet(file, tmp_path / "out", embedder).folder
    assert ids_of(folder) == ["a", "b", "c", "d"]
    np.testing.assert_allclose(vectors_of(folder), embedder.encode_documents(["", "same", "same", " "]), atol=1e-6)


def test_a_finished_run_computes_nothing_and_loads_nothing(embed, fresh_store, hub_cache):
    with Embedder(MODEL, truncation="silent") as own:
        embed(embedder=own)
    bge_runtime.unload_models()
    result = embed(embedder=Embedder(MODEL))
    assert (result.changed, result.computed, result.rows, result.texts_per_second) == (False, 0, 23, 0.0)
    assert bge_runtime.loaded_models() == []


def test_only_parts_that_are_missing_are_computed(embed, tmp_path):
    folder = embed().folder
    before = vectors_of(folder)
    times = {file.name: file.stat().st_mtime_ns for file in parts_of(folder)}
    (folder / "part-00001.parquet").unlink()
    (folder / "part-00003.parquet").write_bytes((folder / "part-00003.parquet").read_bytes()[:-20])
    result = embed()
    assert result.computed == 10
    changed = {file.name for file in parts_of(folder) if file.stat().st_mtime_ns != times[file.name]}
    assert changed == {"part-00001.parquet", "part-00003.parquet"}
    np.testing.assert_allclose(vectors_of(folder), before, atol=1e-6)


def test_a_part_that_the_manifest_was_not_told_of_is_taken(embed):
    folder = embed().folder
    told = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**told, "parts": told["parts"][:2], "finished": False}))
    assert not embed().changed
    assert read_manifest(folder).is_finished


def test_a_part_of_another_run_is_not_taken(embed, tmp_path):
    folder, other = embed().folder, embed("other", role="query").folder
    before = vectors_of(folder)
    shutil.copy(other / "part-00002.parquet", folder)
    assert embed().computed == 5
    np.testing.assert_allclose(vectors_of(folder), before, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part_rows": 6}, "part_rows is 5 there and 6 here"),
        ({"format": "float16"}, "format is 'float32' there and 'float16' here"),
        ({"id_column": "key"}, "id_column is '' there and 'key' here"),
    ],
)
def test_other_settings_are_refused_in_the_same_folder(embed, tmp_path, corpus, options, message):
    folder = embed().folder
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(ConfigurationError, match=message):
        embed(**options)
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    "other",
    [{"model": "BAAI/bge-small-zh-v1.5"}, {"model": MODEL, "max_length": 16}, {"model": MODEL, "truncate_dim": 8}],
    ids=str,
)
def test_another_model_or_length_or_dimension_is_refused_in_the_same_folder(embed, hub_cache, other):
    embed()
    with pytest.raises(IndexIdentityError, match=f"was begun with '{MODEL}'"):
        embed(embedder=Embedder(**other))


def test_a_changed_input_is_refused_and_a_copy_of_it_is_not(embed, corpus, tmp_path):
    embed()
    moved = tmp_path / "elsewhere" / "corpus.jsonl"
    moved.parent.mkdir()
    moved.write_bytes(corpus.read_bytes())
    assert not embed(source=moved).changed
    content = corpus.read_bytes()
    corpus.write_bytes(content.replace(b"oxygen", b"oxides"))
    with pytest.raises(InputError, match=r"'corpus.jsonl' was changed"):
        embed()
    corpus.rename(tmp_path / "renamed.jsonl")
    with pytest.raises(InputError, match=r"'corpus.jsonl' is missing; 'renamed.jsonl' is new"):
        embed(source=tmp_path / "renamed.jsonl")


def test_a_wrong_row_is_told_before_anything_is_loaded(tmp_path, hub_cache, fresh_store):
    file = write_lines(tmp_path / "a.jsonl", ["x", "y", "z"], id=["1", "2", "1"])
    with pytest.raises(InputError, match="row 3: the id '1'"):
        embed_to_parquet(file, tmp_path / "out", Embedder(MODEL), part_rows=1)
    assert bge_runtime.loaded_models() == []
    assert parts_of(tmp_path / "out") == []
    write_lines(file, ["x", "y", "z"], id=["1", "2", "3"])
    assert embed_to_parquet(file, tmp_path / "out", Embedder(MODEL), part_rows=1).computed == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"role": "passage"}, "role='passage'"),
        ({"format": "uint8"}, "format='uint8'"),
        ({"outputs": ["tokens"]}, "outputs='tokens'"),
        ({"outputs": "dense"}, "outputs='dense'"),
        ({"outputs": ["sparse"]}, "has no output 'sparse'; it has 'dense'"),
        ({"part_rows": 0}, "part_rows=0"),
        ({"text_column": ""}, "text_column=''"),
        ({"embedder": MODEL}, "embedder='BAAI/bge-small-en-v1.5'"),
    ],
)
def test_arguments_that_cannot_be_are_refused(embed, tmp_path, options, message):
    with pytest.raises(ConfigurationError, match=message):
        embed(**options)
    assert not (tmp_path / "out").exists()


def test_int8_of_a_single_text_is_refused(tmp_path, embedder):
    file = tmp_path / "a.txt"
    file.write_text("alone")
    with pytest.raises(ConfigurationError, match="takes its ranges from the first part"):
        embed_to_parquet(file, tmp_path / "out", embedder, format="int8")


def test_a_folder_that_holds_something_else_is_left_alone(embed, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"holds 'mine.txt' and no manifest"):
        embed()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    with pytest.raises(ConfigurationError, match="is a file"):
        embed("corpus.jsonl")


def test_two_runs_do_not_share_a_folder(embed, tmp_path):
    (tmp_path / "out").mkdir()
    with (
        locked(tmp_path / "out", name=".lock"),
        pytest.raises(ConfigurationError, match="Another process is embedding into"),
    ):
        embed()


def test_a_full_disk_is_told_and_finished_parts_stay(embed, monkeypatch):
    import errno

    write = pq.ParquetWriter.write_table
    written = []

    def full(self, table, *args, **options):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(table)
        return write(self, table, *args, **options)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(ConfigurationError, match=r"cannot be written \(No space left on device\). Make room"):
        embed()
    monkeypatch.undo()
    result = embed()
    assert result.computed == 13
    assert result.recomputed >= 5


def test_an_error_of_a_text_names_its_rows(embed, hub_cache, tmp_path, corpus):
    with pytest.raises(InputError, match=r"Rows 1 to 5 of the input: .*truncation='error'"):
        embed(embedder=Embedder(MODEL, max_length=4, truncation="error"))


def test_the_callers_embedder_is_left_as_it_was(corpus, tmp_path, hub_cache):
    with Embedder(MODEL, max_length=4, truncation="silent") as embedder:
        assert embed_to_parquet(corpus, tmp_path / "out", embedder).truncated == 23
        assert embedder.truncated_count == 0
