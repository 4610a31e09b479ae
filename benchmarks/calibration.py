"""Fit calibrators on one part of a collection's questions, and measure on the other what they say and promise.

all-MiniLM-L6-v2 scores the candidates of every question by cosine, and the best 30 of them by late interaction; the
best 10 of each are what is calibrated. SciFact is fitted on its train questions and measured on its test questions,
XQuAD on one half and on the other. The promise about what is kept is tried on 100 random halves of all questions.

    python benchmarks/calibration.py --data FOLDER [--only scifact] [--cache FOLDER]

FOLDER holds NAME.tar.gz or NAME/ in the BEIR layout. Vectors and scores are kept in the cache folder, so that a second
run takes a minute. Results go to benchmarks/results/calibration.json and .png. Exit status 1 when a claim does not
hold: an expected calibration error of 0.05 or more, a threshold whose precision lies outside its interval, or a
promise that is broken in more than 8 of 100 halves.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from published import MODEL, RESULTS, machine, rows
from tqdm import tqdm

from bge_runtime import Embedder, Reranker, ScoreThreshold, VectorCache
from bge_runtime.evaluation.calibration import (
    fit_calibrator,
    fit_without_labels,
    measure_calibration,
)

CANDIDATES = 10
FETCH = 30
HALVES = 100
# Share wrong that is promised -> how many of the best candidates of each question it is about.
PROMISES = ((0.1, 10), (0.1, 1), (0.3, 10), (0.3, 1))
COLLECTIONS = ("scifact", "xquad-en")
SCORERS = ("cosine", "late")
LARGEST_ERROR = 0.05
FEWEST_HELD = 92


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Texts by id, the relevant documents of each question, and which questions are measured on."""

    documents: dict[str, str]
    questions: dict[str, str]
    relevant: dict[str, set[str]]
    measured: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Raw scores of each question's candidates, best first, float32 [questions, candidates], and which are relevant."""

    scores: np.ndarray
    labels: np.ndarray

    def part(self, rows: np.ndarray, width: int = CANDIDATES) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and labels of some questions' best candidates."""
        return self.scores[rows, :width], self.labels[rows, :width]


def read(data: Path, name: str) -> Collection:
    """Read a collection with all of its splits."""
    files = read_files(data, name)
    documents = {row["_id"]: f"{row.get('title', '')} {row['text']}".strip() for row in rows(files["corpus.jsonl"])}
    texts = {row["_id"]: row["text"] for row in rows(files["queries.jsonl"])}
    relevant: dict[str, set[str]] = {}
    tested = []
    for split in ("train", "test"):
        for row in csv.DictReader(io.StringIO(files.get(f"qrels/{split}.tsv", "")), delimiter="\t"):
            if int(row["score"]) > 0:
                relevant.setdefault(row["query-id"], set()).add(row["corpus-id"])
                tested += [row["query-id"]] if split == "test" else []
    measured = np.isin(list(relevant), tested)
    if measured.all():
        measured = np.random.default_rng(0).permutation(len(measured)) < len(measured) // 2
    return Collection(
        documents=documents, questions={key: texts[key] for key in relevant}, relevant=relevant, measured=measured
    )


def read_files(data: Path, name: str) -> dict[str, str]:
    """Return file name -> content of a collection, from its folder or its archive."""
    folder, archive = data / name, data / f"{name}.tar.gz"
    if folder.is_dir():
        return {str(file.relative_to(folder)): file.read_text(encoding="utf-8") for file in folder.rglob("*.[jt]s*")}
    if not archive.is_file():
        raise SystemExit(f"{archive} is missing: --data must name a folder with {name}.tar.gz or {name}/")
    with tarfile.open(archive) as tar:
        members = [(member.name.partition("/")[2], tar.extractfile(member)) for member in tar.getmembers()]
        return {file: content.read().decode("utf-8") for file, content in members if content is not None}


def score(collection: Collection, name: str, cache: Path) -> tuple[np.ndarray, Scored, Scored]:
    """Return all cosines, the candidates by cosine, and by late interaction."""
    embedder = Embedder(MODEL, vector_cache=VectorCache(cache / "vectors.sqlite"), truncation="silent")
    ids, texts = list(collection.documents), list(collection.documents.values())
    vectors = embedder.encode_documents(texts, show_progress=True)
    cosines = embedder.encode_queries(collection.questions.values()) @ vectors.T
    found = np.argsort(-cosines, axis=1, kind="stable")[:, :FETCH]
    labels = np.array(
        [
            [ids[at] in collection.relevant[key] for at in row]
            for key, row in zip(collection.questions, found, strict=True)
        ]
    )
    reranker = Reranker(embedder)
    file = cache / f"{name}-{reranker.score_identity[:12]}-{FETCH}.npy"
    if not file.is_file():
        asked = zip(collection.questions.values(), found, strict=True)
        pairs = [(question, texts[at]) for question, row in asked for at in row]
        np.save(file, reranker.score_pairs(pairs, show_progress=True).reshape(found.shape))
    late = np.load(file)
    order = np.argsort(-late, axis=1, kind="stable")
    return (
        cosines,
        Scored(scores=np.take_along_axis(cosines, found, 1), labels=labels),
        Scored(scores=np.take_along_axis(late, order, 1), labels=np.take_along_axis(labels, order, 1)),
    )


def outcome(threshold: ScoreThreshold, scores: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return a threshold with what it reaches on the questions that are measured on."""
    told = {key: value for key, value in asdict(threshold).items() if value not in (None, "")}
    if threshold.score is None:
        return told
    kept = scores >= threshold.score
    if threshold.purpose == "answerable":
        best = np.where(labels, -np.inf, scores).max(axis=1)
        errors = (scores.max(axis=1) < threshold.score).mean(), (best >= threshold.score).mean()
        return {**told, "measured": float(np.mean(errors))}
    hits = labels[kept].sum()
    shares = {"precision": hits / kept.sum(), "recall": hits / labels.sum(), "wrong": 1 - hits / kept.sum()}
    return {**told, "measured": float(shares[threshold.purpose]), "measured_kept": int(kept.sum())}


def promise(scored: Scored, scorer: Embedder | Reranker, wrong: float, width: int) -> dict[str, Any]:
    """Fit on a random half of the questions, a hundred times, and count in how many other halves the promise holds."""
    generator = np.random.default_rng(1)
    held, kept, shares = 0, [], []
    for _ in tqdm(range(HALVES), desc=f"promise of {wrong:.0%} of the best {width}"):
        order = generator.permutation(len(scored.scores))
        fit, other = order[: len(order) // 2], order[len(order) // 2 :]
        found = fit_calibrator(*scored.part(fit, width), scorer=scorer, method="platt", wrong=wrong, resamples=0)
        limit = found.threshold("wrong").score
        scores, labels = scored.part(other, width)
        inside = scores >= (np.inf if limit is None else limit)
        share = float(1 - labels[inside].mean()) if inside.any() else 0.0
        held += share <= wrong
        if limit is not None:
            kept.append(int(inside.sum()))
            shares.append(share)
    return {
        "wrong": wrong,
        "candidates": width,
        "held": held,
        "made": len(kept),
        **({"kept": float(np.mean(kept)), "share_wrong": float(np.mean(shares))} if kept else {}),
    }


def measure(scored: Scored, measured: np.ndarray, scorer: Embedder | Reranker) -> dict[str, Any]:
    """Fit on some questions, measure on the others."""
    fitted = fit_calibrator(*scored.part(~measured), scorer=scorer)
    scores, labels = scored.part(measured)
    return {
        "method": fitted.method,
        "fitted": dict(fitted.fitted),
        "calibration": asdict(measure_calibration(fitted.probabilities(scores), labels)),
        "thresholds": {each.purpose: outcome(each, scores, labels) for each in fitted.thresholds},
        "promises": [promise(scored, scorer, wrong, width) for wrong, width in PROMISES],
    }


def problems(name: str, entry: dict[str, Any]) -> Iterator[str]:
    """Yield one line per claim that does not hold."""
    if entry["calibration"]["error"] >= LARGEST_ERROR:
        yield f"{name}: expected calibration error {entry['calibration']['error']:.3f}"
    precision = entry["thresholds"]["precision"]
    if "score" in precision and not precision["interval"][0] <= precision["measured"] <= precision["interval"][1]:
        yield f"{name}: precision {precision['measured']:.3f} outside of {precision['interval']}"
    for each in entry["promises"]:
        if each["held"] < FEWEST_HELD:
            yield f"{name}: the promise of {each['wrong']} holds in {each['held']} of {HALVES} halves"


def draw(results: dict[str, Any], file: Path) -> None:
    """Draw predicted against observed shares of every scorer in the results."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 4.5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for name, entry in results.items():
        for kind in SCORERS:
            found = entry[kind]["calibration"]
            predicted, observed = ([each[key] for each in found["bins"]] for key in ("predicted", "observed"))
            label = f"{name}, {kind}: error {found['error']:.3f}"
            axes.plot(predicted, observed, marker="o", markersize=4, label=label)
    axes.set_xlabel("probability of being relevant, as predicted")
    axes.set_ylabel("share that is relevant")
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=120)


def rounded(value: Any) -> Any:
    """Return a tree with its numbers rounded to four digits."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def shown(name: str, entry: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that sum up one scorer."""
    calibration, precision = entry["calibration"], entry["thresholds"]["precision"]
    yield (
        f"{name}: {entry['method']}, expected calibration error {calibration['error']:.3f}, "
        f"resolution {calibration['resolution']:.3f} of {calibration['uncertainty']:.3f}"
    )
    reached = f"{precision['measured']:.3f} in {precision['interval']}" if "score" in precision else precision["reason"]
    yield f"  precision 0.8: {reached}"
    for each in entry["promises"]:
        kept = f", {each['kept']:.0f} kept, {each['share_wrong']:.3f} wrong" if each["made"] else ""
        yield (
            f"  at most {each['wrong']} of the best {each['candidates']} wrong: held in {each['held']}, "
            f"made in {each['made']} of {HALVES}{kept}"
        )


def main(arguments: list[str] | None = None) -> int:
    """Measure both scorers on each collection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the collections")
    parser.add_argument("--only", choices=COLLECTIONS, action="append", help="one collection; may be repeated")
    parser.add_argument("--cache", type=Path, default=Path("calibration-cache"), help="folder of vectors and scores")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)
    for folder in (options.cache, options.results):
        folder.mkdir(parents=True, exist_ok=True)
    file = options.results / "calibration.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    off = []
    embedder = Embedder(MODEL)
    for name in options.only or COLLECTIONS:
        collection = read(options.data, name)
        cosines, *candidates = score(collection, name, options.cache)
        entry: dict[str, Any] = {"machine": machine(), "command": "python benchmarks/calibration.py --data DIR"}
        for kind, scorer, scored in zip(SCORERS, (embedder, Reranker(embedder)), candidates, strict=True):
            title = f"{name}, {kind}"
            entry[kind] = measure(scored, collection.measured, scorer)
            off += problems(title, entry[kind])
            print("\n".join(shown(title, entry[kind])))
        weak = fit_without_labels(cosines[~collection.measured], scorer=embedder, candidates=CANDIDATES)
        scores, labels = candidates[0].part(collection.measured)
        entry["without_labels"] = asdict(measure_calibration(weak.probabilities(scores), labels))
        print(f"{name}, cosine, without labels: expected calibration error {entry['without_labels']['error']:.3f}")
        results[name] = rounded(entry)
    file.write_text(json.dumps(results, indent=2) + "\n")
    draw(results, options.results / "calibration.png")
    for line in off:
        print(f"OFF: {line}", file=sys.stderr)
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
