"""Small seeded copies of BGE-VL-base and BGE-VL-large: their files, tokenizer class and vector width."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.checkpoints.encoder_tokenizers import ENGLISH
from tests.checkpoints.files import Files, to_json

__all__ = ["CLIP_CHECKPOINTS", "ClipCheckpoint", "clip_files"]

START, END = "<|startoftext|>", "<|endoftext|>"
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]
# The repositories' own code must never run.
REMOTE_CODE = b"raise AssertionError('the code of the repository was run')\n"


@dataclass(frozen=True, kw_only=True)
class ClipCheckpoint:
    """What one seeded repository looks like.

    `legacy_end` says whether the configuration names 2 as the last token, as configurations from before
    transformers 4.31 do whatever the tokenizer says; the model then takes the highest id.
    """

    name: str
    dimension: int
    patch: int
    seed: int
    legacy_end: bool


CLIP_CHECKPOINTS = (
    ClipCheckpoint(name="BAAI/BGE-VL-base", dimension=512, patch=16, seed=31, legacy_end=True),
    ClipCheckpoint(name="BAAI/BGE-VL-large", dimension=768, patch=14, seed=32, legacy_end=False),
)


def clip_files(checkpoint: ClipCheckpoint) -> Files:
    """Return the content of every file of a checkpoint."""
    config = _config(checkpoint)
    return {
        "config.json": to_json(config),
        "modeling_MMRet_CLIP.py": REMOTE_CODE,
        "model.safetensors": _weights(checkpoint, config),
        "preprocessor_config.json": to_json(_preprocessor()),
        **_tokenizer_files(),
    }


def _config(checkpoint: ClipCheckpoint) -> dict[str, Any]:
    vocabulary = len(_vocabulary())
    shared = {"intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 2, "projection_dim": 512}
    ends = {"bos_token_id": 0, "eos_token_id": 2}
    if not checkpoint.legacy_end:
        ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1}
    return {
        "architectures": ["CLIPModel"],
        "auto_map": {"AutoModel": "modeling_MMRet_CLIP.CLIPModel"},
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": checkpoint.dimension,
        "text_config": {
            **shared,
            **ends,
            "hidden_size": 48,
            "max_position_embeddings": 77,
            "model_type": "clip_text_model",
            "vocab_size": vocabulary,
        },
        "torch_dtype": "float32",
        "vision_config": {
            **shared,
            "hidden_size": 64,
            "image_size": 224,
            "model_type": "clip_vision_model",
            "patch_size": checkpoint.patch,
        },
    }


def _preprocessor() -> dict[str, Any]:
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
    return {
        **dict.fromkeys(steps, True),
        "crop_size": {"height": 224, "width": 224},
        "image_mean": MEAN,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": STD,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 224},
    }


def _weights(checkpoint: ClipCheckpoint, config: dict[str, Any]) -> bytes:
    """Random weights, large enough for pictures and texts to differ."""
    import safetensors.torch
    import torch
    from transformers import CLIPConfig, CLIPModel

    settings = {key: value for key, value in config.items() if key not in ("architectures", "auto_map", "torch_dtype")}
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in CLIPModel(CLIPConfig(**settings)).state_dict().items()}
    generator = torch.Generator().manual_seed(checkpoint.seed)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) < 2:
            is_norm = "norm" in name and name.endswith(".weight")
            weights[name] = (1 + 0.1 * noise) if is_norm else 0.05 * noise
        elif "embedding" in name and "patch" not in name:
            weights[name] = 0.5 * noise
        else:
            # Features of pictures are longer than those of texts, so that a sum of unit vectors would be seen.
            scale = 4.0 if name.startswith("visual_projection") else 1.5
            weights[name] = scale * shape[1:].numel() ** -0.5 * noise
    return safetensors.torch.save(weights, metadata={"format": "pt"})


def _tokenizer_files() -> Files:
    from transformers import CLIPTokenizer

    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    tokenizer = CLIPTokenizer(vocab=_vocabulary(), merges=list(_merges()))
    return {
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in _merges())]).encode() + b"\n",
        "special_tokens_map.json": to_json(special),
        "tokenizer.json": tokenizer.backend_tokenizer.to_str().encode(),
        "tokenizer_config.json": to_json(
            {**special, "do_lower_case": True, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
        ),
        "vocab.json": to_json(_vocabulary()),
    }


@cache
def _merges() -> tuple[tuple[str, str], ...]:
    """Pairs that build the known words from left to right."""
    pairs: dict[tuple[str, str], None] = {}
    for word in sorted(set(re.findall("[a-z]+", ENGLISH.lower()))):
        left, *rest = [*word[:-1], f"{word[-1]}</w>"]
        for right in rest:
            pairs[left, right] = None
            left += right
    return tuple(pairs)


@cache
def _vocabulary() -> dict[str, int]:
    """The published order: bytes, bytes at a word's end, merged pieces, and the two special tokens last."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    single = list(bytes_to_unicode().values())
    pieces = dict.fromkeys([*single, *(f"{mark}</w>" for mark in single), *map("".join, _merges()), START, END])
    return {piece: number for number, piece in enumerate(pieces)}
