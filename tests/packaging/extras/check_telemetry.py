"""Prometheus and OpenTelemetry are reported to, once the process asks for it."""

import sys

from prometheus_client import generate_latest

from bge_runtime import Embedder
from bge_runtime.telemetry import observe

assert observe() == ["opentelemetry", "prometheus"]
Embedder(sys.argv[1]).encode_queries(["one", "two words"])
assert b"bge_inputs_total{" in generate_latest()
