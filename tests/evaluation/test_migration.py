"""An index is filled again by another embedder: killed in the middle, every kind of store, nothing lost."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID

import faiss
import numpy as np
import pytest
from langchain_core.documents import Document
from llama_index.core import Document as LlamaDocument
from llama_index.core.schema import BaseNode, MetadataMode, Node, TextNode
from typer.testing import CliRunner

import bge_runtime
from bge_runtime import ConfigurationError, Embedder, IndexIdentityError, InputError, bind_index, index_record
from bge_runtime.cli.commands import app
from bge_runtime.evaluation import journal, migration
from bge_runtime.evaluation.migration import migrate
from bge_runtime.evaluation.stores.nodes import embedded_text
from bge_runtime.evaluation.stores.pickled import unpickled
from bge_runtime.evaluation.stores.recognised import recognised
from langchain_bge import BGEEmbeddings
from llamaindex_bge import BGEEmbedding
from tests.stores import langchain_stores, llamaindex_stores

pytestmark = [
    pytest.mark.usefixtures("hub_cache"),
    # The stores' own packages warn about each other.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::ResourceWarning"),
]

OLD, NEW = "BAAI/bge-small-en-v1.5", "BAAI/bge-small-zh-v1.5"  # 384 and 512 numbers
COUNT, BATCH = 60, 16
NAMES = [str(UUID(int=number)) for number in range(COUNT)]
TEXTS = [f"Fact {number}: the heart pumps blood {number % 7} times." for number in range(COUNT)]
PLACES = {
    **{f"langchain-{name}": kind for name, kind in langchain_stores.STORES.items()},
    **{f"llamaindex-{name}": kind for name, kind in llamaindex_stores.STORES.items()},
}
every_store = pytest.mark.parametrize("name", PLACES)


def ask(name: str, opened: Any) -> list[str]:
    if name.startswith("langchain"):
        return [each.metadata["name"] for each in opened.similarity_search("heart", k=3)]
    return [each.node.metadata["name"] for each in opened.as_retriever(similarity_top_k=3).retrieve("heart")]


def opened(name: str, folder: Path, model: str) -> tuple[Any, Callable[[], Any]]:
    """Return an opened store and what closes it."""
    place = PLACES[name](folder)
    if name.startswith("langchain"):
        return place.open(BGEEmbeddings(model=model)), place.close
    index = place.open(BGEEmbedding(model))
    return index, lambda: place.close(index)


def fill(name: str, folder: Path) -> None:
    place = PLACES[name](folder)
    folder.mkdir()
    bind_index(folder, Embedder(OLD))
    metadata = [{"name": f"fact {number}", "number": number} for number in range(COUNT)]
    if name.startswith("langchain"):
        store = place.open(BGEEmbeddings(model=OLD))
        rows = zip(NAMES, TEXTS, metadata, strict=True)
        store.add_documents([Document(id=id_, page_content=text, metadata=kept) for id_, text, kept in rows], ids=NAMES)
        place.close()
        return
    index = place.create(BGEEmbedding(OLD))
    rows = zip(NAMES, TEXTS, metadata, strict=True)
    index.insert_nodes([TextNode(id_=id_, text=text, metadata=kept) for id_, text, kept in rows])
    place.close(index)


def rows(folder: Path, scratch: Path) -> list[tuple[str, str, bytes]]:
    return [(row.id, row.text, row.rest) for row in recognised(folder, None, scratch, allow_pickle=False).rows()]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, hub_cache: Path) -> Path:
    """A folder with every kind of store, filled and bound."""
    parent = tmp_path_factory.mktemp("sources")
    for name in PLACES:
        fill(name, parent / name)
    return parent


@pytest.fixture(scope="module")
def killed(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of targets, each of a migration that was killed while it computed its second batch."""
    parent = tmp_path_factory.mktemp("targets")
    command = [sys.executable, "-m", "tests.evaluation.killed_migrations", str(sources), str(parent), NEW, str(BATCH)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == dict.fromkeys(sorted(PLACES), -9)
    return parent


@pytest.fixture
def source(sources: Path, tmp_path: Path) -> Path:
    """A copy of LangChain's FAISS index, to be changed."""
    return shutil.copytree(sources / "langchain-Faiss", tmp_path / "index")


@every_store
def test_a_killed_migration_goes_on_and_loses_nothing(name: str, sources: Path, killed: Path, tmp_path: Path) -> None:
    source, target = sources / name, killed / name
    assert not target.exists()
    reader, close = opened(name, source, OLD)
    expected = ask(name, reader)
    answers = []

    def require(folder: Path) -> bool:
        answers.append(ask(name, reader))
        return index_record(folder)["model"] == NEW  # type: ignore[index]

    before = bge_runtime.stats()["inputs"]
    result = migrate(source, target, Embedder(NEW), batch_size=BATCH, require=require)
    computed = bge_runtime.stats()["inputs"] - before - 1  # the reader's question
    assert answers == [expected]
    assert ask(name, reader) == expected
    close()
    assert (result.documents, result.computed, result.resumed) == (COUNT, COUNT - BATCH, BATCH)
    assert computed == COUNT - BATCH
    assert sorted(rows(target, tmp_path)) == sorted(rows(source, tmp_path))
    assert sorted(id_ for id_, _, _ in rows(target, tmp_path)) == sorted(NAMES)
    assert (result.source_identity, result.target_identity) == (
        Embedder(OLD).document_identity,
        Embedder(NEW).document_identity,
    )
    assert [path.name for path in killed.glob(f".{name}.*")] == []
    bind_index(target, Embedder(NEW))
    with pytest.raises(IndexIdentityError, match=NEW):
        bind_index(target, Embedder(OLD))


@every_store
def test_the_new_index_finds_what_the_new_embedder_finds_nearest(name: str, sources: Path, tmp_path: Path) -> None:
    migrate(sources / name, tmp_path / "new", Embedder(NEW))
    new, close = opened(name, tmp_path / "new", NEW)
    found = ask(name, new)
    close()
    embedder = Embedder(NEW)
    texts = [text for _, text, _ in rows(sources / name, tmp_path)]
    scores = embedder.encode_documents(texts) @ embedder.encode_queries(["heart"])[0]
    numbers = [int(UUID(id_)) for id_, _, _ in rows(sources / name, tmp_path)]
    by_name = {f"fact {number}": score for number, score in zip(numbers, scores, strict=True)}
    assert len(set(found)) == 3
    # Many of the texts are almost the same.
    assert min(by_name[each] for each in found) >= sorted(scores)[-3] - 1e-4


def test_in_place_the_folders_are_swapped_and_the_old_one_is_kept(source: Path) -> None:
    result = migrate(source, None, Embedder(NEW))
    old = source.with_name("index.before-migration")
    assert (result.source, result.target) == (old, source)
    assert index_record(old)["model"] == OLD  # type: ignore[index]
    bind_index(source, Embedder(NEW))
    again = migrate(source, None, Embedder(NEW))
    assert (again.changed, again.computed) == (False, 0)
    with pytest.raises(ConfigurationError, match="before-migration"):
        migrate(source, None, Embedder(OLD))


def test_a_swap_that_was_cut_short_is_repaired(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def cut(path: Path, target: Path) -> Path:
        if target.name == "index":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut)
        with pytest.raises(KeyboardInterrupt):
            migrate(source, None, Embedder(NEW))
    assert not source.exists()
    before = bge_runtime.stats()["inputs"]
    assert migrate(source, None, Embedder(NEW)).documents == COUNT
    assert bge_runtime.stats()["inputs"] == before
    bind_index(source, Embedder(NEW))
    assert sorted(path.name for path in source.parent.iterdir()) == ["index", "index.before-migration"]


def test_a_record_beside_the_folder_is_renewed_with_it(source: Path) -> None:
    beside = source.with_name("index.bge-index.json")
    (source / "bge-index.json").rename(beside)
    migrate(source, None, Embedder(NEW))
    bind_index(source, Embedder(NEW))
    assert json.loads(beside.read_text())["model"] == NEW


def test_an_index_that_changes_meanwhile_stays_in_use(source: Path, tmp_path: Path) -> None:
    def require(folder: Path) -> bool:
        store, close = opened("langchain-Faiss", source, OLD)
        store.add_documents([Document(id="late", page_content="A late fact.", metadata={})], ids=["late"])
        store.delete([NAMES[5]])
        close()
        return True

    with pytest.raises(ConfigurationError, match=r"1 added \('late'\), 1 removed .*Call again") as told:
        migrate(source, tmp_path / "new", Embedder(NEW), require=require)
    assert NAMES[5] in str(told.value)
    assert not (tmp_path / "new").exists()
    assert migrate(source, tmp_path / "new", Embedder(NEW)).computed == 1
    assert {id_ for id_, _, _ in rows(tmp_path / "new", tmp_path)} == {*NAMES, "late"} - {NAMES[5]}


def test_a_full_disk_costs_nothing_that_was_finished(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, batches = journal.Journal.add, []

    def full(self: Any, texts: Any, vectors: Any) -> None:
        batches.append(len(texts))
        if len(batches) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, texts, vectors)

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "add", full)
        with pytest.raises(ConfigurationError, match=r"No space left.*is kept in.*Make room"):
            migrate(source, tmp_path / "new", Embedder(NEW), batch_size=BATCH)
    assert not (tmp_path / "new").exists()
    assert index_record(source)["model"] == OLD  # type: ignore[index]
    assert migrate(source, tmp_path / "new", Embedder(NEW)).resumed == 2 * BATCH


def test_too_little_room_is_said_before_anything_is_embedded(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    before = bge_runtime.stats()["inputs"]
    with pytest.raises(ConfigurationError, match="1 are free"):
        migrate(source, tmp_path / "new", Embedder(NEW))
    assert bge_runtime.stats()["inputs"] == before


def test_half_a_record_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "vectors"
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    journal.Journal(file, 3).add(["one", "two"], vectors)
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    again = journal.Journal(file, 3)
    assert ("one" in again, "two" in again) == (True, False)
    again.add(["two"], vectors[1:])
    assert file.read_bytes() == whole
    np.testing.assert_array_equal(again.of(["two", "one", "two"]), vectors[[1, 0, 1]])


def test_a_requirement_that_is_not_met_leaves_the_old_index(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not meet what was required"):
        migrate(source, None, Embedder(NEW), require=lambda folder: False)
    assert index_record(source)["model"] == OLD  # type: ignore[index]
    assert migrate(source, None, Embedder(NEW), require=lambda folder: True).computed == 0


def test_a_source_that_is_no_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.json").write_text('{"a": 1}')
    for path, said in (("notes", "known by its files"), ("missing", "does not exist"), ("notes/notes.json", "a file")):
        with pytest.raises(InputError, match=said):
            migrate(tmp_path / path, tmp_path / "new", Embedder(NEW))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes"]


def test_a_source_of_several_kinds_is_refused(sources: Path, source: Path, tmp_path: Path) -> None:
    shutil.copy(sources / "langchain-InMemory" / "store.json", source)
    with pytest.raises(ConfigurationError, match=r"several kinds: LangChain FAISS and LangChain in-memory"):
        migrate(source, tmp_path / "new", Embedder(NEW))


def test_of_several_indexes_one_has_to_be_named(source: Path, tmp_path: Path) -> None:
    for ending in ("faiss", "pkl"):
        shutil.copy(source / f"index.{ending}", source / f"other.{ending}")
    with pytest.raises(ConfigurationError, match="Name one as collection"):
        migrate(source, tmp_path / "new", Embedder(NEW))
    with pytest.raises(ConfigurationError, match="'third' is not in"):
        migrate(source, tmp_path / "new", Embedder(NEW), collection="third")
    assert migrate(source, tmp_path / "new", Embedder(NEW), collection="other").name == "other"


def test_an_empty_index_is_refused(source: Path, tmp_path: Path) -> None:
    store, close = opened("langchain-Faiss", source, OLD)
    store.delete(NAMES)
    close()
    with pytest.raises(InputError, match="is empty"):
        migrate(source, tmp_path / "new", Embedder(NEW))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index"]


@pytest.mark.parametrize("inside", ["index/new", "index", "."])
def test_a_target_inside_the_source_or_around_it_is_refused(source: Path, inside: str) -> None:
    with pytest.raises(ConfigurationError, match="lie in one another"):
        migrate(source, source.parent / inside, Embedder(NEW))


def test_a_target_that_is_taken_is_refused(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "new"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="is not empty"):
        migrate(source, target, Embedder(NEW))
    (target / "notes.txt").unlink()
    migrate(source, target, Embedder(NEW))
    with pytest.raises(ConfigurationError, match=f"holds an index that '{NEW}' filled"):
        migrate(source, target, Embedder(NEW, truncate_dim=64))
    assert migrate(source, target, Embedder(NEW)).changed is False


def test_a_migration_to_another_embedder_is_not_taken_up(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        migrate(source, tmp_path / "new", Embedder(NEW), require=lambda folder: False)
    with pytest.raises(ConfigurationError, match="another migration that has not ended: identity"):
        migrate(source, tmp_path / "new", Embedder(NEW, truncate_dim=64))
    assert migrate(source, tmp_path / "new", Embedder(NEW)).resumed == COUNT


def test_two_migrations_at_once_are_refused(source: Path, tmp_path: Path) -> None:
    def require(folder: Path) -> bool:
        with pytest.raises(ConfigurationError, match="Another process"):
            migrate(source, tmp_path / "new", Embedder(NEW))
        return True

    assert migrate(source, tmp_path / "new", Embedder(NEW), require=require).documents == COUNT


def test_an_id_that_is_there_twice_is_named(sources: Path, tmp_path: Path) -> None:
    import lancedb

    source = shutil.copytree(sources / "langchain-LanceDB", tmp_path / "index")
    table = lancedb.connect(source).open_table("vectorstore")
    table.add(table.to_arrow().slice(0, 1))
    with pytest.raises(InputError, match=f"id '{NAMES[0]}' twice"):
        migrate(source, tmp_path / "new", Embedder(NEW))


def test_empty_texts_are_named_and_can_be_taken_along(source: Path, tmp_path: Path) -> None:
    store, close = opened("langchain-Faiss", source, OLD)
    store.add_documents([Document(id="blank", page_content=" ")], ids=["blank"])
    close()
    with pytest.raises(InputError, match=r"1 entries without a text: 'blank'.*--allow-empty"):
        migrate(source, tmp_path / "new", Embedder(NEW))
    assert migrate(source, tmp_path / "new", Embedder(NEW), allow_empty=True).documents == COUNT + 1


def test_an_index_of_another_embedder_than_expected_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(IndexIdentityError, match=f"filled by '{OLD}'"):
        migrate(source, tmp_path / "new", Embedder(NEW), source_embedder=Embedder(NEW))
    migrate(source, tmp_path / "new", Embedder(NEW), source_embedder=Embedder(OLD))


def test_the_same_embedder_has_nothing_to_do(source: Path, tmp_path: Path) -> None:
    assert migrate(source, None, Embedder(OLD)).changed is False
    with pytest.raises(ConfigurationError, match="Nothing to do"):
        migrate(source, tmp_path / "new", Embedder(OLD))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index"]


def test_a_store_without_texts_is_refused_with_the_way_round(sources: Path, tmp_path: Path) -> None:
    import chromadb

    client = chromadb.PersistentClient(str(tmp_path / "bare"), settings=chromadb.Settings(anonymized_telemetry=False))
    client.create_collection("bare", embedding_function=None).add(ids=["one"], embeddings=[[1.0, 2.0]])
    client.close()
    with pytest.raises(InputError, match=r"'one' was added without a document.*from the source documents"):
        migrate(tmp_path / "bare", tmp_path / "new", Embedder(NEW))
    source = shutil.copytree(sources / "llamaindex-Persisted", tmp_path / "persisted")
    (source / "docstore.json").write_text("{}")
    with pytest.raises(InputError, match=r"no text in docstore\.json"):
        migrate(source, tmp_path / "new", Embedder(NEW))


def test_other_collections_are_not_left_behind(sources: Path, tmp_path: Path) -> None:
    import chromadb

    source = shutil.copytree(sources / "langchain-Chroma", tmp_path / "index")
    client = chromadb.PersistentClient(str(source), settings=chromadb.Settings(anonymized_telemetry=False))
    client.create_collection("second", embedding_function=None)
    client.close()
    with pytest.raises(ConfigurationError, match=r"holds \['second'\] beside 'langchain'"):
        migrate(source, None, Embedder(NEW), collection="langchain")


def test_the_space_and_the_metadata_of_a_chroma_collection_stay(tmp_path: Path) -> None:
    import chromadb

    def client(folder: str) -> Any:
        return chromadb.PersistentClient(str(tmp_path / folder), settings=chromadb.Settings(anonymized_telemetry=False))

    with client("old") as old:
        made = old.create_collection(
            "facts",
            metadata={"owner": "me"},
            configuration={"hnsw": {"space": "cosine", "max_neighbors": 8}},
            embedding_function=None,
        )
        made.add(ids=["one", "two"], embeddings=[[1.0], [2.0]], documents=["One.", "Two."], metadatas=[None, {"n": 2}])
    migrate(tmp_path / "old", tmp_path / "new", Embedder(NEW))
    with client("new") as new:
        found = new.get_collection("facts", embedding_function=None)
        settings = found.configuration_json["hnsw"]
        assert (found.metadata, settings["space"], settings["max_neighbors"]) == ({"owner": "me"}, "cosine", 8)
        assert found.get()["metadatas"] == [None, {"n": 2}]
        assert len(found.get(include=["embeddings"])["embeddings"][0]) == 512


def test_sparse_vectors_distance_and_aliases_of_qdrant_stay(tmp_path: Path) -> None:
    from qdrant_client import QdrantClient, models

    old = QdrantClient(path=str(tmp_path / "old"))
    old.create_collection(
        "facts",
        vectors_config={"dense": models.VectorParams(size=2, distance=models.Distance.DOT)},
        sparse_vectors_config={"words": models.SparseVectorParams()},
    )
    sparse = models.SparseVector(indices=[3, 9], values=[0.5, 0.25])
    payload = {"page_content": "One.", "metadata": {"days": [1, None, {"a": 0.5}]}}
    old.upsert("facts", [models.PointStruct(id=7, vector={"dense": [1, 2], "words": sparse}, payload=payload)])
    old.update_collection_aliases(
        [models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name="facts", alias_name="latest"))]
    )
    migrate(tmp_path / "old", tmp_path / "new", Embedder(NEW))  # while the old one is open
    old.close()
    new = QdrantClient(path=str(tmp_path / "new"))
    [point] = new.retrieve("latest", [7], with_vectors=True)
    params = new.get_collection("facts").config.params.vectors["dense"]
    new.close()
    assert point.payload == payload
    assert (point.vector["words"], len(point.vector["dense"])) == (sparse, 512)
    assert (params.size, params.distance) == (512, models.Distance.DOT)


@pytest.mark.parametrize(
    "index",
    [
        faiss.IndexFlatIP(4),
        faiss.IndexHNSWFlat(4, 24, faiss.METRIC_INNER_PRODUCT),
    ],
    ids=lambda index: type(index).__name__,
)
def test_kind_and_metric_of_a_faiss_index_stay(index: Any, source: Path, tmp_path: Path) -> None:
    index.add(np.zeros((COUNT, 4), np.float32))
    faiss.write_index(index, str(source / "index.faiss"))
    migrate(source, tmp_path / "new", Embedder(NEW))
    new = faiss.read_index(str(tmp_path / "new" / "index.faiss"))
    assert (type(new), new.metric_type, new.d, new.ntotal) == (type(index), index.metric_type, 512, COUNT)
    np.testing.assert_allclose(new.reconstruct(3), Embedder(NEW).encode_documents(TEXTS[3:4])[0], atol=1e-5)


def test_a_faiss_index_that_was_trained_is_refused(source: Path, tmp_path: Path) -> None:
    trained = faiss.index_factory(4, "IVF1,Flat")
    trained.train(np.random.default_rng(0).random((64, 4), dtype=np.float32))
    trained.add(np.zeros((COUNT, 4), np.float32))
    faiss.write_index(trained, str(source / "index.faiss"))
    with pytest.raises(ConfigurationError, match="IndexIVFFlat"):
        migrate(source, tmp_path / "new", Embedder(NEW))


class Harm:
    def __reduce__(self) -> Any:
        return open, ("harm.txt", "w")


def test_a_pickle_that_asks_for_more_than_documents_runs_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (source / "index.pkl").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(ConfigurationError, match=r"asks for 'io\.open'.*--allow-pickle"):
        migrate(source, tmp_path / "new", Embedder(NEW))
    assert not (tmp_path / "harm.txt").exists()


def test_a_pickle_is_read_without_the_frameworks() -> None:
    kept = {"day": date(2024, 1, 2), "id": UUID(int=3), "tags": {"a"}}
    data = pickle.dumps(Document(id="one", page_content="One.", metadata=kept))
    found = unpickled(data, [("langchain_core", "Document")], "it", allow_pickle=False)
    assert found.fields == {"id": "one", "page_content": "One.", "metadata": kept, "type": "Document"}


NODES: list[BaseNode] = [
    TextNode(text="One.", metadata={"a": 1, "b": " x "}),
    TextNode(text=" One. ", metadata={"a": None}, excluded_embed_metadata_keys=["a"]),
    TextNode(text="One.", metadata={"a": [1, 2]}, metadata_template="<{key}={value}>", metadata_separator="|"),
    TextNode(
        text="One.", metadata={"b": " x "}, metadata_template="{value}", text_template="{content}::{metadata_str}"
    ),
    TextNode(text="{a}", metadata={"a": "{b}"}),
    LlamaDocument(
        text="One.", metadata={"b": " x "}, metadata_template="{value}", text_template="{metadata_str}{content}"
    ),
    Node(text_resource={"text": "One."}, metadata={"a": 1, "b": 2}, excluded_embed_metadata_keys=["b"]),
    LlamaDocument(text="One."),
]


@pytest.mark.parametrize("node", NODES, ids=lambda node: type(node).__name__)
def test_a_nodes_text_is_what_llama_index_embeds(node: BaseNode) -> None:
    stored = json.loads(json.dumps(node.to_dict()))
    assert embedded_text(stored) == node.get_content(metadata_mode=MetadataMode.EMBED)


def test_the_old_index_is_not_written_to(sources: Path, tmp_path: Path) -> None:
    for name in PLACES:
        source = sources / name
        before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
        with pytest.raises(ConfigurationError, match="does not meet"):
            migrate(source, tmp_path / name, Embedder(NEW), require=lambda folder: False)
        assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before, name


def test_a_database_that_is_damaged_is_said_so(sources: Path, tmp_path: Path) -> None:
    source = shutil.copytree(sources / "langchain-Qdrant", tmp_path / "index")
    with sqlite3.connect(source / "collection" / "texts" / "storage.sqlite") as database:
        database.execute("UPDATE points SET point = ? WHERE rowid = 3", (b"nothing",))
    database.close()
    with pytest.raises(ConfigurationError, match="cannot be unpickled"):
        migrate(source, tmp_path / "new", Embedder(NEW))


def test_arguments_are_checked_first(source: Path, tmp_path: Path) -> None:
    for wrong, said in (
        ({"embedder": BGEEmbeddings(model=NEW)}, "attribute `embedder`"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"target": 3}, "target=3 is not a path"),
    ):
        arguments: Any = {"source": source, "target": tmp_path / "new", "embedder": Embedder(NEW), **wrong}
        with pytest.raises(ConfigurationError, match=said):
            migrate(**arguments)


def bge(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["migrate", *map(str, arguments)])


def test_the_command_migrates_and_says_what_it_did(source: Path, tmp_path: Path) -> None:
    result = bge(source, tmp_path / "new", "--model", NEW, "--from-model", OLD, "--require", "os.path:isdir", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["documents"], told["kind"], told["changed"]) == (COUNT, "LangChain FAISS", True)
    assert "Nothing to do" in bge(source, tmp_path / "new", "--model", NEW).stdout


def test_the_command_swaps_in_place(source: Path) -> None:
    result = bge(source, "--in-place", "--model", NEW)
    assert result.exit_code == 0, result.output
    assert f"{COUNT} documents: {COUNT} texts embedded" in result.stdout
    bind_index(source, Embedder(NEW))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "one of the two"),
        (["new", "--in-place"], "one of the two"),
        (["new", "--require", "nowhere:nothing"], "cannot be imported"),
        (["new", "--require", "os:sep"], "is no function"),
    ],
)
def test_wrong_options_end_the_command_with_status_2(source: Path, arguments: list[str], said: str) -> None:
    result = bge(source, *arguments, "--model", NEW)
    assert result.exit_code == 2
    assert said in result.stderr
