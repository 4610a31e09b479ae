"""The measures of retrieval, computed by trec_eval through ir-measures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from bge_runtime import ConfigurationError
from bge_runtime.evaluation.judging import Run

__all__ = ["METRICS", "measure"]

METRICS = ("nDCG@10", "R@100", "RR@10", "AP@100", "success@1", "success@5", "success@10")
_NAME = re.compile(r"(nDCG|R|RR|AP|P|success)@([1-9][0-9]*)")
ADVICE = "Use nDCG@k, R@k, RR@k, AP@k, P@k or success@k, with a number in the place of k."
NO_MEASURES = 'Measures of retrieval need an extra: pip install "bge-integrations[eval]"'


def measure(
    run: Run, grades: Mapping[str, Mapping[str, int]], metrics: Iterable[str] = METRICS
) -> dict[str, dict[str, float]]:
    """Return each metric of each question.

    nDCG takes the grade itself as gain, as trec_eval and MTEB do. Equal scores are ordered by descending id. RR@k is
    the reciprocal rank of the first relevant document, 0 beyond k. A question for which nothing was found counts 0.

    Args:
        run: What was found for each question.
        grades: What is judged; these questions count.
        metrics: Their names.

    Returns:
        By metric, and by question, between 0 and 1.

    Raises:
        ConfigurationError: A metric does not exist, or ir-measures is not installed.
    """
    names = list(metrics)
    parsed = {name: _parsed(name) for name in names}
    try:
        import ir_measures
    except ImportError as error:
        raise ConfigurationError(NO_MEASURES) from error
    # trec_eval has no cut-off for the reciprocal rank: below 1 / k it stands beyond it.
    measures = {
        name: ir_measures.RR if kind == "RR" else ir_measures.parse_measure(f"{kind.replace('s', 'S', 1)}@{cut}")
        for name, (kind, cut) in parsed.items()
    }
    values: dict[str, dict[str, float]] = {name: dict.fromkeys(grades, 0.0) for name in names}
    if not names or not grades:
        return values
    judged = {query: dict(each) for query, each in grades.items()}
    found = {query: dict(run.get(query, ())) for query in grades}
    for each in ir_measures.pytrec_eval.iter_calc(set(measures.values()), judged, found):
        for name in (name for name, wanted in measures.items() if wanted == each.measure):
            kind, cut = parsed[name]
            beyond = kind == "RR" and each.value < 1 / cut
            values[name][each.query_id] = 0.0 if beyond else float(each.value)
    return values


def _parsed(name: str) -> tuple[str, int]:
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise ConfigurationError(f"metric {name!r} does not exist. {ADVICE}")
    return match[1], int(match[2])
