"""openvino runs beside the runtime."""

import sys

import openvino

from bge_runtime import Embedder

assert "CPU" in openvino.Core().available_devices
assert len(Embedder(sys.argv[1]).encode_documents(["one"])) == 1
