"""onnxruntime and tokenizers run beside the runtime."""

import sys

import onnxruntime
import tokenizers

from bge_runtime import Embedder

assert "CPUExecutionProvider" in onnxruntime.get_available_providers()
assert tokenizers.__version__
assert len(Embedder(sys.argv[1]).encode_documents(["one"])) == 1
