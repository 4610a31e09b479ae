"""Several copies of the weights off one queue, and weights that are freed while nobody needs them."""

from __future__ import annotations

import threading
import weakref

import pytest

from bge_runtime import BackendError, EngineStoppedError, OutOfMemoryError
from bge_runtime.engine.counters import Counters
from tests.contracts.concurrency import in_threads
from tests.runtime.fakes import TIMEOUT_S, FakeBackend, engine_over, job_of, values


@pytest.fixture
def pair():
    """Two backends that wait for each other in their first batches, so that each computes one."""
    both = threading.Barrier(2)
    backends = FakeBackend(), FakeBackend()
    for backend in backends:
        backend.fault = lambda batch: both.wait(TIMEOUT_S) if batch[0].ids[0] < 2 else None
    return backends


@pytest.fixture
def closing():
    """Close engines after the test."""
    engines = []
    yield lambda engine: engines.append(engine) or engine
    for engine in engines:
        engine.close()


def idle_engine(closing, load, counters=None, keep_alive_s=0.0):
    engine = closing(engine_over(load(), load=load, counters=counters))
    engine.keep_alive_s = keep_alive_s
    return engine


def wait_until(condition):
    """Wait for what another thread does."""
    event = threading.Event()
    for _ in range(1000):
        if condition():
            return
        event.wait(TIMEOUT_S / 1000)
    pytest.fail("it never happens")


def test_one_call_is_computed_by_all_replicas_and_comes_back_in_order(closing, pair):
    engine = closing(engine_over(*pair))
    assert values(engine.submit(job_of(*range(40), length=100))) == list(range(40))
    computed = [[each for batch in backend.batches for each in batch] for backend in pair]
    assert all(computed)
    assert sorted(computed[0] + computed[1]) == list(range(40))


def test_two_calls_run_at_the_same_time(closing, pair):
    engine = closing(engine_over(*pair))
    jobs = [engine.submit(job_of(number, length=100)) for number in range(2)]
    assert [values(job) for job in jobs] == [[0], [1]]


def test_a_replica_that_dies_fails_its_own_batch_only_and_comes_back(closing):
    counters = Counters()
    dying, living = FakeBackend(), FakeBackend()
    both = threading.Barrier(2)
    engine = closing(engine_over(dying, living, counters=counters))

    def fault(batch):
        both.wait(TIMEOUT_S)
        raise SystemExit("enough")

    dying.fault, living.fault = fault, lambda batch: both.wait(TIMEOUT_S)
    jobs = [engine.submit(job_of(number, length=100)) for number in range(2)]
    outcomes = [job.future.exception(TIMEOUT_S) for job in jobs]
    assert sorted(type(each) for each in outcomes if each) == [EngineStoppedError]
    dying.fault, living.fault = (lambda batch: both.wait(TIMEOUT_S),) * 2
    later = [engine.submit(job_of(number, length=100)) for number in range(2)]
    assert [values(job) for job in later] == [[0], [1]]
    assert counters.snapshot()["worker_restarts"] == 1


def test_what_waits_is_left_to_the_replica_that_lives(closing):
    dying, living = FakeBackend(), FakeBackend()
    dead = threading.Event()
    engine = closing(engine_over(dying, living))

    def fault(batch):
        dead.set()
        raise SystemExit("enough")

    dying.fault, living.fault = fault, lambda batch: dead.wait(TIMEOUT_S)
    dying.gate.clear()
    jobs = [engine.submit(job_of(number, length=100)) for number in range(8)]
    assert dying.started.wait(TIMEOUT_S)
    dying.gate.set()
    outcomes = [job.future.exception(TIMEOUT_S) for job in jobs]
    assert [type(each) for each in outcomes if each is not None] == [EngineStoppedError]


def test_memory_is_learnt_by_each_replica_for_itself(closing, pair):
    small, large = pair
    engine = closing(engine_over(small, large))

    def fault(batch):
        if len(batch) > 2:
            raise OutOfMemoryError("full")

    small.fault = fault
    large.fault = None
    for _ in range(20):
        assert values(engine.submit(job_of(*range(40), length=10))) == list(range(40))
    assert engine.replicas[1].most_tokens is None
    assert max(len(batch) for batch in large.batches) == 10


def test_an_input_that_did_not_fit_is_not_lost_when_the_queue_has_emptied_meanwhile(closing, pair):
    engine = closing(engine_over(*pair))
    queue_is_empty = threading.Event()

    def fault(batch):
        if len(batch) > 1:
            assert queue_is_empty.wait(TIMEOUT_S)
            raise OutOfMemoryError("full")

    for backend in pair:
        backend.fault = fault
    first, second = job_of(*range(6), length=10), job_of(7, length=100)
    second.future.add_done_callback(lambda _: queue_is_empty.set())
    engine.submit(first)
    engine.submit(second)
    assert (values(second), values(first)) == ([7], list(range(6)))


def test_idle_weights_are_freed_and_read_again_by_the_next_call(closing):
    counters = Counters()
    engine = idle_engine(closing, FakeBackend, counters)
    first = weakref.ref(engine.replicas[0].backend)
    wait_until(lambda: not engine.in_memory)
    assert first() is None
    assert values(engine.submit(job_of(1))) == [1]
    wait_until(lambda: counters.snapshot()["unloads"] == 2)


def test_weights_stay_while_there_is_work_or_patience(closing):
    engine = idle_engine(closing, FakeBackend, keep_alive_s=1000.0)
    backend = engine.replicas[0].backend
    assert values(engine.submit(job_of(1))) == [1]
    engine.keep_alive_s = None
    assert values(engine.submit(job_of(2))) == [2]
    assert engine.replicas[0].backend is backend
    engine.keep_alive_s = 0.0
    wait_until(lambda: not engine.in_memory)


def test_no_caller_sees_an_error_while_weights_come_and_go(closing):
    counters = Counters()
    engine = idle_engine(closing, FakeBackend, counters)

    def call(number):
        return [values(engine.submit(job_of(number, step))) for step in range(25)]

    results = in_threads([lambda number=number: call(number) for number in range(4)])
    assert results == [[[number, step] for step in range(25)] for number in range(4)]
    wait_until(lambda: not engine.in_memory)
    assert counters.snapshot()["unloads"] > 1


def test_a_failed_reload_reaches_the_callers_and_the_next_call_tries_again(closing):
    errors = [BackendError("the disk is gone")]
    loaded = []

    def load():
        if loaded and errors:
            raise errors.pop()
        loaded.append(True)
        return FakeBackend()

    engine = idle_engine(closing, load)
    wait_until(lambda: not engine.in_memory)
    with pytest.raises(BackendError, match="the disk is gone"):
        values(engine.submit(job_of(1)))
    assert values(engine.submit(job_of(2))) == [2]


def test_a_reload_that_dies_reaches_the_callers_too(closing):
    loaded = []

    def load():
        if len(loaded) == 1:
            loaded.append(True)
            raise SystemExit("enough")
        loaded.append(True)
        return FakeBackend()

    engine = idle_engine(closing, load)
    wait_until(lambda: not engine.in_memory)
    with pytest.raises(EngineStoppedError, match="enough"):
        values(engine.submit(job_of(1)))
    assert values(engine.submit(job_of(2))) == [2]


def test_closing_during_a_reload_fails_the_call_and_frees_the_weights(closing):
    reloading, go_on = threading.Event(), threading.Event()
    loaded = []

    def load():
        if loaded:
            reloading.set()
            assert go_on.wait(TIMEOUT_S)
        loaded.append(True)
        return FakeBackend()

    engine = idle_engine(closing, load)
    wait_until(lambda: not engine.in_memory)
    job = engine.submit(job_of(1))
    assert reloading.wait(TIMEOUT_S)
    close = threading.Thread(target=engine.close)
    close.start()
    wait_until(lambda: engine.closed)
    go_on.set()
    close.join(TIMEOUT_S)
    with pytest.raises(EngineStoppedError):
        values(job)
    assert not engine.in_memory


def test_cancelled_inputs_are_counted(fake_backend):
    counters = Counters()
    engine = engine_over(fake_backend, counters=counters)
    fake_backend.gate.clear()
    first = engine.submit(job_of(1))
    assert fake_backend.started.wait(TIMEOUT_S)
    dropped = engine.submit(job_of(2, 3))
    last = engine.submit(job_of(4))
    dropped.future.cancel()
    fake_backend.gate.set()
    assert (values(first), values(last)) == ([1], [4])
    engine.close()
    sums = counters.snapshot()
    assert (sums["cancelled"], sums["inputs"]) == (2, 2)
