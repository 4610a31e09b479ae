"""A model runs on openvino: exported once, then from the cache without torch."""

import os
import subprocess
import sys
import tempfile

import numpy as np

from bge_runtime import Embedder

TEXTS = ["one", "two words", "heart pumps blood"]
FROM_CACHE = """
import sys
from bge_runtime import Embedder

Embedder(sys.argv[1], backend="openvino").encode_documents(["one"])
assert "torch" not in sys.modules, "an export in the cache must start without torch"
"""

with tempfile.TemporaryDirectory() as cache:
    os.environ["BGE_CACHE_DIR"] = cache
    exact = Embedder(sys.argv[1]).encode_documents(TEXTS)
    np.testing.assert_allclose(Embedder(sys.argv[1], backend="openvino").encode_documents(TEXTS), exact, atol=1e-5)
    subprocess.run([sys.executable, "-c", FROM_CACHE, sys.argv[1]], check=True)
