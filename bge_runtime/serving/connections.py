"""Connections before their request is there, which uvicorn lets wait for ever and in any number."""

from __future__ import annotations

import asyncio
import enum
import functools
import sys
from http import HTTPStatus
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from bge_runtime.serving.answers import error_answer

__all__ = ["Connection", "Waiting", "files"]

# Each of the new ones holds its headers, up to 64 KiB; those that were answered before hold nothing.
MOST_NEW, MOST_IDLE = 1024, 8192
# What a process may open rises to this, where the system lets it.
MOST_FILES = 65536


def files() -> int:
    """Return how many files and connections the process may open, after raising it as far as it is let."""
    if sys.platform == "win32":
        return MOST_FILES
    import resource

    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if most == resource.RLIM_INFINITY else min(most, MOST_FILES)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
        now = wanted
    return MOST_FILES if now == resource.RLIM_INFINITY else now


class Waiting:
    """Connections of a server whose next request is not there to its end, longest first.

    Where there are too many, the one that has waited longest is closed: a client that sends what it has to say is never
    that one. Those that have been answered before are counted apart, as new ones, which cost nothing, must not push
    them out.
    """

    def __init__(self, files: int) -> None:
        """Take as many as leave files for requests that are computed."""
        self._most = {True: min(MOST_NEW, files // 4), False: min(MOST_IDLE, files // 2)}
        self._all: dict[bool, dict[Connection, None]] = {True: {}, False: {}}

    def enter(self, connection: Connection, *, is_new: bool) -> None:
        """Have a connection wait, as the last one."""
        self.leave(connection)
        waiting = self._all[is_new]
        waiting[connection] = None
        if len(waiting) > self._most[is_new]:
            oldest = next(iter(waiting))
            del waiting[oldest]
            oldest.transport.abort()

    def leave(self, connection: Connection) -> None:
        """Have a connection wait no longer."""
        for each in self._all.values():
            each.pop(connection, None)


class Phase(enum.Enum):
    """How far a connection's newest request has come."""

    HEAD = enum.auto()
    BODY = enum.auto()
    WHOLE = enum.auto()


class Connection(HttpToolsProtocol):
    """A connection whose request must come in time and in bounds, and may not wait among too many others."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        waiting: Waiting,
        head_timeout_s: float,
        most_head_bytes: int,
    ) -> None:
        """Take what all connections of a server share."""
        super().__init__(config, server_state, app_state, _loop)
        self._waiting = waiting
        self._head_timeout_s = head_timeout_s
        self._most_head_bytes = most_head_bytes
        self._timer: asyncio.TimerHandle | None = None
        self._phase = Phase.HEAD
        self._sorted: Phase | None = None
        self._is_new = True
        # Bytes that came since the parser last handed something on: of a head, of what follows the last chunk, or of
        # the words beside a chunk's length, none of which it bounds.
        self._held_bytes = 0

    @classmethod
    def bounded(cls, head_timeout_s: float, most_head_bytes: int) -> functools.partial[Connection]:
        """Return what makes the connections of one server.

        Args:
            head_timeout_s: In which the line and the headers of a request must have come; the guard sees to its body.
            most_head_bytes: Which they may have.
        """
        return functools.partial(
            cls, waiting=Waiting(files()), head_timeout_s=head_timeout_s, most_head_bytes=most_head_bytes
        )

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._await_head()
        self._sort()

    def data_received(self, data: bytes) -> None:
        """Look whether the request is there."""
        self._held_bytes += len(data)
        super().data_received(data)
        if self._held_bytes > self._most_head_bytes:
            self._refuse(431, f"The headers are larger than {self._most_head_bytes:,} bytes.")
        if self._phase is Phase.HEAD:
            self._await_head()
        self._sort()

    def on_message_begin(self) -> None:
        """Note that a head begins."""
        self._phase = Phase.HEAD
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Note that the head is there."""
        self._phase, self._held_bytes = Phase.BODY, 0
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """Note that a chunk begins."""
        self._held_bytes = 0

    def on_body(self, body: bytes) -> None:
        """Note that the body grows."""
        self._held_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is there."""
        self._phase, self._held_bytes = Phase.WHOLE, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, for as long as connections are kept."""
        self._is_new = False
        super().on_response_complete()
        if self._phase is Phase.WHOLE and self.cycle.response_complete:  # none has come meanwhile
            self._phase = Phase.HEAD
        self._sort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave."""
        self._stop_timer()
        self._waiting.leave(self)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Say that it is no HTTP as everything else is said: in JSON."""
        self._refuse(400, msg)

    def _await_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self._head_timeout_s, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sort(self) -> None:
        if self._phase is self._sorted or self.transport.is_closing():
            return
        if self._phase is not Phase.HEAD:
            self._stop_timer()
        if self._phase is Phase.WHOLE:
            self._waiting.leave(self)
        else:
            self._waiting.enter(self, is_new=self._is_new)
        self._sorted = self._phase

    def _give_up(self) -> None:
        self._timer = None
        self._refuse(408, f"The headers have not come within {self._head_timeout_s:g} s.")

    def _refuse(self, status: int, message: str) -> None:
        """Answer and close; where an answer has begun, or another request still waits for its own, only close."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is None or cycle.response_complete or (self._phase is Phase.BODY and not cycle.response_started):
            answer = error_answer("", status, message, {"connection": "close"})
            lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())]
            lines += [b"%s: %s" % each for each in answer.raw_headers]
            self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        if cycle is not None:
            cycle.disconnected = True  # what is written from now on would follow the refusal
            cycle.message_event.set()
        self.transport.close()
