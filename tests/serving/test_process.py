"""A server as a process: it loses nothing when it is ended, and keeps nothing of clients that behave badly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import threading
import time

import httpx
import numpy as np
import pytest

from bge_runtime import Embedder, Reranker
from tests.serving.conftest import EMBEDDER, RERANKER
from tests.serving.processes import running

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket, pytest.mark.timeout(600)]

KEY = "a-key-for-the-soak-test"
TEXTS = [
    f"{animal} {place} {number}" for animal in ("cat", "dog") for place in ("house", "river") for number in range(40)
]


def test_every_request_that_was_taken_is_answered_when_the_server_is_ended(hub_cache, tmp_path):
    answered, refused, odd = [], [], []

    def asks(number):
        while not refused:
            try:
                body = {"model": EMBEDDER, "input": TEXTS[number : number + 20]}
                found = httpx.post(f"{server.address}/v1/embeddings", json=body, timeout=60)
                answered.append(found.status_code)
            except httpx.TransportError as error:
                refused.append(error)

    with running(tmp_path, "--model", EMBEDDER) as server:
        threads = [threading.Thread(target=asks, args=(number,)) for number in range(16)]
        for each in threads:
            each.start()
        limit = time.monotonic() + 60
        while len(answered) <= 20 and time.monotonic() < limit:  # a machine with other work takes its time
            time.sleep(0.1)
        server.end()
        assert server.status() == 0, server.log.read_text()
        for each in threads:
            each.join()
        log = server.log.read_text()
    assert not odd
    assert set(answered) == {200}
    # Each line is a request that the server took; what it had not taken is refused.
    assert log.count("POST /v1/embeddings 200") == len(answered) > 20


def test_a_soak_of_good_and_bad_clients_leaves_no_wrong_answer_and_nothing_behind(hub_cache, tmp_path):
    seconds = float(os.environ.get("SOAK_S", "20"))
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    vectors = dict(zip(TEXTS, Embedder(EMBEDDER).encode_documents(TEXTS), strict=True))
    scores = dict(zip(TEXTS, Reranker(RERANKER, normalize=True).score("cat", TEXTS), strict=True))
    counts = dict.fromkeys(("right", "hung up", "too large", "malformed", "wrong key", "worker ended"), 0)
    badly = ["hung up", "too large", "malformed", "wrong key"]

    async def told(client, path, body):
        while (answer := await client.post(path, json=body)).status_code == 503:
            assert "Call again; a new worker starts." in answer.text
            counts["worker ended"] += 1
        return answer.json()

    async def asks(client, number, until):
        dice = random.Random(number)
        while time.monotonic() < until:
            texts = dice.sample(TEXTS, dice.randint(1, 8))
            chance = dice.random()
            if chance < 0.05:
                await behaves_badly(client, dice.choice(badly), texts)
            elif chance < 0.35:
                body = {"model": RERANKER, "query": "cat", "documents": texts}
                rows = (await told(client, "/v2/rerank", body))["results"]
                assert len(rows) == len(texts)
                assert all(abs(row["relevance_score"] - scores[texts[row["index"]]]) < 1e-4 for row in rows)
                counts["right"] += 1
            else:
                path, body = dice.choice(
                    [
                        ("/v1/embeddings", {"model": EMBEDDER, "input": texts}),
                        ("/v2/embed", {"model": EMBEDDER, "texts": texts, "input_type": "search_document"}),
                        ("/embed", {"inputs": texts}),
                    ]
                )
                found = await told(client, path, body)
                if path == "/v1/embeddings":
                    found = [row["embedding"] for row in found["data"]]
                elif path == "/v2/embed":
                    found = found["embeddings"]["float"]
                assert np.abs(np.array(found) - np.stack([vectors[text] for text in texts])).max() < 1e-4
                counts["right"] += 1

    async def behaves_badly(client, how, texts):
        body = {"model": EMBEDDER, "input": texts * 30}
        if how == "hung up":
            with contextlib.suppress(httpx.TimeoutException):  # a quick server may answer first
                await client.post("/v1/embeddings", json=body, timeout=0.001)
        else:
            content, headers = json.dumps(body), {}
            if how == "too large":
                content = json.dumps({**body, "input": ["x" * 70_000]})
            elif how == "malformed":
                content = content[:-5]
            else:
                headers = {"authorization": "Bearer another"}
            status = (await client.post("/v1/embeddings", content=content, headers=headers)).status_code
            assert status == {"too large": 413, "malformed": 422, "wrong key": 401}[how]
        counts[how] += 1

    async def soak(lasting):
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=server.address, headers=headers, timeout=120, limits=limits) as client:
            until = time.monotonic() + lasting
            asyncio.get_running_loop().call_later(lasting / 2, server.end_a_worker)
            await asyncio.gather(*(asks(client, number, until) for number in range(64)))

    config = tmp_path / "serve.toml"
    config.write_text(f'max_body_bytes = 65536\n[[models]]\nmodel = "{EMBEDDER}"\n[[models]]\nmodel = "{RERANKER}"\n')
    with running(tmp_path, "--config", str(config), "--api-key-file", str(keys), "--quiet") as server:
        asyncio.run(soak(seconds / 4))
        time.sleep(1)
        threads, files, memory = server.state
        asyncio.run(soak(seconds))
        time.sleep(1)
        after = server.state
        server.end()
        assert server.status() == 0
        log = server.log.read_text()
        # Of the worker that was ended, and of the requests that it had.
        assert set(re.findall(r"^(\S+(?:Error|Exit|Exception))\b", log, re.MULTILINE)) <= {
            "SystemExit",
            "bge_runtime.EngineStoppedError",
        }
    assert counts["right"] > 100
    assert all(counts.values()), counts
    assert after[0] <= threads + 2
    assert after[1] <= files + 2
    # It grows with the shapes of batches that torch has seen, to some 200 MB more after 75 s, and no further.
    assert after[2] <= memory + 250, (memory, after)
