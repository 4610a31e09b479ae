"""Small corpora searched by late interaction alone: the token vectors of all documents, in memory."""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from bge_runtime.embedding.embedder import Embedder
from bge_runtime.engine.flow import Flow
from bge_runtime.errors import ConfigurationError, IndexIdentityError, InputError, check_count, public
from bge_runtime.inputs.checks import check_text, check_texts
from bge_runtime.loading.store import arun, run
from bge_runtime.locks import ForkLock
from bge_runtime.models.spec import ModelSpec
from bge_runtime.reranking.late_interaction import LateInteraction
from bge_runtime.reranking.ranking import order_scores
from bge_runtime.reranking.reranker import Reranker
from bge_runtime.vectors.token_blocks import TokenBlock, compacted, read_blocks, write_blocks

__all__ = ["TokenHit", "TokenIndex"]

FILE = "bge-token-index.safetensors"
FORMAT = "1"

Storage = Literal["float16", "float32"]
STORAGES = ("float16", "float32")
Scorer = Reranker | Embedder | ModelSpec | str | os.PathLike[str]


@public
@dataclass(frozen=True, slots=True)
class TokenHit:
    """One document that a search found.

    Attributes:
        id: The id that it was added with.
        score: The mean over the query's token vectors of the best cosine with the document's.
    """

    id: str
    score: float


@public
class TokenIndex:
    """The token vectors of a small corpus, and exact search through them by late interaction.

    A search reads the query and compares it with every document: no first stage, nothing approximate. The scores
    are those of `Reranker.score` on the same texts. Each token takes the dimension times two bytes (float16), a
    page of 300 tokens at 384 dimensions 230 kB; `Reranker(..., token_pooling=2)` halves that. Texts are not kept.
    Safe from any number of threads: a search sees all of a call of `add` or `remove`, or nothing of it.
    """

    def __init__(self, model: Scorer, *, storage: Storage = "float16") -> None:
        """Describe the index; nothing is loaded.

        Args:
            model: A `Reranker` by late interaction, whose options, vector cache and token pooling hold; or an
                embedder: its name, folder or spec, or an `Embedder`.
            storage: Number format of the vectors held. float16 moves scores by less than 0.0005.

        Raises:
            ConfigurationError: `storage` has a wrong value, or the model compares no token vectors.
            ModelNotFoundError: The name cannot be a model.
        """
        if storage not in STORAGES:
            raise ConfigurationError(f"storage={storage!r} is not allowed. Use 'float16' or 'float32'.")
        self.reranker = model if isinstance(model, Reranker) else Reranker(model)
        if self.reranker.known_spec is not None:
            _check_reranker(self.reranker)
        self.storage: Storage = storage
        self._lock = ForkLock()
        self._blocks: tuple[TokenBlock, ...] = ()

    @property
    def ids(self) -> list[str]:
        """The ids of all documents, in the order in which they were added."""
        return [id for block in self._blocks for id in block.ids]

    @property
    def bytes(self) -> int:
        """Size of the vectors in memory."""
        return sum(block.vectors.nbytes for block in self._blocks)

    def __len__(self) -> int:
        """Return the number of documents."""
        return sum(len(block.ids) for block in self._blocks)

    def add(
        self, texts: Iterable[str], ids: Iterable[str] | None = None, *, show_progress: bool | None = None
    ) -> list[str]:
        """Read documents and add their token vectors; all of them or, after an error, none.

        Args:
            texts: Any iterable of strings.
            ids: One per text, new to the index; `None` makes some up.
            show_progress: Overrides the reranker's value.

        Returns:
            The ids, in the order of the texts.

        Raises:
            InputError: Something is not a string, an id is there already, or texts and ids differ in number.
            BackendError: The computation failed, or a text's vectors are not finite; the message names it.
        """
        return run(self._add(texts, ids, show_progress))

    async def aadd(
        self, texts: Iterable[str], ids: Iterable[str] | None = None, *, show_progress: bool | None = None
    ) -> list[str]:
        """Add documents without blocking the event loop; see `add`."""
        return await arun(self._add(texts, ids, show_progress))

    def search(self, query: str, top_n: int | None = 10) -> list[TokenHit]:
        """Return the best documents, best first; equal scores keep the order in which documents were added.

        Args:
            query: The query, without any instruction.
            top_n: How many to return; `None` returns all.

        Raises:
            ConfigurationError: `top_n` is not positive.
            InputError: The query is not a string.
        """
        return run(self._search(query, top_n))

    async def asearch(self, query: str, top_n: int | None = 10) -> list[TokenHit]:
        """Search without blocking the event loop; see `search`."""
        return await arun(self._search(query, top_n))

    def remove(self, ids: Iterable[str]) -> None:
        """Remove documents; all of them or, if one is not there, none.

        Raises:
            InputError: An id is not in the index.
        """
        gone = set(check_texts(list(ids) if isinstance(ids, Set) else ids, "ids"))
        with self._lock:
            if missing := gone - set(self.ids):
                raise InputError(f"{_shown(missing)} not in the index. `ids` lists those that are.")
            self._blocks = compacted(left for block in self._blocks for left in block.without(gone))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index into a folder, with the identity of what filled it; an index there is replaced.

        Raises:
            ConfigurationError: The folder cannot be written to.
        """
        file = Path(folder).expanduser() / FILE
        try:
            write_blocks(file, self._blocks, {**self._record(), "storage": self.storage})
        except OSError as error:
            raise ConfigurationError(f"The index cannot be saved as {str(file)!r} ({error}).") from error

    @classmethod
    def load(cls, folder: str | os.PathLike[str], model: Scorer) -> Self:
        """Return the index that was saved in a folder; needs the model's files, not its weights in memory.

        Args:
            folder: What was passed to `save`.
            model: As for the constructor: what filled the index.

        Raises:
            IndexIdentityError: Another model, length or token pooling filled the index, or its file is damaged.
            ConfigurationError: There is no index, or the model compares no token vectors.
        """
        file = Path(folder).expanduser() / FILE
        try:
            blocks, record = read_blocks(file, FORMAT)
            storage = record.get("storage")
            if storage not in STORAGES or {block.vectors.dtype.name for block in blocks} - {storage}:
                raise ValueError(f"its vectors are not in its storage {storage!r}")
        except OSError as error:
            raise ConfigurationError(f"There is no index to read at {str(file)!r} ({error}).") from error
        except ValueError as error:
            raise IndexIdentityError(
                f"{str(file)!r} cannot be read as an index: it is damaged, or of a newer version ({error}). "
                "Fill the index anew."
            ) from error
        index = cls(model, storage=storage)  # type: ignore[arg-type]
        index._check_record(file, record)
        index._blocks = blocks
        return index

    def __repr__(self) -> str:
        """Show the model and the size."""
        return f"TokenIndex({self.reranker!r}, storage={self.storage!r}, {len(self)} documents, {self.bytes} bytes)"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy with the documents; the copy shares the loaded weights of its process."""
        return partial(type(self), self.reranker, storage=self.storage), (), {"_blocks": self._blocks}

    def _add(self, texts: Iterable[str], ids: Iterable[str] | None, show_progress: bool | None) -> Flow[list[str]]:
        checked = check_texts(texts)
        names = [uuid.uuid4().hex for _ in checked] if ids is None else check_texts(ids, "ids")
        if len(names) != len(checked):
            raise InputError(f"{len(checked)} texts came with {len(names)} ids. Pass one id per text, or none at all.")
        self._refuse_known(names)
        found: dict[str, list[NDArray[np.floating]]] = {}
        width = np.dtype(self.storage)

        def keep(text: str, passages: list[NDArray[np.float32]]) -> None:
            found[text] = [passage.astype(width) for passage in passages]

        if checked:
            yield from self._scorer.document_vectors(checked, keep, show_progress)
        # Blocks are never changed: a search that is under way goes on with those that it has seen.
        added = compacted(TokenBlock.of(name, found[text]) for name, text in zip(names, checked, strict=True))
        with self._lock:
            self._refuse_known(names)  # another thread may have added them meanwhile
            self._blocks = compacted((*self._blocks, *added))
        return names

    def _search(self, query: str, top_n: int | None) -> Flow[list[TokenHit]]:
        limit = check_count(top_n, "top_n")
        text = check_text(query, "query")
        blocks = self._blocks
        if not blocks:
            return []
        vectors = yield from self._scorer.query_vectors(text)
        ids = [id for block in blocks for id in block.ids]
        scores = np.concatenate([block.scores(vectors) for block in blocks])
        shown = self.reranker.shown(scores)
        return [TokenHit(ids[each.index], float(shown[each.index])) for each in order_scores(scores, limit)]

    @property
    def _scorer(self) -> LateInteraction:
        return _check_reranker(self.reranker)

    def _refuse_known(self, names: list[str]) -> None:
        twice = {name for name, count in Counter(names).items() if count > 1}
        if known := twice | (set(names) & set(self.ids)):
            raise InputError(f"{_shown(known)} in the index already, or given twice. Remove the old one first.")

    def _record(self) -> dict[str, str]:
        embedder = self._scorer.embedder
        facts = {
            "format": FORMAT,
            "identity": self._scorer.document_identity,
            "model": self.reranker.model,
            "weights": embedder.source.weights_digest[:12],
            "max_length": embedder.max_length,
            "token_pooling": self.reranker.token_pooling,
            "long_document": self.reranker.long_document,
            "precision": embedder.source.precision_class,
        }
        return {name: str(value) for name, value in facts.items()}

    def _check_record(self, file: Path, known: dict[str, str]) -> None:
        own = self._record()
        if known.get("identity") == own["identity"]:
            return
        names = [name for name in own if name not in ("format", "identity") and known.get(name) != own[name]]
        differing = "; ".join(f"{name} {known.get(name)!r} there, {own[name]!r} here" for name in names)
        raise IndexIdentityError(
            f"The index {str(file)!r} was filled by {known.get('model')!r}, and the model here is {own['model']!r}. "
            f"They differ in: {differing or 'how the model is loaded'}. Use what filled it, or fill the index anew."
        )


def _check_reranker(reranker: Reranker) -> LateInteraction:
    """Return what reads token vectors; refuse a reranker that compares something else."""
    if reranker.mode != "multi_vector":
        what = "a cross-encoder" if reranker.mode is None else f"of mode={reranker.mode!r}"
        raise ConfigurationError(
            f"A token index needs late interaction, and the reranker of {reranker.model!r} is {what}. "
            "Pass an embedder with mode='multi_vector', its default."
        )
    scorer = reranker.scorer
    assert isinstance(scorer, LateInteraction)  # as only embedders have a mode
    return scorer


def _shown(ids: set[str]) -> str:
    few = sorted(ids)[:3]
    more = f" and {len(ids) - len(few)} more" if len(ids) > len(few) else ""
    return f"{', '.join(map(repr, few))}{more} {'is' if len(ids) == 1 else 'are'}"
