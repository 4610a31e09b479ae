"""Whoever is timed: ours by backend, sentence-transformers and FlagEmbedding, in one number format each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check.card import fast_precisions
from benchmarks.gpu_check.subjects import LONGEST, Inputs, Kind

__all__ = ["FLAG", "OURS", "THEIRS", "USUAL_BATCH", "Contestant", "Opened", "contestants", "open_contestant"]

OURS, THEIRS, FLAG = "bge-integrations", "sentence-transformers", "FlagEmbedding"
# What sentence-transformers takes unless it is told otherwise. It also gets as many texts as fill our budget of tokens.
USUAL_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A library with its settings.

    Attributes:
        library: Its name.
        precision: Number format.
        backend: Ours only.
    """

    library: str
    precision: str
    backend: str = ""

    @property
    def name(self) -> str:
        """What the results call it."""
        return f"{self.backend or self.library}, {self.precision}"


@dataclass(frozen=True)
class Opened:
    """A contestant with a model in memory.

    Attributes:
        compute: Inputs, and texts in a batch or `None` for its own choice, to one row per input.
        bytes: Size of the weights.
        chooses: Whether it chooses batches itself, by tokens.
        close: Lets go of the weights.
    """

    compute: Callable[[Inputs, int | None], NDArray[Any]]
    bytes: int
    chooses: bool
    close: Callable[[], Any]


def contestants(device: str) -> list[Contestant]:
    """Return everyone who can run here; what the runtime chooses by itself comes first."""
    precisions = fast_precisions(device)
    found = [
        Contestant(library=OURS, precision=precision, backend=backend)
        for precision in precisions
        for backend in ("torch", "packed")
    ]
    found += [Contestant(library=THEIRS, precision=precision) for precision in precisions]
    if find_spec(FLAG) is not None:
        found += [Contestant(library=FLAG, precision=each) for each in precisions if each in ("float16", "float32")]
    return found


def open_contestant(contestant: Contestant, folder: Path, kind: Kind, device: str) -> Opened:
    """Open a model; whatever the library raises is raised."""
    opener = {OURS: _open_ours, THEIRS: _open_theirs, FLAG: _open_flag}[contestant.library]
    return opener(contestant, folder, kind, device)


def _open_ours(contestant: Contestant, folder: Path, kind: Kind, device: str) -> Opened:
    from bge_runtime import Embedder, Reranker, loaded_models

    precision, backend = contestant.precision, contestant.backend
    model: Embedder | Reranker
    if kind == "embed":
        model = Embedder(
            folder, query_instruction="", truncation="silent", device=device, precision=precision, backend=backend
        ).warm_up()
        compute = model.encode_documents
    else:
        model = Reranker(folder, truncation="silent", device=device, precision=precision, backend=backend).warm_up()
        compute = model.score_pairs
    (size,) = {row.bytes for row in loaded_models() if (row.backend, row.precision) == (backend, precision)}
    return Opened(lambda inputs, batch: compute(inputs), size, True, model.close)


def _open_theirs(contestant: Contestant, folder: Path, kind: Kind, device: str) -> Opened:
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer

    options = {"device": device, "model_kwargs": {"dtype": getattr(torch, contestant.precision)}}
    model: Any
    if kind == "embed":
        model = SentenceTransformer(str(folder), **options)
    else:
        model = CrossEncoder(str(folder), max_length=LONGEST, activation_fn=torch.nn.Identity(), **options)
    run = model.encode if kind == "embed" else model.predict

    def compute(inputs: Inputs, batch: int | None) -> NDArray[Any]:
        return np.asarray(run(inputs, batch_size=batch or USUAL_BATCH, show_progress_bar=False))

    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return Opened(compute, size, False, lambda: None)


def _open_flag(contestant: Contestant, folder: Path, kind: Kind, device: str) -> Opened:
    from FlagEmbedding import FlagModel, FlagReranker

    options = {"use_fp16": contestant.precision == "float16", "devices": [device]}
    model: Any = (FlagModel if kind == "embed" else FlagReranker)(str(folder), **options)

    def compute(inputs: Inputs, batch: int | None) -> NDArray[Any]:
        sizes = {"batch_size": batch or USUAL_BATCH, "max_length": LONGEST}
        if kind == "embed":
            return np.asarray(model.encode_corpus(inputs, **sizes))
        return np.asarray(model.compute_score(inputs, **sizes))

    size = sum(weight.numel() * weight.element_size() for weight in model.model.parameters())
    return Opened(compute, size, False, lambda: None)
