"""What Prometheus is told: of requests here, of batches and weights by the runtime's own hook."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from bge_runtime.telemetry import PrometheusHook

__all__ = ["Monitoring"]

SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Monitoring:
    """The metrics of one server, in a registry of its own.

    Attributes:
        hook: What the runtime tells.
        requests: Requests by route and status; 499 where the client went away.
        seconds: Their time by route.
        queued_tokens: Tokens of requests that are not answered yet: what scaling looks at.
        truncated: Inputs cut to what a model reads.
    """

    def __init__(self) -> None:
        """Create the metrics."""
        self._registry = CollectorRegistry()
        self.hook = PrometheusHook(self._registry)
        self.requests = Counter("bge_requests", "Requests", ("route", "status"), registry=self._registry)
        self.seconds = Histogram(
            "bge_request_seconds", "Time of a request", ("route",), buckets=SECONDS, registry=self._registry
        )
        self.queued_tokens = Gauge(
            "bge_queued_tokens", "Tokens of requests that are not answered yet", registry=self._registry
        )
        self.truncated = Counter("bge_truncated_inputs", "Inputs that were cut", ("model",), registry=self._registry)

    def text(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        return generate_latest(self._registry)
