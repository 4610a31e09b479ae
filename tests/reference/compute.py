"""Compute numbers with FlagEmbedding itself, in the environment of `requirements.txt`, without anything of ours.

    python compute.py REQUEST.json RESULT.json

REQUEST is a list of what `cases.request_of` returns, each with the folder of a checkpoint. Float32, on the processor.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import FlagEmbedding
import numpy as np

PACKAGES = ("FlagEmbedding", "transformers", "torch")
DIGITS = 7


def main(request: Path, result: Path) -> None:
    """Read the request, write the result."""
    answers = {}
    for question in json.loads(request.read_text(encoding="utf-8")):
        print(f"{question['class']} on {question['label']}", flush=True)
        model = getattr(FlagEmbedding, question["class"])(
            question["folder"], use_fp16=False, devices=["cpu"], **question["options"]
        )
        answers[question["label"]] = KINDS[question["kind"]](model, question)
    versions = {name: version(name) for name in PACKAGES}
    result.write_text(json.dumps({"versions": versions, "answers": answers}), encoding="utf-8")


def m3(model: Any, question: dict[str, Any]) -> dict[str, Any]:
    """Three outputs of each text; five scores of each pair, for each triple of weights."""
    found = model.encode(
        question["texts"],
        max_length=question["text_length"],
        return_dense=True,
        return_sparse=True,
        return_colbert_vecs=True,
    )
    length = question["pair_length"]
    scores = {}
    for named, weights in question["weights"].items():
        # In a batch of one no text is padded, so that a score cannot depend on its neighbours.
        kinds = model.compute_score(
            [tuple(pair) for pair in question["pairs"]],
            batch_size=1,
            max_query_length=length,
            max_passage_length=length,
            weights_for_different_modes=weights,
        )
        scores |= {f"{kind} {named}" if "+" in kind else kind: rounded(values) for kind, values in kinds.items()}
    return {
        "dense": rounded(found["dense_vecs"]),
        "sparse": [{token: float(weight) for token, weight in each.items()} for each in found["lexical_weights"]],
        "multi_vector": [rounded(each) for each in found["colbert_vecs"]],
        "scores": scores,
    }


def embedder(model: Any, question: dict[str, Any]) -> dict[str, Any]:
    """Vectors of each text as a query and as a document."""
    return {
        "queries": rounded(model.encode_queries(question["texts"])),
        "documents": rounded(model.encode_corpus(question["texts"])),
    }


def reranker(model: Any, question: dict[str, Any]) -> dict[str, Any]:
    """One raw score per pair; a list of such lists for a model that is cut off at several layers."""
    return {"scores": rounded(model.compute_score([tuple(pair) for pair in question["pairs"]]))}


def rounded(values: Any) -> Any:
    """Return nested lists of numbers that are short to write."""
    return np.round(np.asarray(values, np.float64), DIGITS).tolist()


KINDS = {"m3": m3, "embedder": embedder, "reranker": reranker}

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
