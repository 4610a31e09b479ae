"""What `bge eval` gives on whole collections, through both frameworks, on this project's own pages, and at size.

    python benchmarks/evaluation.py --data FOLDER [--cache FOLDER] [--only collections pages size]

FOLDER holds NAME.tar.gz or NAME/ in the BEIR layout. Vectors are kept in the cache folder. Results go to
benchmarks/results/evaluation.json. Exit status 1 when a figure is off: another one than is published by more than
0.0010, a second run that embeds something, frameworks that rank differently, chunks whose ids change a figure, or an
exact search that is slower than 70% of NumPy's product and partition or takes 2 GiB over the vectors.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from published import MODEL, RESULTS, TOLERANCE, machine

from bge_runtime import Embedder, VectorCache
from bge_runtime.evaluation import Evaluation, Judgements, compare_evaluations, evaluate, make_questions
from bge_runtime.evaluation.exact import search

PUBLISHED = {"xquad-en": 0.9436, "xquad-zh": 0.2422, "scifact": 0.6451}
PARTS = ("collections", "pages", "size")
CHUNKS = (60, 120, 240)
PAGES = Path(__file__).resolve().parents[1] / "docs"
VECTORS, QUERIES, DIMENSION, TOP = 1_000_000, 1_000, 384, 100
LEAST_SPEED = 0.7
MOST_BYTES = 2 * 2**30
METRIC = "nDCG@10"


def collection(data: Path, name: str, embedder: Embedder) -> dict[str, Any]:
    """Evaluate a collection exactly, twice, and through both frameworks."""
    judged = Judgements.read(data / name if (data / name).is_dir() else data / f"{name}.tar.gz")
    exact = evaluate(embedder, judged, show_progress=True)
    again = evaluate(embedder, judged)
    found = {"exact": exact, "langchain": _langchain(judged, embedder), "llamaindex": _llamaindex(judged, embedder)}
    compared = compare_evaluations(found)
    return {
        "published": PUBLISHED[name],
        "queries": exact.queries,
        METRIC: {label: round(each.metrics[METRIC], 4) for label, each in found.items()},
        "embedded_by_a_second_run": again.texts_embedded,
        "ranked_otherwise_than_exact": {
            label: _otherwise(exact, each) for label, each in found.items() if label != "exact"
        },
        "p": {f"{pair.first} to {pair.second}": pair.difference.p for pair in compared.pairs},
    }


def _langchain(data: Judgements, embedder: Embedder) -> Evaluation:
    from langchain_community.vectorstores import FAISS

    from langchain_bge import BGEEmbeddings, BGERetriever

    metadatas = [{"doc_id": name} for name in data.documents]
    store = FAISS.from_texts(list(data.documents.values()), BGEEmbeddings(embedder=embedder), metadatas)
    return evaluate(BGERetriever(vectorstore=store, k=TOP), data)


def _llamaindex(data: Judgements, embedder: Embedder) -> Evaluation:
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    from llamaindex_bge import BGEEmbedding

    nodes = [TextNode(id_=name, text=text) for name, text in data.documents.items()]
    return evaluate(VectorStoreIndex(nodes, embed_model=BGEEmbedding(embedder=embedder)), data)


def _otherwise(one: Evaluation, other: Evaluation) -> int:
    """Return of how many questions the first ten differ."""
    return sum(
        [name for name, _ in one.run[query][:10]] != [name for name, _ in other.run[query][:10]] for query in one.run
    )


def pages(cache: VectorCache) -> dict[str, Any]:
    """Judge passages of this project's pages in chunks of three sizes, under two sets of ids."""
    from langchain_core.documents import Document
    from langchain_core.vectorstores import InMemoryVectorStore

    from langchain_bge import BGEEmbeddings, BGETokenSplitter

    judged = make_questions(PAGES)
    with tempfile.TemporaryDirectory() as folder:
        judged.write(Path(folder) / "questions.jsonl")
        judged = Judgements.read(Path(folder) / "questions.jsonl", corpus=PAGES)
    embeddings = BGEEmbeddings(embedder=Embedder(MODEL, vector_cache=cache, truncation="silent"))
    results: dict[str, Any] = {"questions": len(judged.queries)}
    for size in CHUNKS:
        whole = [Document(page_content=text, metadata={"source": name}) for name, text in judged.documents.items()]
        chunks = BGETokenSplitter(embeddings=embeddings, chunk_size=size).split_documents(whole)
        told = []
        for kind in ("first", "second"):
            store = InMemoryVectorStore(embeddings)
            named = [
                Document(id=f"{kind}-{number}", page_content=each.page_content, metadata=each.metadata)
                for number, each in enumerate(chunks)
            ]
            store.add_documents(named)
            told.append(evaluate(store, judged).metrics)
        results[str(size)] = {"chunks": len(chunks), METRIC: [round(each[METRIC], 4) for each in told]}
    return results


def size() -> dict[str, Any]:
    """Search a million vectors, and let NumPy do the same in parts of as many products."""
    random = np.random.default_rng(0)
    documents = random.standard_normal((VECTORS, DIMENSION), dtype=np.float32)
    queries = random.standard_normal((QUERIES, DIMENSION), dtype=np.float32)
    held = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    ours, theirs = [], []
    for _ in range(3):
        started = time.perf_counter()
        rows, _ = search(queries, documents, TOP)
        ours.append(time.perf_counter() - started)
        peak = _memory("VmHWM")
        started = time.perf_counter()
        same = True
        for at in range(0, QUERIES, 100):
            products = queries[at : at + 100] @ documents.T
            best = np.argpartition(products, -TOP, axis=1)[:, -TOP:]
            same = same and bool((np.sort(best, axis=1) == np.sort(rows[at : at + 100], axis=1)).all())
        theirs.append(time.perf_counter() - started)
        if len(ours) == 1:
            over = peak - held
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    return {
        "seconds": round(sorted(ours)[1], 2),
        "numpy_seconds": round(sorted(theirs)[1], 2),
        "speed_of_numpys": round(ratios[1], 2),
        "bytes_over_the_vectors": over,
        "same_documents": same,
    }


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def problems(results: dict[str, Any]) -> Iterator[str]:
    """Yield one line per figure that is off."""
    for name, entry in results.get("collections", {}).items():
        for label, value in entry[METRIC].items():
            if abs(value - entry["published"]) > TOLERANCE:
                yield f"{name}: {label} gives {value}, published is {entry['published']}"
        if entry["embedded_by_a_second_run"]:
            yield f"{name}: a second run embedded {entry['embedded_by_a_second_run']} texts"
    for name, entry in results.get("pages", {}).items():
        if isinstance(entry, dict) and len(set(entry[METRIC])) > 1:
            yield f"chunks of {name}: other ids, other figures: {entry[METRIC]}"
    if entry := results.get("size"):
        if entry["speed_of_numpys"] < LEAST_SPEED or not entry["same_documents"]:
            yield f"exact search: {entry}"
        if entry["bytes_over_the_vectors"] >= MOST_BYTES:
            yield f"exact search takes {entry['bytes_over_the_vectors']} bytes over the vectors"


def main(arguments: list[str] | None = None) -> int:
    """Run the parts, write the results, say what is off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the collections")
    parser.add_argument("--cache", type=Path, help="folder for vectors")
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)
    options.results.mkdir(parents=True, exist_ok=True)
    file = options.results / "evaluation.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    with tempfile.TemporaryDirectory() as scratch:
        cache = VectorCache((options.cache or Path(scratch)) / "vectors.sqlite")
        embedder = Embedder(MODEL, vector_cache=cache, truncation="silent")
        if "collections" in options.only:
            results["collections"] = {name: collection(options.data, name, embedder) for name in PUBLISHED}
        if "pages" in options.only:
            results["pages"] = pages(cache)
        if "size" in options.only:
            results["size"] = size()
    results["machine"] = machine()
    results["command"] = "python benchmarks/evaluation.py --data DIR"
    file.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps(results, indent=2, ensure_ascii=False))
    found = list(problems(results))
    for line in found:
        print(f"OFF: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
