"""The numbers of `compute.py` by this project, what is kept of them, and how far two of them are apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bge_runtime import Embedder, Reranker
from tests.reference.cases import M3_LENGTH, M3_PAIR_LENGTH, PAIRS, WEIGHTS, Case

__all__ = ["answer", "differences", "extract", "fingerprint"]

HEAD = 16  # numbers kept of a vector


def answer(case: Case) -> dict[str, Any]:
    """Compute a case through the public names; the checkpoint is in the hub cache."""
    return {"m3": _m3, "embedder": _embedder, "reranker": _reranker}[case.kind](case)


def extract(case: Case, whole: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of an answer: of vectors, their beginnings and all similarities."""
    if case.kind == "reranker":
        return dict(whole)
    if case.kind == "embedder":
        return {name: _kept(np.asarray(rows)) for name, rows in whole.items()}
    vectors = [np.asarray(rows) for rows in whole["multi_vector"]]
    return {
        "dense": _kept(np.asarray(whole["dense"])),
        "sparse": whole["sparse"],
        "multi_vector": {
            "first": [rows[0, :HEAD].tolist() for rows in vectors],
            "last": [rows[-1, :HEAD].tolist() for rows in vectors],
            "sums": [rows.sum(axis=1).tolist() for rows in vectors],
            "similarity": [[float((a @ b.T).max(axis=1).mean()) for b in vectors] for a in vectors],
        },
        "scores": whole["scores"],
    }


def differences(mine: Any, theirs: Any, name: str = "") -> Iterator[tuple[str, int, float]]:
    """Yield name, count and largest difference of everything that two answers hold; what one lacks is infinite."""
    if isinstance(theirs, Mapping):
        for key in sorted(set(mine) ^ set(theirs)):
            yield f"{name} {key}".strip(), 0, float("inf")
        for key in theirs:
            if key in mine:
                yield from differences(mine[key], theirs[key], f"{name} {key}".strip())
    elif name == "sparse":
        yield name, len(theirs), max(_sparse_difference(a, b) for a, b in zip(mine, theirs, strict=True))
    else:
        yield name, len(theirs), _difference(mine, theirs)


def fingerprint(folder: Path) -> dict[str, float]:
    """Return figures of all weights of a folder: two folders with equal ones hold the same checkpoint."""
    import safetensors.torch
    import torch

    tensors = []
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            tensors += safetensors.torch.load_file(file).values()
        elif file.suffix in (".bin", ".pt"):
            tensors += torch.load(file, weights_only=True).values()
    return {
        "values": float(sum(tensor.numel() for tensor in tensors)),
        "sum": float(sum(tensor.double().sum() for tensor in tensors)),
        "magnitude": float(sum(tensor.double().abs().sum() for tensor in tensors)),
    }


def _m3(case: Case) -> dict[str, Any]:
    found = Embedder(case.model, max_length=M3_LENGTH, truncation="silent").encode_all(case.texts)
    assert found.dense is not None
    assert found.sparse is not None
    assert found.multi_vector is not None
    scores = {
        "dense": _m3_scores(case, mode="dense"),
        "sparse": _m3_scores(case, mode="sparse"),
        "colbert": _m3_scores(case, mode="multi_vector"),
    }
    for named, weights in WEIGHTS.items():
        dense, sparse, vectors = weights or (1, 1, 1)
        scores[f"sparse+dense {named}"] = _m3_scores(case, mode="hybrid", weights=(dense, sparse, 0))
        scores[f"colbert+sparse+dense {named}"] = _m3_scores(case, mode="hybrid", weights=(dense, sparse, vectors))
    return {
        "dense": found.dense.tolist(),
        "sparse": [{str(token): weight for token, weight in each.items()} for each in found.sparse],
        "multi_vector": [rows.tolist() for rows in found.multi_vector],
        "scores": scores,
    }


def _m3_scores(case: Case, **options: Any) -> list[float]:
    reranker = Reranker(case.model, max_length=M3_PAIR_LENGTH, truncation="silent", **options)
    scores: list[float] = reranker.score_pairs(PAIRS).tolist()
    return scores


def _embedder(case: Case) -> dict[str, Any]:
    embedder = Embedder(case.model, truncation="silent", **case.our_options)
    queries = [f" {text}" if case.our_space and text else text for text in case.texts]
    return {
        "queries": embedder.encode_queries(queries).tolist(),
        "documents": embedder.encode_documents(case.texts).tolist(),
    }


def _reranker(case: Case) -> dict[str, Any]:
    reranker = Reranker(case.model, truncation="silent", **case.our_options)
    return {"scores": reranker.score_pairs(PAIRS).tolist()}


def _kept(rows: np.ndarray) -> dict[str, Any]:
    return {"first": rows[:, :HEAD].tolist(), "similarity": (rows @ rows.T).tolist()}


def _sparse_difference(mine: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    """A token that only one side has counts with its whole weight."""
    return float(np.max([abs(mine.get(key, 0.0) - theirs.get(key, 0.0)) for key in {*mine, *theirs}], initial=0.0))


def _difference(mine: Any, theirs: Any) -> float:
    """Return the largest difference of nested lists of numbers; infinite if their shapes differ."""
    if not isinstance(theirs, list):
        return abs(mine - theirs)
    if len(mine) != len(theirs):
        return float("inf")
    if not any(isinstance(each, list) for each in theirs):
        return float(np.max(np.abs(np.subtract(mine, theirs)), initial=0.0))
    return float(np.max([_difference(a, b) for a, b in zip(mine, theirs, strict=True)], initial=0.0))
