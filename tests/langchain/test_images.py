"""`BGEEmbeddings.embed_image`: pictures in LangChain, and in Chroma, which calls it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from langchain_chroma import Chroma

import bge_runtime
from bge_runtime import ConfigurationError, Embedder, InputError, VisionEmbedder
from langchain_bge import BGEEmbeddings
from tests.checkpoints.pictures import file_of, picture

BASE = "BAAI/BGE-VL-base"

pytestmark = pytest.mark.usefixtures("hub_cache")


@pytest.fixture
def uris(tmp_path: Path) -> list[str]:
    files = [tmp_path / f"{seed}.jpg" for seed in range(3)]
    for seed, file in enumerate(files):
        file.write_bytes(file_of(picture(seed, 80, 50 + 40 * seed), "JPEG"))
    return [str(file) for file in files]


def test_pictures_and_texts_are_the_runtimes(uris: list[str], fresh_store: None) -> None:
    embeddings, runtime = BGEEmbeddings(model=BASE), VisionEmbedder(BASE)
    found = embeddings.embed_image(uris)
    assert isinstance(found[0][0], float)
    np.testing.assert_allclose(found, runtime.encode_images(uris), atol=1e-5)
    np.testing.assert_allclose(asyncio.run(embeddings.aembed_image(uris)), found, atol=1e-5)
    np.testing.assert_allclose(embeddings.embed_query("a cat"), runtime.encode_texts(["a cat"])[0], atol=1e-5)
    np.testing.assert_allclose(embeddings.embed_documents(["a cat"]), runtime.encode_texts(["a cat"]), atol=1e-5)
    assert len(bge_runtime.loaded_models()) == 1


@pytest.mark.parametrize("kind", [Embedder, VisionEmbedder])
def test_options_and_injected_embedders_hold_for_pictures(uris: list[str], kind: type[Embedder]) -> None:
    expected = VisionEmbedder(BASE, truncate_dim=64).encode_images(uris)
    np.testing.assert_allclose(BGEEmbeddings(model=BASE, truncate_dim=64).embed_image(uris), expected, atol=1e-5)
    injected = BGEEmbeddings(embedder=kind(BASE, truncate_dim=64))
    np.testing.assert_allclose(injected.embed_image(uris), expected, atol=1e-5)


def test_chroma_finds_a_picture_by_itself(uris: list[str]) -> None:
    store = Chroma("pictures", BGEEmbeddings(model=BASE))
    try:
        store.add_images(uris, metadatas=[{"file": uri} for uri in uris])
        (nearest,) = store.similarity_search_by_image(uris[1], k=1)
        assert nearest.metadata["file"] == uris[1]
    finally:
        store.delete_collection()


def test_what_cannot_be_embedded_is_refused(uris: list[str]) -> None:
    with pytest.raises(InputError, match="nothing is fetched"):
        BGEEmbeddings(model=BASE).embed_image([uris[0], "https://example.org/photo.jpg"])
    with pytest.raises(ConfigurationError, match="reads texts only"):
        BGEEmbeddings(model="BAAI/bge-small-en-v1.5").embed_image(uris)
