"""Compare nDCG@10 with published figures, on whole collections, through both frameworks.

all-MiniLM-L6-v2 embeds every document through `langchain_bge.BGEEmbeddings` and through a LlamaIndex
`VectorStoreIndex`; the figures must equal the public MTEB results within 0.0010. Then the top 100 are
reranked by late interaction. Exit status 1 when a figure is off.

    python benchmarks/published.py --data FOLDER [--only xquad-en] [--fresh]

FOLDER holds NAME.tar.gz or NAME/ in the BEIR layout. Results go to benchmarks/results/published.json and
.png; a collection that is there already is not computed again unless --fresh is given.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TOLERANCE = 0.0010
FETCH = 100
WINDOW = 512
PACKAGES = (
    "bge-integrations",
    "sentence-transformers",
    "transformers",
    "torch",
    "langchain-core",
    "llama-index-core",
)
RESULTS = Path(__file__).resolve().parent / "results"

Ranking = dict[str, list[tuple[str, float]]]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A collection, the published figure and, if asked for, the least that late interaction must reach."""

    name: str
    published: float
    late_interaction: float | None = None


TARGETS = (
    Target(name="xquad-en", published=0.9436, late_interaction=0.975),
    Target(name="xquad-zh", published=0.2422),
    Target(name="scifact", published=0.6451, late_interaction=0.70),
)


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Documents, queries and graded judgements (query id -> document id -> grade)."""

    documents: dict[str, str]
    queries: dict[str, str]
    judgements: dict[str, dict[str, int]]


def read_files(data: Path, name: str) -> dict[str, str]:
    """Return file name -> content of a collection, from its folder or its archive."""
    wanted = ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")
    if (data / name).is_dir():
        return {file: (data / name / file).read_text(encoding="utf-8") for file in wanted}
    archive = data / f"{name}.tar.gz"
    if not archive.is_file():
        raise SystemExit(f"{archive} is missing: --data must name a folder with {name}.tar.gz or {name}/")
    files = {}
    with tarfile.open(archive) as tar:
        for file in wanted:
            member = tar.extractfile(f"{name}/{file}")
            if member is None:
                raise SystemExit(f"{archive} has no {name}/{file}")
            files[file] = member.read().decode("utf-8")
    return files


def read_collection(data: Path, name: str) -> Collection:
    """Read a collection; a document's text is its title and its text joined by one space."""
    files = read_files(data, name)
    documents = {row["_id"]: f"{row.get('title', '')} {row['text']}".strip() for row in rows(files["corpus.jsonl"])}
    judgements: dict[str, dict[str, int]] = {}
    for row in csv.DictReader(io.StringIO(files["qrels/test.tsv"]), delimiter="\t"):
        judgements.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    queries = {row["_id"]: row["text"] for row in rows(files["queries.jsonl"]) if row["_id"] in judgements}
    return Collection(documents=documents, queries=queries, judgements=judgements)


def rows(jsonl: str) -> Iterator[dict[str, str]]:
    """Yield the objects of a JSONL text."""
    return (json.loads(line) for line in jsonl.split("\n") if line)


def ndcg_at_10(ranking: Ranking, judgements: dict[str, dict[str, int]]) -> float:
    """Return the mean nDCG@10 as trec_eval computes it: linear gain, ties by descending document id."""
    discount = 1 / np.log2(np.arange(2, 12))
    values = []
    for query, grades in judgements.items():
        best = sorted(((score, document) for document, score in ranking[query]), reverse=True)[:10]
        gains = np.array([grades.get(document, 0) for _, document in best], dtype=float)
        ideal = np.sort(np.array(list(grades.values()), dtype=float))[::-1][:10]
        values.append((gains @ discount[: len(gains)]) / (ideal @ discount[: len(ideal)]))
    return float(np.mean(values))


def rank_with_langchain(collection: Collection) -> Ranking:
    """Embed with `BGEEmbeddings` and rank by exact cosine over the whole corpus."""
    from langchain_bge import BGEEmbeddings

    embeddings = BGEEmbeddings(model=MODEL)
    ids = list(collection.documents)
    texts = list(collection.documents.values())
    windows = range(0, len(texts), WINDOW)
    vectors = np.vstack(
        [embeddings.embed_documents(texts[at : at + WINDOW]) for at in tqdm(windows, desc="LangChain: documents")]
    )
    ranking: Ranking = {}
    for query, text in tqdm(collection.queries.items(), desc="LangChain: queries"):
        scores = vectors @ np.asarray(embeddings.embed_query(text))
        best = np.argsort(-scores, kind="stable")[:FETCH]
        ranking[query] = [(ids[at], float(scores[at])) for at in best]
    return ranking


def rank_with_llamaindex(collection: Collection) -> Ranking:
    """Embed with `BGEEmbedding` into a `VectorStoreIndex` and ask its retriever."""
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    from llamaindex_bge import BGEEmbedding

    nodes = [TextNode(id_=name, text=text) for name, text in collection.documents.items()]
    index = VectorStoreIndex(
        nodes,
        embed_model=BGEEmbedding(model_name=MODEL),
        insert_batch_size=WINDOW,
        show_progress=True,
    )
    retriever = index.as_retriever(similarity_top_k=FETCH)
    return {
        query: [(hit.node_id, float(hit.score or 0.0)) for hit in retriever.retrieve(text)]
        for query, text in tqdm(collection.queries.items(), desc="LlamaIndex: queries")
    }


def rerank(collection: Collection, ranking: Ranking) -> Ranking:
    """Score each query's candidates by late interaction over the same weights."""
    from bge_runtime import Reranker

    names = [(query, document) for query, hits in ranking.items() for document, _ in hits]
    pairs = [(collection.queries[query], collection.documents[document]) for query, document in names]
    scores = Reranker(MODEL).score_pairs(pairs, show_progress=True)
    reranked: Ranking = {query: [] for query in ranking}
    for (query, document), score in zip(names, scores, strict=True):
        reranked[query].append((document, float(score)))
    return reranked


def measure(target: Target, data: Path) -> dict[str, Any]:
    """Return the figures of one collection, with how they were obtained."""
    collection = read_collection(data, target.name)
    started = time.perf_counter()
    ranking = rank_with_langchain(collection)
    figures = {
        "langchain": ndcg_at_10(ranking, collection.judgements),
        "llamaindex": ndcg_at_10(rank_with_llamaindex(collection), collection.judgements),
    }
    if target.late_interaction is not None:
        figures["late_interaction"] = ndcg_at_10(rerank(collection, ranking), collection.judgements)
    return {
        "ndcg_at_10": {name: round(value, 4) for name, value in figures.items()},
        "published": target.published,
        "documents": len(collection.documents),
        "queries": len(collection.queries),
        "seconds": round(time.perf_counter() - started, 1),
        "command": "python benchmarks/published.py --data DIR",
        "machine": machine(),
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
    }


def machine() -> dict[str, Any]:
    """Return processor, core count and system, without naming the host."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return {"processor": name, "cores": os.cpu_count(), "system": platform.system()}


def problems(target: Target, entry: dict[str, Any]) -> Iterator[str]:
    """Yield one line per figure that is not what it should be."""
    figures = entry["ndcg_at_10"]
    for framework in ("langchain", "llamaindex"):
        if abs(figures[framework] - target.published) > TOLERANCE:
            yield f"{target.name}: {framework} gives {figures[framework]}, published is {target.published}"
    if abs(figures["langchain"] - figures["llamaindex"]) > 1e-4:
        yield f"{target.name}: the two frameworks differ"
    if target.late_interaction is not None and figures["late_interaction"] < target.late_interaction:
        late = figures["late_interaction"]
        yield f"{target.name}: late interaction gives {late}, at least {target.late_interaction} is expected"


def draw(entries: dict[str, Any], file: Path) -> None:
    """Draw the figures beside the published ones."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4))
    series = {"published": "MTEB", "langchain": "LangChain", "llamaindex": "LlamaIndex"}
    series["late_interaction"] = "late interaction over the top 100"
    for place, (key, label) in enumerate(series.items()):
        values = [{**entry["ndcg_at_10"], "published": entry["published"]}.get(key, 0) for entry in entries.values()]
        bars = axes.bar(np.arange(len(entries)) + (place - 1.5) * 0.2, values, 0.2, label=label)
        axes.bar_label(bars, [f"{value:.3f}" if value else "" for value in values], fontsize=7)
    axes.set_xticks(range(len(entries)), list(entries))
    axes.set_ylabel("nDCG@10")
    axes.set_ylim(0, 1.15)
    axes.legend(ncols=2, fontsize=8, loc="upper right")
    axes.set_title("all-MiniLM-L6-v2")
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def report(targets: Iterable[Target], entries: dict[str, Any]) -> list[str]:
    """Print the table and return what is off."""
    found = []
    print(f"{'collection':12}{'published':>10}{'LangChain':>11}{'LlamaIndex':>12}{'late inter.':>13}")
    for target in targets:
        figures = entries[target.name]["ndcg_at_10"]
        late = f"{figures['late_interaction']:.4f}" if "late_interaction" in figures else "-"
        dense = f"{figures['langchain']:>11.4f}{figures['llamaindex']:>12.4f}"
        print(f"{target.name:12}{target.published:>10.4f}{dense}{late:>13}")
        found += problems(target, entries[target.name])
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, write the results and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the collections")
    parser.add_argument("--only", choices=[target.name for target in TARGETS], action="append", help="repeatable")
    parser.add_argument("--fresh", action="store_true", help="compute again what is in the results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)
    targets = [target for target in TARGETS if not options.only or target.name in options.only]
    options.results.mkdir(parents=True, exist_ok=True)
    file = options.results / "published.json"
    entries = json.loads(file.read_text()) if file.is_file() else {}
    for target in targets:
        if target.name in entries and not options.fresh:
            print(f"{target.name}: in {file.name} already (--fresh computes it again)")
            continue
        entries[target.name] = measure(target, options.data)
        file.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n")
    draw(entries, options.results / "published.png")
    found = report(targets, entries)
    for line in found:
        print(f"OFF: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
