"""How a request reaches its function: the body is read, understood, and handed over, and nothing else is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any, get_type_hints

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

__all__ = ["router"]


def router() -> APIRouter:
    """Return a router for functions of a request, or of a request and the `body` that it brings."""
    return APIRouter(route_class=_Route)


class _Route(APIRoute):
    """A route as FastAPI describes it, without its injection of dependencies, which nothing here has."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        function, wanted = self.endpoint, get_type_hints(self.endpoint).get("body")
        if wanted is None:
            return super().get_route_handler()

        async def handle(request: Request) -> Response:
            answer: Response = await function(request, _understood(await request.body(), request, wanted))
            return answer

        return handle


def _understood(body: bytes, request: Request, wanted: type[BaseModel]) -> BaseModel:
    """Return what a body says.

    Raises:
        RequestValidationError: It is not what is wanted.
        HTTPException: It is no text.
    """
    if not body:
        raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}])
    content: Any = body
    # A page of another site can send anything else without the browser asking whether it may.
    if _is_json(request.headers.get("content-type", "")):
        try:
            # Not pydantic's own parser: a text may hold half a surrogate pair.
            content = json.loads(body)
        except json.JSONDecodeError as error:
            problem = {"type": "json_invalid", "loc": ("body", error.pos), "msg": f"JSON decode error: {error.msg}"}
            raise RequestValidationError([problem]) from error
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, "There was an error parsing the body") from error
    try:
        return wanted.model_validate(content, from_attributes=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in found]) from error


def _is_json(content_type: str) -> bool:
    main, _, kind = content_type.partition(";")[0].strip().lower().partition("/")
    return main == "application" and "/" not in kind and (kind == "json" or kind.endswith("+json"))
