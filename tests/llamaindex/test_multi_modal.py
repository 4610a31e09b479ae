"""BGEMultiModalEmbedding: pictures and texts in LlamaIndex."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.embeddings.loading import load_embed_model
from llama_index.core.indices import MultiModalVectorStoreIndex
from llama_index.core.schema import ImageNode, TextNode

import bge_runtime
from bge_runtime import ConfigurationError, Embedder, InputError, VisionEmbedder
from llamaindex_bge import BGEEmbedding, BGEMultiModalEmbedding
from tests.checkpoints.pictures import file_of, picture

BASE = "BAAI/BGE-VL-base"
TEXTS = ["a panda eats bamboo", "the dog slept in the garden"]

pytestmark = pytest.mark.usefixtures("hub_cache")


@pytest.fixture
def embedding() -> BGEMultiModalEmbedding:
    return BGEMultiModalEmbedding()


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    files = [tmp_path / f"{seed}.png" for seed in range(4)]
    for seed, file in enumerate(files):
        file.write_bytes(file_of(picture(seed, 50 + 30 * seed, 70)))
    return [str(file) for file in files]


def assert_close(left: Any, right: Any) -> None:
    np.testing.assert_allclose(np.asarray(left), np.asarray(right), atol=1e-5)


def test_pictures_and_texts_are_the_runtimes(embedding: BGEMultiModalEmbedding, paths: list[str]) -> None:
    assert isinstance(embedding, MultiModalEmbedding)
    assert embedding.model_name == BASE
    runtime = VisionEmbedder(BASE)
    images = runtime.encode_images(paths)
    streams = [io.BytesIO(Path(path).read_bytes()) for path in paths]
    assert_close(embedding.get_image_embedding_batch(paths), images)
    assert_close(embedding.get_image_embedding_batch(streams), images)
    assert_close(embedding.get_image_embedding(paths[1]), images[1])
    assert_close(embedding.get_query_embedding(TEXTS[0]), runtime.encode_texts(TEXTS)[0])
    assert_close(embedding.get_text_embedding_batch(TEXTS), runtime.encode_texts(TEXTS))
    assert embedding.embedder.encode_image_texts([(paths[0], TEXTS[0])]).shape == (1, 512)


def test_async_is_the_same(embedding: BGEMultiModalEmbedding, paths: list[str]) -> None:
    async def calls() -> list[Any]:
        return await asyncio.gather(
            embedding.aget_image_embedding(paths[0]),
            embedding.aget_image_embedding_batch(paths),
            embedding.aget_query_embedding(TEXTS[0]),
            embedding.aget_text_embedding(TEXTS[1]),
        )

    image, images, query, text = asyncio.run(calls())
    expected = embedding.get_image_embedding_batch(paths)
    assert_close([image, *images], [expected[0], *expected])
    assert_close([query, text], [embedding.get_query_embedding(TEXTS[0]), embedding.get_text_embedding(TEXTS[1])])


@pytest.mark.parametrize("use_async", [False, True])
def test_an_index_of_pictures_and_texts_finds_by_picture_and_by_text(
    embedding: BGEMultiModalEmbedding, paths: list[str], use_async: bool
) -> None:
    # LlamaIndex drops nodes with neither text nor metadata.
    pictures = [ImageNode(image_path=path, metadata={"file": path}) for path in paths]
    nodes = [*pictures, *(TextNode(text=text) for text in TEXTS)]
    index = MultiModalVectorStoreIndex(nodes, embed_model=embedding, image_embed_model=embedding, use_async=use_async)
    retriever = index.as_retriever(similarity_top_k=1, image_similarity_top_k=4)
    by_picture = retriever.image_to_image_retrieve(paths[2])
    assert by_picture[0].node.image_path == paths[2]
    assert by_picture[0].score == pytest.approx(1, abs=1e-5)
    by_text = retriever.text_to_image_retrieve(TEXTS[0])
    similarities = embedding.embedder.encode_images(paths) @ embedding.embedder.encode_texts(TEXTS[:1])[0]
    assert [each.node.image_path for each in by_text] == [paths[place] for place in np.argsort(-similarities)]
    assert retriever.text_retrieve(TEXTS[1])[0].node.text == TEXTS[1]


def test_one_copy_of_weights_serves_both_classes(
    embedding: BGEMultiModalEmbedding, paths: list[str], fresh_store: None
) -> None:
    embedding.get_image_embedding(paths[0])
    assert_close(BGEEmbedding(BASE).get_text_embedding(TEXTS[0]), embedding.get_text_embedding(TEXTS[0]))
    assert len(bge_runtime.loaded_models()) == 1


def test_a_bad_picture_is_named(embedding: BGEMultiModalEmbedding, paths: list[str]) -> None:
    with pytest.raises(InputError, match=r"images\[1\].*missing\.png.*not a file"):
        embedding.get_image_embedding_batch([paths[0], "missing.png"])
    with pytest.raises(InputError, match="nothing is fetched"):
        asyncio.run(embedding.aget_image_embedding("https://example.org/photo.png"))


def test_the_rate_limiter_is_asked_once_a_call(paths: list[str]) -> None:
    class Limiter:
        asked = 0

        def acquire(self) -> None:
            self.asked += 1

        async def async_acquire(self) -> None:
            self.asked += 1

    embedding = BGEMultiModalEmbedding()
    embedding.rate_limiter = limiter = Limiter()  # type: ignore[assignment]
    embedding.get_image_embedding_batch(paths)
    asyncio.run(embedding.aget_image_embedding(paths[0]))
    assert limiter.asked == 2


def test_a_dump_is_loaded_again(paths: list[str]) -> None:
    embedding = BGEMultiModalEmbedding(truncate_dim=64)
    loaded = load_embed_model(embedding.to_dict())
    assert type(loaded) is BGEMultiModalEmbedding
    assert_close(loaded.get_image_embedding(paths[0]), embedding.get_image_embedding(paths[0]))


def test_models_and_embedders_for_texts_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="reads texts only"):
        BGEMultiModalEmbedding(model_name="BAAI/bge-small-en-v1.5")
    with pytest.raises(ConfigurationError, match=r"bge_runtime\.VisionEmbedder"):
        BGEMultiModalEmbedding(embedder=Embedder(BASE))
    mine = VisionEmbedder(BASE, truncate_dim=32)
    assert BGEMultiModalEmbedding(embedder=mine).embedder is mine
