"""Requests are understood, and refused, exactly as FastAPI's own routes do it."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("fastapi", reason="needs FastAPI: pip install 'bge-integrations[serve]'")

from fastapi import APIRouter, FastAPI, Request
from fastapi.testclient import TestClient
from pydantic import BaseModel, Field
from starlette.responses import Response

from bge_runtime.serving import routing


class Asked(BaseModel):
    """A body with something of everything."""

    model: str
    input: str | list[str] | list[int]
    dimensions: int | None = Field(default=None, ge=1)


async def answered(request: Request, body: Asked) -> Response:
    """Tell what was understood."""
    return Response(repr(body).encode("utf-8", "surrogatepass"))


async def named(request: Request, name: str) -> Response:
    """Tell what stands in the path."""
    return Response(name)


def client(router):
    router.add_api_route("/ask", answered, methods=["POST"])
    router.add_api_route("/of/{name}", named, methods=["GET"])
    app = FastAPI()
    app.include_router(router)
    return TestClient(app)


@pytest.fixture(scope="module")
def clients():
    return client(routing.router()), client(APIRouter())


JSON = "application/json"
GOOD = {"model": "m", "input": ["a", "b"], "dimensions": 8}


@pytest.mark.parametrize(
    "kind", [JSON, "application/json; charset=utf-8", "Application/LD+JSON", "application/json ;x"]
)
@pytest.mark.parametrize(
    "body",
    [
        json.dumps(GOOD),
        json.dumps({**GOOD, "input": "half of a pair: \ud83d", "more": 1}),
        json.dumps({**GOOD, "input": [1, 2]}),
        '{"model": "m", "input": "a", "input": "b", "dimensions": null}',
    ],
)
def test_what_is_right_is_understood_alike(clients, kind, body):
    ours, theirs = (each.post("/ask", content=body, headers={"content-type": kind}) for each in clients)
    assert ours.status_code == theirs.status_code == 200
    assert ours.content == theirs.content


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (JSON, b""),
        (JSON, b"null"),
        (JSON, b"[1]"),
        (JSON, b"{}"),
        (JSON, json.dumps({**GOOD, "input": [{"a": 1}, 2]}).encode()),
        (JSON, json.dumps({**GOOD, "dimensions": 0}).encode()),
        (JSON, json.dumps({**GOOD, "dimensions": "many"}).encode()),
        (JSON, b'{"model": '),
        (JSON, b"\xff\xfe{"),
        (JSON, b"\x80abc"),
        (JSON, b"[" * 200_000),
        ("text/plain", json.dumps(GOOD).encode()),
        ("text/json", json.dumps(GOOD).encode()),
        ("application/x-www-form-urlencoded", b"model=m"),
        ("", json.dumps(GOOD).encode()),
        ("json", json.dumps(GOOD).encode()),
    ],
)
def test_what_is_wrong_is_refused_alike(clients, kind, body):
    ours, theirs = (each.post("/ask", content=body, headers={"content-type": kind} if kind else {}) for each in clients)
    assert ours.status_code == theirs.status_code
    assert ours.status_code in (400, 422)
    found, wanted = ours.json()["detail"], theirs.json()["detail"]
    if isinstance(wanted, list):
        found, wanted = ([(each["type"], each["loc"]) for each in problems] for problems in (found, wanted))
    assert found == wanted


def test_routes_without_a_body_are_fastapis(clients):
    ours, theirs = (each.get("/of/bge-m3") for each in clients)
    assert ours.text == theirs.text == "bge-m3"
    documents = [each.get("/openapi.json").json() for each in clients]
    assert documents[0] == documents[1]
