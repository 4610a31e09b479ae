"""The heads of bge-m3 in training: dense, lexical and multi-vector scores of the same pass, alone or together.

Losses: arXiv:2402.03216, section 3.3, and FlagEmbedding's `finetune/embedder/encoder_only/m3`, whose weights these are.
Unlike there, tokens that fill a batch up are not compared, as they are not in inference.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from torch.nn import functional

from bge_runtime import BackendError, ConfigurationError, ModelNotFoundError
from bge_runtime.training import adapters
from bge_runtime.training.mixing import HEADS

__all__ = [
    "GATE_WEIGHTS",
    "OUTPUTS",
    "Heads",
    "HeadsLoss",
    "Read",
    "add_heads",
    "compared",
    "load_checkpoint",
    "loss_of",
    "read",
    "take_heads",
    "weighted",
]

OUTPUTS = ("dense", "sparse", "multi_vector")
# Of each output's score in the sum of all, and of each loss in the mean of losses.
IN_SUM = {"dense": 1.0, "sparse": 0.3, "multi_vector": 1.0}
IN_LOSS = {"dense": 1.0, "sparse": 0.1, "multi_vector": 1.0}
# What the model card of bge-m3 adds scores by, for the development score and the gate.
GATE_WEIGHTS = {"dense": 0.4, "sparse": 0.2, "multi_vector": 0.4}
# Below this share of what they were, lexical weights are taken to have died: a weight that falls to 0 has no gradient.
COLLAPSED = 0.01
FILE = "heads.safetensors"
SPECIAL = ("cls_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


class Read(NamedTuple):
    """What a pass gives of n texts of t tokens: dense [n, d], ids and weights [n, t], token vectors [n, t, d]."""

    dense: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    vectors: torch.Tensor
    # Tokens that are compared: all but the first, and none that fill up.
    is_token: torch.Tensor


class Heads(Module):
    """Both heads, behind the pooling; they read the states of tokens as `BackendWithHeads` does."""

    def __init__(self, sparse: torch.nn.Linear, colbert: torch.nn.Linear, special: Sequence[int]) -> None:
        """Take the heads and the ids of tokens that have no lexical weight."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.sparse_linear = sparse
        self.colbert_linear = colbert
        self.register_buffer("special", torch.tensor(list(special)), persistent=False)

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `lexical_weights` and `token_vectors`."""
        states = features["token_embeddings"]
        weights = torch.relu(self.sparse_linear(states))[..., 0]
        hidden = torch.isin(features["input_ids"], self.special) | (features["attention_mask"] == 0)
        features["lexical_weights"] = weights.masked_fill(hidden, 0.0)
        features["token_vectors"] = functional.normalize(self.colbert_linear(states), dim=-1)
        return features

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the heads into a checkpoint."""
        save_file(self.state_dict(), Path(output_path) / FILE)


def add_heads(model: SentenceTransformer, folder: Path) -> None:
    """Put the heads of a model's folder behind its modules.

    Raises:
        ModelNotFoundError: The folder lacks one.
    """
    found = []
    for name in HEADS:
        files = [file for suffix in ("safetensors", "pt") if (file := folder / f"{name}.{suffix}").is_file()]
        if not files:
            raise ModelNotFoundError(
                f"{str(folder)!r} has no {name}, which outputs= asks to be trained. Copy this file of BAAI/bge-m3 "
                "beside it, or train outputs=('dense',)."
            )
        state = (
            load_file(files[0])
            if files[0].suffix == ".safetensors"
            else torch.load(files[0], map_location="cpu", weights_only=True)
        )
        head = torch.nn.Linear(state["weight"].shape[1], state["weight"].shape[0])
        head.load_state_dict({key: value.float() for key, value in state.items()})
        found.append(head)
    ids = [getattr(model.tokenizer, name) for name in SPECIAL]
    model.append(Heads(found[0], found[1], sorted({each for each in ids if each is not None})))


def take_heads(model: SentenceTransformer, folder: Path) -> None:
    """Take the heads from behind a model's modules, and write them where the runtime reads them."""
    heads = model[-1]
    assert isinstance(heads, Heads)
    del model[-1]
    for name in HEADS:
        state = getattr(heads, name).state_dict()
        save_file({key: value.contiguous().cpu() for key, value in state.items()}, folder / f"{name}.safetensors")
    for place in folder.glob("*_Heads"):
        shutil.rmtree(place)


def load_checkpoint(model: SentenceTransformer, folder: str | Path) -> None:
    """Read the weights of a checkpoint, heads and all, into a model that has them."""
    adapters.load_checkpoint(model, folder)
    heads = model[-1]
    found = next(Path(folder).glob(f"*/{FILE}"), None)
    if found is None:
        raise ConfigurationError(f"Checkpoint {str(folder)!r} lacks {FILE}. Take it away to go on from the one before.")
    heads.load_state_dict(load_file(found))


def read(model: SentenceTransformer, features: Mapping[str, torch.Tensor]) -> Read:
    """Run a batch of texts through a model with heads."""
    given = dict(features)
    found = model(given)
    mask = features["attention_mask"].bool().clone()
    mask[:, 0] = False
    return Read(
        dense=functional.normalize(found["sentence_embedding"].float(), dim=-1),
        ids=features["input_ids"],
        weights=found["lexical_weights"].float(),
        vectors=found["token_vectors"].float(),
        is_token=mask,
    )


def compared(queries: Read, documents: Read, outputs: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the scores [n, m] of each output, as inference has them: cosine, sum of products, mean of MaxSim."""
    found = {}
    if "dense" in outputs:
        found["dense"] = queries.dense @ documents.dense.T
    if "sparse" in outputs:
        # Only the tokens that are there: the whole vocabulary would be a gigabyte for a batch.
        ids, places = torch.unique(torch.cat([queries.ids.flatten(), documents.ids.flatten()]), return_inverse=True)
        own, other = places[: queries.ids.numel()], places[queries.ids.numel() :]
        found["sparse"] = _lexical(queries, own, len(ids)) @ _lexical(documents, other, len(ids)).T
    if "multi_vector" in outputs:
        each = torch.einsum("nik,mjk->nmij", queries.vectors, documents.vectors)
        best = each.masked_fill(~documents.is_token[None, :, None, :], -1.0).amax(dim=-1)
        counted = queries.is_token[:, None, :]
        found["multi_vector"] = (best * counted).sum(dim=-1) / counted.sum(dim=-1).clamp(min=1)
    return found


class HeadsLoss(torch.nn.Module):
    """Cross-entropy of each output's scores and of their sum, which also teaches each of them.

    Attributes:
        model: The model with its heads.
    """

    def __init__(self, model: SentenceTransformer, outputs: Sequence[str], temperature: float) -> None:
        """Take the model, which outputs learn, and by what all scores are divided."""
        super().__init__()
        self.model = model
        self._outputs = tuple(outputs)
        self._temperature = temperature
        self._first: float | None = None

    def forward(self, features: Sequence[dict[str, torch.Tensor]], labels: torch.Tensor | None) -> torch.Tensor:
        """Return the loss of questions, in the first column, with the texts of the further ones.

        Raises:
            BackendError: Lexical weights have collapsed.
        """
        queries, *columns = [read(self.model, each) for each in features]
        if "sparse" in self._outputs:
            self._watch(columns[0])
        parts = [compared(queries, column, self._outputs) for column in columns]
        scores = {name: torch.cat([part[name] for part in parts], dim=1) / self._temperature for name in self._outputs}
        return loss_of(scores)

    def _watch(self, positives: Read) -> None:
        mean = float(positives.weights.detach().sum(dim=1).mean())
        self._first = mean if self._first is None else self._first
        if not mean > COLLAPSED * self._first:
            raise BackendError(
                f"The lexical weights of a batch have fallen from {self._first:.4g} to {mean:.4g} for a text, and "
                "weights of 0 learn nothing. Use a lower learning rate, or leave 'sparse' out of outputs=. The last "
                "checkpoint is kept."
            )


def loss_of(scores: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the loss of scores [n, m] by output, already divided by the temperature; row i is answered by column i.

    With several outputs it is (L + L') / 2: L is the mean of their cross-entropies and that of their weighted sum, and
    L' that of their cross-entropies to the softmax of the sum.
    """
    device = next(iter(scores.values())).device
    wanted = torch.arange(len(next(iter(scores.values()))), device=device)
    own = [IN_LOSS[name] * functional.cross_entropy(each, wanted) for name, each in scores.items()]
    if len(scores) == 1:
        return functional.cross_entropy(next(iter(scores.values())), wanted)
    together = torch.stack([IN_SUM[name] * each for name, each in scores.items()]).sum(dim=0)
    hard = (torch.stack(own).sum() + functional.cross_entropy(together, wanted)) / (len(own) + 1)
    teacher = together.detach().softmax(dim=1)
    taught = [IN_LOSS[name] * functional.cross_entropy(each, teacher) for name, each in scores.items()]
    return (hard + torch.stack(taught).mean()) / 2


def weighted(queries: Sequence[Read], documents: Sequence[Read], outputs: Sequence[str]) -> torch.Tensor:
    """Return the weighted mean of the outputs' scores [n, m], of texts that were read in several batches."""
    total = sum(GATE_WEIGHTS[name] for name in outputs)
    rows = []
    for own in queries:
        parts = [compared(own, other, outputs) for other in documents]
        scores = [torch.stack([GATE_WEIGHTS[name] * part[name] for name in outputs]).sum(dim=0) for part in parts]
        rows.append(torch.cat(scores, dim=1) / total)
    return torch.cat(rows)


def _lexical(texts: Read, places: torch.Tensor, count: int) -> torch.Tensor:
    """Return the largest weight of each distinct token, [n, count]."""
    empty = torch.zeros((len(texts.ids), count), dtype=texts.weights.dtype, device=texts.weights.device)
    return empty.scatter_reduce(1, places.reshape(texts.ids.shape), texts.weights, reduce="amax")
