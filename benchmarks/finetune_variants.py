"""What helps the questions whose documents training has not seen: more negatives, distillation, made questions.

    python benchmarks/finetune_variants.py --data FOLDER --out FOLDER [--only plain negatives distillation titles]

all-MiniLM-L6-v2 on SciFact's train questions, each time with the settings of examples/finetune_scifact.py and one
thing changed: three mined negatives; mined negatives with the scores of late interaction as a teacher; or a first epoch
on the titles of those documents that no training question has, each answered by its own abstract. Development sets are
held out in the same way, and pick the checkpoint; the test questions are read at the end. A run that was cut off goes
on when it is started again. Results go to benchmarks/results/finetune_variants.json, or where --results says.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from published import MODEL, RESULTS, machine

from bge_runtime import Embedder, Reranker, VectorCache, __version__
from bge_runtime.evaluation import Judgements, evaluate
from bge_runtime.evaluation.statistics import compare_paired
from bge_runtime.training import Example, Trained, TrainingData, TrainingSettings, mine, train_embedder

METRIC = "nDCG@10"
SHARE = 0.05
VARIANTS = ("plain", "negatives", "distillation", "titles")


def titles(archive: Path, data: TrainingData) -> TrainingData:
    """Make an example of each document without a training question: its title, answered by its abstract."""
    taken = {text for each in data.examples for text in each.positives}
    examples = []
    with tarfile.open(archive) as files:
        name = next(each for each in files.getnames() if each.endswith("corpus.jsonl"))
        lines = files.extractfile(name)
        assert lines is not None
        for row in map(json.loads, lines):
            if row["title"] and row["text"] and data.documents[row["_id"]] not in taken:
                examples.append(Example(query=row["title"], positives=(row["text"],)))
    return TrainingData(name="titles", examples=tuple(examples))


def trained(variant: str, options: argparse.Namespace, data: TrainingData, cache: VectorCache) -> Path:
    """Train a variant, unless it is there."""
    out: Path = options.out / variant
    if out.is_dir():
        return out
    guard = Judgements.read(options.data / "xquad-en.tar.gz")
    settings = TrainingSettings(
        epochs=3, negatives=1, learning_rate=5e-5, dropout=0.0, evaluations=2, mini_batch_size=96
    )
    more: dict[str, Any] = {"share": SHARE, "guard": guard, "vector_cache": cache, "force": True}
    base = Embedder(MODEL, vector_cache=cache, truncation="silent")
    began = time.perf_counter()
    if variant == "titles":
        first = options.out / "titles-first"
        if not first.is_dir():
            made = titles(options.data / "scifact.tar.gz", data)
            once = replace(settings, epochs=1, negatives=0, learning_rate=2e-5, evaluations=1)
            train_embedder(made, first, model=base, settings=once, **more)
        base = Embedder(str(first), vector_cache=cache, truncation="silent")
    teacher = None
    if variant == "negatives":
        settings = replace(settings, negatives=3)
    elif variant == "distillation":
        settings, teacher = replace(settings, negatives=3), Reranker(MODEL)
    mined = mine(data, base, negatives=settings.negatives, teacher=teacher)
    done: Trained = train_embedder(
        mined.data,
        out,
        model=base,
        settings=settings,
        loss="contrastive_kl" if teacher else "contrastive",
        teacher_temperature=0.05 if teacher else None,
        **more,
    )
    for each in done.gate.measured:
        print(f"{variant}: {each.name} {each.before:.4f} to {each.after:.4f}", flush=True)
    print(f"{variant}: {(time.perf_counter() - began) / 60:.1f} min", flush=True)
    return out


def main() -> None:
    """Train, measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--results", type=Path, default=RESULTS / "finetune_variants.json")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    cache = VectorCache(options.out / "vectors.sqlite")
    data = TrainingData.read(options.data / "scifact.tar.gz")
    folders = {name: trained(name, options, data, cache) for name in options.only}

    test = Judgements.read(options.data / "scifact.tar.gz")
    learned = {text for each in data.examples for text in each.positives}
    seen = {query for query, found in test.grades.items() if learned & {test.documents[name] for name in found}}
    values = {
        name: evaluate(
            Embedder(str(model), vector_cache=cache, truncation="silent"), test, metrics=[METRIC], vector_cache=cache
        ).per_query[METRIC]
        for name, model in {"base": MODEL, **folders}.items()
    }
    found: dict[str, Any] = {"version": __version__, "machine": machine(), "models": {}, "differences": {}}
    for name, scores in values.items():
        groups = {"all": list(scores), "seen": sorted(seen), "unseen": [each for each in scores if each not in seen]}
        found["models"][name] = {
            group: sum(map(scores.__getitem__, queries)) / len(queries) for group, queries in groups.items()
        }
        for against in ("base", "plain"):
            if name not in ("base", against) and against in values:
                gain = compare_paired(
                    *([values[each][query] for query in groups["unseen"]] for each in (against, name))
                )
                found["differences"][f"{name} - {against}, unseen"] = {
                    "mean": gain.mean,
                    "low": gain.low,
                    "high": gain.high,
                    "p": gain.p,
                }
    print(json.dumps(found, indent=1))
    options.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
