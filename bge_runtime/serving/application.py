"""The application: routes of all formats, errors in each one's shape, weights read at the start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

import bge_runtime
from bge_runtime import BGEError
from bge_runtime.serving import cohere, native, openai, tei
from bge_runtime.serving.admission import Admission, Busy, Rate
from bge_runtime.serving.answers import error_answer, json_answer, problem_of, status_of
from bge_runtime.serving.description import describe
from bge_runtime.serving.guard import Guard
from bge_runtime.serving.models import Models
from bge_runtime.serving.monitoring import Monitoring
from bge_runtime.serving.settings import ServerSettings
from bge_runtime.serving.work import ClientGone, Work

__all__ = ["create_app"]

logger = logging.getLogger("bge_runtime.serving")


def create_app(settings: ServerSettings) -> FastAPI:
    """Return the application of a server, for uvicorn or any other ASGI server.

    The facts of all models are read here; weights when the application starts, or on first use, as each model's
    settings say.

    Raises:
        BGEError: A model cannot be found or run, or the file of keys is wrong.
    """
    keys = settings.keys()
    monitoring, rate = Monitoring(), Rate()
    admission = Admission(max_tokens=settings.max_tokens, max_queued_tokens=settings.max_queued_tokens, rate=rate)
    work = Work(settings, Models(settings.models), admission, monitoring)

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        hooks = (monitoring.hook, rate)
        for hook in hooks:
            bge_runtime.add_hook(hook)
        loading = asyncio.create_task(_load(work))
        try:
            yield
        finally:
            work.is_ready = False
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            await work.models.close()
            for hook in hooks:
                bge_runtime.remove_hook(hook)

    # Pages that show the description would load scripts from elsewhere.
    app = _Described(
        title="bge-integrations", version=bge_runtime.__version__, lifespan=living, docs_url=None, redoc_url=None
    )
    app.state.work, app.state.monitoring, app.state.has_keys = work, monitoring, bool(keys)
    for each in (openai, cohere, native, tei):
        app.include_router(each.router)
    app.add_api_route("/health", _health, methods=["GET"])
    app.add_api_route("/ready", _ready, methods=["GET"], responses={503: {"description": "Weights are being read."}})
    app.add_api_route("/metrics", _metrics, methods=["GET"], response_class=PlainTextResponse)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(Guard, settings=settings, keys=keys, monitoring=monitoring)
    return app


class _Described(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = super().openapi()
            describe(self.openapi_schema, has_keys=self.state.has_keys)
        return self.openapi_schema


async def _load(work: Work) -> None:
    try:
        await work.models.load()
    except BGEError:
        logger.exception("A model could not be loaded; the server does not get ready.")
        return
    work.is_ready = True


async def _health() -> Response:
    """Whether the process lives."""
    return json_answer({"status": "alive"})


async def _ready(request: Request) -> Response:
    """Whether the weights that are to be there are there."""
    is_ready = request.app.state.work.is_ready
    return json_answer({"status": "ready" if is_ready else "loading"}, 200 if is_ready else 503)


async def _metrics(request: Request) -> Response:
    """What Prometheus reads."""
    return PlainTextResponse(request.app.state.monitoring.text())


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, BGEError)
    status = status_of(error)
    if status >= 500:
        logger.error("%s failed: %s", request.url.path, type(error).__name__, exc_info=error)
    return error_answer(request.url.path, status, str(error))


async def _busy(request: Request, error: Exception) -> Response:
    assert isinstance(error, Busy)
    return error_answer(request.url.path, 429, str(error), {"retry-after": str(error.retry_after_s)})


async def _late(request: Request, error: Exception) -> Response:
    return error_answer(request.url.path, 504, "It was not computed in time. Send fewer texts in a request.")


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _not_understood(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_answer(request.url.path, 422, problem_of(error.errors()))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_answer(request.url.path, error.status_code, str(error.detail), dict(error.headers or {}))


async def _failed(request: Request, error: Exception) -> Response:
    logger.error("%s failed: %s", request.url.path, type(error).__name__, exc_info=error)
    return error_answer(request.url.path, 500, "The server failed; its log says how.")


HANDLERS = {
    BGEError: _told,
    Busy: _busy,
    TimeoutError: _late,
    ClientGone: _gone,
    RequestValidationError: _not_understood,
    HTTPException: _refused,
    Exception: _failed,
}
