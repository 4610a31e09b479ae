"""A cluster of one machine writes a part, which a run without it finds finished, and serves the same vectors."""

import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np

from bge_runtime import Embedder
from bge_runtime.bulk import embed_to_parquet

TEXTS = ["The heart pumps blood.", "Lungs take up oxygen."]


def check_bulk(model):
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.txt"
        texts.write_text("\n".join(TEXTS) + "\n")
        out = Path(folder) / "out"
        assert embed_to_parquet(texts, out, Embedder(model), ray="local").computed == 2
        assert not embed_to_parquet(texts, out, Embedder(model)).changed


def check_serving(model):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "bge", "serve", "--model", model, "--ray", "local", "--port", str(port)]
    server = subprocess.Popen([*command, "--replicas", "1", "1"])
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                if urllib.request.urlopen(f"{address}/ready", timeout=5).status == 200:
                    break
            except OSError:
                assert server.poll() is None, "the server has ended"
                time.sleep(0.2)
        body = json.dumps({"model": model, "input": TEXTS}).encode()
        asked = urllib.request.Request(f"{address}/v1/embeddings", body, {"content-type": "application/json"})
        rows = json.load(urllib.request.urlopen(asked, timeout=60))["data"]
        found = np.array([row["embedding"] for row in rows])
        assert np.abs(found - Embedder(model).encode_documents(TEXTS)).max() < 1e-5
        server.send_signal(signal.SIGTERM)
        assert server.wait(120) == 0
    finally:
        server.kill()


if __name__ == "__main__":
    check_bulk(sys.argv[1])
    check_serving(sys.argv[1])
