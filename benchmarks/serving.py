"""What a server costs over calls in process: a lone query, many callers, and queries while others ingest.

    python benchmarks/serving.py [--model MODEL] [--rounds 3] [--seconds 5]

Server and calls in process are measured in turn, each in a process of its own. Results go to
benchmarks/results/serving.json, or where --results says.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from published import RESULTS, machine

from bge_runtime import DEFAULT_OFFLINE_MODEL, Embedder, __version__

CALLERS = 64
CLIENTS_THAT_INGEST = 8
LONE = 200
QUESTIONS = [f"what does the {number}th valve of the pump do" for number in range(512)]
SENTENCE = "the pump moves the water through the valve and the filter "
PASSAGES = [f"Passage {number}: {SENTENCE * 6}" for number in range(256)]


def latencies(call: Any, count: int) -> list[float]:
    """Return the milliseconds of calls, one after the other."""
    found = []
    for number in range(count):
        begun = time.perf_counter()
        call(QUESTIONS[number % len(QUESTIONS)])
        found.append((time.perf_counter() - begun) * 1e3)
    return found


def in_process(model: str, seconds: float) -> dict[str, float]:
    """Measure calls in this process."""
    with Embedder(model) as embedder:
        embedder.warm_up()
        latencies(lambda text: embedder.encode_queries([text]), 20)
        lone = latencies(lambda text: embedder.encode_queries([text]), LONE)
        counts, until = [0] * CALLERS, time.monotonic() + seconds

        def calls(number: int) -> None:
            while time.monotonic() < until:
                embedder.encode_queries([QUESTIONS[(number * 7 + counts[number]) % len(QUESTIONS)]])
                counts[number] += 1

        threads = [threading.Thread(target=calls, args=(number,)) for number in range(CALLERS)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        return {"p50_ms": statistics.median(lone), "queries_per_s": sum(counts) / seconds}


def over_http(address: str, model: str, seconds: float) -> dict[str, float]:
    """Measure a server."""
    path = f"{address}/v1/embeddings"
    with httpx.Client(timeout=120) as client:

        def ask(text: str) -> None:
            body = {"model": f"{model}:query", "input": [text], "encoding_format": "base64"}
            client.post(path, json=body).raise_for_status()

        latencies(ask, 20)
        lone = latencies(ask, LONE)
        idle = asyncio.run(many(path, model, seconds, callers=1, ingesting=0))
        beside = asyncio.run(many(path, model, seconds, callers=1, ingesting=CLIENTS_THAT_INGEST))
        crowd = asyncio.run(many(path, model, seconds, callers=CALLERS, ingesting=0))
    return {
        "p50_ms": statistics.median(lone),
        "queries_per_s": len(crowd) / seconds,
        "p99_ms_idle": float(np.percentile(idle, 99)),
        "p99_ms_while_others_ingest": float(np.percentile(beside, 99)),
    }


async def many(path: str, model: str, seconds: float, *, callers: int, ingesting: int) -> list[float]:
    """Return the milliseconds of queries of some callers, while others send documents."""
    found: list[float] = []
    until = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=callers + ingesting, max_keepalive_connections=callers + ingesting)
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:

        async def asks(number: int) -> None:
            while time.monotonic() < until:
                begun = time.perf_counter()
                text = QUESTIONS[(number * 7 + len(found)) % len(QUESTIONS)]
                body = {"model": f"{model}:query", "input": [text], "encoding_format": "base64"}
                (await client.post(path, json=body)).raise_for_status()
                found.append((time.perf_counter() - begun) * 1e3)

        async def ingests(number: int) -> None:
            while time.monotonic() < until:
                body = {"model": model, "input": PASSAGES[number * 32 : number * 32 + 32], "encoding_format": "base64"}
                (await client.post(path, json=body)).raise_for_status()

        await asyncio.gather(*map(asks, range(callers)), *map(ingests, range(ingesting)))
    return found


class Server:
    """`bge serve` in a process of its own."""

    def __init__(self, model: str) -> None:
        """Start it, and wait until it is ready."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "bge_runtime.cli", "serve", "--model", model, "--port", str(port), "--quiet"]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while True:
            try:
                if urllib.request.urlopen(f"{self.address}/ready", timeout=5).status == 200:
                    return
            except OSError:
                assert self._process.poll() is None, "the server has ended"
                time.sleep(0.1)

    def end(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(60)


def main() -> None:
    """Measure in turn, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_OFFLINE_MODEL)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--results", type=Path, default=RESULTS / "serving.json")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.in_process:
        print(json.dumps(in_process(asked.model, asked.seconds)))
        return
    rows = []
    for _ in range(asked.rounds):
        command = [sys.executable, __file__, "--in-process", "--model", asked.model, "--seconds", str(asked.seconds)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
        server = Server(asked.model)
        try:
            served = over_http(server.address, asked.model, asked.seconds)
        finally:
            server.end()
        rows.append({"in process": json.loads(done.stdout), "server": served})
        print(json.dumps(rows[-1]), flush=True)
    middle = {
        "p50 over in process, ms": statistics.median(r["server"]["p50_ms"] - r["in process"]["p50_ms"] for r in rows),
        "64 callers, of in process": statistics.median(
            r["server"]["queries_per_s"] / r["in process"]["queries_per_s"] for r in rows
        ),
        "p99 while others ingest, of idle": statistics.median(
            r["server"]["p99_ms_while_others_ingest"] / r["server"]["p99_ms_idle"] for r in rows
        ),
    }
    for name, value in middle.items():
        print(f"{name}: {value:.2f}")
    whole = {"machine": machine(), "version": __version__, "model": asked.model, "rounds": rows, "medians": middle}
    asked.results.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
