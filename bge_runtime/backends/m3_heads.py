"""The two further heads of bge-m3 over the token states of any backend.

Definition: FlagEmbedding, `M3ForInference`. A token's lexical weight is relu(sparse_linear(state)); its ColBERT
vector is the unit vector of colbert_linear(state). Heads are read from the model's own files or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bge_runtime.backends.base import Backend, Output
from bge_runtime.backends.head_outputs import TextOutputs, pack_outputs
from bge_runtime.errors import BackendError, ModelNotFoundError
from bge_runtime.inputs.tokenizing import Tokenizing, TokenSequence
from bge_runtime.locks import cached_property
from bge_runtime.models import hub

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = ["BackendWithHeads"]

SPECIAL = {"cls_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


# A wrapper and no backend of its own: heads read token states, whoever has computed them.
class BackendWithHeads:
    """A backend that also knows the outputs `lexical` and `all`."""

    def __init__(self, inner: Backend, folder: Path, device: str) -> None:
        """Wrap a backend of the task `embed`; the heads are read when they are first asked for."""
        self._inner = inner
        self._folder = folder
        self._device = device
        self.pads = inner.pads
        self.tokenizing: Tokenizing = inner.tokenizing
        self.parameters = inner.parameters
        self.bytes = inner.bytes

    def forward(self, batch: Sequence[TokenSequence], output: Output) -> Sequence[NDArray[np.float32]]:
        """Run one batch; see `Backend.forward`."""
        if output not in ("lexical", "all"):
            return self._inner.forward(batch, output)
        states = self._inner.forward(batch, "tokens")
        weights, vectors = self._heads(np.concatenate(states), with_vectors=output == "all")
        rows, start = [], 0
        for sequence, own in zip(batch, states, strict=True):
            end = start + len(own)
            ids, largest = self._lexical(np.asarray(sequence.ids), weights[start:end])
            rows.append(pack_outputs(TextOutputs(own[0], ids, largest, vectors[start + 1 : end])))
            start = end
        return rows

    def _lexical(
        self, ids: NDArray[np.int64], weights: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return each token id once with its largest weight, without special tokens and weights of zero."""
        distinct, places = np.unique(ids, return_inverse=True)
        largest = np.zeros(len(distinct), np.float32)
        with np.errstate(invalid="ignore"):  # a NaN belongs to its text, and is refused where that is known
            np.maximum.at(largest, places, weights)
        kept = (largest > 0) & ~np.isin(distinct, self._special) | np.isnan(largest)
        return distinct[kept], largest[kept]

    @cached_property
    def _heads(self) -> _Heads:
        return _Heads.read(self._folder, self._device)

    @cached_property
    def _special(self) -> list[int]:
        names = dict(SPECIAL)
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            path = self._folder / file
            found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            for name in SPECIAL.keys() & found.keys():
                names[name] = found[name]["content"] if isinstance(found[name], dict) else found[name]
        ids = (self.tokenizing.token_id(token) for token in names.values() if token)
        return [each for each in ids if each is not None]


@dataclass(frozen=True, slots=True)
class _Heads:
    sparse: tuple[torch.Tensor, torch.Tensor]
    colbert: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def read(cls, folder: Path, device: str) -> _Heads:
        files = hub.head_files(folder)
        missing = sorted(set(hub.HEADS) - set(files))
        if missing:
            raise ModelNotFoundError(
                f"{str(folder)!r} has no {' and no '.join(missing)}, so its lexical weights and token vectors were "
                "never trained. Copy these files of BAAI/bge-m3 beside a fine-tune that kept them."
            )
        return cls(*(_linear(files[name], device) for name in hub.HEADS))

    def __call__(
        self, states: NDArray[np.float32], *, with_vectors: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return a lexical weight and, if asked for, a unit vector per token."""
        import torch
        from torch.nn import functional

        with torch.inference_mode():
            rows = torch.from_numpy(states).to(self.sparse[0].device)
            weights = torch.relu(functional.linear(rows, *self.sparse))[:, 0].cpu().numpy()
            if not with_vectors:
                return weights, states[:0]
            vectors = functional.normalize(functional.linear(rows, *self.colbert), dim=-1)
            return weights, vectors.cpu().numpy()


def _linear(file: Path, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: dict[str, Any] = load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
        weight, bias = found["weight"].float(), found["bias"].float()
    except Exception as error:  # each reader has error classes of its own
        raise BackendError(
            f"{str(file)!r} cannot be read ({type(error).__name__}: {error}). Fetch it again."
        ) from error
    return weight.to(device), bias.to(device)
