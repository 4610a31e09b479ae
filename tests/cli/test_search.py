"""`bge search`: what it reads, prints and refuses."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import pytest

from bge_runtime import ConfigurationError
from bge_runtime.evaluation.bench import read_texts
from bge_runtime.search import documents
from bge_runtime.search.documents import KINDS, LIMITS, SourceFile, UnreadableFileError, find_files
from tests.cli.documents_for_tests import pdf_with_pages

QUESTION = "Which organ moves blood?"


def place(hit):
    return hit["file"], hit["heading"]


def test_the_answer_is_printed_with_file_headings_scores_and_text(bge, library, embedder):
    result = bge("search", library, QUESTION, "--k", 1)

    assert result.exit_code == 0
    first, headings, text, *_ = result.stdout.splitlines()
    assert first.startswith("1. science/body.md  (rerank 0.")
    assert ", dense 0." in first
    assert headings.strip() == "The body > Heart"
    assert text.strip() == "The heart pumps blood through the vessels."


def test_progress_models_and_counts_go_to_standard_error(bge, library, embedder):
    result = bge("search", library, QUESTION)

    assert "embedding model: sentence-transformers/all-MiniLM-L6-v2" in result.stderr
    assert "late interaction with sentence-transformers/all-MiniLM-L6-v2" in result.stderr
    assert "4/4" not in result.stderr  # a progress bar, which is for terminals
    assert "embedded 4 of 4 texts" in result.stderr
    assert "embedd" not in result.stdout


@pytest.mark.parametrize(
    ("question", "file", "heading"),
    [
        (QUESTION, "science/body.md", ["The body", "Heart"]),
        ("Where is the French government?", "cities.txt", []),
        ("What do I need for a loaf?", "food.html", ["Bread"]),
        ("Which is the largest planet?", "planets.pdf", ["page 2"]),
    ],
)
def test_markdown_text_html_and_pdf_are_read(search, library, question, file, heading):
    pages = pdf_with_pages("Mercury is small and hot.", "Jupiter is the biggest planet of all.")
    (library / "planets.pdf").write_bytes(pages)

    found = search(library, question)

    assert place(found["results"][0]) == (file, heading)
    assert found["skipped"] == {}


def test_json_holds_all_that_was_found_and_done(search, library):
    found = search(library, QUESTION, "--k", 2)

    assert found["question"] == QUESTION
    assert found["model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert found["reranking"] == {"method": "late_interaction", "model": found["model"]}
    assert (found["embedded"], found["texts"], found["skipped"]) == (4, 4, {})
    best, second = found["results"]
    assert best.keys() == {"file", "heading", "dense", "rerank", "text"}
    assert best["text"] == "The heart pumps blood through the vessels."
    assert best["rerank"] > second["rerank"]


def test_without_reranking_the_vectors_decide(search, library):
    found = search(library, QUESTION, "--no-rerank")

    dense = [hit["dense"] for hit in found["results"]]
    assert found["reranking"] == {"method": None, "model": None}
    assert {hit["rerank"] for hit in found["results"]} == {None}
    assert dense == sorted(dense, reverse=True)
    assert place(found["results"][0]) == ("science/body.md", ["The body", "Heart"])


def test_only_what_was_retrieved_is_reranked(search, library):
    everything = search(library, QUESTION, "--k", 4, "--no-rerank")["results"]

    reranked = search(library, QUESTION, "--k", 2, "--fetch-k", 2)["results"]

    assert {hit["text"] for hit in reranked} == {hit["text"] for hit in everything[:2]}


@pytest.mark.usefixtures("hub_cache")
def test_a_cross_encoder_can_rerank(search, library):
    found = search(library, QUESTION, "--reranker", "BAAI/bge-reranker-base")

    assert found["reranking"] == {"method": "cross_encoder", "model": "BAAI/bge-reranker-base"}
    scores = [hit["rerank"] for hit in found["results"]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.usefixtures("hub_cache")
def test_another_embedding_model_can_rerank_and_embed(search, library):
    found = search(
        library, QUESTION, "--model", "bge-small-en-v1.5", "--reranker", "sentence-transformers/all-MiniLM-L6-v2"
    )

    assert found["model"] == "bge-small-en-v1.5"
    assert found["reranking"]["method"] == "late_interaction"
    assert place(found["results"][0]) == ("science/body.md", ["The body", "Heart"])


def test_neighbouring_chunks_of_a_section_are_one_result(search, tmp_path):
    folder = tmp_path / "book"
    folder.mkdir()
    sentences = (f"The heart pumps blood through part {number} of the body." for number in range(35))
    (folder / "a.md").write_text("# Heart\n\n" + " ".join(sentences), encoding="utf-8")
    (folder / "b.md").write_text("# Bread\n\nBread is baked from flour.", encoding="utf-8")

    found = search(folder)

    assert found["texts"] == 4
    assert [hit["file"] for hit in found["results"]] == ["a.md", "b.md"]


def test_hidden_files_and_other_kinds_are_left_out(search, library):
    for name in (".git/notes.md", "node_modules/x/readme.md", ".hidden.md", "code.py", "picture.png"):
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text("The heart pumps blood.", encoding="utf-8")

    assert search(library)["texts"] == 4


def test_control_characters_of_a_document_do_not_reach_the_terminal(bge, tmp_path, embedder):
    (tmp_path / "a.txt").write_text("heart \x1b[2J\x07 blood", encoding="utf-8")

    result = bge("search", tmp_path, QUESTION)

    assert result.exit_code == 0
    assert "heart" in result.stdout
    assert not {"\x1b", "\x07"} & set(result.stdout)


STEERING = "evil\x07\x1b]0;title\x07\x7f\x9b2J\u202e\r\nError: forged"


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no such names")
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("where", ["skipped", "found", "heading", "log", "no document", "nothing readable", "nowhere"])
def test_no_name_of_a_file_and_no_text_in_it_steers_the_terminal(bge, tmp_path, embedder, monkeypatch, where, options):
    place = tmp_path / "documents"
    place.mkdir()
    (place / "good.md").write_text("The heart pumps blood.", encoding="utf-8")
    if where == "skipped":
        (place / f"{STEERING}.md").write_bytes(b"\0")
    elif where == "found":
        (place / f"{STEERING}.md").write_text("Blood is moved by the heart.", encoding="utf-8")
    elif where == "heading":
        (place / "x.html").write_text(f"<h1>{STEERING}</h1><p>Hearts {STEERING}", encoding="utf-8")
    elif where == "log":
        monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in the command, without those of pytest
        reader = documents._READERS["markdown"]
        monkeypatch.setitem(
            documents._READERS,
            "markdown",
            lambda content: logging.getLogger("reader").warning("bad: %s", STEERING) or reader(content),
        )
    elif where == "no document":
        place = place / f"{STEERING}.py"
        place.touch()
    elif where == "nothing readable":
        (place / "good.md").rename(place / f"{STEERING}.md").write_bytes(b"\0")
    else:
        place = place / STEERING

    result = bge("search", place, QUESTION, *options)

    printed = result.stdout + result.stderr
    assert "evil" in printed
    assert all(letter.isprintable() or letter == "\n" for letter in printed)
    assert "\nError: forged" not in printed


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_only_regular_files_of_a_usual_size_are_opened(search, library):
    os.mkfifo(library / "pipe.md")
    (library / "device.txt").symlink_to("/dev/zero")
    (library / "gone.txt").symlink_to(library / "nothing")
    with (library / "sparse.html").open("wb") as file:
        file.truncate(200 * 2**30)

    found = search(library)

    assert found["skipped"] == {
        "device.txt": "not a regular file",
        "gone.txt": "No such file or directory",
        "pipe.md": "not a regular file",
        "sparse.html": "larger than 4 MiB",
    }
    assert found["texts"] == 4


@pytest.mark.parametrize("kind", LIMITS)
def test_a_file_larger_than_its_kind_may_be_is_skipped(tmp_path, kind, monkeypatch):
    monkeypatch.setitem(documents.LIMITS, kind, 100)
    suffix = next(suffix for suffix, of in KINDS.items() if of == kind)
    small, large = (SourceFile(f"{size}{suffix}", tmp_path / f"{size}{suffix}") for size in (100, 101))
    for size, file in ((100, small), (101, large)):
        file.path.write_bytes(b"x" * size)

    assert len(small.read()) == 100
    with pytest.raises(UnreadableFileError, match="larger than"):
        large.read()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("word.html", "<p>x<![if-x[y]]>"),
        ("brackets.md", "[" * 300),
        ("nested.html", "<div>" * 20_000),
        ("nested.md", "> " * 2_000),
        ("tags.html", "<" * 300),
        ("broken.xhtml", "<html><p></html>"),
        ("page.html", "<meta charset=iso-2022-kr>"),
        ("surrogate.md", "&#xD800; &#0;"),
    ],
)
def test_no_file_ends_the_search(search, library, name, content):
    (library / name).write_text(content, encoding="utf-8")

    found = search(library)

    assert place(found["results"][0]) == ("science/body.md", ["The body", "Heart"])


@pytest.mark.parametrize("error", [RecursionError, MemoryError, ValueError, AssertionError])
def test_whatever_a_reader_raises_is_a_reason_to_skip_the_file(search, library, monkeypatch, error):
    def fails_to_read(content):
        raise error("of the reader")

    monkeypatch.setitem(documents._READERS, "html", fails_to_read)

    found = search(library)

    assert found["skipped"] == {"food.html": f"not readable as html ({error.__name__}: of the reader)"}
    assert found["texts"] == 3


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_that_are_no_text_are_told_apart(search, library):
    for byte, text in ((b"\xff", "Stars shine by fusion."), (b"\xfe", "Rivers flow into the sea.")):
        Path(os.fsdecode(os.fsencode(library) + b"/" + byte + b".md")).write_text(text, encoding="utf-8")

    first = search(library, "Why do stars glow?")
    second = search(library, "Where does a river end?")

    assert (first["texts"], second["embedded"]) == (6, 0)
    assert (first["results"][0]["file"], second["results"][0]["file"]) == ("\\xff.md", "\\xfe.md")


@pytest.mark.skipif(os.name == "nt", reason="Windows has other limits")
def test_a_folder_that_cannot_be_listed_is_named(search, library, monkeypatch):
    monkeypatch.chdir(library)
    for _ in range(20):  # deeper than a path may be long
        Path("d" * 250).mkdir()
        os.chdir("d" * 250)
    os.chdir(library)

    found = search(library)

    assert [reason for name, reason in found["skipped"].items() if name.startswith("ddd")] == ["File name too long"]
    assert found["texts"] == 4
    assert len(read_texts(library, 256)) == 4


@pytest.mark.parametrize("content", [b"\x00\x01\x02", "Größe".encode("latin-1")])
def test_a_file_that_is_not_text_is_skipped_and_named(search, library, content):
    (library / "broken.txt").write_bytes(content)

    found = search(library)

    assert list(found["skipped"]) == ["broken.txt"]
    assert "skipped broken.txt: " in found["stderr"]
    assert found["texts"] == 4


def test_broken_and_encrypted_pdf_files_are_skipped_and_named(search, library):
    from pypdf import PdfWriter

    (library / "broken.pdf").write_bytes(b"%PDF-1.4\nnothing")
    writer = PdfWriter()
    writer.add_blank_page(100, 100)
    writer.encrypt("secret", algorithm="RC4-128")
    with (library / "locked.pdf").open("wb") as file:
        writer.write(file)

    skipped = search(library)["skipped"]

    assert "not readable as pdf" in skipped["broken.pdf"]
    assert skipped["locked.pdf"] == "it is encrypted"


def test_without_the_pdf_extra_the_skipped_files_and_the_extra_are_named_once(search, library, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdf", None)
    for name in ("a.pdf", "b.pdf"):
        (library / name).write_bytes(pdf_with_pages("text"))

    found = search(library)

    assert list(found["skipped"]) == ["a.pdf", "b.pdf"]
    assert found["stderr"].count("bge-integrations[pdf]") == 1
    assert "skipped a.pdf, b.pdf: " in found["stderr"]


def fails(result, *words):
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    message = result.stderr.splitlines()[-1]
    assert all(word in message for word in words), message


def test_a_folder_that_is_missing_is_an_error(bge, tmp_path):
    fails(bge("search", tmp_path / "nowhere", QUESTION), "nowhere", "does not exist")


def test_a_single_document_is_searched(search, library):
    found = search(library / "science" / "body.md", QUESTION)

    assert (found["texts"], place(found["results"][0])) == (2, ("body.md", ["The body", "Heart"]))


def test_a_single_file_that_is_no_document_is_an_error(bge, library):
    (library / "code.py").touch()

    fails(bge("search", library / "code.py", QUESTION), "code.py", "no document", ".md")


@pytest.mark.parametrize("name", ["nowhere", "cities.txt/x", "x" * 300, "a\0b"])
def test_a_place_that_cannot_be_looked_at_is_an_error(library, name):
    with pytest.raises(ConfigurationError, match="Pass a folder"):
        find_files(library / name)


def test_a_folder_without_documents_is_an_error(bge, tmp_path):
    (tmp_path / "x.py").touch()

    fails(bge("search", tmp_path, QUESTION), "holds no documents", ".md")


def test_a_folder_whose_documents_cannot_be_read_is_an_error(bge, tmp_path, embedder):
    (tmp_path / "x.md").write_bytes(b"\x00")

    fails(bge("search", tmp_path, QUESTION), "None of the 1 documents can be read", "x.md")


def test_a_folder_whose_documents_are_empty_is_an_error(bge, tmp_path, embedder):
    (tmp_path / "x.md").touch()

    fails(bge("search", tmp_path, QUESTION), "holds any text")


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_an_error(bge, library, question):
    fails(bge("search", library, question), "question", "empty")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--k", "5", "--fetch-k", "4"], ["fetch_k=4"]),
        (["--chunk-tokens", "257"], ["chunk_tokens=257", "256"]),
        (["--no-rerank", "--reranker", "bge-reranker-base"], ["--no-rerank"]),
        (["--model", "bge-smal-en-v1.5"], ["bge-small-en-v1.5"]),
        (["--model", "BAAI/bge-reranker-base"], ["Reranker"]),
        (["--model", "BAAI/bge-large-en-v1.5"], ["bge-integrations[offline]"]),
    ],
    ids=" ".join,
)
def test_options_that_do_not_fit_are_errors(bge, library, options, words):
    fails(bge("search", library, QUESTION, *options), *words)


def test_a_file_in_place_of_the_cache_folder_is_an_error(bge, library, embedder):
    fails(bge("search", library, QUESTION, "--cache-dir", library / "cities.txt"), "--cache-dir")


def test_names_in_any_script_are_printed(bge, tmp_path, embedder):
    (tmp_path / "Größe 气候.md").write_text("# Wärme 🌡\n\nwarm", encoding="utf-8")

    found = json.loads(bge("search", tmp_path, "warm", "--json").stdout)["results"]

    assert place(found[0]) == ("Größe 气候.md", ["Wärme 🌡"])
