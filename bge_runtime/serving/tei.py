"""The format of text-embeddings-inference: `/embed`, `/embed_sparse`, `/rerank`, `/tokenize`, `/info`."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import Request
from pydantic import BaseModel, Field
from starlette.responses import Response

import bge_runtime
from bge_runtime.serving import routing
from bge_runtime.serving.answers import json_answer
from bge_runtime.serving.models import Role
from bge_runtime.serving.work import Work

__all__ = ["router"]

router = routing.router()


class EmbedRequest(BaseModel):
    """A request of `/embed` and `/embed_sparse`; the first embedder answers."""

    inputs: str | list[str]
    normalize: bool | None = None
    truncate: bool | None = Field(default=None, description="False refuses texts that are too long.")
    prompt_name: Literal["query", "document", "passage"] | None = None
    dimensions: int | None = Field(default=None, ge=1)


class RerankRequest(BaseModel):
    """A request of `/rerank`; the first reranker answers, or else the first embedder by late interaction."""

    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool | None = None


class TokenizeRequest(BaseModel):
    """A request of `/tokenize`."""

    inputs: str | list[str]


# The second is what huggingface_hub's InferenceClient asks.
@router.post("/embed")
@router.post("/")
async def embed(request: Request, body: EmbedRequest) -> Response:
    """Embed texts."""
    work: Work = request.app.state.work
    asked = work.models.first("embedder")
    if body.normalize is not None and body.normalize != asked.served.embedder().normalize:
        raise bge_runtime.InputError(
            f"normalize={body.normalize} is not how {asked.served.name!r} is served. Leave it out."
        )
    done = await work.embed(
        request,
        asked,
        _listed(body.inputs),
        role=_role(body.prompt_name),
        dimensions=body.dimensions,
        may_truncate=body.truncate is not False,
    )
    return json_answer(done.found, headers=done.headers)


@router.post("/embed_sparse")
async def embed_sparse(request: Request, body: EmbedRequest) -> Response:
    """Return the lexical weights of each text, by token id."""
    work: Work = request.app.state.work
    asked = work.models.first("embedder")
    done = await work.encode(request, asked, _listed(body.inputs), role=_role(body.prompt_name), outputs=("sparse",))
    rows = [[{"index": token, "value": value} for token, value in each.items()] for each in done.found.sparse or []]
    return json_answer(rows, headers=done.headers)


@router.post("/rerank")
async def rerank(request: Request, body: RerankRequest) -> Response:
    """Order texts, best first; `index` is the text's place in the request."""
    work: Work = request.app.state.work
    served = work.models.first("reranker").served
    done = await work.rerank(
        request,
        served,
        served.ranking(normalize=not body.raw_scores),
        body.query,
        body.texts,
        may_truncate=body.truncate is not False,
    )
    rows: list[dict[str, Any]] = [{"index": each.index, "score": each.score} for each in done.found]
    if body.return_text:
        rows = [{**row, "text": body.texts[row["index"]]} for row in rows]
    return json_answer(rows, headers=done.headers)


@router.post("/tokenize")
async def tokenize(request: Request, body: TokenizeRequest) -> Response:
    """Return the token ids that the model reads of each text."""
    work: Work = request.app.state.work
    served = next(iter(work.models.all.values()))
    found = await work.tokenized(served, _listed(body.inputs))
    return json_answer([[{"id": int(token)} for token in each.ids] for each in found])


@router.get("/info")
async def info(request: Request) -> Response:
    """Describe the first model."""
    work: Work = request.app.state.work
    served = next(iter(work.models.all.values()))
    main = served.main
    kind = {"embedding": {"pooling": main.spec.pooling}} if served.kind == "embedder" else {"reranker": {}}
    return json_answer(
        {
            "model_id": main.model,
            "model_sha": main.source.weights_digest,
            "model_dtype": main.precision,
            "model_type": kind,
            "max_input_length": main.max_length,
            "version": bge_runtime.__version__,
            "identity": main.identity,
        }
    )


def _listed(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


def _role(prompt_name: str | None) -> Role:
    return "query" if prompt_name == "query" else "document"
