"""What stands before every request: its key, the size of its body, and the time that it takes to come."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bge_runtime.serving.answers import error_answer
from bge_runtime.serving.monitoring import Monitoring
from bge_runtime.serving.settings import ServerSettings

__all__ = ["OPEN", "Guard"]

logger = logging.getLogger("bge_runtime.serving")

# What may be asked without a key: whether the process lives, and whether it is ready.
OPEN = ("/health", "/ready")
IN_ADDRESS = ("key", "api_key", "apikey", "api-key", "token", "access_token")


class Guard:
    """Reads each body whole, within limits, before anything else is done; logs path, status and time, and no text."""

    def __init__(
        self, app: ASGIApp, *, settings: ServerSettings, keys: Sequence[bytes], monitoring: Monitoring
    ) -> None:
        """Stand before an application."""
        self._app = app
        self._settings = settings
        self._keys = tuple(keys)
        self._monitoring = monitoring
        self._held = Counter[str]()  # bytes of bodies, by key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, path, status = time.perf_counter(), scope["path"], 499

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._let_through(scope, receive, watched)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "unknown")
            self._monitoring.requests.labels(route, str(status)).inc()
            self._monitoring.seconds.labels(route).observe(seconds)
            # Escaped: a path must not fake a line.
            shown = path.encode("unicode_escape").decode()
            logger.info("%s %.200s %d %.1f ms", scope["method"], shown, status, seconds * 1e3)

    async def _let_through(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        key, problem = self._key(scope)
        scope.setdefault("state", {})["key"] = key
        if problem is not None and path not in OPEN:
            await self._refuse(error_answer(path, 401, problem, {"www-authenticate": "Bearer"}), receive, send)
            return
        with self._holding(key) as hold:
            answer = self._too_large(path) if self._says_it_is_too_large(scope) else None
            body, more = b"", True
            if answer is None:
                try:
                    async with asyncio.timeout(self._settings.body_timeout_s):
                        body, answer, more = await self._body(path, receive, hold)
                except TimeoutError:
                    late = f"The body has not come within {self._settings.body_timeout_s:g} s."
                    await error_answer(path, 408, late, {"connection": "close"})(scope, receive, send)
                    return
                except ClientDisconnect:
                    return
            if answer is None:
                await self._app(scope, _replaying(body, receive), send)
                return
        await self._refuse(answer, receive, send, more=more)

    def _key(self, scope: Scope) -> tuple[str, str | None]:
        """Return whose request it is, and what is wrong with its key."""
        headers = {name: value for name, value in scope["headers"] if name in (b"authorization", b"x-api-key")}
        names = {name.lower() for name, _ in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)}
        if names.intersection(IN_ADDRESS):
            return "", "A key in the address is seen by proxies and logs. Send it as 'Authorization: Bearer KEY'."
        if not self._keys:
            return "everybody", None
        given = headers.get(b"x-api-key", b"")
        scheme, _, rest = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            given = rest.strip()
        elif scheme and not rest:  # a key alone, as LlamaIndex's reranker for TEI sends it
            given = scheme
        if not given:
            return "", "A key is needed here. Send it as 'Authorization: Bearer KEY'."
        # All of them are compared, each in constant time: how long it takes says nothing of any key.
        same = [hmac.compare_digest(given, each) for each in self._keys]
        return (f"key {same.index(True) + 1}", None) if any(same) else ("", "This key is not known here.")

    @contextmanager
    def _holding(self, key: str) -> Iterator[Callable[[int], bool]]:
        """Count what a request holds of its body, until it is answered.

        Yields:
            What takes so many bytes more, and tells whether they have room beside those of the key's other requests.
        """
        own = 0

        def hold(size: int) -> bool:
            nonlocal own
            others = self._held[key] - own
            # A request always fits where no other waits, whatever the limits.
            if others and others + own + size > self._settings.max_queued_bytes:
                return False
            own += size
            self._held[key] += size
            return True

        try:
            yield hold
        finally:
            self._held[key] -= own
            if not self._held[key]:
                del self._held[key]

    def _says_it_is_too_large(self, scope: Scope) -> bool:
        told = dict(scope["headers"]).get(b"content-length", b"0")
        return told.isdigit() and int(told[:20]) > self._settings.max_body_bytes

    def _too_large(self, path: str) -> Response:
        most = self._settings.max_body_bytes
        return error_answer(path, 413, f"The body is larger than {most:,} bytes. Send it in several requests.")

    def _too_many(self, path: str) -> Response:
        most = self._settings.max_queued_bytes
        message = (
            f"The requests of this key that wait for their answers are larger than {most:,} bytes together with this "
            "one. Try again when some are answered."
        )
        return error_answer(path, 429, message, {"retry-after": "1"})

    async def _body(
        self, path: str, receive: Receive, hold: Callable[[int], bool]
    ) -> tuple[bytes, Response | None, bool]:
        """Return the body, or an answer as soon as it is too large, and whether more of it comes.

        Raises:
            ClientDisconnect: The client went before its end.
        """
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size > self._settings.max_body_bytes:
                return b"", self._too_large(path), more
            if not hold(len(part)):
                return b"", self._too_many(path), more
            parts.append(part)
        return b"".join(parts), None, False

    async def _refuse(self, answer: Response, receive: Receive, send: Send, *, more: bool = True) -> None:
        """Answer at once, and end the answer when the body has come to its end, or its time is up.

        What still comes is kept by nobody: a connection that is closed while its client sends loses the answer on the
        way.
        """
        headers = [*answer.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.body_timeout_s):
                while more:
                    message = await receive()
                    more = message["type"] == "http.request" and message.get("more_body", False)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body that was read, and then what else comes: that the client has gone."""
    is_read = False

    async def replayed() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
