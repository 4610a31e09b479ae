"""What a BGE model is: the frozen description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Literal

from bge_runtime.errors import ConfigurationError, public

__all__ = [
    "DEFAULT_EMBEDDER",
    "DEFAULT_OFFLINE_MODEL",
    "DEFAULT_RERANKER",
    "DEFAULT_SPARSE_EMBEDDER",
    "ModelSpec",
]

DEFAULT_EMBEDDER = "BAAI/bge-small-en-v1.5"
DEFAULT_RERANKER = "BAAI/bge-reranker-base"
DEFAULT_SPARSE_EMBEDDER = "BAAI/bge-m3"
DEFAULT_OFFLINE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"

Kind = Literal["embedder", "reranker", "vision"]
Pooling = Literal["cls", "mean", "last", "model"]
Score = Literal["logit", "yes_logit", "layerwise"]


@public
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
        return partial(type(self), **self.as_dict()), ()  # type: ignore[arg-type]

    @property
    def basename(self) -> str:
        """The id without its organisation."""
        return self.id.rsplit("/", 1)[-1]

    def as_dict(self) -> dict[str, object]:
        """Return the attributes as a plain dictionary."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**values, "tasks": dict(self.tasks)}
