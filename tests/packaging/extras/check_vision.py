"""Pillow is there, and pictures of any mode become the pixels that a CLIP model reads."""

import io

from PIL import Image

from bge_runtime.inputs.images import ImageFormat, check_images

FORM = ImageFormat(
    edge=224, height=224, width=224, resample=3, factor=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3, tokens=197
)

stream = io.BytesIO()
Image.new("CMYK", (300, 200)).save(stream, "JPEG")
pictures = check_images([Image.new("RGBA", (30, 40)), stream, stream.getvalue()])
prepared = FORM.prepare(pictures)
assert [each.pixels.shape for each in prepared.sequences] == [(224, 224, 3)] * 3
