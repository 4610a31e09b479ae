"""What each faster mode costs in quality: vectors against float32, and nDCG@10 on a whole collection.

all-MiniLM-L6-v2 (real weights) embeds every document and query once per mode; float32 of the packed backend is the
reference. Exit status 1 when a mode is worse than it states.

    python benchmarks/quality.py --data FOLDER [--collection scifact] [--mode packed:int8 openvino:int8 ...]

FOLDER holds NAME.tar.gz or NAME/ in the BEIR layout. Results go to benchmarks/results/quality.json and .png; a mode
that is there already is not computed again unless --fresh is given.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from published import FETCH, MODEL, PACKAGES, RESULTS, Collection, machine, ndcg_at_10, read_collection

from bge_runtime import ConfigurationError, Embedder

REFERENCE = "packed:float32"
MODES = (
    REFERENCE,
    "packed:bfloat16",
    "packed:int8",
    "openvino:float32",
    "openvino:bfloat16",
    "openvino:int8",
    "onnx:float32",
    "onnx:int8",
)
# Precision -> least cosine of a vector with its float32 twin, and most that nDCG@10 may move.
STATED = {
    "float32": (0.99999, 0.0005),
    "bfloat16": (0.9999, 0.002),
    "int8": (0.995, 0.005),
}

Vectors = tuple[NDArray[np.float32], NDArray[np.float32]]


def embed(collection: Collection, mode: str) -> Vectors:
    """Return the vectors of documents and queries."""
    backend, precision = mode.split(":")
    with Embedder(MODEL, backend=backend, precision=precision, device="cpu", truncation="silent") as embedder:
        documents = embedder.encode_documents(collection.documents.values(), show_progress=True)
        return documents, embedder.encode_queries(collection.queries.values())


def quality(collection: Collection, vectors: Vectors) -> float:
    """Return nDCG@10 of exact cosine search."""
    ids = list(collection.documents)
    scores = vectors[1] @ vectors[0].T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :FETCH]
    ranking = {
        query: [(ids[at], float(scores[row, at])) for at in best[row]] for row, query in enumerate(collection.queries)
    }
    return ndcg_at_10(ranking, collection.judgements)


def compare(collection: Collection, vectors: Vectors, reference: Vectors) -> dict[str, Any]:
    """Return one mode's figures."""
    cosines = np.concatenate([(mine * exact).sum(1) for mine, exact in zip(vectors, reference, strict=True)])
    return {
        "ndcg_at_10": round(quality(collection, vectors), 4),
        "cosine_min": round(float(cosines.min()), 6),
        "cosine_mean": round(float(cosines.mean()), 6),
        "documents": len(collection.documents),
        "queries": len(collection.queries),
        "machine": machine(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def problems(entries: dict[str, Any]) -> Iterator[str]:
    """Yield one line per mode that is worse than it states."""
    exact = entries[REFERENCE]["ndcg_at_10"]
    for mode, entry in entries.items():
        least, most = STATED[mode.split(":")[1]]
        if entry.get("missing"):
            continue
        if entry["cosine_min"] < least:
            yield f"{mode}: the smallest cosine with float32 is {entry['cosine_min']}, stated is {least}"
        if abs(entry["ndcg_at_10"] - exact) > most:
            yield f"{mode}: nDCG@10 is {entry['ndcg_at_10']}, float32 gives {exact}, at most {most} apart is stated"


def line(entry: dict[str, Any]) -> str:
    """Return one mode's figures as text."""
    return f"nDCG@10 {entry['ndcg_at_10']:.4f}  cosine {entry['cosine_min']:.6f} min {entry['cosine_mean']:.6f} mean"


def draw(entries: dict[str, Any], file: Path) -> None:
    """Draw nDCG@10 and the distance from float32 of every mode."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {mode: entry for mode, entry in entries.items() if not entry.get("missing")}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.5), sharey=True, layout="constrained")
    names = list(shown)
    bars = left.barh(names, [entry["ndcg_at_10"] for entry in shown.values()])
    left.bar_label(bars, fmt="%.4f", padding=2, fontsize=8)
    left.set_xlabel("nDCG@10")
    left.set_xlim(0, 0.85)
    left.set_xticks([0, 0.2, 0.4, 0.6])
    bars = right.barh(names, [1 - entry["cosine_min"] for entry in shown.values()], color="tab:orange")
    right.bar_label(bars, fmt="%.1e", padding=2, fontsize=8)
    right.set_xlabel("1 - smallest cosine with float32")
    right.margins(x=0.2)  # room for the labels
    right.locator_params(axis="x", nbins=4)
    left.invert_yaxis()
    figure.savefig(file, dpi=120)


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, write the results, say what is worse than stated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the collection")
    parser.add_argument("--collection", default="scifact")
    parser.add_argument("--mode", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--fresh", action="store_true", help="compute again what is in the results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)
    collection = read_collection(options.data, options.collection)
    options.results.mkdir(parents=True, exist_ok=True)
    file = options.results / "quality.json"
    results = json.loads(file.read_text()) if file.is_file() and not options.fresh else {}
    entries = results.setdefault(options.collection, {})
    reference: Vectors | None = None
    for mode in dict.fromkeys([REFERENCE, *options.mode]):
        if mode in entries and reference is not None:
            continue
        try:
            vectors = embed(collection, mode)
        except ConfigurationError as error:  # the backend is not installed
            entries[mode] = {"missing": str(error)}
            continue
        reference = vectors if reference is None else reference
        entries[mode] = compare(collection, vectors, reference)
        file.write_text(json.dumps(results, indent=2) + "\n")
    for mode, entry in entries.items():
        print(f"{mode:18} {entry.get('missing') or line(entry)}")
    draw(entries, options.results / "quality.png")
    found = list(problems(entries))
    for problem in found:
        print(f"WORSE: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
