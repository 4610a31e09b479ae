"""What helps the questions whose documents training has not seen: more negatives, or distillation.

    python benchmarks/finetune_variants.py --data FOLDER --out FOLDER [--only plain negatives distillation]

all-MiniLM-L6-v2 on SciFact's train questions, each time with the settings of examples/finetune_scifact.py (in bfloat16
where --precision says so) and one thing changed: three mined negatives, or three with the scores of late interaction as
a teacher. Development sets are held out in the same way, and pick the checkpoint; the test questions are read at the
end. A run that was cut off goes on when it is started again. Results go to benchmarks/results/finetune_variants.json,
or where --results says.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from published import MODEL, RESULTS, machine

from bge_runtime import Embedder, Reranker, VectorCache, __version__
from bge_runtime.evaluation import Judgements, evaluate
from bge_runtime.evaluation.statistics import compare_paired
from bge_runtime.training import Trained, TrainingData, TrainingSettings, mine, train_embedder

METRIC = "nDCG@10"
SHARE = 0.05
VARIANTS = ("plain", "negatives", "distillation")


def trained(variant: str, options: argparse.Namespace, data: TrainingData, cache: VectorCache) -> Path:
    """Train a variant, unless it is there."""
    out: Path = options.out / variant
    if out.is_dir():
        return out
    guard = Judgements.read(options.data / "xquad-en.tar.gz")
    settings = TrainingSettings(
        epochs=3,
        negatives=1,
        learning_rate=5e-5,
        dropout=0.0,
        evaluations=2,
        mini_batch_size=96,
        precision=options.precision,
    )
    more: dict[str, Any] = {"share": SHARE, "guard": guard, "vector_cache": cache, "force": True}
    base = Embedder(MODEL, vector_cache=cache, truncation="silent")
    began = time.perf_counter()
    teacher = None
    if variant == "negatives":
        settings = replace(settings, negatives=3)
    elif variant == "distillation":
        settings, teacher = replace(settings, negatives=3), Reranker(MODEL)
    mined = mine(data, base, negatives=settings.negatives)
    if teacher is not None:  # which says itself what is no negative: questions that lack some get those near the margin
        mined = mine(mined.data, base, negatives=settings.negatives, relative_margin=None, teacher=teacher)
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
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
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
    found: dict[str, Any] = {
        "version": __version__,
        "machine": machine(),
        "precision": options.precision,
        "models": {},
        "differences": {},
    }
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
