"""Answers: JSON, errors in the shape of the format that was spoken, and what headers say of the vectors."""

from __future__ import annotations

import re
from typing import Any

import orjson
from starlette.responses import Response

from bge_runtime import (
    BGEError,
    ConfigurationError,
    EngineStoppedError,
    InputError,
    InputTooLongError,
    ModelNotFoundError,
    UnsupportedModelError,
)

__all__ = ["HEADERS", "KINDS", "error_answer", "json_answer", "problem_of", "shape_of", "status_of"]

OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
HEADERS = {"identity": "x-bge-identity", "truncated": "x-bge-truncated-inputs"}
# By path: which format an error is told in; whatever else is OpenAI's.
SHAPES = {
    "/": "tei",
    "/v1/embed": "cohere",
    "/embed": "tei",
    "/embed_sparse": "tei",
    "/rerank": "tei",
    "/tokenize": "tei",
    "/info": "tei",
    "/v1/rerank": "jina",
}
# OpenAI's names of what went wrong, and TEI's.
KINDS = {
    400: ("invalid_request_error", "Validation"),
    401: ("authentication_error", "Unhealthy"),
    404: ("not_found_error", "Validation"),
    405: ("invalid_request_error", "Validation"),
    408: ("timeout_error", "Validation"),
    413: ("invalid_request_error", "Validation"),
    422: ("invalid_request_error", "Validation"),
    429: ("rate_limit_error", "Overloaded"),
    500: ("server_error", "Backend"),
    503: ("server_error", "Unhealthy"),
    504: ("timeout_error", "Backend"),
}


def json_answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return JSON; arrays of numbers are written as they are."""
    try:
        body = orjson.dumps(content, option=OPTIONS)
    except orjson.JSONEncodeError:
        # A text that is repeated may hold half a surrogate pair, which UTF-8 has not: it is told as models read it.
        body = orjson.dumps(_without_surrogates(content), option=OPTIONS)
    return Response(body, status, headers, media_type="application/json")


def shape_of(path: str) -> str:
    """Return which format the errors of a path are told in."""
    return SHAPES.get(path, "cohere" if path.startswith("/v2/") else "openai")


def error_answer(path: str, status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """Return an error in the shape of the format that a path belongs to."""
    kind, tei = KINDS.get(status, KINDS[400])
    shape = shape_of(path)
    if shape == "cohere":
        content: dict[str, Any] = {"message": message}
    elif shape == "tei":
        content = {"error": message, "error_type": tei}
    elif shape == "jina":
        content = {"detail": message}
    else:
        content = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return json_answer(content, status, headers)


def status_of(error: BGEError) -> int:
    """Return the status of an error of the runtime."""
    if isinstance(error, InputTooLongError):
        return 413
    if isinstance(error, ModelNotFoundError):
        return 404
    if isinstance(error, InputError | ConfigurationError | UnsupportedModelError):
        return 400
    return 503 if isinstance(error, EngineStoppedError) else 500


def problem_of(errors: Any) -> str:
    """Return one sentence of what pydantic found wrong in a request; values are not repeated, as they may be texts."""
    told = []
    for each in list(errors)[:5]:
        place = ".".join(str(part) for part in each["loc"] if part != "body") or "the body"
        told.append(f"{place}: {each['msg']}")
    return f"The request is not understood. {'; '.join(told)}."


def _without_surrogates(content: Any) -> Any:
    if isinstance(content, str):
        return LONE_SURROGATE.sub("\ufffd", content)
    if isinstance(content, dict):
        return {name: _without_surrogates(value) for name, value in content.items()}
    return [_without_surrogates(each) for each in content] if isinstance(content, list) else content
