"""The process of a server: uvicorn with our application, ended by a signal without losing a request."""

from __future__ import annotations

import logging
import signal

import uvicorn

from bge_runtime.serving.application import create_app
from bge_runtime.serving.connections import Connection
from bge_runtime.serving.settings import ServerSettings

__all__ = ["serve"]

logger = logging.getLogger("bge_runtime.serving")

# Bytes of a request's line and headers.
MOST_HEADERS = 64 * 1024
KEEP_ALIVE_S = 75


def serve(settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT; requests that were taken are answered first.

    Args:
        settings: Models, address, limits.

    Raises:
        BGEError: A model cannot be found or run, or the file of keys is wrong.
        SystemExit: The address is taken.
    """
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        # h11 bounds what comes before a body, where httptools does not.
        http=Connection.bounded(settings.body_timeout_s),  # type: ignore[arg-type]
        ws="none",  # whatever is installed: nothing here speaks it
        h11_max_incomplete_event_size=MOST_HEADERS,
        # Longer than clients keep an unused connection (httpx 5 s): a server that closes it first may do so under a
        # request that is on its way.
        timeout_keep_alive=KEEP_ALIVE_S,
        access_log=False,  # the guard writes one that holds no address's query
        log_config=None,
        lifespan="on",
        timeout_graceful_shutdown=int(settings.drain_s),
        server_header=False,
    )
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        # uvicorn raises the signal that ended it once more, when all is done: that it was asked to end is no fault.
        for each in before:
            signal.signal(each, _ended)
        uvicorn.Server(config).run()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _ended(number: int, frame: object) -> None:
    logger.info("Ended by %s; all requests that were taken are answered.", signal.Signals(number).name)
