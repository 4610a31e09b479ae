"""Which weights a mix of models gets: by their loss on examples, or by what the mix finds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logsumexp

from bge_runtime import ConfigurationError, Embedder, Reranker, VectorCache
from bge_runtime.evaluation.evaluation import evaluate
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.training.embedder import pool_of
from bge_runtime.training.examples import TrainingData
from bge_runtime.training.folders import Trained, Workplace
from bge_runtime.training.gate import METRIC, TOLERANCE, check_tolerance, general_questions, measure_with, pass_gate
from bge_runtime.training.holding_out import SHARE, hold_out
from bge_runtime.training.mixing import mix

__all__ = ["choose_mix", "example_losses"]

# Of the tuned model; what is left is the base's.
WEIGHTS = (0.3, 0.5, 0.7, 0.9)


def example_losses(models: Sequence[str | os.PathLike[str]], data: TrainingData, *, limit: int = 100) -> list[float]:
    """Return the loss of each model on examples, for `weights_by_loss`.

    Of an embedder: cross-entropy of each question's first positive among the positives and negatives of all examples,
    by cosines over the model's temperature. Of a reranker: among the example's own texts, by its logits.

    Args:
        models: Names or folders, all embedders or all rerankers.
        data: Examples of the task; a few are enough.
        limit: How many are read, the first ones.

    Raises:
        ConfigurationError: A reranker's examples have no negatives.
    """
    examples = data.examples[:limit]
    found = []
    for name in models:
        scorer = Reranker(str(name), normalize=False, truncation="silent")
        if scorer.method == "cross_encoder":
            if not any(each.negatives for each in examples):
                raise ConfigurationError(f"{data.name!r} has no negatives, which a reranker's loss needs. Mine some.")
            losses = []
            for each in examples:
                logits = scorer.score(each.query, [each.positives[0], *each.negatives])
                losses.append(float(logsumexp(logits) - logits[0]))
            found.append(float(np.mean(losses)))
            scorer.close()
            continue
        embedder = Embedder(str(name), truncation="silent")
        texts = list(dict.fromkeys(text for each in examples for text in (*each.positives, *each.negatives)))
        place = {text: at for at, text in enumerate(texts)}
        cosines = embedder.encode_queries([each.query for each in examples]) @ embedder.encode_documents(texts).T
        scores = cosines / embedder.spec.temperature
        right = np.array([place[each.positives[0]] for each in examples])
        found.append(float((logsumexp(scores, axis=1) - scores[np.arange(len(examples)), right]).mean()))
        embedder.close()
    return found


def choose_mix(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    data: TrainingData,
    weights: Sequence[float] = WEIGHTS,
    share: float = SHARE,
    seed: int = 0,
    guard: Judgements | None = None,
    tolerance: float = TOLERANCE,
    force: bool = False,
    vector_cache: VectorCache | str | os.PathLike[str] | None = None,
    show_progress: bool = False,
) -> Trained:
    """Mix a tuned embedder with its base, with the weight that finds most while the guard stays within the tolerance.

    Each weight is tried on the questions that the training with the same data, share and seed held out; the chosen one
    passes the gate of every training.

    Args:
        base: The model before.
        tuned: The trained one.
        out: Folder that is written.
        data: What the tuned model was trained on.
        weights: Of the tuned model, each between 0 and 1; what is left is the base's.
        share: As in the training.
        seed: As in the training.
        guard: Questions of another kind; `None` takes those of the package.
        tolerance: By how much the guard may fall.
        force: Hand the mix over whatever the gate says.
        vector_cache: Remembers vectors of the base and of the chosen mix.
        show_progress: Whether to show progress on standard error.

    Raises:
        ConfigurationError: A weight is not allowed, or the models cannot be mixed.
    """
    check_tolerance(tolerance)
    shares = [float(each) for each in weights if isinstance(each, int | float) and 0 < each < 1]
    if not shares or len(shares) < len(weights):
        raise ConfigurationError(f"weights={list(weights)!r} is not allowed. Pass numbers between 0 and 1.")
    others = guard or general_questions()
    split = hold_out(data, share=share, seed=seed)
    told: dict[str, Any] = {
        "kind": "mix",
        "model": str(base),
        "tuned": str(tuned),
        "identities": [Embedder(str(each)).identity for each in (base, tuned)],
        "data": {"name": data.name, "digest": data.digest, "examples": len(split.training.examples)},
        "guard": {"name": others.name, "digest": others.digest},
        "settings": {"weights": shares, "seed": seed},
        "share": share,
    }
    workplace = Workplace(out, told)
    cache = workplace.cache(vector_cache)
    reference = Embedder(str(base), vector_cache=cache, truncation="silent")
    pools = [pool_of(reference, each, show_progress=show_progress) for each in split.development.values()]
    least = evaluate(reference, others, metrics=[METRIC]).metrics[METRIC] - tolerance
    tried = []
    for weight in shares:
        folder = _mixed(base, tuned, weight, workplace.folder / "tried")
        embedder = Embedder(str(folder), truncation="silent")
        # Each question counts the same, whichever set it is of.
        values = [
            value for pool in pools for value in evaluate(embedder, pool, metrics=[METRIC]).per_query[METRIC].values()
        ]
        kept = evaluate(embedder, others, metrics=[METRIC]).metrics[METRIC]
        tried.append({"weight": weight, "development": float(np.mean(values)), "guard": kept})
        embedder.close()
    sound = [each for each in tried if each["guard"] >= least]
    best = max(sound or tried, key=lambda each: each["development"] if sound else each["guard"])
    candidate = _mixed(base, tuned, best["weight"], workplace.folder / "candidate")
    chosen = Embedder(str(candidate), vector_cache=cache, truncation="silent")
    gate = pass_gate(
        measure_with(reference, cache),
        measure_with(chosen, cache),
        development=split.development,
        guard=others,
        tolerance=tolerance,
        force=force,
    )
    chosen.close()
    report = {**told, "tried": tried, "chosen": best["weight"]}
    return workplace.finish(candidate, gate, report, base=[str(base)], picture=None)


def _mixed(base: str | os.PathLike[str], tuned: str | os.PathLike[str], weight: float, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return mix([tuned, base], folder, weights=[weight, 1 - weight])
