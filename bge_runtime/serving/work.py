"""The road of a request: counted, let into the queue, computed together with others, given up when its client goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from bge_runtime import Embedder, EncodedTexts, InputError, InputTooLongError, Reranker
from bge_runtime.serving.admission import Admission
from bge_runtime.serving.answers import HEADERS
from bge_runtime.serving.models import Asked, Models, Role, Served
from bge_runtime.serving.monitoring import Monitoring
from bge_runtime.serving.settings import ServerSettings

__all__ = ["ClientGone", "Done", "Work"]

T = TypeVar("T")
# Texts this short together are counted at once; more of them would hold up everybody else's requests.
SMALL_CHARACTERS = 4000
# What a picture counts as: the patches of the larger model, and one more.
IMAGE_TOKENS = 257


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What a request came to.

    Attributes:
        found: The result.
        identity: Of the embedder or reranker.
        tokens: What the model has read, in its own tokens.
        cut: Which inputs were cut, by their place in the request.
    """

    found: T
    identity: str
    tokens: int
    cut: Sequence[int] = ()

    @property
    def truncated(self) -> int:
        """How many inputs were cut."""
        return len(self.cut)

    @property
    def headers(self) -> dict[str, str]:
        """What every answer says beside its body."""
        return {HEADERS["identity"]: self.identity, HEADERS["truncated"]: str(self.truncated)}


class Work:
    """Does what routes ask for, for one application."""

    def __init__(self, settings: ServerSettings, models: Models, admission: Admission, monitoring: Monitoring) -> None:
        """Take what requests share."""
        self.models = models
        self.is_ready = False
        self._settings = settings
        self._admission = admission
        self._monitoring = monitoring
        monitoring.queued_tokens.set_function(lambda: admission.queued_tokens)

    async def embed(
        self,
        request: Request,
        asked: Asked,
        texts: Sequence[str],
        *,
        role: Role | None = None,
        dimensions: int | None = None,
        may_truncate: bool = True,
    ) -> Done[NDArray[np.float32]]:
        """Return vectors, float32 of shape (texts, dimension).

        Args:
            request: Whose it is.
            asked: The model; a role in its name wins.
            texts: What is embedded.
            role: `query` or `document`; `None` is `document`.
            dimensions: Leading dimensions; `None` is all.
            may_truncate: Whether a text may be cut to what the model reads.

        Raises:
            BGEError: Something is wrong with the request, or the computation failed.
            ClientGone: Nobody waits any more.
            TimeoutError: It took too long.
        """
        embedder, own = asked.served.embedder(dimensions), asked.role or role or "document"
        compute = embedder.aencode_queries if own == "query" else embedder.aencode_documents
        return await self._embedded(request, asked.served, embedder, texts, own, may_truncate, lambda: compute(texts))

    async def encode(
        self, request: Request, asked: Asked, texts: Sequence[str], *, role: Role | None, outputs: Sequence[str] | None
    ) -> Done[EncodedTexts]:
        """Return several outputs of each text, from one forward pass; see `embed`."""
        embedder, own = asked.served.embedder(), asked.role or role or "document"
        return await self._embedded(
            request,
            asked.served,
            embedder,
            texts,
            own,
            True,
            lambda: embedder.aencode_all(texts, role=own, outputs=outputs),  # type: ignore[arg-type]
        )

    async def rerank(
        self,
        request: Request,
        served: Served,
        reranker: Reranker,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        time_budget_s: float | None = None,
        may_truncate: bool = True,
    ) -> Done[Any]:
        """Return a `Ranking`, best first; see `embed`."""
        self._check_count(len(documents))
        await served.warm_up()
        pairs = [(query, each) for each in documents]
        tokens, cut = await _counted(lambda: _pair_counts(reranker, pairs), [query] * len(documents), documents)
        self._check_cut(cut, may_truncate, reranker.max_length, "pairs")
        found = await self._admitted(
            request, tokens, lambda: reranker.arank(query, documents, top_n=top_n, time_budget_s=time_budget_s)
        )
        return self._done(served, found, reranker.identity, tokens, cut)

    async def score(
        self, request: Request, served: Served, reranker: Reranker, pairs: Sequence[tuple[str, str]]
    ) -> Done[NDArray[np.float32]]:
        """Return the score of each pair, in their order; see `embed`."""
        self._check_count(len(pairs))
        await served.warm_up()
        tokens, cut = await _counted(lambda: _pair_counts(reranker, pairs), *zip(*pairs, strict=True))
        found = await self._admitted(request, tokens, lambda: reranker.ascore_pairs(pairs))
        return self._done(served, found, served.reranker.score_identity, tokens, cut)

    async def encode_images(
        self, request: Request, asked: Asked, images: Sequence[bytes], texts: Sequence[str] | None
    ) -> Done[NDArray[np.float32]]:
        """Return a vector per picture, or per picture with its text; see `embed`."""
        embedder = asked.served.vision()
        self._check_count(len(images))
        await asked.served.warm_up()
        tokens, cut = len(images) * IMAGE_TOKENS, list[int]()
        if texts is None:
            found = await self._admitted(request, tokens, lambda: embedder.aencode_images(images))
        else:
            read, cut = await _counted(lambda: _text_counts(embedder, texts, "document"), texts)
            tokens += read
            pairs = list(zip(images, texts, strict=True))
            found = await self._admitted(request, tokens, lambda: embedder.aencode_image_texts(pairs))
        return self._done(asked.served, found, embedder.identity, tokens, cut)

    async def tokenized(self, served: Served, texts: Sequence[str]) -> list[Any]:
        """Return what the model reads of each text."""
        self._check_count(len(texts))
        await served.warm_up()
        if served.kind == "embedder":
            embedder = served.embedder()
            return await asyncio.to_thread(embedder.tokenize, texts)
        return await asyncio.to_thread(served.reranker.tokenize, [(text, "") for text in texts])

    async def _embedded(
        self,
        request: Request,
        served: Served,
        embedder: Embedder,
        texts: Sequence[str],
        role: Role,
        may_truncate: bool,
        compute: Callable[[], Coroutine[Any, Any, T]],
    ) -> Done[T]:
        self._check_count(len(texts))
        await served.warm_up()
        tokens, cut = await _counted(lambda: _text_counts(embedder, texts, role), texts)
        self._check_cut(cut, may_truncate, embedder.max_length, "texts")
        found = await self._admitted(request, tokens, compute)
        return self._done(served, found, embedder.identity, tokens, cut)

    async def _admitted(self, request: Request, tokens: int, compute: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Compute within the limits of the key, while the client waits, and no longer than is allowed.

        Raises:
            ClientGone: The client went first.
            TimeoutError: It took too long.
        """
        with self._admission.slot(request.scope["state"]["key"], tokens):
            gone = asyncio.Event()
            try:
                async with asyncio.timeout(self._settings.timeout_s) as limit:
                    watch = asyncio.create_task(_end_when_gone(request, limit, gone))
                    try:
                        return await compute()
                    finally:
                        watch.cancel()
            except TimeoutError:
                if gone.is_set():
                    raise ClientGone from None
                raise

    def _done(self, served: Served, found: T, identity: str, tokens: int, cut: Sequence[int]) -> Done[T]:
        if cut:
            self._monitoring.truncated.labels(served.name).inc(len(cut))
        return Done(found, identity, tokens, cut)

    def _check_count(self, count: int) -> None:
        if count > self._settings.max_texts:
            raise InputError(f"{count:,} texts in a request; {self._settings.max_texts:,} are allowed. Send fewer.")

    @staticmethod
    def _check_cut(cut: Sequence[int], may_truncate: bool, max_length: int, what: str) -> None:
        if cut and not may_truncate:
            raise InputTooLongError(
                f"{len(cut)} {what} have more than the {max_length} tokens that the model reads. Split them, or let "
                "them be cut."
            )


async def _end_when_gone(request: Request, limit: asyncio.Timeout, gone: asyncio.Event) -> None:
    """Have the time be up as soon as nobody waits any more: what is computed then is cancelled by the same road."""
    # Not every server says it by a message: one that has lost its client may raise.
    with contextlib.suppress(Exception):
        while (await request.receive())["type"] != "http.disconnect":
            pass
    gone.set()
    with contextlib.suppress(RuntimeError):  # the limit was left at the same moment
        limit.reschedule(0)


async def _counted(count: Callable[[], tuple[int, list[int]]], *texts: Sequence[str]) -> tuple[int, list[int]]:
    if sum(len(text) for each in texts for text in each) <= SMALL_CHARACTERS:
        return count()
    return await asyncio.to_thread(count)


def _text_counts(embedder: Embedder, texts: Sequence[str], role: Role) -> tuple[int, list[int]]:
    """Return the tokens that the model reads of all texts, and which of the texts are cut."""
    lengths = [each.length for each in embedder.tokenize(texts, role=role)]
    full = [index for index, length in enumerate(lengths) if length >= embedder.max_length]
    if not full:
        return sum(lengths), []
    # What the instruction adds, which an uncut count is without.
    added = embedder.tokenize([""], role=role)[0].length - embedder.count_tokens([""])[0]
    whole = embedder.count_tokens([texts[index] for index in full])
    return sum(lengths), [
        index for index, count in zip(full, whole, strict=True) if count + added > embedder.max_length
    ]


def _pair_counts(reranker: Reranker, pairs: Sequence[tuple[str, str]]) -> tuple[int, list[int]]:
    """Return the tokens that the model reads of all pairs, and which of the pairs are cut.

    A cross-encoder's pair that fills the whole length counts as cut: how long it was before, nobody tells.
    """
    if not pairs:
        return 0, []
    if reranker.method == "late_interaction":
        # Each text is read once, and by itself.
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        tokens, cut = _text_counts(reranker.embedder, texts, "document")
        long = {texts[index] for index in cut}
        return tokens, [index for index, pair in enumerate(pairs) if long.intersection(pair)]
    lengths = [each.length for each in reranker.tokenize(pairs)]
    return sum(lengths), [index for index, length in enumerate(lengths) if length >= reranker.max_length]
