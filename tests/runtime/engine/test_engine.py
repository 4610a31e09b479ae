"""The queue and its worker: merging, order of service, cancellation, closing."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from bge_runtime import EngineStoppedError
from bge_runtime.engine.counters import Counters
from bge_runtime.engine.job import Job
from bge_runtime.engine.queue import JobQueue
from bge_runtime.inputs.tokenizing import TokenSequence
from tests.runtime.fakes import TIMEOUT_S, FakeBackend, engine_over, hold, job_of, values


def _job(lengths):
    """A job whose inputs have these lengths, and these as their token ids."""
    return Job([TokenSequence([length] * length, [0] * length) for length in lengths], "cls", batch_tokens=100)


def test_results_come_back_in_input_order(engine, fake_backend):
    lengths = [3, 50, 7, 1, 50, 20]
    sequences = [TokenSequence([index] * length, [0] * length) for index, length in enumerate(lengths)]
    assert values(engine.submit(Job(sequences, "cls", batch_tokens=60))) == list(range(6))
    assert fake_backend.batches[0] == [1]


def test_batches_keep_to_the_token_budget_and_the_batch_size(engine, fake_backend):
    assert values(engine.submit(job_of(*range(25), length=10))) == list(range(25))
    assert [len(batch) for batch in fake_backend.batches] == [10, 10, 5]
    fake_backend.batches.clear()
    assert values(engine.submit(job_of(*range(7), batch_size=3))) == list(range(7))
    assert [len(batch) for batch in fake_backend.batches] == [3, 3, 1]


def test_a_backend_without_padding_is_given_as_many_tokens_as_the_budget_allows(engine, fake_backend):
    fake_backend.pads = False
    assert values(engine.submit(_job([60, 10, 10, 10, 10]))) == [60, 10, 10, 10, 10]
    assert [len(batch) for batch in fake_backend.batches] == [5]
    fake_backend.pads = True
    fake_backend.batches.clear()
    values(engine.submit(_job([60, 10, 10, 10, 10])))
    assert [len(batch) for batch in fake_backend.batches] == [1, 4]


def test_an_input_longer_than_the_budget_runs_alone(engine, fake_backend):
    assert values(engine.submit(job_of(1, 2, length=500))) == [1, 2]
    assert fake_backend.batches == [[1], [2]]


def test_small_calls_of_several_callers_share_a_batch(engine, fake_backend):
    hold(engine, fake_backend)
    jobs = [engine.submit(job_of(number)) for number in range(8)]
    fake_backend.gate.set()
    assert [values(job) for job in jobs] == [[number] for number in range(8)]
    assert fake_backend.batches == [[999], list(range(8))]


def test_jobs_that_want_another_output_do_not_share_a_batch(engine, fake_backend):
    hold(engine, fake_backend)
    jobs = [engine.submit(job_of(1)), engine.submit(Job([TokenSequence([2], [0])], "mean", batch_tokens=100))]
    fake_backend.gate.set()
    assert [values(job) for job in jobs] == [[1], [2]]
    assert fake_backend.batches == [[999], [1], [2]]


def test_interactive_work_goes_before_bulk_work(engine, fake_backend):
    hold(engine, fake_backend)
    bulk = engine.submit(job_of(1, 2, 3, length=100, bulk=True))
    query = engine.submit(job_of(7))
    fake_backend.gate.set()
    assert (values(query), values(bulk)) == ([7], [1, 2, 3])
    assert fake_backend.batches == [[999], [7], [1], [2], [3]]


def test_bulk_work_is_not_starved_by_a_stream_of_queries(engine, fake_backend):
    hold(engine, fake_backend)
    bulk = engine.submit(job_of(-1, bulk=True))
    queries = [engine.submit(job_of(number, length=100)) for number in range(40)]
    fake_backend.gate.set()
    assert values(bulk) == [-1]
    assert [values(job) for job in queries] == [[number] for number in range(40)]
    assert fake_backend.batches.index([-1]) < 30


def test_bulk_callers_take_turns(engine, fake_backend):
    hold(engine, fake_backend)
    large = engine.submit(job_of(*range(10), length=100, bulk=True))
    small = engine.submit(job_of(50, length=100, bulk=True))
    fake_backend.gate.set()
    assert (values(small), values(large)) == ([50], list(range(10)))
    assert fake_backend.batches.index([50]) <= 3


def test_a_cancelled_job_is_dropped_before_it_is_computed(engine, fake_backend):
    hold(engine, fake_backend)
    jobs = [engine.submit(job_of(number)) for number in range(3)]
    assert jobs[1].future.cancel()
    fake_backend.gate.set()
    assert values(jobs[2]) == [2]
    assert fake_backend.batches == [[999], [0, 2]]


def test_a_job_cancelled_between_batches_computes_no_more(engine, fake_backend):
    hold(engine, fake_backend)
    large = engine.submit(job_of(*range(5), length=100))
    later = engine.submit(job_of(50))
    fake_backend.fault = lambda batch: large.future.cancel() if batch[0].ids[0] == 1 else None
    fake_backend.gate.set()
    assert values(later) == [50]
    assert fake_backend.batches == [[999], [0], [1], [50]]


def test_cancelling_while_a_batch_is_formed_hurts_nobody(engine, fake_backend):
    class CancelledMidway(Job):
        looks = 0

        @property
        def waiting(self):
            self.looks += 1
            if self.looks == 2:
                self.future.cancel()
            return super().waiting

    hold(engine, fake_backend)
    other = engine.submit(job_of(1, bulk=True))
    template = job_of(2)
    engine.submit(CancelledMidway(template.sequences, "cls", batch_tokens=100))
    fake_backend.gate.set()
    assert values(other) == [1]


def test_progress_reports_every_input_once(engine):
    seen = []
    values(engine.submit(job_of(*range(25), length=10, on_progress=seen.append)))
    assert sum(seen) == 25


def test_a_full_queue_makes_callers_wait_and_loses_nothing(engine, fake_backend, monkeypatch):
    monkeypatch.setattr("bge_runtime.engine.queue.MAX_QUEUED_TOKENS", 150)
    hold(engine, fake_backend)
    first, second = engine.submit(job_of(1, length=100)), engine.submit(job_of(2, length=100))
    room = engine.room(bulk=False)
    assert room is not None
    assert not room.done()
    fake_backend.gate.set()
    assert [values(job) for job in (first, second)] == [[1], [2]]
    room.result(TIMEOUT_S)
    assert engine.room(bulk=False) is None


def test_a_full_bulk_queue_keeps_no_query_waiting(engine, fake_backend, monkeypatch):
    monkeypatch.setattr("bge_runtime.engine.queue.MAX_QUEUED_TOKENS", 50)
    hold(engine, fake_backend)
    engine.submit(job_of(1, length=100, bulk=True))
    assert engine.room(bulk=True) is not None
    assert engine.room(bulk=False) is None


def test_closing_wakes_those_who_wait_for_room(engine, fake_backend, monkeypatch):
    monkeypatch.setattr("bge_runtime.engine.queue.MAX_QUEUED_TOKENS", 50)
    hold(engine, fake_backend)
    engine.submit(job_of(1, length=100))
    room = engine.room(bulk=False)
    assert room is not None
    fake_backend.gate.set()
    engine.close()
    room.result(TIMEOUT_S)


def test_closing_fails_what_is_pending_and_refuses_what_comes_later(engine, fake_backend):
    running = hold(engine, fake_backend)
    waiting = engine.submit(job_of(1))
    closing = threading.Thread(target=engine.close)
    closing.start()
    fake_backend.gate.set()
    closing.join(TIMEOUT_S)
    assert values(running) == [999]
    with pytest.raises(EngineStoppedError):
        values(waiting)
    with pytest.raises(EngineStoppedError):
        engine.submit(job_of(2))


def test_a_closed_engine_lets_go_of_the_weights():
    weights = FakeBackend()
    engine = engine_over(weights)
    values(engine.submit(job_of(1)))
    reference = weakref.ref(weights)
    engine.close()
    del weights
    gc.collect()
    assert reference() is None


def test_an_idle_worker_keeps_no_results_alive(engine):
    job = engine.submit(job_of(1, 2))
    values(job)
    values(engine.submit(job_of(3)))
    reference = weakref.ref(job)
    del job
    gc.collect()
    assert reference() is None


def test_counters_tell_inputs_batches_tokens_and_padding(fake_backend):
    counters = Counters()
    engine = engine_over(fake_backend, counters=counters)
    sequences = [TokenSequence([1] * length, [0] * length) for length in (10, 5)]
    engine.submit(Job(sequences, "cls", batch_tokens=100)).future.result(TIMEOUT_S)
    engine.close()
    sums = counters.snapshot()
    assert (sums["inputs"], sums["batches"], sums["tokens"], sums["padded_tokens"]) == (2, 1, 15, 20)
    assert sums["padding_share"] == pytest.approx(0.25)


def test_many_threads_get_their_own_results(engine):
    failures = []

    def call(number):
        for step in range(20):
            ids = [number * 1000 + step * 10 + place for place in range(number + 1)]
            if values(engine.submit(job_of(*ids, length=1 + step % 7, bulk=number % 2 == 0))) != ids:
                failures.append(number)

    threads = [threading.Thread(target=call, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)


def test_an_empty_job_is_done_at_once(engine, fake_backend):
    assert engine.submit(job_of()).future.result(TIMEOUT_S) == []
    assert fake_backend.batches == []


def test_while_queries_come_an_ingestion_works_in_small_bites(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("bge_runtime.engine.queue.time.monotonic", lambda: now[0])
    queue = JobQueue()
    queue.add(job_of(*range(100), batch_tokens=32, bulk=True))
    assert len(queue.take_batch(pads=False, most_tokens=None)) == 32
    queue.add(job_of(1, batch_tokens=32))
    assert [len(queue.take_batch(pads=False, most_tokens=None)) for _ in range(2)] == [1, 1]
    now[0] += 5.0
    assert len(queue.take_batch(pads=False, most_tokens=None)) == 32


def test_a_call_that_comes_too_late_while_the_process_ends_is_an_error(engine, fake_backend):
    engine.submit(job_of(1)).future.result(TIMEOUT_S)
    engine.stop()
    with pytest.raises(EngineStoppedError, match="process is ending"):
        engine.submit(job_of(2))
    assert fake_backend.batches == [[1]]
