"""What is not yet a request: it must come in time, in bounds, and not in any number."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import socket
import struct
import weakref

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
def seen():
    """The bodies that came."""
    return []


@pytest.fixture
def states():
    """What all connections of the server share."""
    return ServerState()


@pytest.fixture
async def port(monkeypatch, seen, states):
    """Where connections are taken, three new ones and two others; whoever asks is told the method."""

    async def app(scope, receive, send):
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        seen.append(body)
        answer = b"x" * int(scope["path"][1:] or 0) or scope["method"].encode()[:3]
        length = str(len(answer)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": answer})

    monkeypatch.setattr(connections, "MOST_NEW", 3)
    monkeypatch.setattr(connections, "MOST_IDLE", 2)
    made = Connection.bounded(TIMEOUT_S)
    config = uvicorn.Config(
        app, http=made, ws="none", lifespan="off", log_config=None, h11_max_incomplete_event_size=4096
    )
    config.load()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: made(config=config, server_state=states, app_state={}), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for each in list(states.connections):
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
        (
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
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


async def test_an_offer_of_another_protocol_is_answered_in_this_one(opened, seen, caplog):
    head = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n"
    offer = await opened(head + b"content-length: %d\r\n\r\n" % len(ASK))  # as Java's client begins
    offer[1].write(ASK)
    assert await answered(offer) == b"POS"
    offer[1].write(ASK)
    assert await answered(offer) == b"GET"
    assert seen == [ASK, b""]
    assert not caplog.records


async def test_requests_that_come_at_once_are_answered_in_their_order(opened):
    together = await opened(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx" + ASK + CHUNKED + b"0\r\n\r\n")
    assert [await answered(together) for _ in range(3)] == [b"PUT", b"GET", b"POS"]
    await asyncio.sleep(TIMEOUT_S * 2)  # it waits for nothing
    together[1].write(ASK)
    assert await answered(together) == b"GET"


@pytest.mark.parametrize("more", [b"", b"connection: close\r\n"], ids=["kept", "closed"])
async def test_an_answer_that_nobody_reads_is_given_up_and_one_that_is_read_slowly_is_not(port, states, more):
    ask = b"GET /20000000 HTTP/1.1\r\nhost: a\r\n" + more + b"\r\n"
    deaf, slow = [await asyncio.open_connection("127.0.0.1", port, limit=1024) for _ in range(2)]
    for _, writer in (deaf, slow):
        writer.write(ask)
    await asyncio.sleep(0.05)
    assert len(states.connections) == 2
    head, read = await slow[0].readuntil(b"\r\n\r\n"), 0
    assert head.startswith(b"HTTP/1.1 200")
    while read < 20_000_000:
        read += len(await asyncio.wait_for(slow[0].read(500_000), 5))
        await asyncio.sleep(0.0005)
    await asyncio.sleep(TIMEOUT_S * 3)
    assert len(states.connections) == (0 if more else 1)
    for _, writer in (deaf, slow):
        writer.close()


async def test_an_answer_that_is_begun_late_has_its_own_time(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    # The second answer waits, and is larger, when the time of the first is over.
    for size, pause in ((20_000_000, 0), (40_000_000, TIMEOUT_S * 0.7)):
        writer.write(b"GET /%d HTTP/1.1\r\nhost: a\r\n\r\n" % size)
        await asyncio.sleep(pause)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert len(await asyncio.wait_for(reader.readexactly(size), 5)) == size
        await asyncio.sleep(TIMEOUT_S * 0.4)
    writer.close()


async def test_a_connection_that_was_reset_is_held_by_nothing(port, states):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(ASK)
    assert await answered((reader, writer)) == b"GET"
    held = weakref.ref(next(iter(states.connections)))
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    del reader, writer
    await asyncio.sleep(0.1)
    gc.collect()
    assert held() is None


def test_as_many_files_may_be_opened_as_the_system_lets():
    assert connections.files() == connections.files() >= 256
