"""What a BGE model is: the frozen description, and the table's lookup.

The rows themselves are in `bge_runtime.models.table`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal

from bge_runtime.errors import ConfigurationError, ModelNotFoundError

__all__ = [
    "DEFAULT_EMBEDDER",
    "DEFAULT_OFFLINE_MODEL",
    "DEFAULT_RERANKER",
    "DEFAULT_SPARSE_EMBEDDER",
    "ModelSpec",
    "find_spec",
    "get_spec",
    "list_models",
    "nearest_names",
    "register_model",
]

DEFAULT_EMBEDDER = "BAAI/bge-small-en-v1.5"
DEFAULT_RERANKER = "BAAI/bge-reranker-base"
DEFAULT_SPARSE_EMBEDDER = "BAAI/bge-m3"
DEFAULT_OFFLINE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"

Kind = Literal["embedder", "reranker", "vision"]
Pooling = Literal["cls", "mean", "last", "model"]
Score = Literal["logit", "yes_logit", "layerwise"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """Facts about one model, enough to use it right.

    Attributes:
        id: Hub repository (`organisation/name`).
        kind: What the model computes.
        architecture: `model_type` of its `config.json`.
        parameters: Number of weights.
        dimension: Length of a vector; `None` for rerankers.
        max_length: Longest input in tokens, special tokens included; a pair counts as one input.
        positions: What `max_length=` may be raised to; `None` when the model's own length is the limit.
        pooling: How token states become one vector. `model` runs the model's own module chain.
        normalize: Whether the authors L2-normalise the vector.
        query_instruction: Default text for queries; empty when the model wants none.
        query_format: Template with `{instruction}` and `{text}`; without an instruction, what follows the text stays.
        example_format: Template with `{instruct}`, `{query}` and `{response}`; empty when there can be no examples.
        document_instruction: Text put before documents; empty for every BGE model but llm-embedder.
        tasks: Named pairs of query and document instruction.
        score: How a reranker's number arises: one logit, the logit of `Yes`, or a head per layer.
        layers: First and last layer with a score head; `None` for models without.
        outputs: Kinds of vectors that the model gives.
        languages: ISO 639-1 codes, or `multilingual`.
        license: SPDX identifier, or the name of a custom licence.
        remote_code: Whether the repository needs its own Python code.
        package: Import name of the installed package that carries the weights.
        pickled_weights: Whether the repository publishes its weights in pickle format only.
        unsupported: Why the model cannot run; `None` when it can.
        checked: What was checked of it, and how; empty when nothing was.
    """

    id: str
    kind: Kind
    architecture: str
    parameters: int
    dimension: int | None
    max_length: int
    positions: int | None = None
    pooling: Pooling | None = None
    normalize: bool = True
    query_instruction: str = ""
    query_format: str = "{instruction}{text}"
    example_format: str = ""
    document_instruction: str = ""
    tasks: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    score: Score | None = None
    layers: tuple[int, int] | None = None
    outputs: tuple[str, ...] = ("dense",)
    languages: tuple[str, ...] = ("en",)
    license: str = "MIT"
    remote_code: bool = False
    package: str | None = None
    pickled_weights: bool = False
    unsupported: str | None = None
    checked: str = ""

    def __post_init__(self) -> None:
        """Freeze the mapping and check the template, in which backslash and n are a newline as in FlagEmbedding."""
        object.__setattr__(self, "tasks", MappingProxyType(dict(self.tasks)))
        object.__setattr__(self, "query_format", self.query_format.replace("\\n", "\n"))
        if "{text}" not in self.query_format:
            raise ConfigurationError(
                f"ModelSpec {self.id!r}: query_format={self.query_format!r} lacks '{{text}}'. "
                "Use a template such as '{instruction}{text}'."
            )

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by value; a mapping proxy cannot be pickled."""
        return _rebuild, (self.as_dict(),)

    @property
    def basename(self) -> str:
        """The id without its organisation."""
        return self.id.rsplit("/", 1)[-1]

    def as_dict(self) -> dict[str, object]:
        """Return the attributes as a plain dictionary."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**values, "tasks": dict(self.tasks)}


def _rebuild(values: dict[str, object]) -> ModelSpec:
    return ModelSpec(**values)  # type: ignore[arg-type]


_MODELS: dict[str, ModelSpec] = {}


def _table() -> dict[str, ModelSpec]:
    if not _MODELS:
        from bge_runtime.models.table import ROWS

        for row in ROWS:
            _MODELS.setdefault(row.id.lower(), row)
    return _MODELS


def list_models() -> tuple[ModelSpec, ...]:
    """Return every model of the table, in table order."""
    return tuple(_table().values())


def register_model(spec: ModelSpec) -> None:
    """Add a model to the table of this process.

    Raises:
        ConfigurationError: The id is in the table already with other facts.
    """
    known = _table().get(spec.id.lower())
    if known is not None and known != spec:
        raise ConfigurationError(
            f"Model {spec.id!r} is in the table already. Pass the ModelSpec itself as model= to use other facts."
        )
    _table()[spec.id.lower()] = spec


def find_spec(name: str) -> ModelSpec | None:
    """Return the row for an id in any letter case or for a basename, or `None`."""
    key = name.strip().strip("/").lower()
    table = _table()
    if key in table:
        return table[key]
    basename = key.rsplit("/", 1)[-1]
    matches = [spec for spec in table.values() if spec.basename.lower() == basename]
    return matches[0] if len(matches) == 1 else None


def nearest_names(name: str, count: int = 3) -> list[str]:
    """Return the ids of the table that look most like `name`."""
    basename = name.rsplit("/", 1)[-1].lower()
    by_basename = {spec.basename.lower(): spec.id for spec in list_models()}
    return [by_basename[match] for match in get_close_matches(basename, by_basename, n=count, cutoff=0.6)]


def get_spec(name: str) -> ModelSpec:
    """Return the row for a model name.

    Args:
        name: Hub id, in any letter case, or its part after the slash.

    Raises:
        ModelNotFoundError: No row fits; the message names the nearest ones.
    """
    spec = find_spec(name)
    if spec is None:
        near = nearest_names(name)
        hint = f" Did you mean {', '.join(repr(each) for each in near)}?" if near else ""
        raise ModelNotFoundError(
            f"Unknown BGE model {name!r}.{hint} `bge models` lists the table; "
            "pass a folder, 'organisation/name' or a ModelSpec for other models."
        )
    return spec
