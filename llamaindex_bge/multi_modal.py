"""LlamaIndex's interface for pictures over the runtime's `VisionEmbedder`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from llama_index.core.base.embeddings.base import Embedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import ImageType

from bge_runtime import VisionEmbedder
from bge_runtime.fields import ModelName, check_items
from llamaindex_bge.embeddings import BGEEmbedding

__all__ = ["BGEMultiModalEmbedding"]


class BGEMultiModalEmbedding(BGEEmbedding, MultiModalEmbedding):
    """BGE-VL embeddings of pictures and texts for LlamaIndex.

    It takes the options of `BGEEmbedding`, and shares weights with every other object of the model. Pictures are
    paths or `BytesIO`, as `ImageNode` gives them, and whatever else `VisionEmbedder.encode_images` takes.

    Args:
        model_name: Hub id, name in the model table, or folder. `model` is accepted too.
        embedder: A runtime `VisionEmbedder` to use as it is, in place of the options that describe one.
        **options: The other fields, and those of `BaseEmbedding`.

    Raises:
        UnknownArgumentError: An option does not exist.
        ConfigurationError: An option has a value that is not allowed, or the model reads texts only.
        ModelNotFoundError: The name is neither in the table, nor a folder, nor a hub id.

    Examples:
        ```python
        from llama_index.core.indices import MultiModalVectorStoreIndex
        from llamaindex_bge import BGEMultiModalEmbedding

        model = BGEMultiModalEmbedding(model_name="BAAI/BGE-VL-base")
        index = MultiModalVectorStoreIndex(nodes, embed_model=model, image_embed_model=model)
        ```
    """

    _owner: ClassVar[str] = "BGEMultiModalEmbedding"
    runtime_type: ClassVar[type[Any]] = VisionEmbedder

    model_name: ModelName = "BAAI/BGE-VL-base"

    _runtime: VisionEmbedder = PrivateAttr()

    @property
    def embedder(self) -> VisionEmbedder:
        """The runtime object that does the work; it also embeds pictures with a text each."""
        return self._runtime

    def get_image_embedding_batch(
        self, img_file_paths: Iterable[ImageType], show_progress: bool = False
    ) -> list[Embedding]:
        """Embed pictures, in windows with one pair of events each; vectors are in input order."""
        images = list(check_items(img_file_paths, "img_file_paths", "pictures"))
        return super().get_image_embedding_batch(images, show_progress)

    async def aget_image_embedding_batch(
        self, img_file_paths: Iterable[ImageType], show_progress: bool = False
    ) -> list[Embedding]:
        """Do the same without blocking the event loop; see `get_image_embedding_batch`."""
        images = list(check_items(img_file_paths, "img_file_paths", "pictures"))
        return await super().aget_image_embedding_batch(images, show_progress)

    def _get_image_embedding(self, img_file_path: ImageType) -> Embedding:
        return self._get_image_embeddings([img_file_path])[0]

    async def _aget_image_embedding(self, img_file_path: ImageType) -> Embedding:
        return (await self._aget_image_embeddings([img_file_path]))[0]

    def _get_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Embedding]:
        if self.rate_limiter is not None:
            self.rate_limiter.acquire()
        vectors: list[Embedding] = self.embedder.encode_images(img_file_paths).tolist()
        return vectors

    async def _aget_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Embedding]:
        if self.rate_limiter is not None:
            await self.rate_limiter.async_acquire()
        vectors: list[Embedding] = (await self.embedder.aencode_images(img_file_paths)).tolist()
        return vectors
