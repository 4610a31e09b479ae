"""Events: what hooks are told, that they harm nobody, and what reaches OpenTelemetry and Prometheus."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import pytest

import bge_runtime
from bge_runtime import BGEError, ConfigurationError, OutOfMemoryError
from bge_runtime.engine.hooks import Hooks, Place, UnloadEvent
from bge_runtime.loading.store import STORE
from tests.runtime.fakes import FakeBackend, engine_over, hold, job_of, values

TEXT = "the secret of the red house"


class Recorder(bge_runtime.Hook):
    """Keeps every event."""

    def __init__(self):
        self.events = []

    def on_load(self, event):
        self.events.append(event)

    on_batch = on_out_of_memory = on_error = on_unload = on_load

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


class Failing(Recorder):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def on_load(self, event):
        raise self.error

    on_batch = on_out_of_memory = on_error = on_unload = on_load


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def watched(fake_backend, recorder):
    """An engine that `recorder` is told of."""
    engine = engine_over(fake_backend, hooks=Hooks((recorder,)))
    yield engine
    fake_backend.gate.set()
    engine.close()


@pytest.fixture
def added():
    """Add hooks to the process for the length of a test."""
    hooks = []

    def add(hook):
        bge_runtime.add_hook(hook)
        hooks.append(hook)
        return hook

    before = STORE.hooks.active
    yield add
    for hook in STORE.hooks.active:
        if hook not in before:
            bge_runtime.remove_hook(hook)


def test_a_batch_tells_its_size_its_padding_and_how_long_its_calls_waited(watched, fake_backend, recorder):
    hold(watched, fake_backend)
    jobs = [watched.submit(job_of(1, 2, length=10)), watched.submit(job_of(3, length=4))]
    fake_backend.gate.set()
    [values(job) for job in jobs]
    event = recorder.of(bge_runtime.BatchEvent)[-1]
    assert (event.model, event.backend, event.device, event.precision) == ("fake", "fake", "fake:0", "float32")
    assert (event.inputs, event.jobs, event.tokens, event.padded_tokens, event.output) == (3, 2, 24, 30, "cls")
    assert len(event.queue_s) == 2
    assert min(*event.queue_s, event.seconds) >= 0


def test_a_call_that_takes_several_batches_waits_in_the_queue_once(watched, recorder):
    values(watched.submit(job_of(*range(30), length=10)))
    assert [len(event.queue_s) for event in recorder.of(bge_runtime.BatchEvent)] == [1, 0, 0]


def test_out_of_memory_tells_the_budget_that_follows(watched, fake_backend, recorder):
    def fault(batch):
        if len(batch) > 4:
            raise OutOfMemoryError("full")

    fake_backend.fault = fault
    values(watched.submit(job_of(*range(8), length=10)))
    (event,) = recorder.of(bge_runtime.OutOfMemoryEvent)
    assert (event.inputs, event.padded_tokens, event.retry_tokens) == (8, 80, 40)


def test_an_error_tells_its_class_and_the_calls_that_failed(watched, fake_backend, recorder):
    def fault(batch):
        raise KeyError("broken")

    fake_backend.fault = fault
    with pytest.raises(BGEError):
        values(watched.submit(job_of(1)))
    (event,) = recorder.of(bge_runtime.ErrorEvent)
    assert (event.error, event.cause, event.jobs) == ("BackendError", "KeyError", 1)


def test_loading_and_closing_are_told(hub_cache, fresh_store, added, recorder):
    added(recorder)
    with bge_runtime.Embedder() as embedder:
        embedder.encode_queries([TEXT])
        (row,) = bge_runtime.loaded_models()
    (load,), (unload,) = recorder.of(bge_runtime.LoadEvent), recorder.of(bge_runtime.UnloadEvent)
    assert (load.model, load.parameters, load.bytes) == (row.name, row.parameters, row.bytes)
    assert load.seconds > 0
    assert (unload.reason, unload.bytes) == ("closed", row.bytes)


def test_no_event_holds_a_text(hub_cache, fresh_store, added, recorder):
    added(recorder)
    with bge_runtime.Embedder() as embedder:
        embedder.encode_documents([TEXT])
    assert recorder.events
    assert "secret" not in repr(recorder.events)
    assert all(
        isinstance(value, str | int | float | tuple)
        for event in recorder.events
        for value in (getattr(event, field.name) for field in dataclasses.fields(event))
    )


def test_an_event_cannot_be_changed():
    place = Place(model="m", backend="b", device="d", precision="p")
    event = UnloadEvent(**place, reason="idle", bytes=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.bytes = 2


@pytest.mark.parametrize("error", [ValueError("no disk"), SystemExit(1)], ids=["exception", "exit"])
def test_a_failing_hook_is_logged_once_and_harms_nobody(fake_backend, recorder, caplog, error):
    engine = engine_over(fake_backend, hooks=Hooks((Failing(error), recorder)))
    for number in range(3):
        assert values(engine.submit(job_of(number))) == [number]
    engine.close()
    assert len(recorder.of(bge_runtime.BatchEvent)) == 3
    assert [record.message for record in caplog.records] == [
        "The hook 'Failing' failed; its further failures are not logged."
    ]


class Calling(Recorder):
    """Does something at every event, and keeps what came of it."""

    def __init__(self, call):
        super().__init__()
        self.call = call
        self.results = []

    def on_load(self, event):
        super().on_load(event)
        try:
            self.results.append((type(event), self.call()))
        except BGEError as error:
            self.results.append((type(event), error))

    on_batch = on_out_of_memory = on_error = on_unload = on_load

    def of(self, kind):
        return [result for each, result in self.results if each is kind]


def fault_of(batch):
    if batch[0].ids[0] == 13:
        raise KeyError("broken")
    if len(batch) > 4:
        raise OutOfMemoryError("full")


def test_a_hook_that_calls_the_model_it_is_told_of_gets_an_error_and_nobody_hangs(fake_backend):
    hook = Calling(lambda: values(engine.submit(job_of(1))))
    engine = engine_over(fake_backend, hooks=Hooks((hook,)))
    fake_backend.fault = fault_of
    assert values(engine.submit(job_of(*range(8), length=10))) == list(range(8))
    with pytest.raises(BGEError, match="broken"):
        values(engine.submit(job_of(13)))
    for kind in (bge_runtime.BatchEvent, bge_runtime.OutOfMemoryEvent, bge_runtime.ErrorEvent):
        assert hook.of(kind)
        assert all(isinstance(each, bge_runtime.BackendError) for each in hook.of(kind))
        assert "would wait for itself" in str(hook.of(kind)[0])
    engine.close()


@pytest.mark.parametrize("copies", [1, 2])
def test_hooks_of_two_models_that_call_each_other_get_an_error_and_nobody_hangs(copies):
    engines = []
    hooks = [Calling(lambda other=other: values(engines[other].submit(job_of(1)))) for other in (1, 0)]
    for hook in hooks:
        engines.append(engine_over(*(FakeBackend() for _ in range(copies)), hooks=Hooks((hook,))))
    for job in [engine.submit(job_of(2)) for engine in engines for _ in range(3)]:
        assert values(job) == [2]
    refused = [each for hook in hooks for each in hook.of(bge_runtime.BatchEvent) if isinstance(each, BGEError)]
    assert refused
    for engine in engines:
        engine.close()


def test_a_hook_may_call_another_model(fake_backend):
    other = engine_over(FakeBackend())
    hook = Calling(lambda: values(other.submit(job_of(5))))
    engine = engine_over(fake_backend, hooks=Hooks((hook,)))
    assert values(engine.submit(job_of(1))) == [1]
    assert hook.of(bge_runtime.BatchEvent) == [[5]]
    engine.close()
    other.close()


def test_a_hook_may_close_the_model_it_is_told_of(fake_backend):
    hook = Calling(lambda: engine.close())
    engine = engine_over(fake_backend, hooks=Hooks((hook,)))
    assert values(engine.submit(job_of(1))) == [1]
    engine.close()
    assert not engine.in_memory
    assert hook.of(bge_runtime.BatchEvent) == [None]


@pytest.mark.parametrize("way", ["call", "event loop"])
def test_a_hook_that_is_told_of_a_load_may_call_only_where_it_does_not_wait_for_itself(
    hub_cache, fresh_store, added, way
):
    embedder = bge_runtime.Embedder(keep_alive_s=0.05)
    call = {
        "call": lambda: embedder.encode_queries([TEXT]).shape,
        "event loop": lambda: asyncio.run(embedder.aencode_queries([TEXT])).shape,
    }[way]
    hook = added(Calling(call))
    embedder.warm_up()  # told on the caller's thread
    assert hook.of(bge_runtime.LoadEvent) == [(1, 384)]
    while bge_runtime.loaded_models():
        time.sleep(0.01)
    assert embedder.encode_queries([TEXT]).shape == (1, 384)
    assert isinstance(hook.of(bge_runtime.LoadEvent)[1], bge_runtime.BackendError)  # told on the worker
    assert all(isinstance(each, bge_runtime.BackendError) for each in hook.of(bge_runtime.BatchEvent))


def test_a_hook_is_told_once_however_often_it_is_added_and_no_more_when_removed(recorder):
    hooks = Hooks()
    hooks.add(recorder)
    hooks.add(recorder)
    event = UnloadEvent(model="m", backend="b", device="d", precision="p", reason="idle", bytes=1)
    hooks.tell(event)
    hooks.remove(recorder)
    hooks.remove(recorder)
    hooks.tell(event)
    assert recorder.events == [event]


@pytest.mark.parametrize("hook", [print, object(), Recorder], ids=["function", "object", "class"])
def test_what_is_no_hook_is_refused(hook):
    with pytest.raises(ConfigurationError, match="is not a hook"):
        bge_runtime.add_hook(hook)


def test_prometheus_gets_the_figures_of_batches_loads_and_errors(added):
    prometheus_client = pytest.importorskip("prometheus_client")
    from bge_runtime.telemetry import PrometheusHook

    registry = prometheus_client.CollectorRegistry()
    _tell_one_of_each(added(PrometheusHook(registry)))
    labels = dict(zip(("model", "backend", "device", "precision"), PLACE.values(), strict=True))
    figures = {
        "bge_inputs_total": 3,
        "bge_tokens_total": 20,
        "bge_padding_tokens_total": 10,
        "bge_batch_seconds_sum": 0.5,
        "bge_queue_seconds_count": 2,
        "bge_out_of_memory_total": 1,
        "bge_loads_total": 1,
        "bge_weights_bytes": 60,
    }
    assert {name: registry.get_sample_value(name, labels) for name in figures} == figures
    assert registry.get_sample_value("bge_errors_total", {**labels, "error": "BackendError"}) == 2


def test_a_second_prometheus_hook_on_one_registry_is_an_error_of_ours():
    prometheus_client = pytest.importorskip("prometheus_client")
    from bge_runtime.telemetry import PrometheusHook

    registry = prometheus_client.CollectorRegistry()
    PrometheusHook(registry)
    with pytest.raises(ConfigurationError, match="already"):
        PrometheusHook(registry)


def test_opentelemetry_gets_metrics_and_spans():
    metrics = pytest.importorskip("opentelemetry.sdk.metrics")
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from bge_runtime.telemetry import OpenTelemetryHook

    reader, spans, tracers = InMemoryMetricReader(), InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    meter = metrics.MeterProvider([reader]).get_meter("test")
    _tell_one_of_each(OpenTelemetryHook(meter, tracers.get_tracer("test")))
    (scope,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
    points = {metric.name: metric.data.data_points[0] for metric in scope.metrics}
    assert points["bge.inputs"].value == 3
    assert (points["bge.tokens"].value, points["bge.padding"].value, points["bge.weights"].value) == (20, 10, 60)
    assert points["bge.queue.duration"].count == 2
    assert points["bge.errors"].attributes["error.type"] == "BackendError"
    assert points["bge.inputs"].attributes["bge.model"] == "m"
    load, batch = spans.get_finished_spans()
    assert (load.name, batch.name, batch.attributes["bge.tokens"]) == ("bge.load", "bge.batch", 20)
    assert batch.end_time - batch.start_time == 500_000_000


@pytest.mark.usefixtures("added")
def test_observe_adds_what_is_installed_once(monkeypatch):
    prometheus_client = pytest.importorskip("prometheus_client")
    pytest.importorskip("opentelemetry")
    from bge_runtime import telemetry

    monkeypatch.setattr(prometheus_client, "REGISTRY", prometheus_client.CollectorRegistry())
    for hook in STORE.hooks.active:  # an earlier test may have left some
        bge_runtime.remove_hook(hook)
    assert telemetry.observe() == telemetry.observe() == ["opentelemetry", "prometheus"]
    assert len(STORE.hooks.active) == 2


def test_observe_adds_nothing_where_nothing_is_installed(monkeypatch):
    from bge_runtime import telemetry

    monkeypatch.setattr(telemetry, "find_module", lambda name: None)
    before = STORE.hooks.active
    assert telemetry.observe() == []
    assert STORE.hooks.active == before
    with pytest.raises(ConfigurationError, match="telemetry"):
        telemetry.PrometheusHook()


PLACE = Place(model="m", backend="b", device="d", precision="p")


def _tell_one_of_each(hook):
    hook.on_load(bge_runtime.LoadEvent(**PLACE, seconds=1.0, parameters=25, bytes=100))
    hook.on_batch(
        bge_runtime.BatchEvent(
            **PLACE, output="cls", inputs=3, jobs=2, tokens=20, padded_tokens=30, seconds=0.5, queue_s=(0.1, 0.2)
        )
    )
    hook.on_out_of_memory(bge_runtime.OutOfMemoryEvent(**PLACE, inputs=3, padded_tokens=30, retry_tokens=15))
    hook.on_error(bge_runtime.ErrorEvent(**PLACE, error="BackendError", cause="KeyError", jobs=2))
    hook.on_unload(bge_runtime.UnloadEvent(**PLACE, reason="idle", bytes=40))
