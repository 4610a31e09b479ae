"""Cohere's format: `/v2/embed`, `/v2/rerank`, and `/v1/embed`, which langchain-cohere still asks."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Literal

from fastapi import Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from bge_runtime import InputError
from bge_runtime.serving import routing
from bge_runtime.serving.answers import json_answer
from bge_runtime.serving.forms import in_form, text_of
from bge_runtime.serving.work import Work

__all__ = ["router"]

router = routing.router()
Form = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]


class EmbedRequest(BaseModel):
    """A request of `/v2/embed`."""

    model: str
    input_type: Literal["search_document", "search_query", "classification", "clustering", "image"]
    texts: list[str] | None = None
    inputs: list[dict[str, Any]] | None = None
    images: list[str] | None = None
    embedding_types: list[Form] | None = Field(default=None, min_length=1, description="float where none is named.")
    output_dimension: int | None = Field(default=None, ge=1)
    truncate: Literal["NONE", "START", "END"] | None = None


class OldEmbedRequest(BaseModel):
    """A request of `/v1/embed`."""

    model: str
    texts: list[str]
    input_type: Literal["search_document", "search_query", "classification", "clustering"] | None = None
    embedding_types: list[Form] | None = None
    truncate: Literal["NONE", "START", "END"] | None = None


class RerankRequest(BaseModel):
    """A request of `/v2/rerank`."""

    model: str
    query: str
    documents: list[str | dict[str, Any]]
    top_n: int | None = Field(default=None, ge=1)


@router.post("/v2/embed")
async def embed(request: Request, body: EmbedRequest) -> Response:
    """Embed texts."""
    if body.texts is None or body.inputs is not None or body.images is not None:
        raise InputError("Send texts; inputs and images are not embedded by this route.")
    return await _embedded(
        request,
        body.model,
        body.texts,
        body.input_type,
        body.truncate,
        body.embedding_types or ["float"],
        body.output_dimension,
    )


@router.post("/v1/embed")
async def old_embed(request: Request, body: OldEmbedRequest) -> Response:
    """Embed texts; without `embedding_types` vectors stand under no name."""
    return await _embedded(request, body.model, body.texts, body.input_type, body.truncate, body.embedding_types)


@router.post("/v2/rerank")
async def rerank(request: Request, body: RerankRequest) -> Response:
    """Order documents; scores lie between 0 and 1."""
    work: Work = request.app.state.work
    served = work.models.find(body.model).served
    documents = [text_of(each) for each in body.documents]
    done = await work.rerank(request, served, served.ranking(normalize=True), body.query, documents, top_n=body.top_n)
    content = {
        "id": str(uuid.uuid4()),
        "results": [{"index": each.index, "relevance_score": each.score} for each in done.found],
        "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
    }
    return json_answer(content, headers=done.headers)


async def _embedded(
    request: Request,
    model: str,
    texts: list[str],
    input_type: str | None,
    truncate: str | None,
    forms: Sequence[str] | None,
    dimensions: int | None = None,
) -> Response:
    work: Work = request.app.state.work
    if truncate == "START":
        raise InputError("truncate='START' is not offered: models read the beginning of a text. Use 'END' or 'NONE'.")
    done = await work.embed(
        request,
        work.models.find(model),
        texts,
        role="query" if input_type == "search_query" else "document",
        dimensions=dimensions,
        may_truncate=truncate != "NONE",
    )
    content = {
        "id": str(uuid.uuid4()),
        "response_type": "embeddings_floats" if forms is None else "embeddings_by_type",
        "embeddings": done.found
        if forms is None
        else {form: in_form(done.found, form) for form in dict.fromkeys(forms)},
        "texts": texts,
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": done.tokens}},
    }
    return json_answer(content, headers=done.headers)
