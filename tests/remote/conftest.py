"""A server in a process of its own, so that this one loads no weights."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def server(hub_cache, tmp_path_factory) -> Iterator[str]:
    """Address of the server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as stream:
        command = [sys.executable, "-m", "tests.remote.server", str(port)]
        process = subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stdout=stream, stderr=stream)
    try:
        limit = time.monotonic() + 120
        address = f"http://127.0.0.1:{port}"
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < limit, log.read_text()
            try:
                if urllib.request.urlopen(f"{address}/health", timeout=5).status == 200:
                    break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(60)
