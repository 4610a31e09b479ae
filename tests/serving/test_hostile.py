"""Clients that mean harm, against a server in a process; one that means well has all its answers, and soon."""

from __future__ import annotations

import contextlib
import resource
import socket
import statistics
import threading
import time

import httpx
import numpy as np
import pytest

from bge_runtime import Embedder
from bge_runtime.serving.connections import MOST_IDLE, MOST_NEW
from tests.serving.conftest import EMBEDDER
from tests.serving.processes import running

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket, pytest.mark.timeout(600)]

KEY = "a-key-of-a-good-client"
MANY = 10_000
GIGABYTE = 2**30
BODY_TIMEOUT_S = 3
# Of one answer, on a machine that does other work too. Nothing here may hold up the server for as long as it lasts.
LONGEST_S = 5.0
# What the server may hold more of, in MB: the headers of those that it lets wait, which are 64 at most, and slack.
GROWTH = 160
TEXTS = ["a cat", "a dog in the house", "bread"]


@pytest.fixture(scope="module")
def server(hub_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    (folder / "keys").write_text(KEY)
    config = folder / "serve.toml"
    config.write_text(f'body_timeout_s = {BODY_TIMEOUT_S}\n[[models]]\nmodel = "{EMBEDDER}"\n')
    with running(folder, "--config", str(config), "--api-key-file", str(folder / "keys"), "--quiet") as found:
        yield found
        log = found.log.read_text()
        assert "Traceback" not in log
        assert "out of system resource" not in log


class Good(threading.Thread):
    """Asks without pause, every other time over a new connection, and looks at each answer."""

    def __init__(self, server):
        super().__init__()
        self._server = server
        self._wanted = Embedder(EMBEDDER).encode_documents(TEXTS)
        self._is_over = threading.Event()
        self.seconds, self.faults = [], []

    def run(self):
        options = {"base_url": self._server.address, "headers": {"x-api-key": KEY}, "timeout": 60}
        with httpx.Client(**options) as kept:
            while not self._is_over.is_set():
                started = time.monotonic()
                try:
                    self._ask(kept)
                    with httpx.Client(**options) as fresh:
                        self._ask(fresh)
                except (httpx.HTTPError, AssertionError) as error:
                    self.faults.append(repr(error))
                self.seconds.append(time.monotonic() - started)
                time.sleep(0.01)

    def _ask(self, client):
        answer = client.post("/v1/embeddings", json={"model": EMBEDDER, "input": TEXTS})
        found = [row["embedding"] for row in answer.json()["data"]]
        assert np.abs(np.array(found) - self._wanted).max() < 1e-4

    def end(self):
        self._is_over.set()
        self.join()


@pytest.fixture
def good(server):
    """A good client beside; all of its answers are right and none is late, and the server keeps nothing."""
    client = Good(server)
    client.start()
    time.sleep(1)
    _, files, memory = server.state
    client.most = 0

    def watches():
        while not client._is_over.wait(0.05):
            client.most = max(client.most, server.state[2])

    watching = threading.Thread(target=watches)
    watching.start()
    yield client
    client.end()
    watching.join()
    assert not client.faults
    assert len(client.seconds) > 10
    assert max(client.seconds) < LONGEST_S, statistics.quantiles(client.seconds)
    assert client.most < memory + GROWTH, (memory, client.most)
    limit = time.monotonic() + BODY_TIMEOUT_S + 10
    while server.state[1] > files + 2:
        assert time.monotonic() < limit, (files, server.state)
        time.sleep(0.1)


def head(path="/v1/embeddings", *lines, key=KEY):
    return "\r\n".join([f"POST {path} HTTP/1.1", "host: a", f"x-api-key: {key}", *lines, "", ""]).encode()


def opened(server, content=b""):
    found = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    with contextlib.suppress(ConnectionError):  # it may have been closed already
        found.sendall(content)
    return found


def answer(connection):
    """What comes until the server ends, or the connection with it."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def status(connection):
    told = answer(connection)
    assert b"content-type: application/json" in told, told
    return int(told.split(b" ", 2)[1])


@contextlib.contextmanager
def many(server, *contents):
    """Ten thousand connections, each of which sends one of the contents."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY + 1000
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"the system lets a process open {hard} files, and {wanted} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    found = []
    try:
        for number in range(MANY):
            found.append(opened(server, contents[number % len(contents)]))
        yield found
    finally:
        for each in found:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("key", [KEY, "a-key-that-nobody-has"])
def test_a_gigabyte_that_is_declared_is_refused_before_it_comes(server, good, key):
    wanted = 413 if key == KEY else 401
    with opened(server, head("/v1/embeddings", f"content-length: {GIGABYTE}", key=key)) as connection:
        started = time.monotonic()
        assert int(connection.recv(65536).split(b" ", 2)[1]) == wanted
        assert time.monotonic() - started < 2
        # A client that sends all the same finds its answer where it has been.
        connection.settimeout(5)
        part = bytes(2**20)
        with contextlib.suppress(ConnectionError):
            for _ in range(2**10):
                connection.sendall(part)


def test_a_gigabyte_that_is_not_declared_is_refused_where_it_passes_the_limit(server, good):
    with opened(server, head("/v1/embeddings", "transfer-encoding: chunked")) as connection:
        part = b"100000\r\n" + bytes(2**20) + b"\r\n"
        with contextlib.suppress(ConnectionError):
            for _ in range(2**10):
                connection.sendall(part)
            connection.sendall(b"0\r\n\r\n")
        assert status(connection) == 413


def test_bodies_and_headers_that_come_byte_by_byte_are_given_up(server, good):
    body = [opened(server, head("/v1/embeddings", "content-length: 1000")) for _ in range(200)]
    headers = [opened(server) for _ in range(200)]
    content = b"GET / HTTP/1.1\r\nhost: " + b"a" * 1000
    started = time.monotonic()
    ended = {}
    while len(ended) < 400:
        assert time.monotonic() < started + BODY_TIMEOUT_S + 10
        at = len(ended) + int(10 * (time.monotonic() - started))
        for each in body + headers:
            if each in ended:
                continue
            each.setblocking(False)
            with contextlib.suppress(ConnectionError):
                each.send(content[at : at + 1])
            with contextlib.suppress(BlockingIOError):
                ended[each] = each.recv(65536)
        time.sleep(0.1)
    for each in body + headers:
        each.close()
    assert {told.split(b" ", 2)[1] for told in ended.values()} == {b"408"}


PART = b"GET /health HTTP/1.1\r\nhost: a\r\na: "
KEPT = [b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"]
ATTACKS = {
    "nothing": [b""],
    "parts of headers": [b"G", PART, PART + b"b" * 100],
    "huge headers without an end": [PART + b"b" * 60_000],
    "headers that are too large": [PART + b"b" * 100_000],
    "thousands of short headers": [b"GET /health HTTP/1.1\r\n" + b"a:b\r\n" * 12_000],
    "bodies that never come": [head("/v1/embeddings", "content-length: 1000")],
    "wrong keys with bodies that never come": [head("/v1/embeddings", "content-length: 1000", key="wrong")],
    "answered, and kept open": KEPT,
    "no HTTP": [b"\x16\x03\x01\x02\x00" * 20, b"\x00" * 100],
    "all of it": [b"", PART, PART + b"b" * 60_000, head("/v1/embeddings", "content-length: 9"), b"\xff\r\n\r\n"],
}


@pytest.mark.parametrize("contents", ATTACKS.values(), ids=list(ATTACKS))
def test_ten_thousand_connections_cost_another_client_nothing(server, good, contents):
    started = time.monotonic()
    with many(server, *contents):
        assert time.monotonic() - started < 120
        most = MOST_IDLE if contents is KEPT else MOST_NEW
        assert server.state[1] < most + 100
        answered = len(good.seconds)
        time.sleep(2)
        assert len(good.seconds) > answered
