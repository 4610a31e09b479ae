"""A server in a process of its own, and clients that behave well and badly."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
# On Ray Serve it is several processes that start one after the other.
START_S = 300


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class Process:
    """A running server.

    Attributes:
        port: Where it listens, on this machine.
        log: File that it writes lines to.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        """Start it and wait until it is ready."""
        self.port = free_port()
        self.log = folder / "server.log"
        with self.log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.serving.started", "--port", str(self.port), *arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stderr=stream,
                stdout=stream,
            )
        limit = time.monotonic() + START_S
        while not self._is_ready():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < limit, self.log.read_text()
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.address}/ready", timeout=5).status == 200
        except OSError:
            return False

    @property
    def address(self) -> str:
        """Where it is asked."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def state(self) -> tuple[int, int, int]:
        """Threads, open files and memory in megabytes."""
        place = Path(f"/proc/{self._process.pid}")
        status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
        return int(status["Threads"]), len(list((place / "fd").iterdir())), int(status["VmRSS"].split()[0]) // 1024

    def end(self) -> None:
        """Ask it to end."""
        self._process.send_signal(signal.SIGTERM)

    def end_a_worker(self) -> None:
        """Have the thread that computes the next batch end in the middle of it."""
        self._process.send_signal(signal.SIGUSR1)

    def status(self) -> int:
        """Wait for its end."""
        return self._process.wait(120)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Process]:
    """Run a server for as long as the block lasts."""
    process = Process(folder, *arguments)
    try:
        yield process
    finally:
        process.kill()
