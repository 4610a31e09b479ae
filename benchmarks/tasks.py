"""The workloads as functions over an open model. Each returns its values and the rows to compare."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import workloads
from benchmarks.peers import Embedding, Scoring

__all__ = ["GROWTH_STEPS", "growth", "percentile", "run"]

Outcome = tuple[dict[str, Any], Any]
PERIOD_S = 0.05
GROWTH_STEPS = (100, 10, 1)  # parts of the whole: 1k, 10k and 100k of 100k
INGEST_CALL = 64  # passages per call of the ingestion that runs beside the queries
KEPT_ROWS = 200  # rows of a result that are compared


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of the values do not exceed, interpolated."""
    return float(np.percentile(values, 100 * share))


def run(workload: str, model: Embedding | Scoring, count: int, turn: int) -> Outcome:
    """Run one workload of `count` texts or queries with the texts of round `turn`."""
    if not isinstance(model, Embedding):
        return _rerank(model, count, turn)
    special = {"concurrent": _concurrent, "lone": _lone, "busy": _busy}.get(workload)
    return special(model, count, turn) if special else _corpus(workload, model, count, turn)


def _corpus(workload: str, model: Embedding, count: int, turn: int) -> Outcome:
    texts = workloads.texts(workload, count, turn)
    seconds, rows = _timed(lambda: model.documents(texts))
    lengths = workloads.tokens(texts)
    return {"seconds": seconds, "tokens": sum(lengths), "squares": sum(n * n for n in lengths)}, rows[:KEPT_ROWS]


def _rerank(score: Scoring, count: int, turn: int) -> Outcome:
    work = workloads.pairs(count, turn)
    seconds, rows = _timed(lambda: [score(query, documents) for query, documents in work])
    lengths = [n for query, documents in work for n in workloads.tokens(documents, query)]
    return {"seconds": seconds, "tokens": sum(lengths), "squares": sum(n * n for n in lengths)}, rows


def _concurrent(model: Embedding, count: int, turn: int) -> Outcome:
    """64 callers at once, again and again until `count` queries are answered."""
    texts = workloads.queries("concurrent", count, turn)
    latencies: list[float] = []

    async def ask(text: str) -> Any:
        started = time.perf_counter()
        row = await model.aquery(text)
        latencies.append(time.perf_counter() - started)
        return row

    async def together() -> list[Any]:
        rows: list[Any] = []
        for at in range(0, count, workloads.CALLERS):
            rows += await asyncio.gather(*(ask(text) for text in texts[at : at + workloads.CALLERS]))
        return rows

    finish = model.loop.run_until_complete if model.loop else asyncio.run
    seconds, rows = _timed(lambda: finish(together()))
    return {"seconds": seconds, "queries_per_s": count / seconds, **_latencies(latencies)}, rows[:KEPT_ROWS]


def _lone(model: Embedding, count: int, turn: int) -> Outcome:
    texts = workloads.queries("lone", count, turn)
    timed = [_timed(lambda text=text: model.query(text)) for text in texts]
    values = _latencies([seconds for seconds, _ in timed])
    return {"seconds": values["p50_s"], **values}, [row for _, row in timed]


def _busy(model: Embedding, count: int, turn: int) -> Outcome:
    """Queries at a steady pace, first with nothing else to do, then while documents are embedded."""
    texts = workloads.queries("busy", count, turn)
    passages = workloads.texts("ingest", INGEST_CALL, turn)
    idle, rows = _paced(model, texts)
    stop = threading.Event()
    calls: list[int] = []

    def ingest() -> None:
        while not stop.is_set():
            model.documents(passages)
            calls.append(len(passages))

    thread = threading.Thread(target=ingest)
    thread.start()
    time.sleep(2 * PERIOD_S)
    busy, _ = _paced(model, texts)
    stop.set()
    thread.join()
    beside = _latencies(busy)
    alone = {f"idle_{name}": value for name, value in _latencies(idle).items()}
    return {"seconds": beside["p99_s"], **beside, **alone, "passages": sum(calls)}, rows


def _paced(model: Embedding, texts: Sequence[str]) -> tuple[list[float], list[Any]]:
    latencies, rows = [], []
    due = time.perf_counter()
    for text in texts:
        time.sleep(max(0.0, due - time.perf_counter()))
        seconds, row = _timed(lambda text=text: model.query(text))
        latencies.append(seconds)
        rows.append(row)
        due = max(due + PERIOD_S, time.perf_counter())
    return latencies, rows


def growth(stream: Callable[..., Any], model_bytes: int, count: int) -> dict[str, Any]:
    """Stream ever more texts and drop the vectors: time per text and memory."""
    steps = []
    for part in GROWTH_STEPS:
        texts = max(count // part, 1)
        seconds, _ = _timed(lambda texts=texts: sum(len(block) for block in stream(workloads.stream(texts))))
        steps.append({"texts": texts, "us_per_text": 1e6 * seconds / texts, "resident_bytes": memory("VmRSS")})
    return {
        "seconds": seconds,
        "steps": steps,
        "model_bytes": model_bytes,
        "peak_bytes": memory("VmHWM"),
    }


def memory(field: str) -> int:
    """Return a size of this process from the kernel: `VmRSS` is what it holds, `VmHWM` the most it ever held."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def _latencies(seconds: Sequence[float]) -> dict[str, float]:
    return {"p50_s": percentile(seconds, 0.5), "p99_s": percentile(seconds, 0.99)}


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result
