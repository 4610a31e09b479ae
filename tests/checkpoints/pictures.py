"""Pictures for tests: seeded, of many sizes and modes."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

__all__ = ["file_of", "picture"]


def picture(seed: int, width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    """A picture of soft coloured patches that are another one for each seed."""
    levels = np.random.default_rng(seed).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    smooth = Image.fromarray(levels, "RGBA").resize((width, height), Image.Resampling.BILINEAR)
    return smooth.convert("RGB").convert(mode) if mode not in ("RGBA", "LA") else smooth.convert(mode)


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The content of a file with this picture."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
