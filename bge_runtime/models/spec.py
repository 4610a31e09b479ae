"""What a BGE model is: the frozen description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, get_args

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


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_texts(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_is_text, value))


def _are_tasks(value: Any) -> bool:
    pairs: list[Any] = list(value.items()) if isinstance(value, Mapping) else [(None, ())]
    return all(_is_text(name) and _are_texts(pair) and len(pair) == 2 for name, pair in pairs)


def _or_none(rule: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or rule(value)


def _one_of(kind: Any) -> Callable[[Any], bool]:
    return lambda value: _is_text(value) and value in get_args(kind)


# What each attribute of a spec has to be, and in words.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": (lambda value: _is_text(value) and value.strip() != "", "a name"),
    "kind": (_one_of(Kind), f"one of {', '.join(map(repr, get_args(Kind)))}"),
    "pooling": (_or_none(_one_of(Pooling)), f"one of {', '.join(map(repr, get_args(Pooling)))}, or None"),
    "score": (_or_none(_one_of(Score)), f"one of {', '.join(map(repr, get_args(Score)))}, or None"),
    "max_length": (lambda value: _is_count(value) and value > 0, "a whole number of at least 1"),
    "parameters": (_is_count, "a whole number"),
    **dict.fromkeys(("dimension", "positions"), (_or_none(_is_count), "a whole number, or None")),
    "layers": (
        _or_none(lambda value: isinstance(value, tuple) and len(value) == 2 and all(map(_is_count, value))),
        "the first and the last layer, or None",
    ),
    "tasks": (_are_tasks, "a dictionary of names and pairs of texts"),
    "temperature": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    **dict.fromkeys(("outputs", "languages"), (_are_texts, "a tuple of texts")),
    **dict.fromkeys(("package", "unsupported"), (_or_none(_is_text), "a text, or None")),
    **dict.fromkeys(
        ("architecture", "query_instruction", "query_format", "example_format", "document_instruction", "license"),
        (_is_text, "a text"),
    ),
    "checked": (_is_text, "a text"),
    **dict.fromkeys(
        ("normalize", "remote_code", "pickled_weights"), (lambda value: isinstance(value, bool), "True or False")
    ),
}


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
        temperature: By which cosines were divided in training (InfoNCE); FlagEmbedding's examples tune with it too.
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
    temperature: float = 0.02
    languages: tuple[str, ...] = ("en",)
    license: str = "MIT"
    remote_code: bool = False
    package: str | None = None
    pickled_weights: bool = False
    unsupported: str | None = None
    checked: str = ""

    def __post_init__(self) -> None:
        """Check and freeze the values; in the template, backslash and n are a newline as in FlagEmbedding.

        Raises:
            ConfigurationError: An attribute is of another kind than it has to be.
        """
        if isinstance(self.tasks, Mapping):  # from JSON
            pairs = {name: tuple(pair) if isinstance(pair, list) else pair for name, pair in self.tasks.items()}
            object.__setattr__(self, "tasks", pairs)
        for name, (is_right, wanted) in _RULES.items():
            value = getattr(self, name)
            if isinstance(value, list):  # from JSON
                value = tuple(value)
                object.__setattr__(self, name, value)
            if not is_right(value):
                raise ConfigurationError(f"ModelSpec {name}={value!r} is not allowed. Pass {wanted}.")
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
