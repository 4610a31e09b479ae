"""What a run is about and how far it is: `manifest.json`, and the notes in the parts themselves."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import bge_runtime
from bge_runtime import ConfigurationError, IndexIdentityError, InputError
from bge_runtime.bulk.sources import InputFile
from bge_runtime.evaluation.journal import settle_entry

__all__ = ["MANIFEST", "FileRecord", "Format", "Manifest", "Output", "PartRecord", "Role", "Settings", "read_manifest"]

FORMAT = 1
MANIFEST = "manifest.json"
DIGITS = 5

Role = Literal["document", "query"]
Format = Literal["float32", "float16", "int8", "binary"]
Output = Literal["dense", "sparse", "multi_vector"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What decides what a part holds: a run is only continued with the same.

    Attributes:
        model: As it was named; another name of the same weights is no other model.
        identity: Of the vectors: `document_identity` or `identity` of the embedder, by the role.
        output_identity: Of sparse and token vectors; empty where there are none.
        role: `document` or `query`.
        text_column: Which column holds the texts.
        id_column: Which holds the ids; empty where they are made of file and row.
        outputs: Some of `dense`, `sparse`, `multi_vector`.
        format: Of the dense vectors: `float32`, `float16`, `int8` or `binary`.
        part_rows: Rows of every part but the last.
        dimension: Length of a vector.
    """

    model: str
    identity: str
    output_identity: str
    role: Role
    text_column: str
    id_column: str
    outputs: tuple[Output, ...]
    format: Format
    part_rows: int
    dimension: int

    def check_same(self, found: Settings, folder: Path) -> None:
        """Refuse a folder that was begun with other settings.

        Raises:
            IndexIdentityError: By another model, or another setting of it that changes vectors.
            ConfigurationError: Otherwise.
        """
        advice = f"Name another folder, or delete {str(folder)!r} to begin anew."
        for name in ("identity", "output_identity"):
            # The second is empty where no output needs it: then the outputs differ, and not the model.
            both = getattr(self, name) and getattr(found, name)
            if both and getattr(self, name) != getattr(found, name):
                raise IndexIdentityError(
                    f"{str(folder)!r} was begun with {found.model!r} ({name} {getattr(found, name)[:12]!r}), not with "
                    f"{self.model!r} as it is set here ({getattr(self, name)[:12]!r}): other weights, instructions, "
                    f"length or dimension. {advice}"
                )
        told = [
            f"{each.name} is {getattr(found, each.name)!r} there and {getattr(self, each.name)!r} here"
            for each in fields(self)
            if each.name not in ("model", "identity", "output_identity")
            and getattr(self, each.name) != getattr(found, each.name)
        ]
        if told:
            raise ConfigurationError(f"{str(folder)!r} was begun with other settings: {'; '.join(told)}. {advice}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """A file of the input as it was when the run began.

    Attributes:
        name: Its path below the folder.
        bytes: Its size.
        mtime_ns: When it was last changed, in nanoseconds.
        sha256: Digest of its content.
        rows: How many texts it holds.
    """

    name: str
    bytes: int
    mtime_ns: int
    sha256: str
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PartRecord:
    """A part that is finished.

    Attributes:
        rows: Its rows.
        bytes: Size of its file.
        truncated: Texts that were cut to what the model reads.
    """

    rows: int
    bytes: int
    truncated: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a run is about and how far it is.

    Attributes:
        settings: What decides what a part holds.
        files: The input.
        parts: What is finished, by number.
        ranges: Smallest and largest value of each dimension that `int8` was quantised with, float32 of shape
            (2, dimension), as `quantize_embeddings`, `search_quantized` and `rescore` take them; `None` for other
            formats, and before they are known.
    """

    settings: Settings
    files: tuple[FileRecord, ...]
    parts: Mapping[int, PartRecord] = field(default_factory=dict)
    ranges: NDArray[np.float32] | None = None

    @property
    def rows(self) -> int:
        """Rows of the input."""
        return sum(file.rows for file in self.files)

    @property
    def part_count(self) -> int:
        """Parts of the whole run."""
        return -(-self.rows // self.settings.part_rows)

    @property
    def is_finished(self) -> bool:
        """Whether every part is there."""
        return len(self.parts) == self.part_count

    @property
    def key(self) -> str:
        """Digest of what the parts depend on: each carries it."""
        told = [asdict(replace(self.settings, model="")), [(file.name, file.sha256) for file in self.files]]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def file_of(self, part: int) -> str:
        """Return the name of a part's file."""
        return f"part-{part:0{max(DIGITS, len(str(self.part_count - 1)))}}.parquet"

    def first_row_of(self, part: int) -> int:
        """Return the number of its first row, from 0."""
        return part * self.settings.part_rows

    def rows_of(self, part: int) -> int:
        """Return how many rows a part has."""
        return min(self.settings.part_rows, self.rows - self.first_row_of(part))

    def with_part(self, part: int, record: PartRecord) -> Manifest:
        """Return one in which a part is finished."""
        return replace(self, parts={**self.parts, part: record})

    def check_input(self, files: Sequence[InputFile]) -> None:
        """Refuse an input that is not the one that the run began with.

        Raises:
            InputError: A file is missing, new, or holds something else.
        """
        known = {file.name: file for file in self.files}
        found = {file.name: file for file in files}
        odd = [f"{name!r} is missing" for name in known if name not in found]
        odd += [f"{name!r} is new" for name in found if name not in known]
        # The digest decides, where the date alone is another: copies of a file are the same input.
        odd += [
            f"{name!r} was changed" for name, file in known.items() if name in found and not _is_same(file, found[name])
        ]
        if odd:
            more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
            raise InputError(
                f"The input is another one than the run in this folder began with: {'; '.join(odd[:3])}{more}. "
                "Bring the old input back, or name another folder for the new one."
            )

    def write(self, folder: Path) -> None:
        """Write it whole and safely.

        Raises:
            OSError: It cannot be written.
        """
        value = {
            "format": FORMAT,
            "version": bge_runtime.__version__,
            "finished": self.is_finished,
            "rows": self.rows,
            "part_count": self.part_count,
            "key": self.key,
            "settings": asdict(self.settings),
            "ranges": None if self.ranges is None else self.ranges.tolist(),
            "input": [asdict(file) for file in self.files],
            "parts": [
                {"file": self.file_of(part), "part": part, "first_row": self.first_row_of(part), **asdict(record)}
                for part, record in sorted(self.parts.items())
            ],
        }
        _write_whole(folder / MANIFEST, json.dumps(value, ensure_ascii=False).encode())


def read_manifest(folder: str | os.PathLike[str]) -> Manifest | None:
    """Return what a folder of parts says of itself; `None` where it says nothing.

    Raises:
        ConfigurationError: Its manifest cannot be read.
    """
    file = Path(folder) / MANIFEST
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']!r}, where this version reads {FORMAT}")
        return Manifest(
            settings=Settings(**{**value["settings"], "outputs": tuple(value["settings"]["outputs"])}),
            files=tuple(FileRecord(**each) for each in value["input"]),
            parts={each["part"]: _part(each) for each in value["parts"]},
            ranges=None if value["ranges"] is None else np.asarray(value["ranges"], dtype=np.float32),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigurationError(
            f"{str(file)!r} does not say what was embedded ({type(error).__name__}: {error}). "
            "Delete its folder, or name another."
        ) from error


def _part(value: Mapping[str, Any]) -> PartRecord:
    return PartRecord(rows=value["rows"], bytes=value["bytes"], truncated=value["truncated"])


def _is_same(known: FileRecord, found: InputFile) -> bool:
    if known.bytes != found.size:
        return False
    return known.mtime_ns == found.mtime_ns or known.sha256 == found.digest()


def _write_whole(file: Path, content: bytes) -> None:
    """Write a file whole, safely on the disk when it returns, or leave the one that is there.

    Raises:
        OSError: It cannot be written.
    """
    made = file.with_name(f".{file.name}.new")
    with made.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    made.replace(file)
    settle_entry(file.parent)
