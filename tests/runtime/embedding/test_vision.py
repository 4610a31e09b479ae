"""BGE-VL: pictures, texts and both together, against transformers' CLIPModel and image processor."""

from __future__ import annotations

import asyncio
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

import bge_runtime
from bge_runtime import Embedder, Reranker, VisionEmbedder
from bge_runtime.embedding import vision
from tests.checkpoints.clip import CLIP_CHECKPOINTS, clip_files
from tests.checkpoints.hub_cache import write_files
from tests.checkpoints.pictures import file_of, picture
from tests.runtime import references

BASE = "BAAI/BGE-VL-base"
NAMES = [checkpoint.name for checkpoint in CLIP_CHECKPOINTS]
SIZES = [(60, 40), (40, 60), (224, 224), (300, 500), (1, 9), (640, 31)]
PICTURES = [picture(seed, *size) for seed, size in enumerate(SIZES)]
TEXTS = [
    "a cat sat on the mat",
    "",
    "Make the background dark, as if the camera has taken the photo at night",
    "Xyzzy, 大熊猫 & ünïcode",
    "the dog slept in the garden " * 30,
    "PANDA",
]


@cache
def authors(folder):
    """The parts of the authors' `encode`: model, tokenizer, image processor."""
    model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    return model, CLIPTokenizer.from_pretrained(folder), CLIPImageProcessorPil.from_pretrained(folder)


@torch.inference_mode()
def image_features(folder, image):
    model, _, processor = authors(folder)
    pixels = processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"]
    return model.get_image_features(pixels).pooler_output[0].double().numpy()


@torch.inference_mode()
def text_features(folder, text):
    model, tokenizer, _ = authors(folder)
    inputs = tokenizer(text, truncation=True, max_length=77, return_tensors="pt")
    return model.get_text_features(**inputs).pooler_output[0].double().numpy()


def unit(vector):
    return vector / np.linalg.norm(vector)


@pytest.fixture
def folder(hub_cache):
    return references.snapshot_of(hub_cache, BASE)


@pytest.fixture
def embedder(hub_cache):
    return VisionEmbedder(BASE, truncation="silent")


@pytest.mark.parametrize("name", NAMES)
def test_pictures_texts_and_pairs_are_what_the_authors_define(hub_cache, name):
    folder = references.snapshot_of(hub_cache, name)
    embedder = VisionEmbedder(name, truncation="silent")
    images, texts, both = (
        embedder.encode_images(PICTURES),
        embedder.encode_texts(TEXTS),
        embedder.encode_image_texts(zip(PICTURES, TEXTS, strict=True)),
    )
    assert images.dtype == texts.dtype == both.dtype == np.float32
    assert images.shape == (len(PICTURES), bge_runtime.get_spec(name).dimension)
    features = [image_features(folder, each) for each in PICTURES], [text_features(folder, each) for each in TEXTS]
    np.testing.assert_allclose(images, [unit(each) for each in features[0]], atol=1e-5)
    np.testing.assert_allclose(texts, [unit(each) for each in features[1]], atol=1e-5)
    np.testing.assert_allclose(both, [unit(a + b) for a, b in zip(*features, strict=True)], atol=1e-5)


def test_wrong_ways_would_be_seen(folder, embedder):
    """Sums of scaled features, squashed pictures and texts without their last token are other vectors."""
    (image,), (text,) = embedder.encode_images(PICTURES[3:4]), embedder.encode_texts(TEXTS[4:5])
    (both,) = embedder.encode_image_texts([(PICTURES[3], TEXTS[4])])
    model, tokenizer, _ = authors(folder)
    assert np.abs(both - unit(image + text)).max() > 1e-2
    assert np.abs(image - unit(image_features(folder, PICTURES[3].resize((224, 224))))).max() > 1e-2
    ids = tokenizer(TEXTS[4], return_tensors="pt")["input_ids"][:, :77]
    with torch.inference_mode():
        cut = model.get_text_features(input_ids=ids).pooler_output[0].double().numpy()
    assert np.abs(text - unit(cut)).max() > 1e-2


def test_one_by_one_is_as_together(embedder):
    images, texts = embedder.encode_images(PICTURES), embedder.encode_texts(TEXTS)
    both = embedder.encode_image_texts(zip(PICTURES, TEXTS, strict=True))
    for index, (image, text) in enumerate(zip(PICTURES, TEXTS, strict=True)):
        np.testing.assert_allclose(embedder.encode_images([image])[0], images[index], atol=1e-5)
        np.testing.assert_allclose(embedder.encode_texts([text])[0], texts[index], atol=1e-5)
        np.testing.assert_allclose(embedder.encode_image_texts([(image, text)])[0], both[index], atol=1e-5)


def test_many_pictures_keep_their_order_over_windows(embedder, monkeypatch):
    images = [picture(seed % 5) for seed in range(11)]
    expected = embedder.encode_images(images[:5])
    monkeypatch.setattr(vision, "IMAGE_WINDOW", 3)
    np.testing.assert_allclose(embedder.encode_images(iter(images)), expected[np.arange(11) % 5], atol=1e-5)


def test_nothing_gives_an_empty_array_and_loads_nothing(embedder, fresh_store):
    assert embedder.encode_images([]).shape == embedder.encode_image_texts([]).shape == (0, 512)
    assert bge_runtime.loaded_models() == []


def test_async_is_the_same(embedder):
    async def all_three():
        return await asyncio.gather(
            embedder.aencode_images(PICTURES),
            embedder.aencode_texts(TEXTS),
            embedder.aencode_image_texts(zip(PICTURES, TEXTS, strict=True)),
        )

    images, texts, both = asyncio.run(all_three())
    np.testing.assert_allclose(images, embedder.encode_images(PICTURES), atol=1e-5)
    np.testing.assert_allclose(texts, embedder.encode_texts(TEXTS), atol=1e-5)
    np.testing.assert_allclose(both, embedder.encode_image_texts(list(zip(PICTURES, TEXTS, strict=True))), atol=1e-5)


def test_an_embedder_of_the_model_shares_its_weights_and_gives_its_texts(embedder, fresh_store):
    plain = Embedder(BASE, truncation="silent")
    np.testing.assert_allclose(plain.encode_queries(TEXTS), embedder.encode_texts(TEXTS), atol=1e-6)
    embedder.encode_images(PICTURES[:1])
    VisionEmbedder.of(plain).encode_images(PICTURES[:1])
    (loaded,) = bge_runtime.loaded_models()
    assert (loaded.backend, loaded.precision) == ("torch", "float32")


def test_a_bad_picture_fails_its_own_call_only(embedder, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(file_of(picture(1, 300, 300))[:2000])
    expected = embedder.encode_images(PICTURES[:2])

    def call(number):
        if number % 3:
            return embedder.encode_images(PICTURES[:2])
        with pytest.raises(bge_runtime.InputError, match=r"images\[1\].*broken\.png"):
            embedder.encode_images([PICTURES[0], broken])
        return expected

    with ThreadPoolExecutor(6) as pool:
        for vectors in pool.map(call, range(12)):
            np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_long_texts_are_cut_to_77_tokens_and_counted(hub_cache, caplog):
    embedder = VisionEmbedder(BASE)
    assert embedder.max_length == 77
    embedder.encode_image_texts([(PICTURES[0], TEXTS[4]), (PICTURES[1], "short")])
    assert embedder.truncated_count == 1
    assert "1 of 2 texts were cut to the 77 tokens" in caplog.text
    strict = VisionEmbedder(BASE, truncation="error")
    with pytest.raises(bge_runtime.InputTooLongError, match="77 tokens"):
        strict.encode_image_texts([(PICTURES[0], TEXTS[4])])
    with pytest.raises(bge_runtime.ConfigurationError, match="77"):
        VisionEmbedder(BASE, max_length=78)


def test_options_of_vectors_hold_for_pictures(folder, hub_cache):
    raw = VisionEmbedder(BASE, normalize=False, truncate_dim=100)
    np.testing.assert_allclose(raw.encode_images(PICTURES[:1])[0], image_features(folder, PICTURES[0])[:100], atol=1e-4)
    short = VisionEmbedder(BASE, truncate_dim=100).encode_image_texts([(PICTURES[0], "a cat")])
    expected = image_features(folder, PICTURES[0]) + text_features(folder, "a cat")
    np.testing.assert_allclose(short[0], unit(expected[:100]), atol=1e-5)


def test_bfloat16_is_near(hub_cache, embedder):
    half = VisionEmbedder(BASE, precision="bfloat16").encode_images(PICTURES)
    assert np.sum(half * embedder.encode_images(PICTURES), axis=1).min() > 0.999


def test_a_copy_by_pickle_is_equal(embedder):
    copy = pickle.loads(pickle.dumps(embedder))
    assert type(copy) is VisionEmbedder
    assert repr(copy) == repr(embedder) == "VisionEmbedder('BAAI/BGE-VL-base')"
    assert copy.identity == embedder.identity


def test_the_code_of_the_repository_is_never_run(folder, hub_cache, embedder):
    assert b"raise AssertionError" in (folder / "modeling_MMRet_CLIP.py").read_bytes()
    trusting = VisionEmbedder(BASE, trust_remote_code=True)
    np.testing.assert_allclose(trusting.encode_images(PICTURES[:1]), embedder.encode_images(PICTURES[:1]), atol=1e-6)


def test_a_folder_is_known_by_its_files(tmp_path, folder, embedder):
    files = clip_files(CLIP_CHECKPOINTS[0])
    local = VisionEmbedder(write_files(tmp_path / "mine", files))
    assert (local.spec.kind, local.dimension, local.max_length, local.normalize) == ("vision", 512, 77, True)
    np.testing.assert_allclose(local.encode_images(PICTURES[:2]), embedder.encode_images(PICTURES[:2]), atol=1e-6)
    images = files.pop("preprocessor_config.json")
    write_files(tmp_path / "newer", {**files, "processor_config.json": b'{"image_processor": %b}' % images})
    newer = VisionEmbedder(tmp_path / "newer")
    np.testing.assert_allclose(newer.encode_images(PICTURES[:2]), embedder.encode_images(PICTURES[:2]), atol=1e-6)
    with pytest.raises(bge_runtime.ModelNotFoundError, match="preprocessor_config"):
        VisionEmbedder(write_files(tmp_path / "none", files)).encode_images(PICTURES[:1])


def test_other_ways_of_reading_pictures_are_refused(tmp_path):
    files = clip_files(CLIP_CHECKPOINTS[0])
    squashed = files["preprocessor_config.json"].replace(b'"shortest_edge": 224', b'"height": 224, "width": 224')
    local = VisionEmbedder(write_files(tmp_path / "squashed", {**files, "preprocessor_config.json": squashed}))
    with pytest.raises(bge_runtime.UnsupportedModelError, match="shortest edge"):
        local.encode_images(PICTURES[:1])


def test_models_and_classes_that_do_not_go_together_are_refused(hub_cache):
    with pytest.raises(bge_runtime.ConfigurationError, match="reads texts only"):
        VisionEmbedder("BAAI/bge-small-en-v1.5")
    with pytest.raises(bge_runtime.ConfigurationError, match="vision model"):
        Reranker(BASE)
    with pytest.raises(bge_runtime.UnsupportedModelError, match="no output 'tokens'"):
        Embedder(BASE).encode_tokens(["a cat"])
    with pytest.raises(bge_runtime.UnsupportedModelError, match=r"transformers 4\.45"):
        VisionEmbedder("BAAI/BGE-VL-MLLM-S1")


@pytest.mark.parametrize(
    "options",
    [{"backend": "onnx"}, {"backend": "openvino"}, {"backend": "packed", "precision": "int8"}],
    ids=str,
)
def test_backends_that_cannot_run_it_say_so(hub_cache, options):
    for package in {"onnx": ["onnxruntime"], "openvino": ["openvino"]}.get(options["backend"], []):
        pytest.importorskip(package)
    with pytest.raises(bge_runtime.UnsupportedModelError, match="BGE-VL-base"):
        VisionEmbedder(BASE, **options).encode_images(PICTURES[:1])


def test_no_int8_by_choice(hub_cache):
    with pytest.raises(bge_runtime.ConfigurationError, match="int8"):
        VisionEmbedder(BASE, precision="int8").encode_images(PICTURES[:1])
