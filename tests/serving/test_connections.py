"""What is not yet a request: it must come in time, in bounds, and not in any number."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging

import pytest
import uvicorn
from uvicorn.server import ServerState

from bge_runtime.serving import connections
from bge_runtime.serving.connections import Connection

pytestmark = pytest.mark.enable_socket

ASK = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
TIMEOUT_S = 0.2


@pytest.fixture
async def port(monkeypatch):
    """Where connections are taken, three new ones and two others; whoever asks is told the method."""

    async def app(scope, receive, send):
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
        await send({"type": "http.response.body", "body": scope["method"].encode()[:3]})

    monkeypatch.setattr(connections, "MOST_NEW", 3)
    monkeypatch.setattr(connections, "MOST_IDLE", 2)
    made = Connection.bounded(TIMEOUT_S, 4096)
    config = uvicorn.Config(app, http=made, ws="none", lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: made(config=config, server_state=state, app_state={}), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for each in list(state.connections):
        each.transport.abort()


@pytest.fixture
async def opened(port):
    """Opens connections, and closes them in the end."""
    writers = []

    async def opens(content=b""):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        writer.write(content)
        await asyncio.sleep(0.01)
        return reader, writer

    yield opens
    for each in writers:
        each.close()
    for each in writers:
        with contextlib.suppress(ConnectionError):
            await each.wait_closed()


async def ended(connection):
    """What comes until the server closes; fails where it does not."""
    try:
        return await asyncio.wait_for(connection[0].read(), 5)
    except ConnectionResetError:
        return b""


async def answered(connection):
    head = await asyncio.wait_for(connection[0].readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 200")
    return await connection[0].readexactly(3)


@pytest.mark.parametrize("content", [b"", b"GET / HTTP/1.1\r\nhost: a\r\n"], ids=["nothing", "a part"])
async def test_headers_must_come_in_time(opened, content):
    told = await ended(await opened(content))
    head, _, body = told.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head
    assert json.loads(body)["error"]["message"] == "The headers have not come within 0.2 s."


async def test_bytes_that_drip_win_no_time_not_even_after_an_answer(opened):
    connection = await opened(ASK)
    assert await answered(connection) == b"GET"
    await asyncio.sleep(TIMEOUT_S * 2)  # which an idle connection is given
    told = b""
    for at in range(len(ASK) - 1):
        connection[1].write(ASK[at : at + 1])
        with contextlib.suppress(TimeoutError):
            told = await asyncio.wait_for(connection[0].read(1000), TIMEOUT_S / 10)
            break
    assert told.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"GET / HTTP/1.1\r\na: " + b"b" * 8000, 431, "The headers are larger than 4,096 bytes."),
        (b"no HTTP at all\r\n\r\n", 400, "Invalid HTTP request received."),
        (CHUNKED + b"0\r\n|a: " + b"b" * 8000, 431, "The headers are larger than 4,096 bytes."),
        (CHUNKED + b"0\r\n|" + b"a: b\r\n" * 2000, 431, "The headers are larger than 4,096 bytes."),
        (CHUNKED + b"1;|" + b"b" * 8000, 431, "The headers are larger than 4,096 bytes."),
        (CHUNKED + b"zz\r\n", 400, "Invalid HTTP request received."),
        # What one proxy takes for two requests, and another for one.
        (CHUNKED[:-2] + b"content-length: 3\r\n\r\n0\r\n\r\n", 400, "Invalid HTTP request received."),
        (
            b"POST / HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
            400,
            "Invalid HTTP request received.",
        ),
    ],
)
async def test_what_is_no_request_is_told_so_in_json(opened, content, status, message, caplog):
    first, _, rest = content.partition(b"|")
    connection = await opened(first)
    connection[1].write(rest)
    head, _, body = (await ended(connection)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-type: application/json" in head
    assert json.loads(body)["error"]["message"] == message
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


async def test_the_longest_waiting_goes_where_too_many_wait_and_a_quick_one_never(opened):
    idle = await opened(ASK)
    assert await answered(idle) == b"GET"
    slow = [await opened(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n"), await opened(b"GET")]
    slow += [await opened() for _ in range(2)]
    assert await ended(slow[0]) == b""
    for _ in range(5):
        quick = await opened(ASK)
        assert await answered(quick) == b"GET"
        quick[1].close()
    assert await ended(slow[1]) == b""
    # New ones do not push out those that were answered before.
    idle[1].write(ASK)
    assert await answered(idle) == b"GET"


async def test_of_idle_ones_too_the_longest_waiting_goes(opened):
    found = []
    for _ in range(3):
        found.append(await opened(ASK))
        await answered(found[-1])
        found[0][1].write(ASK)  # it waits no longer than the others
        await answered(found[0])
    assert await ended(found[1]) == b""
    for each in (found[0], found[2]):
        each[1].write(ASK)
        assert await answered(each) == b"GET"


async def test_a_whole_request_waits_for_its_answer_however_many_come(opened):
    whole = await opened(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n")
    whole[1].write(b"ab")
    assert await answered(whole) == b"POS"


async def test_chunks_are_no_headers_however_many_come(opened):
    chunked = await opened(CHUNKED + b"1;note=a\r\nx\r\n" * 2000 + b"0\r\nlast: a\r\n\r\n")
    assert await answered(chunked) == b"POS"


@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_an_offer_of_another_protocol_is_answered_in_this_one(opened, method):
    body = b"content-length: 2\r\n\r\nab" if method == b"POST" else b"\r\n"
    offer = await opened(method + b" / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n" + body)
    assert await answered(offer) == method[:3]
    offer[1].write(ASK)
    assert await answered(offer) == b"GET"


async def test_requests_that_come_at_once_are_answered_in_their_order(opened):
    together = await opened(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx" + ASK + CHUNKED + b"0\r\n\r\n")
    assert [await answered(together) for _ in range(3)] == [b"PUT", b"GET", b"POS"]
    await asyncio.sleep(TIMEOUT_S * 2)  # it waits for nothing
    together[1].write(ASK)
    assert await answered(together) == b"GET"


def test_as_many_files_may_be_opened_as_the_system_lets():
    assert connections.files() == connections.files() >= 256
