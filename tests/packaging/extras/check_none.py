"""The plain installation: the runtime and the command line, and a clear error for what is missing."""

import importlib
import subprocess
import sys
from pathlib import Path

import bge_runtime

assert "torch" not in sys.modules, "import bge_runtime must stay light"

vectors = bge_runtime.Embedder(sys.argv[1]).encode_queries(["one", "two words"])
assert vectors.shape[0] == 2
assert vectors.dtype == "float32"

listing = subprocess.run([Path(sys.executable).parent / "bge", "models"], capture_output=True, text=True, check=True)
assert "bge-small-en-v1.5" in listing.stdout

for adapter, name in (("langchain_bge", "BGEEmbeddings"), ("llamaindex_bge", "BGEEmbedding")):
    try:
        getattr(importlib.import_module(adapter), name)
    except ImportError:
        continue
    raise AssertionError(f"{adapter}.{name} imports without its framework: the environment is not empty")
