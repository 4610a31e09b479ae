"""Who may call, how much, and what is left when a client goes: nothing."""

from __future__ import annotations

import asyncio
import builtins
import json
import logging
import os
import time
from urllib.parse import quote

import numpy as np
import pytest
from starlette.testclient import TestClient

import bge_runtime
from bge_runtime import BatchEvent, ConfigurationError
from bge_runtime.engine import worker
from bge_runtime.serving import ServerSettings, create_app
from bge_runtime.serving.admission import Admission, Busy, Rate
from tests.serving.conftest import EMBEDDER, RERANKER, settings

KEYS = ("first-key-of-a-client", "second-key-of-a-client")
BODY = {"model": EMBEDDER, "input": ["a cat"]}


@pytest.fixture
def key_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# clients\n" + "\n".join(KEYS) + "\n")
    return file


@pytest.fixture
def guarded(hub_cache, key_file):
    with TestClient(create_app(settings(EMBEDDER, api_key_file=key_file))) as found:
        yield found


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(("header", "before"), [("authorization", "Bearer "), ("authorization", ""), ("x-api-key", "")])
def test_each_key_is_let_in(guarded, key, header, before):
    assert guarded.post("/v1/embeddings", json=BODY, headers={header: before + key}).status_code == 200


@pytest.mark.parametrize(
    ("path", "headers", "message"),
    [
        ("/v1/embeddings", {}, "A key is needed"),
        ("/v1/embeddings", {"authorization": "Bearer wrong"}, "is not known"),
        ("/v1/embeddings", {"authorization": f"Bearer {KEYS[0]}x"}, "is not known"),
        ("/v1/embeddings", {"authorization": "Basic abc"}, "A key is needed"),
        (
            "/v1/embeddings",
            {"x-api-key": b"\xff"},
            "is not known",
        ),
        (f"/v1/embeddings?api_key={KEYS[0]}", {"authorization": f"Bearer {KEYS[0]}"}, "A key in the address"),
        ("/metrics", {}, "A key is needed"),
        ("/nowhere", {}, "A key is needed"),
    ],
)
def test_whoever_has_none_is_kept_out(guarded, path, headers, message):
    answer = guarded.post(path, json=BODY, headers=headers)
    assert answer.status_code == 401
    assert message in answer.json()["error"]["message"]
    assert answer.headers["www-authenticate"] == "Bearer"


def test_the_description_asks_for_a_key_where_one_is_needed(guarded):
    headers = {"x-api-key": KEYS[0]}
    document = guarded.get("/openapi.json", headers=headers).json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    assert document["paths"]["/embed"]["post"]["security"] == [{"bearer": []}, {"header": []}]
    assert "security" not in document["paths"]["/health"]["get"]
    assert "securitySchemes" not in create_app(settings(EMBEDDER)).openapi()["components"]


def test_life_and_readiness_need_no_key_and_differ(hub_cache, key_file, monkeypatch):
    app = create_app(settings(EMBEDDER, api_key_file=key_file))
    gate = asyncio.Event()
    own = app.state.work.models.load

    async def waits():
        await gate.wait()
        await own()

    monkeypatch.setattr(app.state.work.models, "load", waits)
    with TestClient(app) as found:
        assert (found.get("/health").status_code, found.get("/ready").status_code) == (200, 503)
        found.portal.call(gate.set)
        for _ in range(200):
            if found.get("/ready").status_code == 200:
                break
            found.portal.call(asyncio.sleep, 0.05)
        assert found.get("/ready").json() == {"status": "ready"}


def test_a_model_of_the_first_use_is_loaded_by_it(hub_cache, fresh_store):
    with TestClient(create_app(settings({"model": EMBEDDER, "load": "first_use"}))) as found:
        assert found.get("/ready").status_code in (200, 503)
        assert not bge_runtime.loaded_models()
        assert found.post("/v1/embeddings", json=BODY).status_code == 200
        assert len(bge_runtime.loaded_models()) == 1
    assert not bge_runtime.loaded_models()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"host": "0.0.0.0"}, r"^host='0\.0\.0\.0' can be reached from other machines.*\.$"),
        ({"port": 70000}, "port=70000"),
        ({"models": [{"model": EMBEDDER, "devcie": "cpu"}]}, "devcie"),
        ({"models": []}, r"No model is named\. Pass models=, --model NAME"),
        ({"models": [{"model": EMBEDDER}, {"model": EMBEDDER}]}, "stand for two models"),
        ({"models": [{"model": EMBEDDER, "name": "a:query"}]}, "a colon stands before the role"),
    ],
)
def test_settings_that_are_wrong_are_refused(given, message):
    with pytest.raises(ConfigurationError, match=message):
        ServerSettings.read(**{"models": [{"model": EMBEDDER}], **given})


def test_settings_of_a_file_give_way_to_arguments_and_the_environment_to_both(tmp_path, monkeypatch):
    file = tmp_path / "serve.toml"
    file.write_text('port = 9000\nmax_texts = 5\n[[models]]\nmodel = "a/b"\nname = "b"\n')
    monkeypatch.setenv("BGE_SERVE_PORT", "1")
    monkeypatch.setenv("BGE_SERVE_TIMEOUT_S", "7")
    found = ServerSettings.read(file, port=9001)
    assert (found.port, found.max_texts, found.timeout_s, found.models[0].shown) == (9001, 5, 7, "b")
    file.write_text("port = ")
    with pytest.raises(ConfigurationError, match="cannot be read as TOML"):
        ServerSettings.read(file)


@pytest.mark.parametrize("text", ["", "# none\n", "short\n"])
def test_a_file_without_real_keys_is_refused_before_anything_is_served(tmp_path, text):
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match="Write one key a line"):
        create_app(settings(EMBEDDER, api_key_file=file))


def test_a_body_that_is_too_large_is_refused_by_what_it_says_and_by_what_it_is(hub_cache):
    with TestClient(create_app(settings(EMBEDDER, max_body_bytes=2048))) as found:
        text = json.dumps({**BODY, "input": ["a" * 4000]})
        for content in (text, iter([text[:1500].encode(), text[1500:].encode()])):
            answer = found.post("/v1/embeddings", content=content)
            assert answer.status_code == 413
            assert "larger than 2,048 bytes" in answer.json()["error"]["message"]
        assert found.post("/v1/embeddings", json=BODY).status_code == 200


def scope_of(path, headers):
    """Return what a server tells an application of a request."""
    return {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": [(b"content-type", b"application/json"), *headers], "client": ("test", 1), "server": ("test", 1),
        "scheme": "http", "http_version": "1.1", "root_path": "", "asgi": {"version": "3.0"},
    }  # fmt: skip


async def asked(app, path, body, *, receive=None, headers=()):
    """Ask an application; return status, headers and body."""
    sent = []
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def given():
        if messages:
            return messages.pop()
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    await app(scope_of(path, headers), receive or given, send)
    start = next((each for each in sent if each["type"] == "http.response.start"), {"status": None, "headers": []})
    content = b"".join(each.get("body", b"") for each in sent if each["type"] == "http.response.body")
    return start["status"], dict(start["headers"]), content


async def test_what_is_too_large_is_read_to_its_end_and_kept_by_nobody(hub_cache):
    app, parts = create_app(settings(EMBEDDER, max_body_bytes=2048)), 50

    async def sends():
        nonlocal parts
        parts -= 1
        return {"type": "http.request", "body": b"x" * 1000, "more_body": parts > 0}

    status, _, _ = await asked(app, "/v1/embeddings", {}, receive=sends, headers=[(b"content-length", b"50000")])
    assert (status, parts) == (413, 0)


async def test_bodies_of_a_key_that_wait_may_not_fill_the_memory(hub_cache, key_file):
    app, go = create_app(settings(EMBEDDER, max_queued_bytes=2048, api_key_file=key_file)), asyncio.Event()
    await app.state.work.models.load()
    body = json.dumps({**BODY, "input": ["a" * 1500]}).encode()
    mine, other = ([(b"x-api-key", key.encode())] for key in KEYS[:2])

    def slowly():
        parts = [body[:1400], body[1400:]]

        async def gives():
            if len(parts) == 1:
                await go.wait()
            if not parts:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        return gives

    first = asyncio.create_task(asked(app, "/v1/embeddings", {}, receive=slowly(), headers=mine))
    await asyncio.sleep(0.05)
    status, headers, content = await asked(app, "/v1/embeddings", json.loads(body), headers=mine)
    assert (status, headers[b"retry-after"]) == (429, b"1")
    assert "larger than 2,048 bytes together" in json.loads(content)["error"]["message"]
    status, _, _ = await asked(app, "/v1/embeddings", json.loads(body), headers=other)
    assert status == 200
    go.set()
    assert (await first)[0] == 200
    status, _, _ = await asked(app, "/v1/embeddings", json.loads(body), headers=mine)
    assert status == 200
    await app.state.work.models.close()


async def test_a_slow_body_is_given_up(hub_cache):
    async def never():
        await asyncio.Event().wait()

    app = create_app(settings(EMBEDDER, body_timeout_s=0.05))
    status, _, content = await asked(app, "/v2/embed", {}, receive=never)
    assert status == 408
    assert b"has not come within 0.05 s" in content


async def test_a_client_that_goes_takes_its_work_along(hub_cache, monkeypatch):
    app = create_app(settings(EMBEDDER))
    await app.state.work.models.load()
    started, released, computed = asyncio.Event(), [], []
    forward, loop = worker._forward, asyncio.get_running_loop()

    def slow(backend, sequences, output):
        loop.call_soon_threadsafe(started.set)
        released.append(0)
        time.sleep(0.3)
        computed.extend(sequences)
        return forward(backend, sequences, output)

    monkeypatch.setattr(worker, "_forward", slow)
    body = {"model": EMBEDDER, "input": [f"text {number} " * 60 for number in range(400)]}
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def leaves():
        if messages:
            return messages.pop()
        await started.wait()
        return {"type": "http.disconnect"}

    status, _, _ = await asyncio.wait_for(asked(app, "/v1/embeddings", {}, receive=leaves), 10)
    assert status == 499
    assert app.state.work._admission.queued_tokens == 0
    await asyncio.sleep(0.7)
    assert 0 < len(computed) < 400
    await app.state.work.models.close()


async def test_work_that_takes_too_long_is_given_up(hub_cache, monkeypatch):
    app = create_app(settings(EMBEDDER, timeout_s=0.1))
    await app.state.work.models.load()
    forward = worker._forward

    def slow(*given):
        time.sleep(0.5)
        return forward(*given)

    monkeypatch.setattr(worker, "_forward", slow)
    status, _, content = await asked(app, "/v1/embeddings", BODY)
    assert status == 504
    assert json.loads(content)["error"]["type"] == "timeout_error"
    await app.state.work.models.close()


async def test_a_key_with_too_much_waiting_is_told_when_to_come_again(hub_cache, monkeypatch, key_file):
    app = create_app(settings(EMBEDDER, max_queued_tokens=50, api_key_file=key_file))
    await app.state.work.models.load()
    app.state.work._admission._rate.tokens_per_s = 10.0
    forward, go = worker._forward, []

    def slow(*given):
        while not go:
            time.sleep(0.01)
        return forward(*given)

    monkeypatch.setattr(worker, "_forward", slow)
    headers = [[(b"authorization", f"Bearer {key}".encode())] for key in KEYS]
    body = {"model": EMBEDDER, "input": ["a cat " * 20]}
    first = asyncio.ensure_future(asked(app, "/v1/embeddings", body, headers=headers[0]))
    await asyncio.sleep(0.2)
    status, told, content = await asked(app, "/v1/embeddings", body, headers=headers[0])
    assert status == 429
    # 42 and 42 tokens, of which 34 are too many, at ten a second.
    assert told[b"retry-after"] == b"4"
    assert b"42 tokens of this key are waiting" in content
    other = asyncio.ensure_future(asked(app, "/v1/embeddings", body, headers=headers[1]))
    await asyncio.sleep(0.1)
    go.append(1)
    assert [(await each)[0] for each in (first, other)] == [200, 200]
    await app.state.work.models.close()


def test_a_request_fits_into_an_empty_queue_whatever_its_limit():
    admission = Admission(max_tokens=100, max_queued_tokens=10, rate=Rate())
    with admission.slot("a", 50), pytest.raises(Busy), admission.slot("a", 1):
        pass
    assert admission.queued_tokens == 0
    with (
        pytest.raises(bge_runtime.InputError, match="101 tokens together, and a request may have 100"),
        admission.slot("a", 101),
    ):
        pass


def test_the_speed_is_that_of_the_last_batches():
    rate, place = Rate(), {"model": "m", "backend": "b", "device": "d", "precision": "p"}
    for tokens in (100, 200):
        rate.on_batch(
            BatchEvent(
                output="cls", inputs=1, jobs=1, tokens=tokens, padded_tokens=tokens, seconds=1.0, queue_s=(), **place
            )
        )
    assert rate.tokens_per_s == pytest.approx(110)


def test_neither_texts_nor_keys_are_logged(guarded, caplog):
    caplog.set_level(logging.DEBUG)
    secret = "a secret that nobody may read"
    for body in ({**BODY, "input": [secret]}, {**BODY, "input": {"x": secret}}, {"model": secret, "input": secret}):
        answer = guarded.post("/v1/embeddings", json=body, headers={"authorization": f"Bearer {KEYS[0]}"})
        assert answer.status_code in (200, 404, 422)
    guarded.get(f"/v1/models?api_key={KEYS[1]}")
    guarded.get("/a%0aPOST /faked 200")
    # The client of the test logs too.
    lines = "\n".join(each.getMessage() for each in caplog.records if not each.name.startswith("http"))
    assert "POST /v1/embeddings 200" in lines
    assert "\nPOST /faked" not in lines
    assert secret not in lines
    assert not any(key in lines for key in KEYS)


def test_metrics_count_requests_tokens_and_what_was_cut(guarded):
    headers = {"authorization": f"Bearer {KEYS[0]}"}
    guarded.post("/v1/embeddings", json={**BODY, "input": ["word " * 600]}, headers=headers)
    text = guarded.get("/metrics", headers=headers).text
    assert 'bge_requests_total{route="/v1/embeddings",status="200"} 1.0' in text
    assert "bge_queued_tokens 0.0" in text
    assert f'bge_truncated_inputs_total{{model="{EMBEDDER}"}} 1.0' in text
    assert "bge_tokens_total{" in text


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/embeddings", [(b"x-api-key", KEYS[0].encode()), (b"content-length", b"1073741824")], 413),
        ("/v1/embeddings", [(b"x-api-key", KEYS[0].encode()), (b"content-length", b"9" * 4000)], 413),
        ("/v2/embed", [(b"content-length", b"10")], 401),
    ],
)
async def test_what_headers_refuse_is_refused_before_a_body_comes(hub_cache, key_file, path, headers, status):
    app, read = create_app(settings(EMBEDDER, api_key_file=key_file, body_timeout_s=0.05)), []

    async def never():
        read.append(1)
        await asyncio.Event().wait()

    sent = []

    async def send(message):
        # Whole before anything is read, and ended, with its connection, when no end of the body has come.
        sent.append((message["type"], message.get("status"), message.get("body"), list(read)))

    await app(scope_of(path, headers), never, send)
    (_, found, _, _), (_, _, content, before), (_, _, end, after) = sent
    assert (found, before, end, after) == (status, [], b"", [1])
    assert json.loads(content)


async def test_a_client_that_goes_before_the_end_of_its_body_costs_nothing(hub_cache, caplog):
    caplog.set_level(logging.INFO)
    messages = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": json.dumps(BODY).encode(), "more_body": True},
    ]

    async def goes():
        return messages.pop()

    app = create_app(settings(EMBEDDER))
    status, _, content = await asked(app, "/v1/embeddings", {}, receive=goes)
    assert (status, content) == (None, b"")
    assert "POST /v1/embeddings 499" in caplog.text


NAMES = (
    "../../etc/passwd",
    "/etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "C:\\Windows\\win.ini",
    "file:///etc/passwd",
    "http://127.0.0.1:9/model",
    f"{EMBEDDER}/../../etc/passwd",
    f"{EMBEDDER}\0",
    f"{EMBEDDER}:../query",
    "~root/.ssh/id_rsa",
    "${HOME}",
    "a" * 60_000,
)
ROUTES = (
    ("/v1/embeddings", {"input": "a"}),
    ("/v2/embed", {"texts": ["a"], "input_type": "search_query"}),
    ("/v1/embed", {"texts": ["a"]}),
    ("/v2/rerank", {"query": "a", "documents": ["a"]}),
    ("/v1/rerank", {"query": "a", "documents": ["a"]}),
    ("/v1/encode", {"texts": ["a"]}),
)


@pytest.fixture
def touched(client, monkeypatch):
    """What of the disk is asked for, from all threads, once the models are there."""
    while client.get("/ready").status_code != 200:
        time.sleep(0.05)
    # FastAPI reads the source of a route on its first use.
    client.get("/v1/models/none")
    for path, body in ROUTES:
        client.post(path, json={"model": "none", **body})
    found = []
    for place, name in (
        (os, "stat"),
        (os, "lstat"),
        (os, "open"),
        (os, "listdir"),
        (os, "scandir"),
        (builtins, "open"),
    ):
        own = getattr(place, name)
        monkeypatch.setattr(
            place, name, lambda *given, own=own, **named: found.append(given[:1]) or own(*given, **named)
        )
    return found


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:20]))
def test_a_name_that_is_a_path_is_no_model_and_looked_up_nowhere(client, touched, name):
    found = [client.post(path, json={"model": name, **body}) for path, body in ROUTES]
    # As they are, and with everything escaped that can be: the client of the test resolves dots by itself.
    found += [client.get("/v1/models/" + quote(quote(name, safe=""))), client.get("/v1/models/" + quote(name, safe=""))]
    for answer in found:
        assert answer.status_code == 404
        assert "is not served here" in answer.text
        assert len(answer.text) < 1000
        assert "root:" not in answer.text
    assert not touched


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/a.txt", "https://example.org/", "file:///etc/passwd", "data:,a"]
)
def test_an_address_is_a_text_like_any_other_and_fetched_from_nowhere(client, touched, address):
    wanted = bge_runtime.Embedder(EMBEDDER).encode_documents([address])
    found = (
        client.post("/v1/embeddings", json={"model": EMBEDDER, "input": address}).json()["data"][0]["embedding"],
        client.post("/embed", json={"inputs": [address]}).json()[0],
        client.post("/v1/encode", json={"model": EMBEDDER, "texts": [address]}).json()["dense"][0],
        client.post("/v2/embed", json={"model": EMBEDDER, "texts": [address], "input_type": "search_document"}).json()[
            "embeddings"
        ]["float"][0],
    )
    for each in found:
        assert np.abs(np.array(each) - wanted[0]).max() < 1e-6
    ranked = client.post("/v1/rerank", json={"model": RERANKER, "query": "a", "documents": [address]})
    assert ranked.json()["results"][0]["document"]["text"] == address
    for given in ({"images": [address]}, {"inputs": [{"content": [{"type": "image_url", "image_url": address}]}]}):
        answer = client.post("/v2/embed", json={"model": EMBEDDER, "input_type": "image", **given})
        assert (answer.status_code, "Send texts" in answer.json()["message"]) == (400, True)
    assert not [each for each in touched if address in str(each)]
