"""A backend whose results, pace and faults a test decides."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from bge_runtime import ConfigurationError
from bge_runtime.backends.packed.int8 import check_int8
from bge_runtime.engine.counters import Counters
from bge_runtime.engine.engine import Engine
from bge_runtime.engine.hooks import Hooks, Place
from bge_runtime.engine.job import Job
from bge_runtime.engine.worker import Replica
from bge_runtime.inputs.tokenizing import TokenSequence

__all__ = ["TIMEOUT_S", "FakeBackend", "engine_over", "hold", "job_of", "skip_where_int8_cannot_run", "values"]

TIMEOUT_S = 10


class FakeBackend:
    """Returns each input's first token id; records every batch.

    `fault` is called with the batch before it is computed and may raise. While `gate` is clear, batches wait.
    """

    pads = True
    parameters = 1
    bytes = 4

    def __init__(self, fault: Callable[[Sequence[TokenSequence]], object] | None = None) -> None:
        self.pads = True
        self.batches: list[list[int]] = []
        self.started = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.fault = fault

    def forward(self, batch: Sequence[TokenSequence], output: str) -> list[np.ndarray]:
        self.started.set()
        assert self.gate.wait(timeout=TIMEOUT_S)
        self.batches.append([sequence.ids[0] for sequence in batch])
        if self.fault is not None:
            self.fault(batch)
        return [np.float32([sequence.ids[0]]) for sequence in batch]


def engine_over(
    *backends: FakeBackend,
    load: Callable[[], FakeBackend] | None = None,
    counters: Counters | None = None,
    hooks: Hooks | None = None,
) -> Engine:
    """An engine with a replica over each backend."""
    places = [Place(model="fake", backend="fake", device=f"fake:{at}", precision="float32") for at in range(9)]
    replicas = [Replica(backend, place, load) for backend, place in zip(backends, places, strict=False)]
    return Engine(replicas, "fake", counters, hooks)


def job_of(*ids: int, length: int = 1, **options: object) -> Job:
    """A job of inputs with these first token ids, `length` tokens each."""
    return Job(
        [TokenSequence([each] * length, [0] * length) for each in ids], "cls", **{"batch_tokens": 100, **options}
    )


def values(job: Job) -> list[int]:
    """Wait for a job and return its results."""
    return [int(value[0]) for value in job.future.result(TIMEOUT_S)]


def hold(engine: Engine, backend: FakeBackend) -> Job:
    """Occupy the worker, so that what is submitted next is queued together; returns the occupying job."""
    backend.gate.clear()
    job = engine.submit(job_of(999))
    assert backend.started.wait(TIMEOUT_S)
    return job


def skip_where_int8_cannot_run(precision: str) -> None:
    """Skip a test of packed int8 on processors that it refuses, with the reason that users get."""
    if precision != "int8":
        return
    try:
        check_int8()
    except ConfigurationError as error:
        pytest.skip(str(error))
