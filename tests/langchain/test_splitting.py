"""Chunks that the model reads whole."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import pytest
from langchain_core.documents import Document

from bge_runtime import ConfigurationError, InputError
from langchain_bge import BGEEmbeddings, BGETokenSplitter
from tests.langchain.conftest import EMBEDDER

pytestmark = pytest.mark.usefixtures("hub_cache")

# Rare words: characters, and the tokens of other models, say little about the number of tokens.
TEXT = "\n\n".join(f"Zymurgy xylophone{n} quixotry. 大熊猫竹子! The heart pumps blood. " * 3 for n in range(30))


@pytest.mark.parametrize("instruction", [None, "read this text: "])
@pytest.mark.parametrize("model", [EMBEDDER, "BAAI/bge-m3"])
@pytest.mark.parametrize(("chunk_size", "most"), [(None, 128), (60, 62), (3, 5)])
@pytest.mark.parametrize("options", [{}, {"separators": ["."]}, {"keep_separator": False}, {"strip_whitespace": False}])
def test_no_chunk_is_longer_than_the_model_reads(
    model: str, instruction: str | None, chunk_size: int | None, most: int, options: dict[str, Any]
) -> None:
    if "separators" in options and chunk_size == 3:
        options = {"separators": [".", ""]}  # nothing else cuts words
    embeddings = BGEEmbeddings(model, max_length=128, embed_instruction=instruction, truncation="error")
    chunks = BGETokenSplitter(embeddings, chunk_size, **options).split_text(TEXT)
    assert max(embeddings.embedder.count_tokens(chunks)) <= most
    assert max(embeddings.embedder.count_tokens([(instruction or "") + each for each in chunks])) <= 128
    assert set("".join(TEXT.split())) - {"."} <= set("".join(chunks))
    embeddings.embed_documents(chunks[:3])


def test_every_word_is_in_some_chunk_and_metadata_in_all() -> None:
    splitter = BGETokenSplitter(BGEEmbeddings(EMBEDDER), chunk_size=60)
    given = Document(page_content=TEXT, metadata={"inner": [1]})
    chunks = splitter.split_documents([given, Document(page_content="")])
    assert set(TEXT.split()) <= set(" ".join(each.page_content for each in chunks).split())
    chunks[0].metadata["inner"].append(2)
    assert [each.metadata for each in (given, *chunks[1:])] == [{"inner": [1]}] * len(chunks)


@pytest.mark.parametrize("overlap", [0, 8, 40])
def test_the_start_index_is_where_the_chunk_begins(overlap: int) -> None:
    splitter = BGETokenSplitter(BGEEmbeddings(EMBEDDER), 60, overlap, add_start_index=True)
    text = "The heart pumps blood. " * 100 + TEXT
    chunks = splitter.create_documents(["", text, text])
    starts = [each.metadata["start_index"] for each in chunks]
    assert len(starts) % 2 == 0
    assert starts[: len(starts) // 2] == starts[len(starts) // 2 :] == sorted(starts[: len(starts) // 2])
    assert all(text[at:].startswith(each.page_content) for at, each in zip(starts, chunks, strict=True))
    ends = [at + len(each.page_content) for at, each in zip(starts, chunks, strict=True)][: len(starts) // 2]
    assert not any(text[end:begin].strip() for begin, end in zip(starts[1:], ends, strict=False))  # nothing between


def test_defaults_are_all_that_the_model_reads_and_an_eighth() -> None:
    embeddings = BGEEmbeddings(EMBEDDER)
    for options, size, overlap in (({}, 510, 63), ({"chunk_size": 80}, 80, 10), ({"chunk_overlap": 0}, 510, 0)):
        splitter = BGETokenSplitter(embeddings, **options)
        assert (splitter._chunk_size, splitter._chunk_overlap) == (size, overlap)
    assert BGETokenSplitter(BGEEmbeddings(EMBEDDER, embed_instruction="the panda "))._chunk_size < 510


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 1024}, "at most 510"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"chunk_size": True}, "chunk_size=True"),
        ({"chunk_size": "80"}, "chunk_size='80'"),
        ({"chunk_overlap": -1}, "chunk_overlap=-1"),
        ({"chunk_size": 80, "chunk_overlap": 81}, "chunk_overlap=81"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        BGETokenSplitter(BGEEmbeddings(EMBEDDER), **options)


def test_something_else_than_embeddings_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Pass BGEEmbeddings"):
        BGETokenSplitter(EMBEDDER)  # type: ignore[arg-type]


def test_a_character_of_more_tokens_than_a_chunk_is_an_error() -> None:
    with pytest.raises(InputError, match="chunk_size=1"):
        BGETokenSplitter(BGEEmbeddings("BAAI/bge-m3"), chunk_size=1).split_text("🫀🫁🦴🧠" * 3)


def test_it_survives_pickling() -> None:
    splitter = BGETokenSplitter(BGEEmbeddings(EMBEDDER), chunk_size=60)
    assert pickle.loads(pickle.dumps(splitter)).split_text(TEXT) == splitter.split_text(TEXT)


def test_without_its_package_the_name_says_what_to_install_and_the_others_work() -> None:
    script = (
        "import sys; sys.modules['langchain_text_splitters'] = None\n"
        "from langchain_bge import BGEEmbeddings\n"
        "try:\n    from langchain_bge import BGETokenSplitter\n"
        "except ImportError as error:\n    print(error)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install langchain-text-splitters" in ended.stdout
