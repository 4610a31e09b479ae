"""Faults in a batch: who is told, and what goes on."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from bge_runtime import BackendError, EngineStoppedError, OutOfMemoryError
from bge_runtime.engine.deadline import Deadline
from bge_runtime.engine.worker import BATCHES_BEFORE_GROWTH
from tests.runtime.fakes import TIMEOUT_S, hold, job_of, values


def raise_when(condition, error):
    def fault(batch):
        if condition([sequence.ids[0] for sequence in batch]):
            raise error

    return fault


def test_out_of_memory_halves_the_budget_and_is_remembered(engine, fake_backend):
    fake_backend.fault = raise_when(lambda ids: len(ids) > 3, OutOfMemoryError("full"))
    assert values(engine.submit(job_of(*range(16), length=10, batch_tokens=160))) == list(range(16))
    assert [len(batch) for batch in fake_backend.batches[:3]] == [16, 8, 4]
    assert {len(batch) for batch in fake_backend.batches[3:]} == {2}
    fake_backend.batches.clear()
    assert values(engine.submit(job_of(*range(4), length=10, batch_tokens=160))) == list(range(4))
    assert [len(batch) for batch in fake_backend.batches] == [2, 2]


def test_an_input_that_never_fits_fails_its_own_caller_only(engine, fake_backend):
    fake_backend.fault = raise_when(lambda ids: 13 in ids, OutOfMemoryError("full"))
    hold(engine, fake_backend)
    jobs = [engine.submit(job_of(number, length=10)) for number in (11, 12, 13, 14)]
    fake_backend.gate.set()
    assert [values(jobs[index]) for index in (0, 1, 3)] == [[11], [12], [14]]
    with pytest.raises(OutOfMemoryError):
        values(jobs[2])


def test_an_error_reaches_the_caller_whose_input_causes_it_and_nobody_else(engine, fake_backend):
    fake_backend.fault = raise_when(lambda ids: 3 in ids, KeyError("broken"))
    hold(engine, fake_backend)
    jobs = [engine.submit(job_of(number)) for number in range(6)]
    fake_backend.gate.set()
    assert [values(jobs[index]) for index in (0, 1, 2, 4, 5)] == [[0], [1], [2], [4], [5]]
    with pytest.raises(BackendError, match="broken") as caught:
        values(jobs[3])
    assert isinstance(caught.value.__cause__, KeyError)
    assert values(engine.submit(job_of(8))) == [8]


def test_a_dead_worker_fails_its_pending_callers_and_the_next_call_starts_a_new_one(engine, fake_backend):
    fake_backend.fault = raise_when(lambda ids: 5 in ids, SystemExit("enough"))
    hold(engine, fake_backend)
    jobs = [engine.submit(job_of(5)), engine.submit(job_of(6, length=100)), engine.submit(job_of(7, bulk=True))]
    fake_backend.gate.set()
    for job in jobs:
        with pytest.raises(EngineStoppedError, match="enough"):
            values(job)
    assert values(engine.submit(job_of(8))) == [8]


def test_a_failing_progress_callback_fails_its_own_caller_only(engine, fake_backend):
    def fail(count):
        raise RuntimeError("no terminal")

    hold(engine, fake_backend)
    jobs = [engine.submit(job_of(1, on_progress=fail)), engine.submit(job_of(2))]
    fake_backend.gate.set()
    assert values(jobs[1]) == [2]
    with pytest.raises(RuntimeError, match="no terminal"):
        values(jobs[0])


def test_the_budget_grows_back_after_many_batches_that_fitted(engine, fake_backend):
    fake_backend.fault = raise_when(lambda ids: len(ids) > 3, OutOfMemoryError("full"))
    values(engine.submit(job_of(*range(8), length=10, batch_tokens=80)))
    fake_backend.fault = None
    for number in range(2 * BATCHES_BEFORE_GROWTH):
        values(engine.submit(job_of(number)))
    fake_backend.batches.clear()
    values(engine.submit(job_of(*range(8), length=10, batch_tokens=80)))
    assert [len(batch) for batch in fake_backend.batches] == [8]


def test_a_deadline_that_has_come_at_once_is_not_forgotten(monkeypatch):
    monkeypatch.setattr(threading.Timer, "start", lambda timer: timer.function())
    deadline = Deadline(0)
    assert deadline.passed
    assert deadline.limit(Future()).result(TIMEOUT_S) is None
