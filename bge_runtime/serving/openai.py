"""OpenAI's format: `/v1/embeddings` and `/v1/models`."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from bge_runtime import Embedder, InputError
from bge_runtime.serving import routing
from bge_runtime.serving.answers import json_answer
from bge_runtime.serving.forms import in_base64
from bge_runtime.serving.models import Role, Served
from bge_runtime.serving.work import Work

__all__ = ["INPUT_TYPES", "router"]

router = routing.router()
# As OpenAI's clients have no name for it, those of Cohere, Voyage and Jina.
INPUT_TYPES: dict[str, Role] = {
    "query": "query",
    "document": "document",
    "search_query": "query",
    "search_document": "document",
}


class EmbeddingsRequest(BaseModel):
    """A request of `/v1/embeddings`."""

    model: str = Field(description="NAME, or NAME:query and NAME:document for clients that cannot send input_type.")
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)
    input_type: Literal["query", "document", "search_query", "search_document"] | None = Field(
        default=None, description="Whose instruction the texts get; document where neither this nor the name says it."
    )


@router.post("/v1/embeddings")
async def embeddings(request: Request, body: EmbeddingsRequest) -> Response:
    """Embed texts."""
    work: Work = request.app.state.work
    asked = work.models.find(body.model)
    texts = _texts(body.input)
    role = INPUT_TYPES[body.input_type] if body.input_type else None
    done = await work.embed(request, asked, texts, role=role, dimensions=body.dimensions)
    rows: Any = in_base64(done.found) if body.encoding_format == "base64" else done.found
    content = {
        "object": "list",
        "data": [{"object": "embedding", "index": at, "embedding": row} for at, row in enumerate(rows)],
        "model": body.model,
        "usage": {"prompt_tokens": done.tokens, "total_tokens": done.tokens},
        "identity": done.identity,
        "truncated": done.truncated,
    }
    return json_answer(content, headers=done.headers)


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """List the models, with what their vectors are."""
    work: Work = request.app.state.work
    return json_answer({"object": "list", "data": [_row(each) for each in work.models.all.values()]})


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> Response:
    """Describe one model."""
    work: Work = request.app.state.work
    return json_answer(_row(work.models.find(name).served))


def _row(served: Served) -> dict[str, Any]:
    main = served.main
    row: dict[str, Any] = {
        "id": served.name,
        "object": "model",
        "created": 0,
        "owned_by": main.spec.id.partition("/")[0],
        "kind": served.kind,
        "max_length": main.max_length,
        "identity": main.identity,
        "facts": _facts(served),
    }
    if served.reranks:
        row["score_identity"] = served.reranker.score_identity
    if served.kind == "embedder":
        embedder = served.embedder()
        row |= {
            "dimension": embedder.dimension,
            "outputs": list(embedder.spec.outputs),
            "query_instruction": embedder.query_instruction,
            "default_input_type": "document",
            "document_identity": embedder.document_identity,
        }
    return row


def _facts(served: Served) -> dict[str, Any]:
    """Return what an `Embedder` or `Reranker` with `base_url=` needs to know, to be the same one from afar."""
    main = served.main
    spec = {**main.spec.as_dict(), "max_length": main.max_length, "positions": None, "unsupported": None}
    if isinstance(main, Embedder):
        spec |= {
            "dimension": main.dimension,
            "normalize": main.normalize,
            "query_instruction": main.query_instruction,
            "document_instruction": main.document_instruction,
        }
    source = main.source
    return {
        "spec": spec,
        "weights_digest": source.weights_digest,
        "query_map_digest": source.query_map_digest,
        "precision_class": source.precision_class,
        "vector_arguments": source.vector_arguments,
    }


def _texts(given: str | list[str] | list[int] | list[list[int]]) -> list[str]:
    if isinstance(given, str):
        return [given]
    if any(not isinstance(each, str) for each in given):
        # Nothing says of which vocabulary they are, and those of another give vectors that look right.
        raise InputError(
            "Token ids are those of one vocabulary, and clients send those of OpenAI's. Send texts: in LangChain, "
            "OpenAIEmbeddings(check_embedding_ctx_length=False)."
        )
    return given  # type: ignore[return-value]
