"""An index filled again by another embedder, from the texts that it holds.

The new index is built in a folder beside the target, which only appears once it is complete. A run that was killed is
taken up where it was: what is finished lies in `.NAME.bge-migration` until the end.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bge_runtime import BGEError, ConfigurationError, Embedder, IndexIdentityError, InputError, bind_index, index_record
from bge_runtime.evaluation.journal import Journal, locked, read_state, settle, settle_entry, text_key, write_state
from bge_runtime.evaluation.stores.base import Store, digest
from bge_runtime.evaluation.stores.recognised import recognised

__all__ = ["Migration", "Requirement", "migrate"]

logger = logging.getLogger("bge_runtime")

FORMAT = 1
BATCH = 256
VECTORS = "vectors"
WORK = ".{}.bge-migration"
OLD = ".before-migration"
EXAMPLES = 3
_RECORD_NAME = re.compile(r"[\w.-]+")

Requirement = Callable[[Path], bool]
"""Is given the folder of the new index, complete and with its record, and returns whether it may be used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Migration:
    """What a migration did.

    Attributes:
        kind: What keeps the index, such as `Chroma`.
        name: The collection, the table or the file.
        source: Where the old index is now.
        target: Where the new index is.
        documents: Entries of the index.
        computed: Distinct texts that this run embedded.
        resumed: Distinct texts that an earlier run, which did not end, had embedded.
        seconds: Of this run.
        source_identity: Document identity of the embedder that filled the old index; `None` where nobody recorded it.
        target_identity: That of the new one.
        changed: Whether there was anything to do.
        left_out: What the new index lacks, in words.
    """

    kind: str
    name: str
    source: Path
    target: Path
    documents: int
    computed: int
    resumed: int
    seconds: float
    source_identity: str | None
    target_identity: str
    changed: bool = True
    left_out: tuple[str, ...] = ()


def migrate(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None,
    embedder: Embedder,
    *,
    source_embedder: Embedder | None = None,
    collection: str | None = None,
    batch_size: int = BATCH,
    require: Requirement | None = None,
    allow_empty: bool = False,
    allow_pickle: bool = False,
    show_progress: bool = False,
) -> Migration:
    """Fill an index again with another embedder: the same texts, ids and metadata, and new vectors.

    Of `langchain`: FAISS, the dump of the in-memory store, Chroma, Qdrant's local mode, LanceDB. Of `llama_index`:
    its own storage, FAISS, Chroma, Qdrant's local mode, LanceDB. The old index is only read and can be queried all the
    while. Call it again with the same arguments after it was killed or failed: what was embedded is not embedded
    again. The new index appears at once and complete, with the record that `bind_index` checks.

    Args:
        source: Folder of the index.
        target: Folder that the new index is to have, which does not exist or is empty; `None` puts it in the place of
            the old one, which is kept beside it as `NAME.before-migration`.
        embedder: What the new index is queried with from then on.
        source_embedder: What the old index is believed to be filled with; its record must agree.
        collection: Which index, where the folder holds several; also the name that `bind_index` was given.
        batch_size: Texts that are embedded and made safe at a time: the most that a kill costs.
        require: Is called with the folder of the new index before that is used. Where it returns False or raises, the
            old index stays, and the new one is kept where the error says.
        allow_empty: Whether entries with an empty text are taken along.
        allow_pickle: Whether classes may be loaded that a pickled file of the index names. Documents, numbers,
            texts and dates need none; what is loaded can run any code.
        show_progress: Whether to show a progress bar on standard error.

    Returns:
        What was done. `changed` is False where the index is the embedder's already.

    Raises:
        InputError: The source is no index, is empty, has an id twice, or cannot list its texts.
        IndexIdentityError: Another embedder than `source_embedder` filled the source.
        ConfigurationError: An argument has a value that is not allowed, the target is taken, the disk is full, or the
            index changed meanwhile. Nothing is lost.
        BGEError: A text cannot be embedded.
    """
    started = time.monotonic()
    _check(embedder, source_embedder, batch_size)
    run = _Run(_Place.of(source, target), embedder, collection, allow_pickle=allow_pickle)
    with run.translated(), run.begun():
        if (done := run.done()) is not None:
            return done
        listed = run.listed(source_embedder, allow_empty=allow_empty)
        computed = run.embed(listed, batch_size, show_progress=show_progress)
        left_out = run.build(listed)
        run.ask(require)
        run.check_unchanged(listed)
        run.put_in_place()
    return run.result(
        documents=len(listed.rows),
        computed=computed,
        resumed=len(listed.texts) - computed,
        seconds=time.monotonic() - started,
        left_out=tuple(left_out),
    )


def _check(embedder: Embedder, source_embedder: Embedder | None, batch_size: int) -> None:
    for value, name in ((embedder, "embedder"), (source_embedder, "source_embedder")):
        if not isinstance(value, Embedder) and not (value is None and name == "source_embedder"):
            raise ConfigurationError(
                f"{name}={value!r} is not allowed. Pass a bge_runtime.Embedder, such as the attribute `embedder` "
                "of BGEEmbeddings and BGEEmbedding."
            )
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigurationError(f"batch_size={batch_size!r} is not allowed. Use a whole number from 1 on.")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where everything is.

    Attributes:
        source: The old index.
        target: Where the new one is to be.
        work: Folder of what is finished.
    """

    source: Path
    target: Path
    work: Path

    @classmethod
    def of(cls, source: str | os.PathLike[str], target: str | os.PathLike[str] | None) -> _Place:
        old = _path(source, "source")
        new = old if target is None else _path(target, "target")
        if target is not None and (new == old or new in old.parents or old in new.parents):
            raise ConfigurationError(
                f"target={str(target)!r} and source={str(source)!r} lie in one another. Name a folder beside the "
                "source, or pass target=None (--in-place) to put the new index in its place."
            )
        return cls(old, new, new.with_name(WORK.format(new.name)))

    @property
    def in_place(self) -> bool:
        return self.source == self.target

    @property
    def built(self) -> Path:
        return self.work / "index"

    @property
    def old(self) -> Path:
        return self.source.with_name(self.source.name + OLD)


def _path(path: str | os.PathLike[str], name: str) -> Path:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path) or "\0" in os.fsdecode(path):
        raise ConfigurationError(f"{name}={path!r} is not a path. Pass a text or a Path.")
    return Path(os.fsdecode(path)).expanduser().resolve()


@dataclass(frozen=True, slots=True)
class _Listed:
    """What the source holds: a digest of each entry by its id, and the distinct texts by their keys."""

    rows: Mapping[str, bytes]
    texts: frozenset[bytes]


class _Run:
    """One call of `migrate`, step by step."""

    def __init__(self, place: _Place, embedder: Embedder, collection: str | None, *, allow_pickle: bool) -> None:
        self.place = place
        self.embedder = embedder
        self.collection = collection
        self._allow_pickle = allow_pickle
        self._known: dict[str, Any] | None = None
        self._record: str | None = None

    # Beginning, and beginning again

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Hold the folder of what is finished, with the source recognised and the target found free."""
        work = self.place.work
        if not work.exists():
            self._look()  # before anything is made
        work.mkdir(parents=True, exist_ok=True)
        ended = False
        with locked(work):
            try:
                self._take_up()
                yield
                ended = True
            finally:
                if ended or not (work / VECTORS).exists():
                    shutil.rmtree(work, ignore_errors=True)

    def _take_up(self) -> None:
        """Go on with what is there, if it is the same migration."""
        work = self.place.work
        state = read_state(work)
        differing = [] if state is None else [key for key, each in self._state.items() if state.get(key) != each]
        if state is not None and differing:
            told = "; ".join(f"{key} {state.get(key)!r} there, {self._state[key]!r} here" for key in differing)
            raise ConfigurationError(
                f"{str(work)!r} holds another migration that has not ended: {told}. "
                "End that one with its own arguments, name another target, or delete the folder."
            )
        if state is not None and state.get("complete"):
            self._repair(state["record"])
        self._look()
        for path in (work / "scratch", self.place.built):
            shutil.rmtree(path, ignore_errors=True)
        (work / "scratch").mkdir()
        write_state(work, self._state)

    def _repair(self, record: str | None) -> None:
        """Bring to its end what was cut short between two renamings, or before the record was right."""
        place = self.place
        if place.in_place and place.built.exists() and place.old.exists() and not place.source.exists():
            place.built.rename(place.source)
            logger.warning("The migration of %r was cut short while it swapped folders.", str(place.source))
        if not place.built.exists():
            self._bind(record)

    def _bind(self, record: str | None) -> None:
        """Have the right record where `bind_index` looks: an old one may lie beside the folder."""
        bind_index(self.place.target, self.embedder, collection=record, on_mismatch="replace")

    def _look(self) -> None:
        scratch = self.place.work / "scratch"
        self.store = recognised(self.place.source, self.collection, scratch, allow_pickle=self._allow_pickle)
        self._known, self._record = self._recorded(self.place.source)
        self._check_target()

    def _recorded(self, folder: Path) -> tuple[dict[str, Any] | None, str | None]:
        """Return the record of an index, and the name it has."""
        names = [self.collection] if self.collection and _RECORD_NAME.fullmatch(self.collection) else []
        for name in (*names, None):
            if (record := index_record(folder, collection=name)) is not None:
                return record, name
        return None, names[0] if names else None

    def _check_target(self) -> None:
        target = self.place.target
        if self.place.in_place:
            self._check_alone()
        elif target.exists() and not (target.is_dir() and not any(target.iterdir())) and not self._target_is_ours():
            known = self._recorded(target)[0] if target.is_dir() else None
            held = "is not empty" if known is None else f"holds an index that {known.get('model')!r} filled"
            raise ConfigurationError(
                f"target={str(target)!r} {held}. Name a folder that does not exist, or delete that one."
            )

    def _check_alone(self) -> None:
        others = self.store.left_behind()
        if others:
            raise ConfigurationError(
                f"{str(self.place.source)!r} holds {others} beside {self.store.name!r}, which would be left behind. "
                "Pass a target, and migrate each into a folder of its own."
            )
        if self.place.old.exists() and not self._is_ours(self.place.source):
            raise ConfigurationError(
                f"{str(self.place.old)!r} exists: the index before an earlier migration. Delete it or move it away."
            )

    def _is_ours(self, folder: Path) -> bool:
        record = self._recorded(folder)[0]
        return record is not None and record["identity"] == self.embedder.document_identity

    def _target_is_ours(self) -> bool:
        return self.place.target.is_dir() and self._is_ours(self.place.target)

    @property
    def _state(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "source": str(self.place.source),
            "collection": self.collection,
            "identity": self.embedder.document_identity,
            "model": self.embedder.model,
            "dimension": self.embedder.dimension,
        }

    def done(self) -> Migration | None:
        """Return the result where there is nothing to do."""
        if not self.place.in_place and not self._target_is_ours():
            self._check_other()
            return None
        if self.place.in_place and not self._is_ours(self.place.source):
            return None
        if not self.place.in_place:
            self._compare(self._list(self.store), self._list(self._opened(self.place.target)), "target")
        return self.result(documents=self._count(), computed=0, resumed=0, seconds=0.0, left_out=(), changed=False)

    def _check_other(self) -> None:
        if self._is_ours(self.place.source):
            raise ConfigurationError(
                f"Nothing to do: the index in {str(self.place.source)!r} was filled by {self.embedder.model!r} "
                f"(document identity {self.embedder.document_identity[:12]}) already. Copy the folder if you need two."
            )

    def _count(self) -> int:
        return sum(1 for _ in self.store.rows())

    # The steps

    def listed(self, source_embedder: Embedder | None, *, allow_empty: bool) -> _Listed:
        """Read the whole index once."""
        self._check_source(source_embedder)
        rows, texts, empty = {}, set(), []
        for row in self.store.rows():
            if row.id in rows:
                raise InputError(
                    f"The index in {str(self.place.source)!r} has the id {row.id!r} twice. Delete one of the entries, "
                    "or fill a new index from the source documents."
                )
            rows[row.id] = digest([row.text, row.rest.hex()])
            texts.add(text_key(row.text))
            if not row.text.strip():
                empty.append(row.id)
        if not rows:
            raise InputError(f"The index in {str(self.place.source)!r} is empty. Fill one with the new embedder.")
        if empty and not allow_empty:
            raise InputError(
                f"The index in {str(self.place.source)!r} has {len(empty)} entries without a text: "
                f"{_some(empty)}. Delete them, or pass allow_empty=True (--allow-empty) to embed the empty text."
            )
        self._check_room(len(texts))
        return _Listed(rows, frozenset(texts))

    def _check_source(self, source_embedder: Embedder | None) -> None:
        known = self._known
        if source_embedder is None or (known and known["identity"] == source_embedder.document_identity):
            return
        filled = "says nothing of who filled it" if known is None else f"was filled by {known.get('model')!r}"
        own = "" if known is None else f" (document identity {known['identity'][:12]})"
        raise IndexIdentityError(
            f"The index in {str(self.place.source)!r} {filled}{own}, and not by {source_embedder.model!r} "
            f"({source_embedder.document_identity[:12]}), as source_embedder says. "
            "Name the right index, or leave source_embedder out."
        )

    def _check_room(self, texts: int) -> None:
        # Once in the journal, once in the index: no store takes less.
        needed = 2 * 4 * texts * self.embedder.dimension
        free = shutil.disk_usage(self.place.work).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed and {free:,} are free")

    def embed(self, listed: _Listed, batch_size: int, *, show_progress: bool) -> int:
        """Embed what is not embedded yet; return how many texts that were."""
        self.journal = Journal(self.place.work / VECTORS, self.embedder.dimension)
        computed = 0
        with tqdm(total=len(listed.texts), desc="migration", unit="text", disable=not show_progress) as progress:
            for batch in self._batches(batch_size, progress):
                self.journal.add(batch, self.embedder.encode_documents(batch, show_progress=False))
                computed += len(batch)
                progress.update(len(batch))
        return computed

    def _batches(self, size: int, progress: tqdm[Any]) -> Iterator[list[str]]:
        seen: set[bytes] = set()
        batch: list[str] = []
        for row in self.store.rows():
            key = text_key(row.text)
            if key in seen:
                continue
            seen.add(key)
            if row.text in self.journal:
                progress.update()
                continue
            batch.append(row.text)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch

    def build(self, listed: _Listed) -> list[str]:
        """Write the new index, and read it back."""
        built = self.place.built
        shutil.rmtree(built, ignore_errors=True)
        built.mkdir()
        try:
            left_out = self.store.write(built, self.journal)
        except Exception:
            self.check_unchanged(listed)  # a text that is new is the likeliest reason
            raise
        bind_index(built, self.embedder, collection=self._record, on_mismatch="replace")
        self._compare(listed, self._list(self._opened(built)), "new")
        for each in left_out:
            logger.warning("The new index lacks %s: make it again.", each)
        settle(built)
        return left_out

    def _opened(self, folder: Path) -> Store:
        return type(self.store)(folder, self.store.name, self.place.work / "scratch", allow_pickle=self._allow_pickle)

    def _list(self, store: Store) -> _Listed:
        rows = {row.id: digest([row.text, row.rest.hex()]) for row in store.rows()}
        return _Listed(rows, frozenset())

    def ask(self, require: Requirement | None) -> None:
        """Let the caller's own check decide."""
        if require is None or require(self.place.built):
            return
        raise ConfigurationError(
            f"The new index does not meet what was required. It is in {str(self.place.built)!r}, and "
            f"{str(self.place.source)!r} is as it was. Call again with another requirement; nothing is embedded twice."
        )

    def check_unchanged(self, listed: _Listed) -> None:
        """Compare with what the source holds now."""
        self._compare(listed, self._list(self.store), "source")

    def _compare(self, before: _Listed, after: _Listed, what: str) -> None:
        told = _differences(before.rows, after.rows)
        if not told:
            return
        if what == "source":
            raise ConfigurationError(
                f"The index in {str(self.place.source)!r} changed during the migration: {told}. It stays in use, and "
                "what was embedded is kept. Call again while nothing writes to it: only what is new is embedded."
            )
        if what == "target":
            raise ConfigurationError(
                f"target={str(self.place.target)!r} was filled by {self.embedder.model!r} already, and the source has "
                f"changed since: {told}, seen from the source. Delete the target, or name another."
            )
        raise ConfigurationError(
            f"What {self.store.kind} keeps is not what it was given: {told}. The old index is as it was. "
            "Call again; if it happens again, fill a new index from the source documents."
        )

    def put_in_place(self) -> None:
        """Let the new index appear under its name."""
        place = self.place
        write_state(place.work, {**self._state, "complete": True, "record": self._record})
        if place.in_place:
            place.source.rename(place.old)
        elif place.target.exists():
            place.target.rmdir()  # it is empty
        place.built.rename(place.target)
        settle_entry(place.target.parent)
        self._bind(self._record)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Tell what the disk refuses in our own words."""
        try:
            yield
        except BGEError:
            raise
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(
                f"The migration of {str(self.place.source)!r} could not go on ({error}). The old index is as it was, "
                f"and what was embedded is kept in {str(self.place.work)!r}. Make room or name another target, "
                "and call again."
            ) from error

    def result(
        self,
        *,
        documents: int,
        computed: int,
        resumed: int,
        seconds: float,
        left_out: tuple[str, ...],
        changed: bool = True,
    ) -> Migration:
        """Return what was done."""
        place = self.place
        return Migration(
            kind=self.store.kind,
            name=self.store.name,
            source=place.old if place.in_place and place.old.exists() else place.source,
            target=place.target,
            documents=documents,
            computed=computed,
            resumed=resumed,
            seconds=round(seconds, 3),
            source_identity=None if self._known is None else self._known["identity"],
            target_identity=self.embedder.document_identity,
            changed=changed,
            left_out=left_out,
        )


def _differences(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> str:
    """Return in words what is new, gone and different."""
    told = []
    for ids, verb in (
        ([each for each in after if each not in before], "added"),
        ([each for each in before if each not in after], "removed"),
        ([each for each in before if each in after and before[each] != after[each]], "altered"),
    ):
        if ids:
            told.append(f"{len(ids)} {verb} ({_some(ids)})")
    return ", ".join(told)


def _some(ids: list[str]) -> str:
    shown = ", ".join(map(repr, ids[:EXAMPLES]))
    return shown if len(ids) <= EXAMPLES else f"{shown} and {len(ids) - EXAMPLES} more"
