"""How good and how fast, measured on your own data; and what to decide by it.

The names below are imported on first use: each of them needs only some of the packages of the extra `eval`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bge_runtime.evaluation.calibrating import calibrate, candidates_of, check_calibrator
    from bge_runtime.evaluation.calibration import fit_calibrator, fit_without_labels, measure_calibration
    from bge_runtime.evaluation.comparison import Comparison, compare, compare_evaluations
    from bge_runtime.evaluation.evaluation import Evaluation, evaluate
    from bge_runtime.evaluation.judgements import Judgements
    from bge_runtime.evaluation.migration import Migration, migrate
    from bge_runtime.evaluation.mteb import BGEEncoder, evaluate_tasks
    from bge_runtime.evaluation.questions import make_questions, write_questions
    from bge_runtime.evaluation.report import write_report
    from bge_runtime.evaluation.requirement import no_worse
    from bge_runtime.evaluation.sources import Passage

# Which module defines which names.
_NAMES = {
    "calibrating": "calibrate candidates_of check_calibrator",
    "calibration": "fit_calibrator fit_without_labels measure_calibration",
    "comparison": "Comparison compare compare_evaluations",
    "evaluation": "Evaluation evaluate",
    "judgements": "Judgements",
    "migration": "Migration migrate",
    "mteb": "BGEEncoder evaluate_tasks",
    "questions": "make_questions write_questions",
    "report": "write_report",
    "requirement": "no_worse",
    "sources": "Passage",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "BGEEncoder",
    "Comparison",
    "Evaluation",
    "Judgements",
    "Migration",
    "Passage",
    "calibrate",
    "candidates_of",
    "check_calibrator",
    "compare",
    "compare_evaluations",
    "evaluate",
    "evaluate_tasks",
    "fit_calibrator",
    "fit_without_labels",
    "make_questions",
    "measure_calibration",
    "migrate",
    "no_worse",
    "write_questions",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
