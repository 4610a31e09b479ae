"""Connections before their request is there, which uvicorn lets wait for ever and in any number."""

from __future__ import annotations

import asyncio
import functools
import sys
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
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


class Connection(H11Protocol):
    """A connection whose request must come in time, and may not wait among too many others."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        waiting: Waiting,
        head_timeout_s: float,
    ) -> None:
        """Take what all connections of a server share."""
        super().__init__(config, server_state, app_state, _loop)
        self._waiting = waiting
        self._head_timeout_s = head_timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._known: type | None = None
        self._is_new = True

    @classmethod
    def bounded(cls, head_timeout_s: float) -> functools.partial[Connection]:
        """Return what makes the connections of one server.

        Args:
            head_timeout_s: In which the line and the headers of a request must have come, and some of an answer must
                have been taken; the guard sees to a request's body.
        """
        return functools.partial(cls, waiting=Waiting(files()), head_timeout_s=head_timeout_s)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._await_head()
        self._sort()

    def data_received(self, data: bytes) -> None:
        """Look whether the request is there."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._await_head()
        self._sort()

    def on_response_complete(self) -> None:
        """Wait for the next request, for as long as connections are kept."""
        self._is_new = False
        super().on_response_complete()
        self._sort()
        self._stop_awaiting_reading()
        self._await_reading(self.transport.get_write_buffer_size())

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave."""
        self._stop_timer()
        # Timers hold a connection, and all that it holds, until they fire; uvicorn leaves its own after a reset.
        self._unset_keepalive_if_required()
        self._stop_awaiting_reading()
        self._waiting.leave(self)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Say that it is no HTTP, or too much of it, as everything else is said: in JSON."""
        # uvicorn calls this while it handles the error, and passes only a message on.
        status = getattr(sys.exception(), "error_status_hint", 400)
        if status == 431:
            msg = f"The headers are larger than {self.config.h11_max_incomplete_event_size:,} bytes."
        self._refuse(status, msg)

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing of an offer that some clients make each time: it is answered, and nothing is to be installed."""

    def _await_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self._head_timeout_s, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sort(self) -> None:
        state = self.conn.their_state
        if state is self._known or self.transport.is_closing():
            return
        if state is not h11.IDLE:
            self._stop_timer()
        if state is h11.IDLE or state is h11.SEND_BODY:
            self._waiting.enter(self, is_new=self._is_new)
        else:
            self._waiting.leave(self)
        self._known = state

    def _await_reading(self, unread: int) -> None:
        """Look again later at an answer of which so many bytes are not taken yet."""
        self._unread = self.loop.call_later(self._head_timeout_s, self._look_at_unread, unread) if unread else None

    def _stop_awaiting_reading(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _look_at_unread(self, before: int) -> None:
        """Drop a connection whose client takes nothing of its answer: closing would wait for it without end."""
        unread = self.transport.get_write_buffer_size()
        if unread and unread >= before:
            self.transport.abort()
        else:
            self._await_reading(unread)

    def _give_up(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self._refuse(408, f"The headers have not come within {self._head_timeout_s:g} s.")

    def _refuse(self, status: int, message: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = error_answer("", status, message, {"connection": "close"})
            reason = HTTPStatus(status).phrase.encode()
            for event in (
                h11.Response(status_code=status, headers=answer.raw_headers, reason=reason),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
