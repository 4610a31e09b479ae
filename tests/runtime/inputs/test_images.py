"""What is taken for a picture, what is refused, and which pixels the model gets."""

from __future__ import annotations

import io
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

import bge_runtime
from bge_runtime import VisionEmbedder
from bge_runtime.inputs.images import ImageFormat, check_images
from tests.checkpoints.pictures import file_of, picture
from tests.runtime import references

BASE = "BAAI/BGE-VL-base"
MODES = ["RGB", "L", "LA", "RGBA", "CMYK", "P", "1", "I;16", "YCbCr"]


@pytest.fixture
def folder(hub_cache):
    return references.snapshot_of(hub_cache, BASE)


def pixels(folder, image):
    (prepared,) = ImageFormat.read(folder).prepare(check_images([image])).sequences
    return prepared.pixels


def png_of(width, height):
    """A PNG of a few bytes that says it has this many pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 10)), (b"IEND", b"")]
    body = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(60, 40), (33, 500), (224, 224), (1, 7), (301, 227)], ids=str)
def test_pixels_are_those_of_the_image_processor(folder, mode, size):
    image = picture(3, *size, mode=mode)
    processor = CLIPImageProcessorPil.from_pretrained(folder, do_rescale=False, do_normalize=False)
    expected = np.asarray(processor(images=image.convert("RGB"))["pixel_values"][0]).transpose(1, 2, 0)
    got = pixels(folder, image)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)


def test_a_picture_costs_as_many_tokens_as_the_model_has_patches(hub_cache):
    for name, patches in ((BASE, 14 * 14), ("BAAI/BGE-VL-large", 16 * 16)):
        form = ImageFormat.read(references.snapshot_of(hub_cache, name))
        (prepared,) = form.prepare(check_images([picture(1)])).sequences
        assert prepared.length == patches + 1
    before = bge_runtime.stats()["tokens"]
    VisionEmbedder(BASE).encode_images([picture(1), picture(2)])
    assert bge_runtime.stats()["tokens"] - before == 2 * 197


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_every_way_to_hand_a_picture_in_is_the_same(folder, tmp_path, kind):
    content = file_of(picture(4, 90, 70), kind)
    path = tmp_path / "picture"
    path.write_bytes(content)
    with Image.open(path) as opened:
        expected = pixels(folder, opened)
    stream = io.BytesIO(content)
    stream.seek(5)
    for form in (path, str(path), content, stream):
        np.testing.assert_array_equal(pixels(folder, form), expected)
    assert stream.tell() == 5
    assert expected.std() > 1


def test_a_callers_picture_stays_open(folder, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(file_of(picture(4)))
    with Image.open(path) as mine:
        first = pixels(folder, mine)
        np.testing.assert_array_equal(pixels(folder, mine), first)
        assert mine.getpixel((0, 0)) == picture(4).getpixel((0, 0))


def test_transparency_and_orientation_are_left_out_as_the_authors_do(folder):
    solid = picture(5, 80, 60)
    clear = solid.copy()
    clear.putalpha(0)
    np.testing.assert_array_equal(pixels(folder, clear), pixels(folder, solid))
    palette = solid.convert("P", palette=Image.Palette.ADAPTIVE)
    seen_through = file_of(palette, "PNG", transparency=bytes(range(256)))
    np.testing.assert_array_equal(pixels(folder, seen_through), pixels(folder, palette))
    turned = Image.Exif()
    turned[0x0112] = 6
    np.testing.assert_array_equal(pixels(folder, file_of(solid, "PNG", exif=turned)), pixels(folder, solid))


BAD = {
    "no file": ("nowhere/photo.jpg", "not a file"),
    "a folder": (".", "not a file"),
    "an address": ("https://example.org/photo.jpg", "nothing is fetched"),
    "a data address": ("data:image/png;base64,AAAA", "nothing is fetched"),
    "not a picture": (b"plainly not a picture", "cannot be read as a picture"),
    "nothing": (b"", "cannot be read as a picture"),
    "cut off": (file_of(picture(1, 300, 300))[:20], "cannot be read as a picture"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "cannot be read"),
    "a bomb": (png_of(20_000, 20_000), "too large"),
    "a strip": (png_of(50_000, 3), "one edge"),
    "no pixels": (Image.new("RGB", (0, 4)), "no pixels"),
    "a number": (7, "pass a path"),
    "None": (None, "pass a path"),
    "a list": ([picture(1)], "pass a path"),
}


@pytest.mark.parametrize(("bad", "message"), BAD.values(), ids=BAD)
def test_what_is_no_picture_is_refused_before_weights_load(hub_cache, fresh_store, bad, message):
    embedder = VisionEmbedder(BASE)
    with pytest.raises(bge_runtime.InputError, match=rf"images\[1\].*{message}") as caught:
        embedder.encode_images([picture(1), bad])
    assert len(str(caught.value)) < 500
    with pytest.raises(bge_runtime.InputError, match=rf"images\[0\].*{message}"):
        embedder.encode_image_texts([(bad, "a cat")])
    assert bge_runtime.loaded_models() == []


@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
def test_the_size_limit_is_ours_whatever_pillow_is_set_to(hub_cache, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(bge_runtime.InputError, match="20000 x 20000 pixels"):
        VisionEmbedder(BASE).encode_images([png_of(20_000, 20_000)])


@pytest.mark.parametrize("single", ["photo.jpg", b"bytes", io.BytesIO(), picture(1), None], ids=type)
def test_a_single_picture_is_no_list(hub_cache, single):
    with pytest.raises(bge_runtime.InputError, match="pass a list of pictures"):
        VisionEmbedder(BASE).encode_images(single)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("text", "pass a list"),
        (None, "pass a list"),
        (["ab"], r"pairs\[0\]"),
        ([(picture(1), "a", "b")], r"pairs\[0\]"),
        ([(picture(1), None)], r"texts\[0\]"),
    ],
    ids=["a text", "None", "two letters", "three things", "no text"],
)
def test_what_is_no_pair_is_refused(hub_cache, pairs, message):
    with pytest.raises(bge_runtime.InputError, match=message):
        VisionEmbedder(BASE).encode_image_texts(pairs)


def test_without_pillow_the_error_names_the_extra_and_texts_still_work(hub_cache, monkeypatch):
    expected = VisionEmbedder(BASE).encode_texts(["a cat"])
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(bge_runtime.ConfigurationError, match=r"bge-integrations\[vision\]"):
        VisionEmbedder(BASE).encode_images([b"picture"])
    np.testing.assert_allclose(VisionEmbedder(BASE).encode_texts(["a cat"]), expected, atol=1e-6)
