"""What `/openapi.json` says beside the requests: keys, and the errors of each route in the shape of its format."""

from __future__ import annotations

from typing import Any

from bge_runtime.serving.answers import KINDS, shape_of
from bge_runtime.serving.guard import OPEN

__all__ = ["describe"]


def _objects(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


TEXT = {"type": "string"}
NOTHING = {"type": "null"}
# As `error_answer` writes them.
ERRORS = {
    "openai": _objects(
        error=_objects(
            message=TEXT, type={"enum": sorted({kind for kind, _ in KINDS.values()})}, param=NOTHING, code=NOTHING
        )
    ),
    "cohere": _objects(message=TEXT),
    "tei": _objects(error=TEXT, error_type={"enum": sorted({tei for _, tei in KINDS.values()})}),
    "jina": _objects(detail=TEXT),
}
REASONS = {
    400: "Something in the request cannot be done; the message says what.",
    401: "The key is missing or unknown, or stands in the address.",
    404: "No such model is served.",
    408: "The body has not come in time.",
    413: "The body is too large, or a text that may not be cut is too long.",
    422: "The request is not understood.",
    429: "Too much of this key is waiting; `Retry-After` says when to come again.",
    500: "The server failed; its log says how.",
    503: "The model is not there any more.",
    504: "It was not computed in time.",
}
OF_EVERY_ROUTE: tuple[int, ...] = (401, 408, 413, 500)
OF_MODELS = (404, 503)
# No answer has the shape that FastAPI would give it.
UNUSED = ("HTTPValidationError", "ValidationError")
KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def describe(document: dict[str, Any], *, has_keys: bool) -> None:
    """Add to an OpenAPI document what routes themselves do not know.

    Args:
        document: It is changed.
        has_keys: Whether callers need one.
    """
    components = document.setdefault("components", {})
    components["schemas"] = {
        **{f"{shape.title()}Error": schema for shape, schema in ERRORS.items()},
        **{name: schema for name, schema in components.get("schemas", {}).items() if name not in UNUSED},
    }
    if has_keys:
        components["securitySchemes"] = KEYS
    for path, methods in document["paths"].items():
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape_of(path).title()}Error"}}}
        for method, operation in methods.items():
            statuses = OF_EVERY_ROUTE
            if method == "post":
                statuses = tuple(REASONS)
            elif operation.get("parameters"):
                statuses += OF_MODELS
            answers = operation["responses"]
            answers.pop("422", None)
            for status in statuses:
                answers.setdefault(str(status), {"description": REASONS[status], "content": content})
            if has_keys and path not in OPEN:
                operation["security"] = [{name: []} for name in KEYS]
