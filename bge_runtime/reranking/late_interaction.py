"""Pairs scored by an embedder: every text is read once, and pairs are compared by what was read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bge_runtime.embedding.instructions import Role
from bge_runtime.embedding.settings import digest
from bge_runtime.engine.call import Rows
from bge_runtime.engine.deadline import Deadline
from bge_runtime.engine.flow import Flow
from bge_runtime.inputs.checks import is_blank
from bge_runtime.loading.runner import Runner, distinct
from bge_runtime.reranking.base import INTERACTIVE_PAIRS, Pairs, Scores
from bge_runtime.reranking.comparison import TokenComparison
from bge_runtime.vectors.cache import VectorCache
from bge_runtime.vectors.finite import named, not_finite

if TYPE_CHECKING:
    from bge_runtime.embedding.embedder import Embedder

__all__ = ["LateInteraction"]

# Documents whose token vectors are held at a time, and their numbers: 256 MB, or 512 MB of one character per token.
TOKEN_WINDOW = 256
WINDOW_VALUES = 64_000_000
LARGE_DIMENSION = 1024
CHARACTERS_PER_TOKEN = 2  # hardly ever fewer

# By text, the value of each of its passages.
Read: TypeAlias = dict[str, list[Any]]


@dataclass(slots=True)
class Cut:
    """How many of the texts of a call were too long, and the first that was."""

    count: int = 0
    first: str = ""

    def add(self, rows: Rows, texts: Sequence[str]) -> None:
        """Count those of a part of the call."""
        if rows.first_cut is not None and not self.count:
            self.first = texts[rows.first_cut]
        self.count += rows.cut


class LateInteraction:
    """Scores pairs by comparing what an embedder makes of each text alone."""

    def __init__(
        self,
        embedder: Embedder,
        comparison: TokenComparison,
        runner: Runner,
        *,
        owns_embedder: bool,
        overlap: int | None,
        cache: VectorCache | None,
    ) -> None:
        """Note how texts are read and compared.

        Args:
            embedder: Reads the texts.
            comparison: How they are compared.
            runner: The reranker's, which shows progress and tells of truncation.
            owns_embedder: Whether the embedder is closed with this.
            overlap: Tokens shared by two passages of a long document, whose best passage counts; `None` cuts it.
            cache: Remembers what was read; not passages.
        """
        self.embedder = embedder
        self.comparison = comparison
        self._runner = runner
        self._owns_embedder = owns_embedder
        self._overlap = overlap
        self._cache = cache

    @property
    def document_identity(self) -> str:
        """Digest of exactly what changes the token vectors of documents; needs the model's files."""
        return digest([self.comparison.identity("document"), *([] if self._overlap is None else [self._overlap])])

    def warm_up(self) -> None:
        """Load the embedder's weights."""
        self.embedder.warm_up()

    def close(self) -> None:
        """Close the embedder, unless a caller passed it in."""
        if self._owns_embedder:
            self.embedder.close()

    def scores(self, pairs: Pairs, show_progress: bool | None, deadline: Deadline | None) -> Flow[Scores]:
        """Return the score of each pair, each distinct text being read once; see `Scorer`.

        Two blank texts score 0.0: nothing is found where nothing is asked, though their special tokens are the same.
        """
        different, numbers = distinct(pairs)
        scores = np.full(len(different), np.nan, dtype=np.float32)
        given_queries, given_documents = [query for query, _ in pairs], [document for _, document in pairs]
        queries = list(dict.fromkeys(given_queries))
        cut = Cut()
        query_values = yield from self._read(queries, "query", given_queries, cut, deadline=deadline)
        places: dict[str, list[int]] = defaultdict(list)
        for index, (query, document) in enumerate(different):
            if is_blank(query) and is_blank(document):
                scores[index] = 0.0
            elif query in query_values:
                places[document].append(index)

        def keep(document: str, passages: list[Any]) -> None:
            for index in places[document]:
                (value,) = query_values[different[index][0]]
                scores[index] = max(self.comparison.score(value, passage) for passage in passages)

        # Windows of like lengths; when time is short, the first documents first.
        documents = list(places) if deadline else sorted(places, key=len)
        with self._runner.progress(len(documents), show_progress) as progress:
            bulk = len(different) > INTERACTIVE_PAIRS
            yield from self._each(documents, given_documents, keep, progress, cut, bulk=bulk, deadline=deadline)
        self._note(cut, len(queries) + len(documents))
        return scores[numbers]

    def query_vectors(self, query: str) -> Flow[NDArray[np.float32]]:
        """Return a query's token vectors, float32 of shape (tokens, dimension)."""
        cut = Cut()
        found = yield from self._read([query], "query", [query], cut)
        (value,) = found[query]
        self._note(cut, 1)
        return self.comparison.vectors(value)

    def document_vectors(
        self,
        texts: Sequence[str],
        keep: Callable[[str, list[NDArray[np.float32]]], object],
        show_progress: bool | None,
    ) -> Flow[None]:
        """Read documents and hand out their token vectors window by window.

        Args:
            texts: Checked texts.
            keep: Called once per distinct text with the vectors of each of its passages (one, unless passages are
                read), float32 of shape (tokens, dimension).
            show_progress: Overrides the reranker's value.
        """

        def keep_vectors(text: str, passages: list[Any]) -> None:
            keep(text, [self.comparison.vectors(value) for value in passages])

        different = sorted(dict.fromkeys(texts), key=len)
        with self._runner.progress(len(different), show_progress) as progress:
            cut = Cut()
            yield from self._each(different, texts, keep_vectors, progress, cut, bulk=True, deadline=None)
        self._note(cut, len(different))

    def _each(
        self,
        documents: Sequence[str],
        given: Sequence[str],
        keep: Callable[[str, list[Any]], object],
        progress: Callable[[int], object] | None,
        cut: Cut,
        *,
        bulk: bool,
        deadline: Deadline | None,
    ) -> Flow[None]:
        """Read documents a window at a time, hand out the values of each, and note what was cut."""
        for window in _windows(documents, self.embedder):
            found = yield from self._read(window, "document", given, cut, bulk=bulk, deadline=deadline)
            for document, passages in found.items():
                keep(document, passages)
            found.clear()  # or two windows would be held while the next one is read
            if progress is not None:
                progress(len(window))

    def _read(
        self,
        texts: Sequence[str],
        role: Role,
        given: Sequence[str],
        cut: Cut,
        *,
        bulk: bool = False,
        deadline: Deadline | None = None,
    ) -> Flow[Read]:
        """Return the values of each text's passages, and note what was cut; late ones are missing.

        A text whose values are not finite is an error that names its place among those `given`; the others' are
        remembered all the same.
        """
        comparison = self.comparison
        overlap = self._overlap if role == "document" else None
        # A cache keeps one value per text, and passages are several.
        cache = self._cache if overlap is None else None
        found = self._known(texts, role, cache)
        missing = [text for text in texts if text not in found]
        if not missing:
            return found
        result = yield from comparison.read(missing, bulk=bulk, overlap=overlap, deadline=deadline)
        cut.add(result, missing)
        values = iter(result.values)
        # A deadline may leave the last text with some of its passages only: that text counts as not read.
        computed = {
            text: passages
            for text, size in zip(missing, result.passages, strict=False)
            if len(passages := list(islice(values, size))) == size
        }
        broken = [text for text, passages in computed.items() if not all(map(comparison.is_finite, passages))]
        for text in broken:
            del computed[text]
        if role == "document" and comparison.token_pooling > 1:
            yield partial(self._pool, computed)
        if cache is not None:
            numbers = [comparison.to_numbers(value) for (value,) in computed.values()]
            cache.put(comparison.identity(role), list(computed), numbers)
        if broken:
            name = "queries" if role == "query" else "documents"
            first = named(name, given.index(broken[0]), broken[0])
            raise not_finite(self._runner.source.name, first, len(broken) - 1)
        return found | computed

    def _note(self, cut: Cut, asked: int) -> None:
        if cut.count:
            self._runner.note_cut(cut.count, asked, cut.first, self.embedder.max_length)

    def _pool(self, computed: dict[str, list[Any]]) -> None:
        for text, passages in computed.items():
            computed[text] = self.comparison.pooled(passages)

    def _known(self, texts: Sequence[str], role: Role, cache: VectorCache | None) -> dict[str, list[Any]]:
        if cache is None:
            return {}
        identity = self.comparison.identity(role)
        cache.expect(identity, self.comparison.fits)
        known = cache.get(identity, texts)
        return {
            text: [self.comparison.from_numbers(numbers)]
            for text, numbers in zip(texts, known, strict=True)
            if numbers is not None
        }


def _windows(documents: Sequence[str], embedder: Embedder) -> Iterator[list[str]]:
    most_tokens = WINDOW_VALUES // (embedder.spec.dimension or LARGE_DIMENSION)
    window: list[str] = []
    tokens = 0
    for document in documents:
        more = min(len(document) // CHARACTERS_PER_TOKEN + 2, embedder.max_length)
        if window and (len(window) == TOKEN_WINDOW or tokens + more > most_tokens):
            yield window
            window, tokens = [], 0
        window.append(document)
        tokens += more
    if window:
        yield window
