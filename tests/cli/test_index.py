"""The index: only what changed is embedded, and nothing breaks it for good."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bge_runtime import DEFAULT_OFFLINE_MODEL, ConfigurationError, Embedder
from bge_runtime.search import search_folder
from bge_runtime.search.engine import WINDOW
from bge_runtime.search.index import SearchIndex, default_cache_folder, index_path

QUESTION = "Which organ moves blood?"


def counts(found):
    return found["embedded"], found["texts"]


def index_file(cache):
    (file,) = cache.glob("search/*.sqlite")
    return file


def test_a_second_run_embeds_nothing_and_answers_the_same(search, library):
    first = search(library)

    second = search(library)

    assert counts(first) == (4, 4)
    assert counts(second) == (0, 4)
    assert "embedded 0 of 4 texts" in second["stderr"]
    assert second["results"] == first["results"]


def test_another_question_embeds_nothing(search, library):
    search(library)

    assert counts(search(library, "Where is the French government?")) == (0, 4)


def test_of_a_changed_file_only_the_changed_chunks_are_embedded(search, library):
    search(library)
    file = library / "science" / "body.md"
    file.write_text(file.read_text(encoding="utf-8").replace("Lungs take up", "The liver stores"), encoding="utf-8")

    found = search(library, "What stores oxygen?")

    assert counts(found) == (1, 4)
    assert "The liver stores oxygen from the air." in {hit["text"] for hit in found["results"]}


def test_a_file_that_is_touched_or_renamed_is_not_embedded_again(search, library):
    search(library)
    os.utime(library / "cities.txt", (1, 1))
    (library / "food.html").rename(library / "bread.html")

    found = search(library, "What do I need for a loaf?")

    assert counts(found) == (0, 4)
    assert found["results"][0]["file"] == "bread.html"


def test_a_new_file_is_found(search, library):
    search(library)
    (library / "new.md").write_text("# Stars\n\nStars shine by nuclear fusion.", encoding="utf-8")

    found = search(library, "Why do stars glow?")

    assert counts(found) == (1, 5)
    assert found["results"][0]["file"] == "new.md"


def test_a_deleted_file_vanishes(search, library, cache):
    search(library)
    (library / "science" / "body.md").unlink()

    found = search(library)

    assert counts(found) == (0, 2)
    assert {hit["file"] for hit in found["results"]} == {"cities.txt", "food.html"}
    with sqlite3.connect(index_file(cache)) as database:
        assert database.execute("SELECT COUNT(*) FROM vectors").fetchone() == (2,)
    database.close()


def test_a_file_that_becomes_unreadable_vanishes(search, library):
    search(library)
    (library / "cities.txt").write_bytes(b"\x00")

    assert "cities.txt" not in {hit["file"] for hit in search(library)["results"]}


def test_a_text_that_occurs_twice_is_embedded_once(search, library):
    (library / "copy.txt").write_bytes((library / "cities.txt").read_bytes())

    assert counts(search(library)) == (4, 4)


def test_rebuild_embeds_everything_again(search, library):
    search(library)

    assert counts(search(library, QUESTION, "--rebuild")) == (4, 4)


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("options", [["--model", "BAAI/bge-small-en-v1.5"], ["--chunk-tokens", "100"]])
def test_another_model_or_splitting_has_an_index_of_its_own(search, library, options):
    search(library)

    assert counts(search(library, QUESTION, *options)) == (4, 4)
    assert counts(search(library)) == (0, 4)


def test_two_folders_have_an_index_each(search, library, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "x.txt").write_text("Something else.", encoding="utf-8")
    search(library)
    search(other)

    assert counts(search(library)) == (0, 4)
    assert counts(search(other)) == (0, 1)


def test_the_query_instruction_and_the_reranker_do_not_matter_to_the_index(library, minilm, embedder):
    instructed = Embedder(DEFAULT_OFFLINE_MODEL, query_instruction="Find: ")

    search_folder(library, QUESTION, embedder=embedder)

    assert search_folder(library, QUESTION, embedder=instructed).embedded == 0


def overwrite(file):
    file.write_bytes(b"this is no database " * 500)


def cut(file):
    file.write_bytes(file.read_bytes()[:5000])


def empty(file):
    file.write_bytes(b"")


def flip_a_vector(file):
    database = sqlite3.connect(file)
    with database:
        (key, blob) = database.execute("SELECT key, vector FROM vectors").fetchone()
        database.execute("UPDATE vectors SET vector = ? WHERE key = ?", (b"\x7f" + blob[1:], key))
    database.close()


def change_a_text(file):
    database = sqlite3.connect(file)
    with database:
        database.execute("UPDATE chunks SET body = 'other' WHERE position = 0")
    database.close()


def drop_a_column(file):
    database = sqlite3.connect(file)
    with database:
        database.execute("ALTER TABLE vectors DROP COLUMN checksum")
    database.close()


@pytest.mark.parametrize("damage", [overwrite, cut, flip_a_vector, change_a_text, drop_a_column])
def test_a_damaged_index_is_set_aside_and_built_again(search, library, cache, damage):
    first = search(library)
    damage(index_file(cache))

    second = search(library)

    assert counts(second) == (4, 4)
    assert second["results"] == first["results"]
    assert "index is damaged" in second["stderr"]
    (kept,) = cache.glob("search/*.damaged")
    assert str(kept) in second["stderr"]
    assert counts(search(library)) == (0, 4)


def test_an_empty_index_file_is_filled(search, library, cache):
    search(library)
    empty(index_file(cache))

    assert counts(search(library)) == (4, 4)


def test_no_half_written_file_is_left(search, library, cache):
    search(library)

    assert [file.suffix for file in (cache / "search").iterdir()] == [".sqlite"]


class InterruptedEmbedder(Embedder):
    """Is interrupted in its third window."""

    calls = 0

    def encode_documents(self, texts, *, show_progress=None):
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return super().encode_documents(texts, show_progress=show_progress)


def write_notes(folder, count):
    folder.mkdir(exist_ok=True)
    for start in range(0, count, 100):
        sections = (f"## Note {number}\n\nThis is note {number}.\n" for number in range(start, start + 100))
        (folder / f"{start}.md").write_text("".join(sections), encoding="utf-8")


def test_an_interrupted_run_keeps_the_windows_that_are_done(tmp_path, embedder):
    write_notes(tmp_path / "notes", 300)
    with pytest.raises(KeyboardInterrupt):
        search_folder(tmp_path / "notes", "note 7", embedder=InterruptedEmbedder(DEFAULT_OFFLINE_MODEL))

    result = search_folder(tmp_path / "notes", "note 7", embedder=embedder)

    assert (result.embedded, result.texts) == (300 - 2 * WINDOW, 300)


def count(cache, query):
    """Return the number that a query on the index gives; 0 while there is no index."""
    try:
        database = sqlite3.connect(f"file:{index_file(cache)}?mode=ro", uri=True)
    except ValueError:
        return 0
    try:
        return database.execute(f"SELECT COUNT(*) FROM {query}").fetchone()[0]
    except sqlite3.OperationalError:  # no table yet
        return 0
    finally:
        database.close()


@pytest.fixture
def interrupts_arrive():
    """What a shell starts in the background ignores SIGINT, and so would every process that a test starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize(("kind", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_process_that_is_stopped_leaves_an_index_to_go_on_with(
    tmp_path, cache, embedder, kind, status, interrupts_arrive
):
    write_notes(tmp_path / "notes", 1500)
    command = [sys.executable, "-m", "bge_runtime.cli", "search", str(tmp_path / "notes"), "note 7"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not count(cache, "vectors") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(kind)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == status, messages
    assert "Traceback" not in messages
    assert 0 < count(cache, "vectors") < 1500

    # Going on with all of it would only take time.
    for file in (tmp_path / "notes").glob("?*00.md"):
        file.unlink()
    left = count(cache, "chunks WHERE name = '0.md' AND key NOT IN (SELECT key FROM vectors)")
    result = search_folder(tmp_path / "notes", "note 7", embedder=embedder)
    assert (result.embedded, result.texts) == (left, 100)


@pytest.mark.slow
def test_two_processes_share_an_index(library, cache):
    write_notes(library, 200)
    command = [sys.executable, "-m", "bge_runtime.cli", "search", str(library), QUESTION, "--fetch-k", "5"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"]

    answers = [process.communicate(timeout=100) for process in started]

    assert [process.returncode for process in started] == [0, 0], answers
    assert all("The body > Heart" in shown for shown, _ in answers)
    assert count(cache, "vectors") == 204


@pytest.mark.parametrize("there", [False, True])
def test_the_owner_alone_may_enter_the_folder_of_the_indexes(tmp_path, there):
    folder = index_path(tmp_path / "cache", tmp_path, "identity").parent
    before = os.umask(0o022)
    try:
        if there:
            folder.mkdir(parents=True)
        SearchIndex(folder / "a.sqlite").__exit__()
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o755


def test_the_cache_folder_is_found_in_the_environment(monkeypatch):
    monkeypatch.setenv("BGE_CACHE_DIR", "/named")
    named = default_cache_folder()
    monkeypatch.delenv("BGE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    user = default_cache_folder()
    monkeypatch.delenv("XDG_CACHE_HOME")

    assert (named, user) == (Path("/named"), Path("/xdg/bge"))
    assert default_cache_folder() == Path.home() / ".cache" / "bge"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize("before", [None, 0o755, 0o777])
def test_nobody_else_can_read_the_texts_in_the_index(search, library, cache, before):
    if before is not None:
        (cache / "search").mkdir(parents=True)
        (cache / "search").chmod(before)

    search(library)

    assert index_file(cache)
    assert stat.S_IMODE((cache / "search").stat().st_mode) == 0o700


@pytest.fixture(params=["a file", "no disk", "no home"])
def unusable_cache(request, library, monkeypatch):
    """A cache folder that cannot be made."""
    folders = {"a file": str(library / "cities.txt"), "no disk": "/proc/bge", "no home": "~no-such-user-of-bge/x"}
    monkeypatch.setenv("BGE_CACHE_DIR", folders[request.param])
    return folders[request.param]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such places")
def test_a_search_goes_on_where_its_index_cannot_be_kept(search, library, unusable_cache, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    found = search(library)

    assert counts(found) == (4, 4)
    assert found["results"][0]["heading"] == ["The body", "Heart"]
    assert unusable_cache in found["stderr"]
    assert "goes on without it" in found["stderr"]
    assert counts(search(library, QUESTION, "--rebuild")) == (4, 4)
    assert not list(tmp_path.glob("~*"))


def test_a_folder_that_was_asked_for_must_be_usable(bge, library, embedder):
    result = bge("search", library, QUESTION, "--cache-dir", library / "cities.txt")

    assert result.exit_code == 2
    assert "cities.txt" in result.stderr
    assert "Traceback" not in result.output


def test_a_damaged_index_that_cannot_be_moved_is_left_alone(search, library, cache):
    search(library)
    overwrite(index_file(cache))
    (index_file(cache).with_suffix(".damaged") / "in the way").mkdir(parents=True)

    found = search(library)

    assert counts(found) == (4, 4)
    assert "goes on without it" in found["stderr"]


@pytest.mark.parametrize("show_progress", [False, True])
def test_a_bar_shows_how_many_texts_are_embedded_where_one_is_wanted(library, embedder, capsys, show_progress):
    search_folder(library, QUESTION, embedder=embedder, show_progress=show_progress)

    assert ("4/4" in capsys.readouterr().err) == show_progress


def test_numbers_that_make_no_sense_are_refused(library, embedder):
    with pytest.raises(ConfigurationError, match="1 <= k <= fetch_k"):
        search_folder(library, QUESTION, embedder=embedder, k=0)
