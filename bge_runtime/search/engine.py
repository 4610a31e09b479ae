"""One search: bring the index up to date, retrieve by vector, rerank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bge_runtime import ConfigurationError, Embedder, InputError, Reranker, order_scores
from bge_runtime.search.documents import (
    SourceFile,
    UnreadableFileError,
    content_digest,
    find_files,
    read_sections,
)
from bge_runtime.search.index import (
    DamagedIndexError,
    SearchIndex,
    default_cache_folder,
    index_path,
    set_aside,
)
from bge_runtime.search.late_interaction import late_interaction
from bge_runtime.search.splitting import Chunk, Splitter, readable

__all__ = ["Hit", "SearchResult", "search_folder"]

# Texts embedded between two writes: what an interrupted run loses at most.
WINDOW = 128
# Chunks so near to a better one of the same section are left out: they overlap it or belong to it.
BESIDE = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """A section that answers.

    Attributes:
        file: Its file's path below the folder.
        heading: Headings above it, outermost first.
        text: The part of the section that was found, without the headings.
        dense: Cosine of its vector and the question's.
        rerank: The reranker's score; `None` without one.
    """

    file: str
    heading: tuple[str, ...]
    text: str
    dense: float
    rerank: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """What a search found and did.

    Attributes:
        hits: The best sections, best first.
        embedded: Texts embedded in this run.
        texts: Distinct texts in the index.
        skipped: Files that could not be read, with the reason.
    """

    hits: tuple[Hit, ...]
    embedded: int
    texts: int
    skipped: dict[str, str] = field(default_factory=dict)


def search_folder(
    folder: Path,
    question: str,
    *,
    embedder: Embedder,
    reranker: Reranker | None = None,
    k: int = 3,
    fetch_k: int = 100,
    chunk_tokens: int | None = None,
    cache_folder: Path | None = None,
    rebuild: bool = False,
    show_progress: bool = False,
    notify: Callable[[str], None] = lambda message: None,
) -> SearchResult:
    """Return the sections of a folder's documents that answer a question best.

    Args:
        folder: Folder with documents.
        question: The question.
        embedder: Embeds sections and question.
        reranker: Orders what was retrieved; `None` keeps the order of the vectors.
        k: How many sections to return.
        fetch_k: How many chunks to rerank.
        chunk_tokens: Most tokens of a chunk; `None` is 200, or what the model reads when that is less.
        cache_folder: Where indexes are kept; `None` is the user's cache folder.
        rebuild: Whether to forget the stored index.
        show_progress: Whether to show a progress bar on standard error.
        notify: Called with a line about files that were skipped, a damaged index, and what was embedded.

    Raises:
        InputError: The question is empty, or no file can be read.
        ConfigurationError: The folder, a number or the cache folder cannot be used.
        BGEError: The model cannot be loaded or run.
    """
    if not question.strip():
        raise InputError(f"The question {question!r} is empty. Write what you are looking for.")
    if k < 1 or fetch_k < k:
        raise ConfigurationError(f"k={k} and fetch_k={fetch_k} are not allowed. Use 1 <= k <= fetch_k.")
    files = find_files(folder)
    splitter = Splitter(embedder, chunk_tokens)
    path = index_path(
        cache_folder or default_cache_folder(),
        folder,
        embedder.document_identity,
        splitter.limit,
        splitter.overlap,
    )
    if rebuild:
        _forget(path)
    collection = _Collection(files, splitter, show_progress, notify)
    try:
        chunks, vectors = collection.refresh(path)
    except DamagedIndexError as error:
        notify(f"The index is damaged ({error}): set aside as {set_aside(path)}, and built again.")
        chunks, vectors = collection.refresh(path)
    dense = _cosines(embedder.encode_queries([readable(question)], show_progress=False)[0], vectors)
    candidates = [each.index for each in order_scores(dense, top_n=fetch_k)]
    scores = _rerank(reranker, question, [chunks[index][1] for index in candidates])
    return SearchResult(
        hits=tuple(_pick(chunks, dense, candidates, scores, k)),
        embedded=collection.embedded,
        texts=collection.texts,
        skipped=dict(collection.skipped),
    )


@dataclass
class _Collection:
    """The folder's files on their way into the index."""

    files: list[SourceFile]
    splitter: Splitter
    show_progress: bool
    notify: Callable[[str], None]
    embedded: int = 0
    texts: int = 0
    skipped: dict[str, str] = field(default_factory=dict)

    def refresh(self, path: Path) -> tuple[list[tuple[str, Chunk]], NDArray[np.float32]]:
        """Bring the index up to date and return its chunks and vectors."""
        self.embedded = 0
        with SearchIndex(path) as index:
            self._take_in(index)
            # Another run over the same folder may drop texts meanwhile: look until none is missing.
            while missing := index.missing():
                self._embed(index, missing)
            chunks, vectors = index.load(self.splitter.embedder.dimension)
            self.texts = index.count()
        if not chunks:
            raise InputError(f"None of the {len(self.files)} documents holds any text. Nothing can be searched.")
        self.notify(f"embedded {self.embedded} of {self.texts} texts")
        return chunks, vectors

    def _take_in(self, index: SearchIndex) -> None:
        known = index.digests()
        changed: dict[str, tuple[str, list[Chunk]]] = {}
        skipped: dict[str, str] = {}
        for file in self.files:
            try:
                content = file.read()
                digest = content_digest(content)
                if known.get(file.name) != digest:
                    sections = read_sections(file.kind, content)
                    changed[file.name] = (digest, list(self.splitter.split(sections)))
            except UnreadableFileError as error:
                skipped[file.name] = str(error)
        self._report(skipped)
        present = {file.name for file in self.files} - skipped.keys()
        index.replace(changed, known.keys() - present)

    def _report(self, skipped: dict[str, str]) -> None:
        if skipped and not self.skipped:
            for reason in dict.fromkeys(skipped.values()):
                names = ", ".join(name for name, why in skipped.items() if why == reason)
                self.notify(f"skipped {names}: {reason}")
        self.skipped = skipped
        if len(skipped) == len(self.files):
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
            raise InputError(f"None of the {len(skipped)} documents can be read ({reasons}).")

    def _embed(self, index: SearchIndex, missing: dict[str, str]) -> None:
        # Texts of like length go together.
        keys = sorted(missing, key=lambda key: len(missing[key]), reverse=True)
        # No bar that is merely disabled: making one takes a lock of the whole process.
        bar = tqdm(total=len(keys), desc="embedding", unit="text") if self.show_progress else nullcontext()
        with bar as progress:
            for start in range(0, len(keys), WINDOW):
                window = keys[start : start + WINDOW]
                texts = [missing[key] for key in window]
                index.store(window, self.splitter.embedder.encode_documents(texts, show_progress=False))
                self.embedded += len(window)
                if progress is not None:
                    progress.update(len(window))


def _forget(path: Path) -> None:
    try:
        for suffix in ("", "-journal"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(f"The index {str(path)!r} cannot be removed ({error}).") from error


def _cosines(query: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return cosines whatever the length of the vectors, which some models do not normalise."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    return np.asarray(vectors @ query / np.maximum(lengths, 1e-12), dtype=np.float32)


def _rerank(reranker: Reranker | None, question: str, chunks: Sequence[Chunk]) -> list[float] | None:
    if reranker is None:
        return None
    if reranker.method == "late_interaction":
        scores = late_interaction(reranker.embedder, question, chunks)
    else:
        scores = reranker.score(question, [chunk.text for chunk in chunks])
    return [float(score) for score in scores]


def _pick(
    chunks: list[tuple[str, Chunk]],
    dense: NDArray[np.float32],
    candidates: list[int],
    scores: list[float] | None,
    k: int,
) -> list[Hit]:
    """Return the best `k` candidates, leaving out those beside a better one in the same section."""
    order = range(len(candidates)) if scores is None else [each.index for each in order_scores(scores)]
    taken: set[int] = set()
    hits: list[Hit] = []
    for place in order:
        number = candidates[place]
        name, chunk = chunks[number]
        beside = [near for near in range(number - BESIDE, number + BESIDE + 1) if near in taken]
        if any(chunks[near][0] == name and chunks[near][1].trail == chunk.trail for near in beside):
            continue
        taken.add(number)
        score = None if scores is None or math.isnan(scores[place]) else scores[place]
        hits.append(Hit(file=name, heading=chunk.trail, text=chunk.body, dense=float(dense[number]), rerank=score))
        if len(hits) == k:
            break
    return hits
