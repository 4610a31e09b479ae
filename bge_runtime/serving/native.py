"""What no other format has: all outputs of bge-m3 at once, pictures, raw scores of pairs; and Jina's `/v1/rerank`."""

from __future__ import annotations

import base64
import re
from typing import Any, Literal

from fastapi import Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from bge_runtime import EncodedTexts, InputError
from bge_runtime.serving import routing
from bge_runtime.serving.answers import json_answer
from bge_runtime.serving.forms import in_base64, text_of
from bge_runtime.serving.openai import INPUT_TYPES
from bge_runtime.serving.work import Done, Work

__all__ = ["router"]

router = routing.router()
Output = Literal["dense", "sparse", "multi_vector"]
_DATA = re.compile(r"data:image/[\w.+-]+;base64,")


class EncodeRequest(BaseModel):
    """A request of `/v1/encode`."""

    model: str
    texts: list[str] | None = Field(default=None, description="Or, beside images, a text for each of them.")
    images: list[str] | None = Field(
        default=None, description="Files in base64, bare or behind data:image/...;base64, - never addresses."
    )
    input_type: Literal["query", "document", "search_query", "search_document"] | None = None
    outputs: list[Output] | None = Field(default=None, description="Those of the model where none are named.")
    encoding_format: Literal["float", "base64"] = "float"


class ScoreRequest(BaseModel):
    """A request of `/v1/score`."""

    model: str
    pairs: list[tuple[str, str]] = Field(description="Each a query and a document.")
    cutoff_layers: int | None = Field(default=None, description="Of a layerwise reranker: which layer scores.")
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
    """Return dense, sparse and multi-vector outputs of each text, from one forward pass; or vectors of pictures."""
    work: Work = request.app.state.work
    asked = work.models.find(body.model)
    done: Done[EncodedTexts]
    if body.images is not None:
        pictures = await work.encode_images(request, asked, *_with_images(body.images, body.texts))
        done = Done(EncodedTexts(dense=pictures.found), pictures.identity, pictures.tokens, pictures.cut)
    elif body.texts is not None:
        role = INPUT_TYPES[body.input_type] if body.input_type else None
        done = await work.encode(request, asked, body.texts, role=role, outputs=body.outputs)
    else:
        raise InputError("There is nothing to encode. Send texts, images, or both.")
    found, is_base64 = done.found, body.encoding_format == "base64"
    content: dict[str, Any] = {"model": body.model, "identity": done.identity, "usage": _usage(done)}
    if found.dense is not None:
        content["dense"] = in_base64(found.dense) if is_base64 else found.dense
    if found.sparse is not None:
        content["sparse"] = [{"indices": list(each), "values": list(each.values())} for each in found.sparse]
    if found.multi_vector is not None:
        content["multi_vector"] = [in_base64(each) if is_base64 else each for each in found.multi_vector]
    return json_answer(content, headers=done.headers)


@router.post("/v1/score")
async def score(request: Request, body: ScoreRequest) -> Response:
    """Return the raw score of each pair, in their order."""
    work: Work = request.app.state.work
    served = work.models.find(body.model).served
    reranker = served.ranking(normalize=False, cutoff_layers=body.cutoff_layers)
    done = await work.score(request, served, reranker, body.pairs)
    scores = in_base64(done.found[None])[0] if body.encoding_format == "base64" else done.found
    content = {"model": body.model, "identity": done.identity, "scores": scores, "usage": _usage(done)}
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


def _usage(done: Done[Any]) -> dict[str, Any]:
    return {"tokens": done.tokens, "truncated": done.truncated, "truncated_inputs": list(done.cut)}


def _with_images(images: list[str], texts: list[str] | None) -> tuple[list[bytes], list[str] | None]:
    """Return the files that were sent, and their texts.

    Raises:
        InputError: Something is not data, or there are not as many texts.
    """
    if texts is not None and len(texts) != len(images):
        raise InputError(f"{len(images)} images have {len(texts)} texts. Send a text for each, or none.")
    found = []
    for index, image in enumerate(images):
        start = _DATA.match(image)
        try:
            found.append(base64.b64decode(image[start.end() if start else 0 :], validate=True))
        except ValueError as error:
            raise InputError(
                f"images[{index}] begins {image[:40]!r}, which is not a file in base64. Send the file itself: an "
                "address is not fetched here."
            ) from error
    return found, texts
