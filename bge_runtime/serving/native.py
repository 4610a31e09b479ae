"""What no other format has: all outputs of bge-m3 at once; and Jina's `/v1/rerank`, with layers and a time budget."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from bge_runtime.serving.answers import json_answer
from bge_runtime.serving.forms import in_base64, text_of
from bge_runtime.serving.openai import INPUT_TYPES
from bge_runtime.serving.work import Work

__all__ = ["router"]

router = APIRouter()
Output = Literal["dense", "sparse", "multi_vector"]


class EncodeRequest(BaseModel):
    """A request of `/v1/encode`."""

    model: str
    texts: list[str]
    input_type: Literal["query", "document", "search_query", "search_document"] | None = None
    outputs: list[Output] | None = Field(default=None, description="Those of the model where none are named.")
    encoding_format: Literal["float", "base64"] = "float"


class RerankRequest(BaseModel):
    """A request of `/v1/rerank`."""

    model: str
    query: str
    documents: list[str | dict[str, Any]]
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool = True
    normalize: bool = Field(default=True, description="Scores between 0 and 1, as Jina's are; false is raw ones.")
    cutoff_layers: int | None = Field(default=None, description="Of a layerwise reranker: which layer scores.")
    time_budget_s: float | None = Field(default=None, gt=0, description="After which the best so far is returned.")


@router.post("/v1/encode")
async def encode(request: Request, body: EncodeRequest) -> Response:
    """Return dense, sparse and multi-vector outputs of each text, from one forward pass."""
    work: Work = request.app.state.work
    role = INPUT_TYPES[body.input_type] if body.input_type else None
    done = await work.encode(request, work.models.find(body.model), body.texts, role=role, outputs=body.outputs)
    found, is_base64 = done.found, body.encoding_format == "base64"
    content: dict[str, Any] = {
        "model": body.model,
        "identity": done.identity,
        "usage": {"tokens": done.tokens, "truncated": done.truncated},
    }
    if found.dense is not None:
        content["dense"] = in_base64(found.dense) if is_base64 else found.dense
    if found.sparse is not None:
        content["sparse"] = [{"indices": list(each), "values": list(each.values())} for each in found.sparse]
    if found.multi_vector is not None:
        content["multi_vector"] = [in_base64(each) if is_base64 else each for each in found.multi_vector]
    return json_answer(content, headers=done.headers)


@router.post("/v1/rerank")
async def rerank(request: Request, body: RerankRequest) -> Response:
    """Order documents, best first."""
    work: Work = request.app.state.work
    served = work.models.find(body.model).served
    documents = [text_of(each) for each in body.documents]
    reranker = served.ranking(normalize=body.normalize, cutoff_layers=body.cutoff_layers)
    done = await work.rerank(
        request, served, reranker, body.query, documents, top_n=body.top_n, time_budget_s=body.time_budget_s
    )
    results = []
    for each in done.found:
        # What was not scored in time has none.
        row: dict[str, Any] = {"index": each.index, "relevance_score": None if each.score != each.score else each.score}
        results.append({**row, "document": {"text": documents[each.index]}} if body.return_documents else row)
    content = {
        "model": body.model,
        "object": "list",
        "results": results,
        "partial": done.found.partial,
        "usage": {"total_tokens": done.tokens},
        "identity": done.identity,
    }
    return json_answer(content, headers=done.headers)
