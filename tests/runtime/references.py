"""The same numbers, computed with plain transformers and NumPy, one text at a time; nothing of ours runs here."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

__all__ = [
    "Heads",
    "icl_vector",
    "last_token_vector",
    "late_interaction",
    "m3",
    "m3_scores",
    "pair_logit",
    "snapshot_of",
    "token_states",
    "unit",
    "vector",
]


def snapshot_of(hub_cache: Path, name: str) -> Path:
    """Return the folder of a repository's only snapshot."""
    (folder,) = (hub_cache / f"models--{name.replace('/', '--')}" / "snapshots").iterdir()
    return folder


def unit(rows: np.ndarray) -> np.ndarray:
    """Scale rows to length 1."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def token_states(folder: Path, text: str, max_length: int) -> np.ndarray:
    """Return the last hidden states of a text cut to `max_length` tokens, special tokens included."""
    ids = _content(folder, text)[: max_length - 2]
    first, last = _special(folder)
    inputs = torch.tensor([[first, *ids, last]])
    with torch.inference_mode():
        states = _encoder(folder)(input_ids=inputs, attention_mask=torch.ones_like(inputs))
    return states.last_hidden_state[0].double().numpy()


def vector(folder: Path, text: str, *, max_length: int, pooling: str = "cls") -> np.ndarray:
    """Return the L2-normalised vector of a text."""
    states = token_states(folder, text, max_length)
    return unit(states[0] if pooling == "cls" else states.mean(axis=0))


def pair_logit(folder: Path, query: str, document: str, *, max_length: int) -> np.ndarray:
    """Return the raw logits of a pair: the query keeps three quarters, then only the document is cut."""
    first, last = _special(folder)
    head = [first, *_content(folder, query)[: int(0.75 * max_length)], last]
    model = _classifier(folder)
    is_bert = model.config.model_type == "bert"
    head += [] if is_bert else [last]
    tail = [*_content(folder, document)[: max_length - len(head) - 1], last]
    inputs: dict[str, Any] = {"input_ids": torch.tensor([[*head, *tail]])}
    if is_bert:
        inputs["token_type_ids"] = torch.tensor([[0] * len(head) + [1] * len(tail)])
    with torch.inference_mode():
        return model(**inputs, attention_mask=torch.ones_like(inputs["input_ids"])).logits[0].double().numpy()


def late_interaction(folder: Path, query: str, document: str, *, max_length: int) -> float:
    """Return the mean over query tokens of the best cosine with a document token."""
    left = unit(token_states(folder, query, max_length))
    right = unit(token_states(folder, document, max_length))
    return float(np.mean([max(float(a @ b) for b in right) for a in left]))


class Heads(NamedTuple):
    """What bge-m3 says of a text: unit vector, weight by token id, unit vectors of all tokens but the first."""

    dense: np.ndarray
    sparse: dict[int, float]
    vectors: np.ndarray


def m3(folder: Path, text: str, *, max_length: int) -> Heads:
    """Return the three outputs, as FlagEmbedding's `M3ForInference` defines them."""
    states = token_states(folder, text, max_length)
    first, last = _special(folder)
    ids = [first, *_content(folder, text)[: max_length - 2], last]
    lexical, colbert = (torch.load(folder / f"{name}_linear.pt", weights_only=True) for name in ("sparse", "colbert"))
    weights = np.maximum(states @ lexical["weight"][0].double().numpy() + float(lexical["bias"][0]), 0)
    sparse: dict[int, float] = {}
    for token, weight in zip(ids, weights, strict=True):
        if token not in (0, 1, 2, 3) and weight > sparse.get(token, 0):
            sparse[token] = float(weight)
    vectors = states[1:] @ colbert["weight"].double().numpy().T + colbert["bias"].double().numpy()
    return Heads(unit(states[0]), sparse, unit(vectors))


def m3_scores(folder: Path, query: str, document: str, *, max_length: int) -> dict[str, float]:
    """Return the score of each kind of output."""
    left, right = (m3(folder, text, max_length=max_length) for text in (query, document))
    return {
        "dense": float(left.dense @ right.dense),
        "sparse": sum(weight * right.sparse.get(token, 0.0) for token, weight in left.sparse.items()),
        "multi_vector": float(np.mean([max(float(a @ b) for b in right.vectors) for a in left.vectors])),
    }


@cache
def _tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _content(folder: Path, text: str) -> list[int]:
    return list(_tokenizer(folder).encode(text, add_special_tokens=False).ids)


def _special(folder: Path) -> tuple[int, int]:
    first, last = _tokenizer(folder).encode("").ids
    return first, last


@cache
def _encoder(folder: Path) -> Any:
    return AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


@cache
def _classifier(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def last_token_vector(folder: Path, text: str, *, max_length: int | None = None) -> np.ndarray:
    """Return the L2-normalised state of a text's last token: FlagEmbedding's decoder embedders."""
    cut = {"truncation": True, "max_length": max_length} if max_length else {}
    inputs = _auto_tokenizer(folder)(text, return_tensors="pt", **cut)
    with torch.inference_mode():
        states = _encoder(folder)(**inputs).last_hidden_state
    return unit(states[0, -1].double().numpy())


def icl_vector(folder: Path, query: str, examples: str = "", *, max_length: int) -> np.ndarray:
    """Return the vector of a formatted query between examples and suffix: FlagEmbedding's embedder for bge-en-icl.

    There the cut query goes through text once more, which puts a space behind special tokens; here it does not.
    Not for lengths that split a character: there its bytes, and those before it, become U+FFFD.
    """
    tokenizer, suffix = _auto_tokenizer(folder), "\n<response>"
    around = 1 + len(tokenizer(f"{suffix}</s>", add_special_tokens=False)["input_ids"])
    ids = tokenizer(query, truncation=True, max_length=max_length - around, add_special_tokens=False)["input_ids"]
    kept = tokenizer.decode(ids).replace("<instruct> ", "<instruct>").replace("<query> ", "<query>")
    extra = sum(len(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (examples, suffix))
    total = (extra + max_length + 8) // 8 * 8 + 8
    return last_token_vector(folder, examples + kept + suffix, max_length=total)


@cache
def _auto_tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
