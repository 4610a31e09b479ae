"""Pictures to the pixels that a CLIP model reads, with Pillow.

Shrunk and cut as the image processor of CLIP does it on Pillow: shortest edge to a fixed length, then the middle.
Done here so that vectors are the same whether torchvision is installed or not.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import numpy as np

from bge_runtime.errors import BGEError, ConfigurationError, InputError, ModelNotFoundError, UnsupportedModelError
from bge_runtime.inputs.checks import check_items
from bge_runtime.inputs.prepared import PreparedInputs

if TYPE_CHECKING:
    import PIL.Image
    from numpy.typing import NDArray

    ImageInput: TypeAlias = str | os.PathLike[str] | bytes | io.BytesIO | PIL.Image.Image

__all__ = ["ImageFormat", "ImagePixels", "Picture", "check_image_texts", "check_images"]

# What Pillow itself warns of: a small file can unfold into any size.
MOST_PIXELS = 89_478_485
# Pillow hands PostScript to another program, and has readers that nobody needs here.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
# A strip would be as wide as that many pictures before its middle is cut out.
MOST_TIMES = 1000
STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")


class ImagePixels(NamedTuple):
    """One picture as the model's input.

    Attributes:
        pixels: uint8 [height, width, 3], red, green, blue.
        length: Patches that the model makes of it, and one more.
    """

    pixels: NDArray[np.uint8]
    length: int


class Picture(NamedTuple):
    """A checked picture, and what messages call it."""

    name: str
    source: str | bytes | PIL.Image.Image

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.name} {_shown(self.source)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFormat:
    """What a model reads, from its `preprocessor_config.json`.

    Attributes:
        edge: Length of the shortest edge before the middle is cut out, in pixels.
        height: Height of what is cut out.
        width: Width of what is cut out.
        resample: Number of Pillow's filter.
        factor: What a level of 0 to 255 is multiplied by.
        mean: What is subtracted from each channel then.
        std: What each channel is divided by then.
        tokens: Inputs of the model's first layer.
    """

    edge: int
    height: int
    width: int
    resample: int
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tokens: int

    @classmethod
    def read(cls, folder: Path) -> ImageFormat:
        """Read the format of the model in `folder`.

        Raises:
            ModelNotFoundError: It has no description of its images, or a damaged one.
            UnsupportedModelError: It wants something else than shrinking, cutting and scaling.
        """
        try:
            return cls._read(folder)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            if isinstance(error, BGEError):
                raise
            raise ModelNotFoundError(
                f"Folder {str(folder)!r} does not say how images are read: its description is damaged "
                f"({type(error).__name__}: {error}). Copy the whole model folder."
            ) from error

    @classmethod
    def _read(cls, folder: Path) -> ImageFormat:
        settings = _settings(folder)
        size, crop = settings.get("size", 224), settings.get("crop_size", 224)
        edge = size.get("shortest_edge") if isinstance(size, dict) else size
        if not edge or not all(settings.get(step, True) for step in STEPS):
            raise UnsupportedModelError(
                f"The image processor in {str(folder)!r} has size={size!r} or leaves out one of {', '.join(STEPS)}. "
                "Only CLIP's way runs here: shortest edge, middle, scaling. Use transformers directly for it."
            )
        height, width = (crop["height"], crop["width"]) if isinstance(crop, dict) else (crop, crop)
        vision = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vision_config") or {}
        patch = int(vision.get("patch_size", 32))
        return cls(
            edge=int(edge),
            height=int(height),
            width=int(width),
            resample=int(settings.get("resample", 3)),
            factor=float(settings.get("rescale_factor", 1 / 255)),
            mean=tuple(settings["image_mean"]),
            std=tuple(settings["image_std"]),
            tokens=(int(height) // patch) * (int(width) // patch) + 1,
        )

    def prepare(self, pictures: Sequence[Picture]) -> PreparedInputs:
        """Read pictures; `max_length` is for texts.

        Raises:
            InputError: A file is damaged; the message names it.
        """
        return PreparedInputs([ImagePixels(self._pixels(each), self.tokens) for each in pictures], [1] * len(pictures))

    def _pixels(self, picture: Picture) -> NDArray[np.uint8]:
        try:
            with _opened(picture) as image:
                return self._cut(_rgb(image))
        except InputError:
            raise
        except Exception as error:
            raise _unreadable(picture, error) from error

    def _cut(self, image: PIL.Image.Image) -> NDArray[np.uint8]:
        wide = image.width >= image.height
        length = int(self.edge * max(image.size) / min(image.size))
        size = (length, self.edge) if wide else (self.edge, length)
        left, top = (size[0] - self.width) // 2, (size[1] - self.height) // 2
        resized = image.resize(size, resample=cast("Any", self.resample))
        return np.asarray(resized.crop((left, top, left + self.width, top + self.height)), dtype=np.uint8)


def check_images(images: Iterable[ImageInput], name: str = "images") -> list[Picture]:
    """Return the pictures as a list, each opened once to see that it is one; the pixels are read later.

    Raises:
        InputError: Something is not a picture, too large, or no file; or a single picture is given, and no list.
        ConfigurationError: Pillow is not installed.
    """
    if isinstance(images, str | bytes | os.PathLike | io.BytesIO | _pillow().Image):
        raise InputError(f"{name} is {_shown(images)}; pass a list of pictures, such as ['photo.jpg'].")
    items = check_items(images, name, "pictures")
    return [_checked(image, f"{name}[{index}]") for index, image in enumerate(items)]


def check_image_texts(pairs: Iterable[tuple[ImageInput, str]]) -> tuple[list[Any], list[Any]]:
    """Return the pictures and the texts of (picture, text) pairs, neither of them checked.

    Raises:
        InputError: A pair is not two things.
    """
    images, texts = [], []
    for index, pair in enumerate(check_items(pairs, "pairs", "(picture, text) tuples")):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputError(f"pairs[{index}] is {_shown(pair)}; pass a (picture, text) tuple.")
        images.append(pair[0])
        texts.append(pair[1])
    return images, texts


def _checked(image: Any, name: str) -> Picture:
    if isinstance(image, str | os.PathLike):
        picture = Picture(name, os.fspath(image))
        _check_path(picture)
    elif isinstance(image, bytes | io.BytesIO):
        picture = Picture(name, image if isinstance(image, bytes) else image.getvalue())
    elif isinstance(image, _pillow().Image):
        picture = Picture(name, image)
    else:
        raise InputError(f"{name} is {_shown(image)}; pass a path, bytes or a PIL image.")
    with _opened(picture):
        return picture


def _check_path(picture: Picture) -> None:
    if "://" in str(picture.source) or str(picture.source).startswith("data:"):
        raise InputError(f"{picture.label} is an address, and nothing is fetched here. Pass the file's path or bytes.")
    if not os.path.isfile(cast("str", picture.source)):
        raise InputError(f"{picture.label} is not a file. Check the path.")


@contextmanager
def _opened(picture: Picture) -> Iterator[PIL.Image.Image]:
    """Open a picture: its head is read, and its size is checked before any pixel is."""
    image = _open(picture)
    try:
        _check_size(picture, image)
        yield image
    finally:
        if image is not picture.source:  # a caller's own stays as it is
            image.close()


def _open(picture: Picture) -> PIL.Image.Image:
    module, source = _pillow(), picture.source
    if not isinstance(source, str | bytes):
        return source
    try:
        opened: PIL.Image.Image = module.open(
            source if isinstance(source, str) else io.BytesIO(source), formats=FORMATS
        )
    except (module.DecompressionBombError, module.DecompressionBombWarning) as error:
        raise InputError(f"{picture.label} is too large: {error}") from error
    except Exception as error:  # each of Pillow's readers has errors of its own
        raise _unreadable(picture, error) from error
    return opened


def _check_size(picture: Picture, image: PIL.Image.Image) -> None:
    width, height = image.size
    if not width or not height:
        raise InputError(f"{picture.label} has no pixels.")
    if width * height > MOST_PIXELS or max(width, height) > MOST_TIMES * min(width, height):
        raise InputError(
            f"{picture.label} has {width} x {height} pixels. At most {MOST_PIXELS} are read, and one edge may be "
            f"{MOST_TIMES} times the other. Make it smaller first; the model reads a few hundred in each direction."
        )


def _rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return the picture in red, green and blue, as the models' authors do it: transparency is left out."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # at once, Pillow would warn
    return image.convert("RGB")


def _pillow() -> ModuleType:
    try:
        import PIL.Image
    except ImportError as error:
        raise ConfigurationError(
            'Pictures need Pillow. Install it with: pip install "bge-integrations[vision]"'
        ) from error
    return PIL.Image


def _settings(folder: Path) -> dict[str, Any]:
    """Return the image processor's settings, which newer versions of transformers keep in another file."""
    for name, key in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            found = content.get(key) if key else content
            if isinstance(found, dict):
                return found
    raise ModelNotFoundError(
        f"Folder {str(folder)!r} has no preprocessor_config.json, so it does not say how images are read. "
        "Copy the whole model folder."
    )


def _unreadable(picture: Picture, error: Exception) -> InputError:
    return InputError(
        f"{picture.label} cannot be read as a picture ({type(error).__name__}: {error}). "
        f"Pass {', '.join(FORMATS[:-1])} or {FORMATS[-1]}."
    )


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return f"({len(value)} bytes)"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 200 else text[:197] + '...'}"
