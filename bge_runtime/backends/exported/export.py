"""Models that run from a graph of our own: made once from the weights, kept on disk, checked at every start.

From a warm cache neither torch nor transformers is imported.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from bge_runtime.backends.base import Backend, LoadRequest
from bge_runtime.backends.exported.cache import DamagedEntryError, cache_folder, drop_entry, read_entry, write_entry
from bge_runtime.backends.exported.calibration import calibration_digest
from bge_runtime.backends.exported.probes import Probe, check
from bge_runtime.backends.exported.session import ExportedBackend, Facts, Session
from bge_runtime.backends.exported.weights import EncoderWeights
from bge_runtime.backends.registry import BackendRecord
from bge_runtime.errors import BackendError, BGEError, ConfigurationError, OutOfMemoryError
from bge_runtime.inputs.tokenizing import Tokenizing
from bge_runtime.models import hub
from bge_runtime.models.lora import adapter_digest

__all__ = ["Graph", "Runtime", "load_exported"]

logger = logging.getLogger("bge_runtime")

# Part of every key: raise it when the graphs or the files change.
FORMAT = 2
TOKENIZER = "tokenizer.json"


class Graph(Protocol):
    """A graph in memory."""

    def save(self, folder: Path) -> None:
        """Write the graph's files."""
        ...

    def open(self, precision: str) -> Session:
        """Make the graph ready to run."""
        ...


class Runtime(Protocol):
    """A package that runs graphs.

    Attributes:
        record: What the backend can do, and which package it needs.
    """

    record: BackendRecord

    @property
    def int8_levels(self) -> int:
        """Flow between zero and an output's largest weight in int8, on this processor; 127 at most."""
        ...

    def build(self, weights: EncoderWeights) -> Graph:
        """Return the graph of an encoder."""
        ...

    def open(self, folder: Path, precision: str) -> Session:
        """Make the graph that `Graph.save` wrote ready to run."""
        ...


def load_exported(request: LoadRequest, runtime: Runtime) -> Backend:
    """Return the model from the cache; export it first when it is not there.

    Raises:
        ConfigurationError: The package is missing, or the precision or the architecture is not one of its own.
        BackendError: The exported graph does not compute what the model does.
    """
    _check_request(request, runtime)
    entry = cache_folder() / _key(request, runtime)
    try:
        content = read_entry(entry)
        if content is not None:
            return _open(request, runtime, entry, content)
    except (DamagedEntryError, BackendError) as error:
        if isinstance(error, OutOfMemoryError):
            raise
        logger.warning("The export of %r in %s cannot be used (%s); making it again.", request.name, entry, error)
        drop_entry(entry)
    return _export(request, runtime, entry)


def _check_request(request: LoadRequest, runtime: Runtime) -> None:
    if request.precision not in runtime.record.cpu_precisions:
        raise ConfigurationError(
            f"backend={runtime.record.name!r} does not compute in precision={request.precision!r}. "
            f"Use {', '.join(map(repr, runtime.record.cpu_precisions))}, or backend='packed'."
        )
    if request.device != "cpu":
        raise ConfigurationError(
            f"backend={runtime.record.name!r} runs on the CPU, not on device={request.device!r}. "
            "Use backend='torch' there."
        )


def _key(request: LoadRequest, runtime: Runtime) -> str:
    try:
        package = version(str(runtime.record.package))
    except PackageNotFoundError as error:
        raise ConfigurationError(
            f"backend={runtime.record.name!r} needs {runtime.record.package}. "
            f'Install it with: pip install "{runtime.record.install}"'
        ) from error
    parts = [
        FORMAT,
        hub.weights_digest(request.folder),
        _small_files_digest(request.folder),
        request.task,
        runtime.record.name,
        package,
        _stored_precision(request.precision),
        calibration_digest(request.calibration) if request.precision == "int8" else None,
        [request.model_kwargs, request.processor_kwargs, request.config_kwargs],
        *([] if request.precision != "int8" or runtime.int8_levels == 127 else [runtime.int8_levels]),
        *([] if request.adapter is None else [adapter_digest(request.adapter)]),
    ]
    return hashlib.sha256(json.dumps(parts, default=repr, sort_keys=True).encode()).hexdigest()[:32]


def _stored_precision(precision: str) -> str:
    """Return the precision of the weights on disk: bfloat16 is made of float32 when the graph is opened."""
    return "int8" if precision == "int8" else "float32"


def _small_files_digest(folder: Path) -> str:
    """Return a digest of the configuration and tokenizer files, which change tokens and pooling."""
    files = [*folder.glob("*.json"), *folder.glob("*/config.json"), *folder.glob("*.txt"), *folder.glob("*.model")]
    digest = hashlib.sha256()
    for file in sorted(files):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _open(request: LoadRequest, runtime: Runtime, entry: Path, content: dict[str, Any]) -> Backend:
    from tokenizers import Tokenizer

    try:
        facts = Facts(**content["facts"])
        probes = [Probe.from_dict(row) for row in content["probes"]]
        tokenizing = Tokenizing(Tokenizer.from_file(str(entry / TOKENIZER)))
        session = runtime.open(entry, request.precision)
    except BGEError:
        raise
    except Exception as error:  # each package has error classes of its own
        raise DamagedEntryError(f"{type(error).__name__}: {error}") from error
    return _checked(session, tokenizing, facts, probes, request)


def _checked(
    session: Session, tokenizing: Tokenizing, facts: Facts, probes: Sequence[Probe], request: LoadRequest
) -> Backend:
    backend = ExportedBackend(session, tokenizing, facts)
    check(backend, probes, request.precision, request.name)
    return backend


def _export(request: LoadRequest, runtime: Runtime, entry: Path) -> Backend:
    from bge_runtime.backends.exported.conversion import convert  # imports torch, which a warm cache does without

    logger.info("Exporting %r for %s (%s), once.", request.name, runtime.record.name, request.precision)
    made = convert(request, runtime.record.name, runtime.int8_levels)
    graph = runtime.build(made.weights)
    backend = _checked(graph.open(request.precision), made.tokenizing, made.facts, made.probes, request)

    def write(folder: Path) -> None:
        graph.save(folder)
        (folder / TOKENIZER).write_text(made.tokenizing.to_json(), encoding="utf-8")

    content = {"facts": made.facts.as_dict(), "probes": [probe.as_dict() for probe in made.probes]}
    try:
        write_entry(entry, content, write)
    except OSError as error:
        logger.warning(
            "The export of %r cannot be kept in %s (%s); it is used from memory and made again next time. "
            "Set BGE_CACHE_DIR to a folder that can be written.",
            request.name,
            entry.parent,
            error,
        )
    return backend
