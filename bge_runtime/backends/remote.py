"""A model that a server runs: the forward pass is a request.

The engine in front of it does for requests what it does for forward passes: calls of all threads and event loops
share them, queries go first, one bad text fails nobody else. Each connection is a copy of the model for it.
"""

from __future__ import annotations

import base64
import json
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import NDArray

from bge_runtime.backends.base import LayerScore, Output
from bge_runtime.backends.head_outputs import TextOutputs, pack_outputs
from bge_runtime.errors import (
    BackendError,
    ConfigurationError,
    InputError,
    InputTooLongError,
    ModelChangedError,
    ModelNotFoundError,
    ServerUnreachableError,
)
from bge_runtime.inputs.prepared import RoleText
from bge_runtime.inputs.tokenizing import Framed, Tokenizing

if TYPE_CHECKING:
    import httpx

__all__ = ["APIS", "CONNECTIONS", "Address", "RemoteBackend", "check_base_url", "no_files"]

Vector = NDArray[np.float32]

APIS = ("bge", "openai", "tei", "cohere")
# As many requests are on their way at most; one of them is kept for queries.
CONNECTIONS = 4
CHARACTERS_PER_TOKEN = 4
LEAST_TOKENS = 32  # of a text, so that a request holds no more texts than servers take
COHERE_TEXTS = 96  # what Cohere itself takes in a request
CONNECT_S, ANSWER_S = 5.0, 600.0
TRIES, PATIENCE_S = 4, 30.0
LATER = (429, 502, 503)
# A probability of 1 has no logit; float64 tells those of all scores up to 30 apart.
NEAREST = 1e-13


def no_files(name: str, base_url: str) -> ConfigurationError:
    """Return the error for what can be known of a model by its files only."""
    return ConfigurationError(
        f"{name!r} runs on the server {base_url!r}, and its tokenizer, token vectors and files are not here. Name the "
        "model without base_url= for them."
    )


def check_base_url(base_url: Any) -> str:
    """Return the address of a server, without the `/v1` that some write behind it.

    Raises:
        ConfigurationError: It is none, or carries a key.
    """
    parts = urlsplit(base_url) if isinstance(base_url, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigurationError(f"base_url={base_url!r} is no address. Pass one like 'http://localhost:8080'.")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(f"base_url= of {parts.hostname!r} holds a name or key, which is logged. Use token=.")
    return str(base_url).rstrip("/").removesuffix("/v1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a model is asked, and what its answers must say.

    Attributes:
        base_url: Of the server.
        api: One of `APIS`.
        name: What the server calls the model.
        token: Its key.
        identity: What answers with vectors say; `None` where the format says nothing.
        score_identity: The same of answers with scores.
        dimension: Length of a vector; `None` where it is not known.
        outputs: Kinds of vectors that the model gives.
        seen: What OpenAI's format called the model in the first answer, under `model`; all connections share it.
    """

    base_url: str
    api: str
    name: str
    token: str | None = field(default=None, repr=False)
    identity: str | None = None
    score_identity: str | None = None
    dimension: int | None = None
    outputs: tuple[str, ...] = ("dense",)
    seen: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


class RemoteInput:
    """One input, and whether the server cut it, which is known when it has answered."""

    __slots__ = ("content", "cut", "length")

    def __init__(self, content: str | RoleText | tuple[str, str]) -> None:
        """Estimate what it costs."""
        self.content = content
        text = content.text if isinstance(content, RoleText) else "".join(content)
        self.length = max(len(text) // CHARACTERS_PER_TOKEN, LEAST_TOKENS)
        self.cut = False


class RemoteInputs:
    """The inputs of a window; see `engine.call.Prepared`."""

    def __init__(self, contents: Iterable[str | RoleText | tuple[str, str]]) -> None:
        """Wrap each."""
        self.sequences = [RemoteInput(each) for each in contents]
        self.passages = [1] * len(self.sequences)

    @property
    def truncated(self) -> int:
        """How many were cut, as far as answers have come."""
        return sum(each.cut for each in self.sequences)

    @property
    def first_cut(self) -> int | None:
        """The first of them."""
        return next((index for index, each in enumerate(self.sequences) if each.cut), None)


class RemoteTokenizing(Tokenizing):
    """Stands where a tokenizer does: the server's own reads the texts."""

    def __init__(self, address: Address) -> None:
        """Tokenise nothing."""
        self._address = address

    def texts(self, texts: Sequence[Any], max_length: int, overlap: int | None = None) -> Any:
        """Return texts as they are sent."""
        if overlap is not None:
            self._refuse()
        return RemoteInputs("".join(each) if isinstance(each, Framed) else each for each in texts)

    def pairs(self, pairs: Sequence[tuple[str, str]], max_length: int, overlap: int | None = None) -> Any:
        """Return pairs as they are sent."""
        if overlap is not None:
            self._refuse()
        return RemoteInputs(pairs)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Refuse."""
        self._refuse()

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Refuse."""
        self._refuse()

    def token(self, token_id: int) -> str:
        """Refuse."""
        self._refuse()

    def token_id(self, token: str) -> int | None:
        """Refuse."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise no_files(self._address.name, self._address.base_url)


class RemoteBackend:
    """One connection to a server."""

    pads = False
    parameters = 0

    def __init__(self, address: Address) -> None:
        """Connect with the first request."""
        self.tokenizing: Tokenizing = RemoteTokenizing(address)
        self._address = address
        self._client: httpx.Client | None = None
        self.bytes = 0
        self._process = 0

    def facts(self) -> dict[str, Any]:
        """Return what a server of ours says of the model."""
        found: dict[str, Any] = self._ask("GET", f"/v1/models/{quote(self._address.name, safe='')}")
        if not isinstance(found, dict) or not isinstance(found.get("facts"), dict):
            raise ConfigurationError(
                f"The server {self._address.base_url!r} does not describe {self._address.name!r} as `bge serve` does. "
                "Say what it speaks: api='openai', 'tei' or 'cohere'."
            )
        return found

    def forward(self, batch: Sequence[RemoteInput], output: Output) -> Sequence[Vector]:
        """Send a batch, and return what the server makes of it; see `Backend`.

        Raises:
            ServerUnreachableError: Nobody answers.
            ModelChangedError: Another model answers than the one that was asked for first.
            BackendError: The server failed, or its answer makes no sense.
            BGEError: It refused the request.
        """
        try:
            if isinstance(output, LayerScore):
                columns = [self._scores(batch, layer) for layer in output.layers]
                return list(np.stack(columns, axis=1))
            if output == "score":
                return list(self._scores(batch, None))
            if output in ("tokens", "image"):
                raise no_files(self._address.name, self._address.base_url)
            return self._vectors(batch, output)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, BackendError | ConfigurationError | InputError | ModelNotFoundError):
                raise
            raise BackendError(
                f"The server {self._address.base_url!r} answers in a way that api={self._address.api!r} does not know "
                f"({type(error).__name__}: {error}). Name the format that it speaks."
            ) from error

    # Vectors

    def _vectors(self, batch: Sequence[RemoteInput], output: Output) -> list[Vector]:
        if self._address.api == "bge":
            return self._encoded(batch, output)
        texts = [str(each.content) for each in batch]
        found = {"openai": self._openai, "tei": self._tei, "cohere": self._cohere}[self._address.api](texts)
        return [self._checked(row) for row in found]

    def _encoded(self, batch: Sequence[RemoteInput], output: Output) -> list[Vector]:
        """Ask a server of ours, once for each role."""
        kinds = {"lexical": ("dense", "sparse"), "all": self._address.outputs}.get(str(output), ("dense",))
        rows: dict[int, Vector] = {}
        for role in ("query", "document"):
            own = [index for index, each in enumerate(batch) if _role(each) == role]
            if not own:
                continue
            texts = [_text(batch[index]) for index in own]
            body = {"model": self._address.name, "texts": texts, "input_type": role, "outputs": kinds}
            found = self._post("/v1/encode", {**body, "encoding_format": "base64"})
            self._check_identity(found, self._address.identity)
            for place in found["usage"]["truncated_inputs"]:
                batch[own[place]].cut = True
            for place, index in enumerate(own):
                dense = self._checked(found["dense"][place])
                rows[index] = dense if kinds == ("dense",) else _packed(dense, found, place)
        return [rows[index] for index in range(len(batch))]

    def _openai(self, texts: list[str]) -> list[Any]:
        body = {"model": self._address.name, "input": texts, "encoding_format": "base64"}
        found = self._post("/v1/embeddings", body)
        # What the format calls the model is all that it says of it.
        if (told := found.get("model")) != (first := self._address.seen.setdefault("model", told)):
            raise self._changed(first, told)
        return _placed(found["data"], "embedding", len(texts))

    def _tei(self, texts: list[str]) -> list[Any]:
        return _whole(self._post("/embed", {"inputs": texts, "truncate": True}), len(texts))

    def _cohere(self, texts: list[str]) -> list[Any]:
        rows: list[Any] = []
        for start in range(0, len(texts), COHERE_TEXTS):
            part = texts[start : start + COHERE_TEXTS]
            # The instruction is there already, and a document gets none.
            body = {"model": self._address.name, "texts": part, "input_type": "search_document", "truncate": "END"}
            found = self._post("/v2/embed", {**body, "embedding_types": ["float"]})
            rows += _whole(found["embeddings"]["float"], len(part))
        return rows

    def _checked(self, row: Any) -> Vector:
        """Return a vector of the right length, from base64 or numbers."""
        if isinstance(row, str):
            vector = np.frombuffer(base64.b64decode(row, validate=True), "<f4").astype(np.float32, copy=False)
        else:
            vector = np.asarray(row, np.float32)
        wanted = self._address.dimension
        if vector.ndim != 1 or (wanted is not None and vector.size != wanted):
            raise self._changed(f"{wanted} dimensions", f"{vector.shape}")
        return vector

    # Scores

    def _scores(self, batch: Sequence[RemoteInput], layer: int | None) -> Vector:
        """Return the raw score of each pair."""
        pairs = [each.content for each in batch]
        if self._address.api == "bge":
            body: dict[str, Any] = {"model": self._address.name, "pairs": pairs, "encoding_format": "base64"}
            found = self._post("/v1/score", {**body, "cutoff_layers": layer} if layer is not None else body)
            self._check_identity(found, self._address.score_identity)
            for place in found["usage"]["truncated_inputs"]:
                batch[place].cut = True
            scores = np.frombuffer(base64.b64decode(found["scores"], validate=True), "<f4").astype(np.float32)
            if scores.shape != (len(batch),):
                raise ValueError(f"{scores.size} scores for {len(batch)} pairs")
            return scores
        places: dict[str, list[int]] = {}
        for index, each in enumerate(pairs):
            places.setdefault(each[0], []).append(index)
        scores = np.empty(len(batch), np.float32)
        for query, own in places.items():
            scores[own] = self._ranked(query, [pairs[index][1] for index in own])
        return scores

    def _ranked(self, query: str, documents: list[str]) -> Any:
        """Return the raw scores of one query's documents, in their order."""
        if self._address.api == "tei":
            body = {"query": query, "texts": documents, "raw_scores": True, "truncate": True}
            return _placed(self._post("/rerank", body), "score", len(documents))
        asked = {"model": self._address.name, "query": query, "documents": documents, "top_n": len(documents)}
        found = self._post("/v2/rerank", asked)
        shown = np.clip(_placed(found["results"], "relevance_score", len(documents)), NEAREST, 1 - NEAREST)
        return np.log(shown / (1 - shown))

    # Requests

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._ask("POST", path, json.dumps(body, ensure_ascii=False).encode())

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        """Send a request, again where nothing was done or the server asks to come back; every one is safe to repeat."""
        import httpx
        import tenacity

        def pause(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            wanted = error.after_s if isinstance(error, _Later) else None
            return 0.2 * 2 ** (state.attempt_number - 1) if wanted is None else wanted

        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type((httpx.TransportError, _Later)),
            wait=pause,
            stop=tenacity.stop_after_attempt(TRIES) | tenacity.stop_before_delay(PATIENCE_S),
            reraise=True,
        )
        url = f"{self._address.base_url}{path}"
        try:
            return again(self._once, method, url, body)
        except _Later as error:
            raise BackendError(f"The server {self._address.base_url!r} has no room: {error}. Ask later.") from error
        except httpx.TransportError as error:
            raise ServerUnreachableError(
                f"The server {self._address.base_url!r} does not answer ({type(error).__name__}: {error}). "
                "Start it (bge serve), or correct base_url=."
            ) from error

    def _once(self, method: str, url: str, body: bytes | None) -> Any:
        headers = {"content-type": "application/json"}
        answer = self._connected().request(method, url, content=body, headers=headers)
        if answer.is_success:
            return answer.json()
        told = f"{answer.status_code} {answer.text[:500]}"
        if answer.status_code in LATER:
            raise _Later(told, _seconds(answer.headers.get("retry-after")))
        raise self._refused(answer.status_code, told)

    def _connected(self) -> httpx.Client:
        """Return this process's connection: one that a fork took along is the parent's."""
        import httpx

        if self._client is None or self._process != os.getpid():
            key = {} if self._address.token is None else {"authorization": f"Bearer {self._address.token}"}
            timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
            self._client, self._process = httpx.Client(headers=key, timeout=timeout), os.getpid()
            # With the weights of others that are freed, a connection is closed; see `Replica.free`.
            weakref.finalize(self, _close, self._client, self._process)
        return self._client

    def _refused(self, status: int, told: str) -> Exception:
        name, base_url = self._address.name, self._address.base_url
        if status in (401, 403):
            return ConfigurationError(f"The server {base_url!r} does not take the key: {told}. Pass another token=.")
        if status == 404:
            return ModelNotFoundError(f"The server {base_url!r} does not have {name!r}: {told}. Name one that it has.")
        if status == 413:
            return InputTooLongError(f"The server {base_url!r} takes less at once: {told}. Set batch_size=.")
        if 400 <= status < 500:
            return InputError(f"The server {base_url!r} refuses the request: {told}.")
        return BackendError(f"The server {base_url!r} failed: {told}. Its log says how.")

    def _check_identity(self, found: Mapping[str, Any], wanted: str | None) -> None:
        if found.get("identity") != wanted:
            raise self._changed(wanted, found.get("identity"))

    def _changed(self, wanted: Any, found: Any) -> ModelChangedError:
        return ModelChangedError(
            f"The server {self._address.base_url!r} answers for {self._address.name!r} with another model than before: "
            f"{found!r}, where {wanted!r} was told. Nothing of it was used. Serve the model that it was, or make a new "
            "object and fill the index anew."
        )


class _Later(Exception):
    """The server has no room now."""

    def __init__(self, told: str, after_s: float | None) -> None:
        super().__init__(told)
        self.after_s = after_s


def _close(client: httpx.Client, process: int) -> None:
    if process == os.getpid():
        client.close()


def _seconds(told: str | None) -> float | None:
    return float(told) if told is not None and told.isdecimal() else None


def _role(each: RemoteInput) -> str:
    return each.content.role if isinstance(each.content, RoleText) else "document"


def _text(each: RemoteInput) -> str:
    return each.content.text if isinstance(each.content, RoleText) else str(each.content)


def _packed(dense: Vector, found: Mapping[str, Any], place: int) -> Vector:
    sparse = found["sparse"][place] if "sparse" in found else {"indices": [], "values": []}
    ids, weights = np.asarray(sparse["indices"], np.int64), np.asarray(sparse["values"], np.float32)
    rows = found["multi_vector"][place] if "multi_vector" in found else []
    vectors = np.stack([np.frombuffer(base64.b64decode(row), "<f4") for row in rows]) if rows else np.empty((0, 0))
    return pack_outputs(TextOutputs(dense, ids, weights, vectors.astype(np.float32)))


def _whole(rows: Any, count: int) -> list[Any]:
    if not isinstance(rows, list) or len(rows) != count:
        raise ValueError(f"{len(rows)} rows for {count} texts")
    return rows


def _placed(rows: Any, key: str, count: int) -> list[Any]:
    """Return what each row says, by the place that it names: formats put the best first."""
    found = {row["index"]: row[key] for row in rows}
    if sorted(found) != list(range(count)) or len(rows) != count:
        raise ValueError(f"the places {sorted(found)[:8]} for {count} inputs")
    return [found[index] for index in range(count)]
