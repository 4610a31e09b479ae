"""What stands before every request: its key, the size of its body, and the time that it takes to come."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Sequence
from urllib.parse import parse_qsl

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
        if path in OPEN:
            problem = None
        scope.setdefault("state", {})["key"] = key
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                body = await self._body(scope, receive, is_wanted=problem is None)
        except TimeoutError:
            message = f"The body has not come within {self._settings.body_timeout_s:g} s."
            await error_answer(path, 408, message, {"connection": "close"})(scope, receive, send)
            return
        if problem is not None:
            await error_answer(path, 401, problem, {"www-authenticate": "Bearer"})(scope, receive, send)
            return
        if body is None:
            message = f"The body is larger than {self._settings.max_body_bytes:,} bytes. Send it in several requests."
            await error_answer(path, 413, message, {"connection": "close"})(scope, receive, send)
            return
        is_read = False

        async def replayed() -> Message:
            nonlocal is_read
            if is_read:  # what comes now tells that the client has gone
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replayed, send)

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

    async def _body(self, scope: Scope, receive: Receive, *, is_wanted: bool) -> bytes | None:
        """Return the body; `None` where it is too large, or nobody wants it.

        It is read to its end all the same, and kept by nobody: a connection that is closed while its client still
        sends loses the answer on the way.
        """
        most = self._settings.max_body_bytes
        told = dict(scope["headers"]).get(b"content-length", b"0")
        is_kept = is_wanted and not (told.isdigit() and int(told[:20]) > most)
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            part = message.get("body", b"")
            size, more = size + len(part), message.get("more_body", False)
            is_kept = is_kept and size <= most
            if is_kept:
                parts.append(part)
            else:
                parts.clear()
        return b"".join(parts) if is_kept else None
