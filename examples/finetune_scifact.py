"""Fine-tune on SciFact from end to end, on a laptop: check, mine, tune, mine again, reranker, mix, evaluate.

    python examples/finetune_scifact.py --data FOLDER --out FOLDER

FOLDER of the data holds scifact.tar.gz (BEIR's layout, with qrels/train.tsv and qrels/test.tsv) and xquad-en.tar.gz;
the test questions are read at the end alone. A run that was cut off goes on when it is started again. Writes
results.json, results.png and the models.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from bge_runtime import DEFAULT_OFFLINE_MODEL, Embedder, Reranker, VectorCache
from bge_runtime.evaluation import Judgements, evaluate
from bge_runtime.evaluation.statistics import compare_paired
from bge_runtime.training import (
    TrainingData,
    TrainingSettings,
    check_data,
    choose_mix,
    mine,
    train_embedder,
    train_reranker,
)

METRIC = "nDCG@10"
DEPTH = 10
SHARE = 0.05


def main() -> None:
    """Run all steps; each finds what the one before has left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default=DEFAULT_OFFLINE_MODEL)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    cache = VectorCache(asked.out / "vectors.sqlite")
    scifact, guard = asked.data / "scifact.tar.gz", Judgements.read(asked.data / "xquad-en.tar.gz")
    started = time.perf_counter()

    def told(step: str) -> None:
        print(f"[{(time.perf_counter() - started) / 60:5.1f} min] {step}", flush=True)

    settings = TrainingSettings(
        epochs=3, negatives=1, learning_rate=5e-5, dropout=0.0, evaluations=2, mini_batch_size=96
    )
    data = TrainingData.read(scifact)
    report = check_data(scifact, model=asked.model, settings=settings, test=scifact)
    told(f"check: {report.examples} examples, {len(report.findings)} findings, guess {report.guess}")
    if report.errors:
        raise SystemExit("\n".join(str(each) for each in report.errors))

    base = Embedder(asked.model, vector_cache=cache, truncation="silent")
    mined = mine(data, base, negatives=settings.negatives)
    told(f"mine: {mined.candidates} candidates, dropped {mined.dropped}")
    tuned = asked.out / "tuned"
    if not tuned.is_dir():
        done = train_embedder(
            mined.data, tuned, model=base, settings=settings, share=SHARE, guard=guard, vector_cache=cache
        )
        told(f"tune: {_gate(done.gate)}")
    better = Embedder(str(tuned), vector_cache=cache, truncation="silent")
    again = mine(data, better, negatives=3)
    told(f"mine again: dropped {again.dropped}")
    reranker = asked.out / "reranker"
    if not reranker.is_dir():
        pairs = TrainingSettings(
            epochs=1, negatives=3, batch_size=8, learning_rate=5e-5, dropout=0.0, evaluations=2, mini_batch_size=32
        )
        # Handed over whatever it is worth, so that the table can say so.
        done = train_reranker(
            again.data, reranker, model=asked.model, embedder=better, settings=pairs, depth=DEPTH, share=SHARE,
            vector_cache=cache, force=True,
        )  # fmt: skip
        told(f"reranker: {_gate(done.gate)}")
    mixed = asked.out / "mixed"
    if not mixed.is_dir():
        done = choose_mix(
            asked.model, tuned, mixed, data=mined.data, share=SHARE, guard=guard, vector_cache=cache, force=True
        )
        told(f"mix: weight {done.report['chosen']} of the tuned one; {_gate(done.gate)}")

    test = Judgements.read(scifact)
    learned = {text for each in data.examples for text in each.positives}
    seen = [query for query, found in test.grades.items() if learned & {test.documents[name] for name in found}]
    groups = {
        "": list(test.queries),
        "_seen": seen,
        "_unseen": [each for each in test.queries if each not in set(seen)],
    }
    subjects = {
        "base": (base, None),
        "tuned": (better, None),
        "mixed": (Embedder(str(mixed), vector_cache=cache, truncation="silent"), None),
        "reranked": (better, Reranker(str(reranker), normalize=False, truncation="silent")),
    }
    values = {
        name: {
            collection.name: evaluate(
                embedder, collection, reranker=ranker, depth=DEPTH, metrics=[METRIC], vector_cache=cache
            ).per_query[METRIC]
            for collection in (test, guard)
        }
        for name, (embedder, ranker) in subjects.items()
    }
    results = {
        name: {
            **{
                f"scifact{suffix}": sum(found["scifact"][query] for query in queries) / len(queries)
                for suffix, queries in groups.items()
            },
            "xquad-en": sum(found["xquad-en"].values()) / len(found["xquad-en"]),
        }
        for name, found in values.items()
    }
    differences = {}
    for name, against in (("tuned", "base"), ("mixed", "base"), ("reranked", "tuned")):
        for suffix, queries in groups.items():
            gain = compare_paired(*([values[each]["scifact"][query] for query in queries] for each in (against, name)))
            differences[f"{name} - {against}: scifact{suffix}"] = {
                "mean": gain.mean, "low": gain.low, "high": gain.high, "p": gain.p, "questions": gain.questions
            }  # fmt: skip
    minutes = (time.perf_counter() - started) / 60
    whole = {**results, "differences": differences, "minutes": minutes}
    (asked.out / "results.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")
    _picture(results, asked.out / "results.png")
    columns = list(results["base"])
    print("".join(f"{each:>16}" for each in ("", *columns)))
    for name, row in results.items():
        print(f"{name:>16}" + "".join(f"{row[each]:16.4f}" for each in columns))
    for name, gain in differences.items():
        print(f"{name}: {gain['mean']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f}, p {gain['p']:.4f})")
    told(f"done: {asked.out / 'results.json'}, {asked.out / 'results.png'}")


def _gate(gate: object) -> str:
    return "; ".join(
        f"{each.name} {each.before:.4f} to {each.after:.4f}"
        for each in gate.measured  # type: ignore[attr-defined]
    )


def _picture(results: dict[str, dict[str, float]], file: Path) -> None:
    from bge_runtime.evaluation.charts import bars

    file.write_bytes(bars(results, METRIC).png)


if __name__ == "__main__":
    main()
