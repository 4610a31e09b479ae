"""Pictures, texts, and pictures with a text, to vectors of one space."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from bge_runtime.embedding.embedder import Embedder
from bge_runtime.engine.flow import Flow
from bge_runtime.errors import ConfigurationError, public
from bge_runtime.inputs.checks import check_texts
from bge_runtime.inputs.images import ImageFormat, Picture, check_image_texts, check_images
from bge_runtime.loading.store import arun, run
from bge_runtime.models.spec import ModelSpec
from bge_runtime.vectors.finite import check_finite

if TYPE_CHECKING:
    from bge_runtime.inputs.images import ImageInput

__all__ = ["VisionEmbedder"]

# Read and shrunk ahead of the forward pass: 19 MB of pixels.
IMAGE_WINDOW = 128
# A call with more is an ingestion, and queries go before it.
INTERACTIVE_IMAGES = 4


@public
class VisionEmbedder(Embedder):
    """An embedding model for pictures and texts, such as `BAAI/BGE-VL-base`.

    It takes the arguments of `Embedder`, and shares weights and queue with every other object of the model. A text
    is embedded as an `Embedder` of the same model does it.

    A picture is a path, the bytes of a file, a `BytesIO` or a PIL image, in any mode; nothing is ever fetched from
    an address. As the models' authors do it, it is read in red, green and blue, its shortest edge is brought to 224
    pixels and the middle is cut out; transparency and the camera's orientation are left out.
    """

    @classmethod
    def of(cls, embedder: Embedder) -> Self:
        """Return the vision embedder with an embedder's options, over the same weights.

        Raises:
            ConfigurationError: Its model reads texts only.
        """
        return cls(**embedder.options(), token=embedder.source.token)

    def encode_images(self, images: Iterable[ImageInput], *, show_progress: bool | None = None) -> NDArray[np.float32]:
        """Embed pictures.

        Args:
            images: Paths, bytes, `BytesIO` or PIL images; any iterable of them.
            show_progress: Overrides the constructor's value.

        Returns:
            Array float32 of shape (number of pictures, dimension), rows in input order.

        Raises:
            InputError: Something is not a picture, damaged or too large; the message names it.
            ConfigurationError: Pillow is not installed.
            BackendError: The computation failed.
        """
        return run(self._encoded_images(images, show_progress))

    def encode_texts(self, texts: Iterable[str], *, show_progress: bool | None = None) -> NDArray[np.float32]:
        """Embed texts, to be compared with pictures or with each other; see `encode_documents`."""
        return self.encode_documents(texts, show_progress=show_progress)

    def encode_image_texts(
        self, pairs: Iterable[tuple[ImageInput, str]], *, show_progress: bool | None = None
    ) -> NDArray[np.float32]:
        """Embed pictures with a text each, such as a photograph and what should be different.

        The vector is that of the sum of both features as the model gives them, before they are scaled.

        Args:
            pairs: (picture, text) tuples; any iterable of them.
            show_progress: Overrides the constructor's value.

        Returns:
            Array float32 of shape (number of pairs, dimension), rows in input order.

        Raises:
            InputError: A picture or a text cannot be used; the message names it.
            ConfigurationError: Pillow is not installed.
            BackendError: The computation failed.
        """
        return run(self._encoded_pairs(pairs, show_progress))

    async def aencode_images(
        self, images: Iterable[ImageInput], *, show_progress: bool | None = None
    ) -> NDArray[np.float32]:
        """Embed pictures without blocking the event loop; see `encode_images`."""
        return await arun(self._encoded_images(images, show_progress))

    async def aencode_texts(self, texts: Iterable[str], *, show_progress: bool | None = None) -> NDArray[np.float32]:
        """Embed texts without blocking the event loop; see `encode_texts`."""
        return await self.aencode_documents(texts, show_progress=show_progress)

    async def aencode_image_texts(
        self, pairs: Iterable[tuple[ImageInput, str]], *, show_progress: bool | None = None
    ) -> NDArray[np.float32]:
        """Embed pictures with a text each without blocking the event loop; see `encode_image_texts`."""
        return await arun(self._encoded_pairs(pairs, show_progress))

    def __repr__(self) -> str:
        """Show the model."""
        return f"VisionEmbedder({self.model!r})"

    def _check_spec(self, spec: ModelSpec) -> None:
        super()._check_spec(spec)
        if spec.kind != "vision":
            raise ConfigurationError(
                f"{self.model!r} reads texts only. Use Embedder for it, or a model for pictures such as "
                "'BAAI/BGE-VL-base'."
            )

    def _encoded_images(self, images: Iterable[ImageInput], show_progress: bool | None) -> Flow[NDArray[np.float32]]:
        pictures = check_images(images)
        if not pictures:
            return self.encoding.nothing
        features = yield from self._image_features(pictures, show_progress)
        return self._checked(features, pictures)

    def _encoded_pairs(
        self, pairs: Iterable[tuple[ImageInput, str]], show_progress: bool | None
    ) -> Flow[NDArray[np.float32]]:
        images, given = check_image_texts(pairs)
        pictures, texts = check_images(images), check_texts(given)
        if not pictures:
            return self.encoding.nothing
        tokenize = partial(self._hold().tokenizing.texts, max_length=self.max_length)
        rows = yield from self._runner.rows(texts, tokenize, "model", bulk=len(texts) > INTERACTIVE_IMAGES)
        self._runner.note_truncation(rows, texts)
        features = yield from self._image_features(pictures, show_progress)
        return self._checked(features + np.stack(rows.values), pictures)

    def _checked(self, features: NDArray[np.float32], pictures: Sequence[Picture]) -> NDArray[np.float32]:
        vectors = self.encoding.scaled(list(features))
        check_finite(vectors, self.model, lambda index: pictures[index].label)
        return vectors

    def _image_features(self, pictures: Sequence[Picture], show_progress: bool | None) -> Flow[NDArray[np.float32]]:
        """Compute one row per picture as the model gives it."""
        self._hold()
        rows = yield from self._runner.rows(
            pictures,
            ImageFormat.read(self.source.folder).prepare,
            "image",
            bulk=len(pictures) > INTERACTIVE_IMAGES,
            show_progress=show_progress,
            window=IMAGE_WINDOW,
        )
        return np.stack(rows.values)
