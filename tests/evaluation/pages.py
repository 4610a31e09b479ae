"""A comparison with known figures, for the tests of pages."""

from __future__ import annotations

import numpy as np

from bge_runtime.evaluation.comparison import Comparison, compare_evaluations
from bge_runtime.evaluation.evaluation import Evaluation
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.metrics import METRICS, measure
from bge_runtime.evaluation.subjects import Costs

QUESTIONS = [f"q{number}" for number in range(40)]
DOCUMENTS = [f"d{number}" for number in range(60)]


def judgements() -> Judgements:
    return Judgements(
        name="made",
        queries={
            query: f"Which document is the one that question {query} has in mind, of all those that there are?"
            for query in QUESTIONS
        },
        grades={query: {f"d{number}": 1} for number, query in enumerate(QUESTIONS)},
        documents={
            name: f"This is document {name}. " + "It says a good deal more than fits on a line. " * 9
            for name in DOCUMENTS
        },
        notes=("one remark about the data",),
    )


def evaluation(label: str, seed: int, gain: float, milliseconds: float, size: int) -> Evaluation:
    random = np.random.default_rng(seed)
    data = judgements()
    run = {}
    for number, query in enumerate(QUESTIONS):
        scores = random.random(len(DOCUMENTS)) * 0.6
        scores[number] += gain * random.random()
        order = np.argsort(-scores)
        run[query] = [(DOCUMENTS[at], float(scores[at])) for at in order]
    per_query = measure(run, data.grades, METRICS)
    return Evaluation(
        label=label,
        data="made",
        data_digest=data.digest,
        metrics={name: sum(each.values()) / len(each) for name, each in per_query.items()},
        per_query=per_query,
        run=run,
        best_scores={},
        queries=len(QUESTIONS),
        identity=label,
        costs=Costs(query_ms=milliseconds, search_ms=0.1, texts_per_s=80.0, bytes_per_vector=size),
        notes=data.notes,
        versions={"python": "3"},
        machine={"processor": "any", "cores": 2, "device": "cpu"},
    )


def comparison() -> Comparison:
    return compare_evaluations(
        {
            "bits=float32 rerank=late_interaction depth=100": evaluation("one", 1, 0.9, 900.0, 1536),
            "bits=binary rerank=none": evaluation("two", 2, 0.4, 5.0, 48),
        },
        codes={"bits=binary rerank=none": "embeddings = BGEEmbeddings(model='sentence-transformers/all-MiniLM-L6-v2')"},
    )
