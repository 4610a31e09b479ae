"""Small seeded checkpoints laid out exactly as the hub repositories are, in a hub cache of our own.

Architecture class, file names, vector width and position table are the published ones; the number of layers,
the vocabulary and the weights are not. Code that loads `BAAI/...` by name therefore runs as it does with the
real files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from tests.checkpoints.clip import CLIP_CHECKPOINTS, clip_files
from tests.checkpoints.decoders import DECODERS, DecoderCheckpoint, decoder_files
from tests.checkpoints.encoder_tokenizers import bert_tokenizer
from tests.checkpoints.files import Checkpoint, Files, checkpoint_files, config_of, to_json

__all__ = [
    "BY_NAME",
    "CHECKPOINTS",
    "POISON",
    "Checkpoint",
    "build_hub_cache",
    "commit_of",
    "files_of",
    "fine_tuned_folder",
    "folder_without_weights",
    "padded_tokenizer_folder",
    "pickled_folder",
    "place_in_hub_cache",
    "poisoned_folder",
    "poisoned_reranker_folder",
    "two_label_folder",
    "write_checkpoint",
    "write_files",
]

CHECKPOINTS = (
    Checkpoint(name="BAAI/bge-small-en-v1.5", family="bert", hidden=384, heads=12, seed=1),
    Checkpoint(name="BAAI/bge-small-zh-v1.5", family="bert", hidden=512, heads=8, seed=2),
    Checkpoint(name="BAAI/llm-embedder", family="bert", hidden=768, heads=12, seed=3),
    Checkpoint(
        name="BAAI/bge-m3",
        family="xlmr",
        hidden=1024,
        heads=16,
        seed=4,
        positions=8194,
        max_length=8192,
        pickled=True,
        m3_heads=True,
    ),
    Checkpoint(name="BAAI/bge-reranker-base", family="xlmr", hidden=128, seed=5, positions=514, head=1, modules=False),
    Checkpoint(
        name="BAAI/bge-reranker-v2-m3",
        family="xlmr",
        hidden=128,
        seed=6,
        positions=8194,
        max_length=8192,
        head=1,
        modules=False,
    ),
    Checkpoint(
        name="BAAI/bge-m3-unsupervised",
        family="xlmr",
        hidden=1024,
        heads=16,
        seed=7,
        positions=8194,
        max_length=8192,
        layers=1,
        pickled=True,
    ),
    *DECODERS,
    Checkpoint(
        name="BAAI/bge-reranker-v2-gemma", family="gemma", hidden=32, layers=18, seed=7, positions=8192, max_length=8192
    ),
    Checkpoint(
        name="BAAI/bge-reranker-v2-minicpm-layerwise",
        family="minicpm",
        hidden=32,
        layers=40,
        seed=8,
        positions=2048,
        max_length=2048,
    ),
    Checkpoint(
        name="BAAI/bge-reranker-v2.5-gemma2-lightweight",
        family="cost_wise_gemma",
        hidden=32,
        layers=42,
        seed=9,
        positions=8192,
        max_length=8192,
    ),
)
POISON = "weather"
BY_NAME = {checkpoint.name: checkpoint for checkpoint in CHECKPOINTS}


def build_hub_cache(cache: Path, checkpoints: tuple[Checkpoint | DecoderCheckpoint, ...] = CHECKPOINTS) -> Path:
    """Write checkpoints into a Hugging Face hub cache folder and return the folder."""
    for checkpoint in checkpoints:
        place_in_hub_cache(cache, checkpoint.name, files_of(checkpoint))
    for clip in CLIP_CHECKPOINTS:
        place_in_hub_cache(cache, clip.name, clip_files(clip))
    return cache


def files_of(checkpoint: Checkpoint | DecoderCheckpoint) -> Files:
    """Return the content of every file of a checkpoint."""
    return decoder_files(checkpoint) if isinstance(checkpoint, DecoderCheckpoint) else checkpoint_files(checkpoint)


def commit_of(name: str) -> str:
    """Return the made-up commit of a repository in the cache."""
    return hashlib.sha1(name.encode()).hexdigest()


def place_in_hub_cache(cache: Path, name: str, files: Mapping[str, bytes]) -> Path:
    """Store files as the hub's client does: blobs by digest, a snapshot of links, `refs/main`."""
    root = cache / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / commit_of(name)
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(commit_of(name))
    for path, content in files.items():
        blob = root / "blobs" / _blob_name(path, content)
        blob.write_bytes(content)
        link = snapshot / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def write_checkpoint(folder: Path, checkpoint: Checkpoint | DecoderCheckpoint, **changes: bytes | None) -> Path:
    """Write a checkpoint into a folder; `changes` replaces files, or drops those given as `None`."""
    files = {**files_of(checkpoint), **changes}
    return write_files(folder, {path: content for path, content in files.items() if content is not None})


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below a folder and return it."""
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder


def fine_tuned_folder(folder: Path, *, base_model: str = "BAAI/bge-small-en-v1.5", seed: int = 21) -> Path:
    """A BGE fine-tune saved by plain transformers: no `modules.json`, the base in `_name_or_path`."""
    base = BY_NAME[base_model]
    tuned = Checkpoint(
        name=base_model, family=base.family, hidden=base.hidden, heads=base.heads, seed=seed, modules=False
    )
    return write_checkpoint(
        folder, tuned, **{"config.json": to_json({**config_of(tuned), "_name_or_path": base_model})}
    )


def folder_without_weights(folder: Path) -> Path:
    """A folder with configuration and tokenizer, and no weights."""
    return write_checkpoint(folder, _small(seed=22), **{"model.safetensors": None})


def pickled_folder(folder: Path) -> Path:
    """A folder of an unknown model with its weights in pickle format only."""
    return write_checkpoint(folder, _small(seed=23, pickled=True))


def padded_tokenizer_folder(folder: Path) -> Path:
    """A folder whose `tokenizer.json` truncates to 128 tokens and pads to 128, as all-MiniLM-L6-v2's does."""
    checkpoint = _small(seed=24)
    tokenizer = bert_tokenizer()
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding(length=128)
    return write_checkpoint(folder, checkpoint, **{"tokenizer.json": tokenizer.to_str().encode()})


def two_label_folder(folder: Path) -> Path:
    """A classifier with two labels, the second of which means relevant."""
    return write_checkpoint(folder, _small(seed=25, head=2, modules=False))


def poisoned_reranker_folder(folder: Path) -> Path:
    """A reranker whose score is NaN for every pair that holds the word `POISON`."""
    checkpoint = Checkpoint(
        name="somebody/poisoned",
        family="xlmr",
        hidden=64,
        seed=26,
        positions=514,
        head=1,
        modules=False,
        poisoned_token=f"▁{POISON}",
    )
    return write_checkpoint(folder, checkpoint)


def poisoned_folder(folder: Path) -> Path:
    """An embedder whose vector is NaN for every text that holds the word `POISON`."""
    checkpoint = Checkpoint(name="somebody/poisoned", family="bert", hidden=64, seed=27, poisoned_token=POISON)
    return write_checkpoint(folder, checkpoint)


def _small(*, seed: int, head: int = 0, modules: bool = True, pickled: bool = False) -> Checkpoint:
    return Checkpoint(
        name="somebody/small",
        family="bert",
        hidden=64,
        seed=seed,
        head=head,
        modules=modules,
        pickled=pickled,
    )


def _blob_name(path: str, content: bytes) -> str:
    """Large files are named by SHA-256, the others as git names them."""
    if path.endswith((".safetensors", ".bin", ".pt")):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
