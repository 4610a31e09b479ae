"""What can be evaluated: models, the frameworks' retrievers, stores and engines, and runs that were saved."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import bge_runtime
from bge_runtime import ConfigurationError, Embedder, InputError, Reranker, VectorCache
from bge_runtime.evaluation.exact import search
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.judging import Hit
from bge_runtime.search.sections import Section
from bge_runtime.search.splitting import Splitter

__all__ = ["Costs", "ModelSubject", "Subject", "score_pairs", "subject_of"]

LANGCHAIN_RETRIEVER = "langchain_core.retrievers.BaseRetriever"
LANGCHAIN_STORE = "langchain_core.vectorstores.base.VectorStore"
LLAMAINDEX_RETRIEVER = "llama_index.core.base.base_retriever.BaseRetriever"
LLAMAINDEX_ENGINE = "llama_index.core.base.base_query_engine.BaseQueryEngine"
LLAMAINDEX_INDEX = "llama_index.core.indices.base.BaseIndex"
# Where documents' ids are often kept, if not as ids.
ID_KEYS = ("id", "_id", "doc_id", "document_id", "source", "file_name")
WINDOW = 2048
# What is timed one by one.
TIMED_QUERIES = 100
TIMED_DOCUMENTS = 64
TIMED_RERANKINGS = 3
BITS = ("float32", "int8", "binary")

Vectors = NDArray[np.float32]


@dataclass(kw_only=True, slots=True)
class Costs:
    """What a ranking costs.

    Attributes:
        seconds: All of it, in this run.
        texts_embedded: Texts that were not in the cache.
        texts_per_s: Documents embedded per second; `None` where none was embedded.
        query_ms: Median of the milliseconds that embedding a question takes.
        rerank_ms: Milliseconds per question of reranking; 0 without.
        search_ms: Milliseconds per question of the search: exact, over all documents, in batches of questions.
        bytes_per_vector: What an index holds for a document.
    """

    seconds: float = 0.0
    texts_embedded: int = 0
    texts_per_s: float | None = None
    query_ms: float | None = None
    rerank_ms: float | None = 0.0
    search_ms: float | None = None
    bytes_per_vector: int | None = None


class Subject(Protocol):
    """Something that ranks documents for questions."""

    costs: Costs

    @property
    def label(self) -> str:
        """What it is called."""

    @property
    def identity(self) -> str | None:
        """Digest of what changes the ranking; `None` where that is not known."""

    @property
    def execution(self) -> str:
        """What changes its costs: where and how it is computed."""

    def rank(self, data: Judgements, top_k: int) -> dict[str, list[Hit]]:
        """Return the best for each question, those that nothing answers included, best first."""


def subject_of(
    given: Any,
    *,
    reranker: Reranker | str | None = None,
    depth: int = 100,
    bits: str = "float32",
    id_key: str | None = None,
    vector_cache: VectorCache | None = None,
    show_progress: bool = False,
) -> Subject:
    """Return what ranks, for anything that `evaluate` takes.

    Raises:
        ConfigurationError: It is nothing that can be evaluated, or an option is not for it.
    """
    if isinstance(given, str | PathLike) and Path(fspath(given)).is_file():
        _only_for_models(given, reranker, bits)
        return RunSubject(Path(fspath(given)))
    if isinstance(given, str | PathLike | Embedder):
        embedder = (
            given if isinstance(given, Embedder) else Embedder(given, vector_cache=vector_cache, truncation="silent")
        )
        ranker = Reranker(reranker, truncation="silent") if isinstance(reranker, str) else reranker
        return ModelSubject(
            embedder, reranker=ranker, depth=depth, bits=bits, cache=vector_cache, show_progress=show_progress
        )
    _only_for_models(given, reranker, bits)
    call = _framework_call(given)
    if call is None:
        raise ConfigurationError(
            f"{given!r} cannot be evaluated. Pass a model's name, a bge_runtime.Embedder, a LangChain retriever or "
            "vector store, a LlamaIndex index, retriever or query engine, or the file of a saved TREC run."
        )
    return FrameworkSubject(type(given).__name__, call, id_key, show_progress)


def _median_ms(call: Callable[[str], object], questions: Sequence[str]) -> float:
    seconds = []
    for question in questions:
        started = time.perf_counter()
        call(question)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) * 1e3


def _only_for_models(given: Any, reranker: object, bits: str) -> None:
    if reranker is not None or bits != "float32":
        raise ConfigurationError(
            f"{given!r} ranks by itself, so reranker={reranker!r} and bits={bits!r} have no meaning for it. Pass a "
            "model, or give the retriever its reranker."
        )


class ModelSubject:
    """An embedder, by exact search over all documents, and maybe a reranker of the best."""

    def __init__(
        self,
        embedder: Embedder,
        *,
        reranker: Reranker | None = None,
        depth: int = 100,
        bits: str = "float32",
        chunk_tokens: int | None = None,
        cache: VectorCache | None = None,
        show_progress: bool = False,
    ) -> None:
        """Check the options; load nothing."""
        if bits not in BITS:
            raise ConfigurationError(f"bits={bits!r} is not allowed. Use {', '.join(map(repr, BITS))}.")
        self.embedder = embedder
        self.reranker = reranker
        self.costs = Costs()
        self._depth = depth
        self._bits = bits
        self._chunk_tokens = chunk_tokens
        self._cache = cache if cache is not None else embedder.vector_cache
        self._show_progress = show_progress

    @property
    def label(self) -> str:
        """What it is called."""
        parts = [self.embedder.model, *self._traits()]
        return " + ".join([" ".join(parts), *([self.reranker.model] if self.reranker else [])])

    @property
    def identity(self) -> str:
        """Digest of what changes the ranking."""
        more = [f"rerank {self.reranker.identity} of {self._depth}"] if self.reranker else []
        return " ".join([self.embedder.identity, *self._traits(), *more])

    @property
    def execution(self) -> str:
        """Backend, precision and device."""
        parts = [self.embedder, *([self.reranker] if self.reranker else [])]
        return " + ".join(f"{each.options()['backend']} {each.precision} {each.device}" for each in parts)

    def _traits(self) -> list[str]:
        chunks = [] if self._chunk_tokens is None else [f"chunks of {self._chunk_tokens}"]
        return [*([] if self._bits == "float32" else [self._bits]), *chunks]

    def rank(self, data: Judgements, top_k: int) -> dict[str, list[Hit]]:
        """Embed what is not in the cache, search, rerank."""
        if not data.documents:
            raise ConfigurationError(
                f"{data.name!r} has no documents, which a model needs. Name them as corpus=, or pass a retriever."
            )
        started, before = time.perf_counter(), bge_runtime.stats()["inputs"]
        pieces = self._pieces(data.documents)
        vectors = self.embed([embedded for _, embedded, _ in pieces])
        texts = {**data.queries, **data.unanswerable}
        queries = self._queries(list(texts.values()))
        searched = time.perf_counter()
        # Of a document's chunks, the best one counts: as many more are looked at as a document has chunks.
        wanted = max(top_k, self._depth if self.reranker else 0) * math.ceil(len(pieces) / len(data.documents))
        rows, scores = self._search(queries, vectors, wanted)
        self.costs.search_ms = (time.perf_counter() - searched) / len(texts) * 1e3
        hits = {
            query: [
                Hit(ids=(pieces[row][0],), score=float(score), text=pieces[row][2])
                for row, score in zip(rows[at], scores[at], strict=True)
            ]
            for at, query in enumerate(texts)
        }
        # Counted before the reranker, whose pairs are no texts to embed.
        self.costs.texts_embedded = int(bge_runtime.stats()["inputs"] - before)
        if self.reranker is not None:
            hits = self._reranked(self.reranker, texts, hits)
        self.costs.seconds = time.perf_counter() - started
        return hits

    def _pieces(self, documents: Mapping[str, str]) -> list[tuple[str, str, str]]:
        """Return what is embedded: the document's id, the text as it is read, and as it stands in the document."""
        if self._chunk_tokens is None:
            return [(name, text, text) for name, text in documents.items()]
        splitter = Splitter(self.embedder, self._chunk_tokens)
        return [
            (name, chunk.text, chunk.body)
            for name, text in documents.items()
            for chunk in splitter.split([Section((), text)])
        ]

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return the vectors of documents, in their order."""
        vectors = np.empty((len(texts), self.embedder.dimension), np.float32)
        started, before = time.perf_counter(), bge_runtime.stats()["inputs"]
        with _progress(len(texts), "documents", self._show_progress) as told:
            at = 0
            for block in self.embedder.stream_documents(texts, window=WINDOW):
                vectors[at : at + len(block)] = block
                at += len(block)
                told(len(block))
        computed, seconds = bge_runtime.stats()["inputs"] - before, time.perf_counter() - started
        if computed * 2 >= len(texts):  # else the cache was read, for the most part
            self.costs.texts_per_s = computed / seconds
        return vectors

    def measure(self, data: Judgements, run: Mapping[str, Sequence[tuple[str, float]]]) -> None:
        """Time some questions, documents and rerankings, for a subject without a cache; search is timed by `rank`.

        Args:
            data: The collection that was ranked.
            run: What was found for its questions.
        """
        questions = list(data.queries)[:TIMED_QUERIES:5]
        texts = list(data.documents.values())
        self.embedder.warm_up().encode_documents(texts[:1])
        self.costs.query_ms = _median_ms(lambda query: self.embedder.encode_queries([data.queries[query]]), questions)
        sample = texts[:: max(len(texts) // TIMED_DOCUMENTS, 1)][:TIMED_DOCUMENTS]
        started = time.perf_counter()
        self.embedder.encode_documents(sample)
        self.costs.texts_per_s = len(sample) / (time.perf_counter() - started)
        if (reranker := self.reranker) is not None:
            found = {
                query: [data.documents[name] for name, _ in run[query][: self._depth] if name in data.documents]
                for query in questions[:TIMED_RERANKINGS]
            }
            self.costs.rerank_ms = _median_ms(
                lambda query: reranker.score(data.queries[query], found[query]), list(found)
            )

    def _queries(self, texts: Sequence[str]) -> Vectors:
        """Embed the first ones by themselves, to see how long one takes."""
        before = bge_runtime.stats()["inputs"]
        seconds, first = [], []
        for text in texts[:TIMED_QUERIES]:
            started = time.perf_counter()
            first.append(self.embedder.encode_queries([text], show_progress=False))
            seconds.append(time.perf_counter() - started)
        if bge_runtime.stats()["inputs"] - before == len(first):
            self.costs.query_ms = statistics.median(seconds) * 1e3
        rest = texts[TIMED_QUERIES:]
        return np.vstack([*first, self.embedder.encode_queries(rest, show_progress=False)])

    def _search(self, queries: Vectors, vectors: Vectors, top_k: int) -> tuple[NDArray[np.int64], Vectors]:
        dimension = vectors.shape[1]
        if self._bits == "float32":
            self.costs.bytes_per_vector = 4 * dimension
            return search(queries, vectors, top_k)
        if self._bits == "int8":
            self.costs.bytes_per_vector = dimension
            ranges = bge_runtime.quantization_ranges(vectors)
            packed = bge_runtime.quantize_embeddings(vectors, "int8", ranges=ranges)
            return bge_runtime.search_quantized(queries, packed, top_k=top_k, ranges=ranges)
        # Scored again by their own signs: no vectors in float are kept.
        self.costs.bytes_per_vector = (dimension + 7) // 8
        packed = bge_runtime.quantize_embeddings(vectors, "binary")
        return bge_runtime.search_quantized(queries, packed, top_k=top_k)

    def _reranked(
        self, reranker: Reranker, texts: Mapping[str, str], hits: dict[str, list[Hit]]
    ) -> dict[str, list[Hit]]:
        """Order the best anew; what is beyond the depth is not returned, as by a retriever that fetches so many."""
        first = {query: found[: self._depth] for query, found in hits.items()}
        pairs = [(texts[query], hit.text) for query, found in first.items() for hit in found]
        started = time.perf_counter()
        all_scores, computed = score_pairs(reranker, pairs, self._cache, show_progress=self._show_progress)
        scores = iter(all_scores)
        ordered = {}
        for query, found in first.items():
            scored = [Hit(ids=hit.ids, score=float(next(scores)), text=hit.text) for hit in found]
            ordered[query] = sorted(scored, key=lambda hit: -hit.score)
        if computed * 2 < len(pairs):  # the cache was read, for the most part
            self.costs.rerank_ms = None
        if self.costs.rerank_ms is not None:
            self.costs.rerank_ms = (time.perf_counter() - started) / max(len(first), 1) * 1e3
        return ordered


class FrameworkSubject:
    """A retriever, store or engine of a framework, asked question by question as its users do."""

    identity = None
    execution = ""

    def __init__(
        self, label: str, call: Callable[[str, int], Iterable[Any]], id_key: str | None, show_progress: bool
    ) -> None:
        """Take what answers a question with at most so many results."""
        self.label = label
        self.costs = Costs()
        self._call = call
        self._id_key = id_key
        self._show_progress = show_progress

    def rank(self, data: Judgements, top_k: int) -> dict[str, list[Hit]]:
        """Ask."""
        started, before = time.perf_counter(), bge_runtime.stats()["inputs"]
        texts = {**data.queries, **data.unanswerable}
        hits, seconds = {}, []
        with _progress(len(texts), "questions", self._show_progress) as told:
            for query, text in texts.items():
                began = time.perf_counter()
                results = list(self._call(text, top_k))
                seconds.append(time.perf_counter() - began)
                # By place: what frameworks call a score is a similarity here and a distance there.
                hits[query] = [self._hit(each, len(results) - at) for at, each in enumerate(results[:top_k])]
                told(1)
        self.costs.query_ms = statistics.median(seconds) * 1e3
        self.costs.texts_embedded = int(bge_runtime.stats()["inputs"] - before)
        self.costs.seconds = time.perf_counter() - started
        return hits

    def _hit(self, result: Any, score: float) -> Hit:
        node = getattr(result, "node", result)
        metadata = dict(getattr(node, "metadata", None) or {})
        keys = (self._id_key,) if self._id_key else ID_KEYS
        own = [] if self._id_key else [getattr(node, name, None) for name in ("id", "node_id", "ref_doc_id")]
        ids = [str(each) for each in [*own, *(metadata.get(key) for key in keys)] if each not in (None, "")]
        text = getattr(node, "page_content", None)
        return Hit(ids=tuple(dict.fromkeys(ids)), score=float(score), text=node.get_content() if text is None else text)


class RunSubject:
    """A run that was saved in TREC's format."""

    identity = None
    execution = ""

    def __init__(self, path: Path) -> None:
        """Name the file."""
        self.label = path.stem
        self.costs = Costs(rerank_ms=None)
        self._path = path

    def rank(self, data: Judgements, top_k: int) -> dict[str, list[Hit]]:
        """Read it."""
        started = time.perf_counter()
        hits: dict[str, list[Hit]] = {query: [] for query in (*data.queries, *data.unanswerable)}
        seen = set()
        with self._path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                parts = line.split()
                try:
                    query, _, document, _, score, _ = parts
                    value = float(score)
                except ValueError as error:
                    raise InputError(
                        f"{self._path.name} line {number} is {line[:80]!r}. Write: question Q0 document rank score tag."
                    ) from error
                if not np.isfinite(value):
                    raise InputError(f"{self._path.name} line {number} has the score {score}, which orders nothing.")
                if (query, document) in seen:
                    raise InputError(f"{self._path.name} line {number} has {document!r} for {query!r} a second time.")
                seen.add((query, document))
                if query in hits:
                    hits[query].append(Hit(ids=(document,), score=value, text=data.documents.get(document, "")))
        self.costs.seconds = time.perf_counter() - started
        # As trec_eval orders: by score, then by id, both descending.
        return {
            query: sorted(found, key=lambda hit: (hit.score, hit.ids), reverse=True)[:top_k]
            for query, found in hits.items()
        }


def _framework_call(given: Any) -> Callable[[str, int], Iterable[Any]] | None:
    """Return what answers a question through a framework's object; nothing is imported that is not there already."""
    kinds = {f"{each.__module__}.{each.__qualname__}" for each in type(given).__mro__}
    if LANGCHAIN_STORE in kinds:
        return lambda question, top_k: given.similarity_search(question, k=top_k)
    if LANGCHAIN_RETRIEVER in kinds:
        return lambda question, top_k: given.invoke(question)
    if LLAMAINDEX_INDEX in kinds:
        retrievers: dict[int, Any] = {}

        def retrieve(question: str, top_k: int) -> Iterable[Any]:
            if top_k not in retrievers:
                retrievers[top_k] = given.as_retriever(similarity_top_k=top_k)
            return list(retrievers[top_k].retrieve(question))

        return retrieve
    if LLAMAINDEX_RETRIEVER in kinds:
        return lambda question, top_k: given.retrieve(question)
    if LLAMAINDEX_ENGINE in kinds:
        bundle = sys.modules["llama_index.core.schema"].QueryBundle
        return lambda question, top_k: given.retrieve(bundle(question))
    return None


def score_pairs(
    reranker: Reranker, pairs: Sequence[tuple[str, str]], cache: VectorCache | None, *, show_progress: bool = False
) -> tuple[Vectors, int]:
    """Score pairs; those that the cache knows are not computed, and it learns the others while they are.

    Args:
        reranker: Scores.
        pairs: Query and document.
        cache: Remembers scores; a run that is cut off and started again has those of all whole windows.
        show_progress: Whether to show progress on standard error.

    Returns:
        Scores, float32 in the order of the pairs, and how many were computed.
    """
    if cache is None:
        return reranker.score_pairs(pairs, show_progress=show_progress), len(pairs)
    identity = f"score {reranker.identity}"
    keys = [f"{len(query)} {query}{document}" for query, document in pairs]
    known = cache.get(identity, keys)
    missing = [at for at, score in enumerate(known) if score is None or score.shape != (1,)]
    with _progress(len(missing), "pairs", show_progress) as told:
        for start in range(0, len(missing), WINDOW):
            window = missing[start : start + WINDOW]
            computed = reranker.score_pairs([pairs[at] for at in window], show_progress=False)
            rows = [computed[at : at + 1] for at in range(len(window))]
            cache.put(identity, [keys[at] for at in window], rows)
            for at, row in zip(window, rows, strict=True):
                known[at] = row
            told(len(window))
    scores = np.array([float(each[0]) for each in known if each is not None], np.float32)
    return scores, len(missing)


@contextmanager
def _progress(total: int, unit: str, shown: bool) -> Iterator[Callable[[int], object]]:
    """A bar on standard error; no object at all where none is shown, since making one takes a lock of the process."""
    if not shown:
        yield lambda count: None
        return
    with tqdm(total=total, unit=f" {unit}") as bar:
        yield bar.update
