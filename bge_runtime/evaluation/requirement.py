"""The condition that a migrated index finds as much as the old one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bge_runtime import ConfigurationError, Embedder, InputError
from bge_runtime.evaluation.evaluation import evaluate
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.metrics import measure
from bge_runtime.evaluation.statistics import compare_paired
from bge_runtime.evaluation.stores.recognised import recognised

__all__ = ["no_worse"]

METRIC = "nDCG@10"


def no_worse(
    data: Judgements,
    old: Embedder,
    new: Embedder,
    *,
    metric: str = METRIC,
    tolerance: float = 0.0,
    collection: str | None = None,
    allow_pickle: bool = False,
) -> Callable[[Path], bool]:
    """Return what `migrate` takes as `require=`: whether the new embedder finds what is judged as well as the old one.

    Both search the texts of the index exactly. They are embedded for it once more, by both; a vector cache of the
    embedders saves that the next time.

    Args:
        data: Judgements by ids of the index, or by places in its texts.
        old: The embedder that filled the old index.
        new: The one that fills the new one.
        metric: What is compared.
        tolerance: By how much the new one may be lower.
        collection: Which index, where the folder holds several.
        allow_pickle: As `migrate` takes it.

    Returns:
        A function of the new index's folder: True, or an error that tells both figures.

    Raises:
        ConfigurationError: `tolerance` is not allowed, or the metric does not exist.
    """
    measure({}, {}, [metric])
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < 1:
        raise ConfigurationError(f"tolerance={tolerance!r} is not allowed. Pass 0 or more, and less than 1.")

    def holds(folder: Path) -> bool:
        with tempfile.TemporaryDirectory() as scratch:
            store = recognised(folder, collection, Path(scratch), allow_pickle=allow_pickle)
            texts = {row.id: row.text for row in store.rows()}
        judged = {name for grades in data.grades.values() for name in grades}
        if not judged & texts.keys() and not any(data.passages.values()):
            raise InputError(
                f"None of the documents that {data.name!r} judges is in the index: it has {sorted(texts)[:3]!r} for "
                f"example, and judged are {sorted(judged)[:3]!r}. Judge by the index's ids, or by quoted passages."
            )
        asked = replace(data, documents=texts)
        values = [evaluate(each, asked, metrics=[metric]).per_query[metric] for each in (old, new)]
        difference = compare_paired(*([each[query] for query in asked.queries] for each in values))
        if difference.mean >= -tolerance:
            return True
        means = [sum(each.values()) / len(each) for each in values]
        raise ConfigurationError(
            f"{new.model!r} finds less than {old.model!r} on {data.name!r}: {metric} {means[1]:.4f} against "
            f"{means[0]:.4f} over {difference.questions} questions (difference {difference.mean:+.4f}, 95% interval "
            f"{difference.low:+.4f} to {difference.high:+.4f}, p {difference.p:.3f}), at most {tolerance:g} less is "
            "allowed. The old index stays in use, and the new one is kept: another call embeds nothing again."
        )

    return holds
