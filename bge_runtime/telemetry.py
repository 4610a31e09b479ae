"""Hooks that report to OpenTelemetry and Prometheus. Nothing is reported unless a hook is added."""

from __future__ import annotations

import time
from importlib.util import find_spec as find_module
from typing import TYPE_CHECKING

from bge_runtime import (
    BatchEvent,
    ConfigurationError,
    ErrorEvent,
    Hook,
    LoadEvent,
    ModelEvent,
    OutOfMemoryEvent,
    UnloadEvent,
    add_hook,
)

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Tracer
    from prometheus_client import CollectorRegistry

__all__ = ["OpenTelemetryHook", "PrometheusHook", "observe"]

NAME = "bge_runtime"
PLACE = ("model", "backend", "device", "precision")
# From a lone short query to a full batch on a slow CPU.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class OpenTelemetryHook(Hook):
    """Metrics and spans named `bge.*`, with `bge.model`, `bge.backend`, `bge.device` and `bge.precision`."""

    def __init__(self, meter: Meter | None = None, tracer: Tracer | None = None) -> None:
        """Create the instruments.

        Args:
            meter: Where metrics go; `None` takes the process's own meter provider.
            tracer: Where spans go; `None` takes the process's own tracer provider.

        Raises:
            ConfigurationError: opentelemetry-api is not installed.
        """
        _require("opentelemetry", "opentelemetry-api")
        # Here, as a process that reports nothing need not have the package.
        from opentelemetry import metrics, trace

        meter = meter or metrics.get_meter(NAME)
        self._tracer = tracer or trace.get_tracer(NAME)
        self._inputs = meter.create_counter("bge.inputs", description="Texts and pairs computed")
        self._tokens = meter.create_counter("bge.tokens", description="Tokens computed, without padding")
        self._padding = meter.create_counter("bge.padding", unit="{token}", description="Padding computed")
        self._seconds = meter.create_histogram("bge.batch.duration", unit="s", description="Time of a forward pass")
        self._queue = meter.create_histogram("bge.queue.duration", unit="s", description="Time a call waits")
        self._retries = meter.create_counter("bge.out_of_memory", description="Batches that did not fit")
        self._errors = meter.create_counter("bge.errors", description="Calls that failed")
        self._bytes = meter.create_up_down_counter("bge.weights", unit="By", description="Weights in memory")
        self._loads = meter.create_histogram("bge.load.duration", unit="s", description="Time to read weights")

    def on_load(self, event: LoadEvent) -> None:
        """Record the time and the size, and a span."""
        self._loads.record(event.seconds, _attributes(event))
        self._bytes.add(event.bytes, _attributes(event))
        self._span("bge.load", event, event.seconds)

    def on_batch(self, event: BatchEvent) -> None:
        """Record the batch, how long its calls waited, and a span."""
        attributes = _attributes(event)
        self._inputs.add(event.inputs, attributes)
        self._tokens.add(event.tokens, attributes)
        self._padding.add(event.padded_tokens - event.tokens, attributes)
        self._seconds.record(event.seconds, attributes)
        for seconds in event.queue_s:
            self._queue.record(seconds, attributes)
        self._span("bge.batch", event, event.seconds, inputs=event.inputs, jobs=event.jobs, tokens=event.tokens)

    def on_out_of_memory(self, event: OutOfMemoryEvent) -> None:
        """Count it."""
        self._retries.add(1, _attributes(event))

    def on_error(self, event: ErrorEvent) -> None:
        """Count the calls, by class of error."""
        self._errors.add(event.jobs, {**_attributes(event), "error.type": event.error})

    def on_unload(self, event: UnloadEvent) -> None:
        """Take the size off."""
        self._bytes.add(-event.bytes, _attributes(event))

    def _span(self, name: str, event: ModelEvent, seconds: float, **sizes: int) -> None:
        end = time.time_ns()
        attributes: dict[str, str | int] = {**_attributes(event)}
        attributes.update({f"bge.{key}": value for key, value in sizes.items()})
        self._tracer.start_span(name, attributes=attributes, start_time=end - int(seconds * 1e9)).end(end)


class PrometheusHook(Hook):
    """Metrics named `bge_*`, with the labels `model`, `backend`, `device` and `precision`."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """Create the metrics.

        Args:
            registry: Where they are registered; `None` takes the process's own.

        Raises:
            ConfigurationError: prometheus-client is not installed, or the registry has these metrics already.
        """
        _require("prometheus_client", "prometheus-client")
        # Here, as a process that reports nothing need not have the package.
        from prometheus_client import REGISTRY, Counter, Gauge, Histogram

        place = REGISTRY if registry is None else registry
        try:
            self._inputs = Counter("bge_inputs", "Texts and pairs computed", PLACE, registry=place)
            self._tokens = Counter("bge_tokens", "Tokens computed, without padding", PLACE, registry=place)
            self._padding = Counter("bge_padding_tokens", "Padding computed", PLACE, registry=place)
            self._seconds = Histogram(
                "bge_batch_seconds", "Time of a forward pass", PLACE, registry=place, buckets=SECONDS
            )
            self._queue = Histogram("bge_queue_seconds", "Time a call waits", PLACE, registry=place, buckets=SECONDS)
            self._retries = Counter("bge_out_of_memory", "Batches that did not fit", PLACE, registry=place)
            self._errors = Counter("bge_errors", "Calls that failed", (*PLACE, "error"), registry=place)
            self._bytes = Gauge("bge_weights_bytes", "Weights in memory", PLACE, registry=place)
            self._loads = Counter("bge_loads", "Times that weights were read", PLACE, registry=place)
        except ValueError as error:
            raise ConfigurationError(
                f"registry={registry!r} has the metrics of a PrometheusHook already ({error}). "
                "Keep one hook for each registry, or pass another CollectorRegistry."
            ) from error

    def on_load(self, event: LoadEvent) -> None:
        """Count it and add the size."""
        self._loads.labels(*_place(event)).inc()
        self._bytes.labels(*_place(event)).inc(event.bytes)

    def on_batch(self, event: BatchEvent) -> None:
        """Record the batch and how long its calls waited."""
        labels = _place(event)
        self._inputs.labels(*labels).inc(event.inputs)
        self._tokens.labels(*labels).inc(event.tokens)
        self._padding.labels(*labels).inc(event.padded_tokens - event.tokens)
        self._seconds.labels(*labels).observe(event.seconds)
        for seconds in event.queue_s:
            self._queue.labels(*labels).observe(seconds)

    def on_out_of_memory(self, event: OutOfMemoryEvent) -> None:
        """Count it."""
        self._retries.labels(*_place(event)).inc()

    def on_error(self, event: ErrorEvent) -> None:
        """Count the calls, by class of error."""
        self._errors.labels(*_place(event), event.error).inc(event.jobs)

    def on_unload(self, event: UnloadEvent) -> None:
        """Take the size off."""
        self._bytes.labels(*_place(event)).dec(event.bytes)


def observe() -> list[str]:
    """Add a hook for each of OpenTelemetry and Prometheus whose package is installed.

    Both report to the process's own provider and registry. A second call adds nothing.

    Returns:
        `opentelemetry` and `prometheus`, those that are reported to.
    """
    kinds: dict[str, tuple[str, type[OpenTelemetryHook] | type[PrometheusHook]]] = {
        "opentelemetry": ("opentelemetry", OpenTelemetryHook),
        "prometheus": ("prometheus_client", PrometheusHook),
    }
    found = [name for name, (module, _) in kinds.items() if find_module(module) is not None]
    for name in found:
        add_hook(kinds[name][1], once=True)
    return found


def _require(module: str, package: str) -> None:
    if find_module(module) is None:
        raise ConfigurationError(
            f'{package} is not installed. Install it with: pip install "bge-integrations[telemetry]"'
        )


def _place(event: ModelEvent) -> tuple[str, ...]:
    return (event.model, event.backend, event.device, event.precision)


def _attributes(event: ModelEvent) -> dict[str, str]:
    return {f"bge.{name}": value for name, value in zip(PLACE, _place(event), strict=True)}
