"""What the runtime asks of a way of executing a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from bge_runtime.errors import BackendError, ConfigurationError, ModelNotFoundError
from bge_runtime.inputs.tokenizing import Tokenizing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Backend",
    "LayerScore",
    "LoadRequest",
    "ModelInput",
    "Output",
    "Pooled",
    "check_table",
    "missing_weights",
    "without_layers",
]

# What a forward pass returns for each input:
#   cls, mean, last, model   one vector, float32 [dimension], not normalised
#   tokens                   a vector per token, float32 [tokens, dimension], special tokens included
#   lexical, all             a row for `unpack_outputs`: first token and lexical weights; token vectors as well
#   score                    one raw logit, float32 []
#   LayerScore               one raw logit per layer, float32 [layers]
#   image                    one vector of a picture, float32 [dimension], not normalised
Pooled = Literal["cls", "mean", "last", "model", "tokens", "lexical", "all", "score", "image"]


class ModelInput(Protocol):
    """One input of a forward pass: a token sequence, or a picture."""

    @property
    def length(self) -> int:
        """What it costs, in tokens or what compares to them."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerScore:
    """The raw logits of a layerwise reranker at some of its layers, from one forward pass.

    Attributes:
        layers: How many layers the states have gone through where a head reads them; ascending, at least one.
        compress_ratio: How many neighbouring tokens of the document become one; 1 keeps them.
        compress_layers: Before which layers, counted from 0, that happens.
    """

    layers: tuple[int, ...]
    compress_ratio: int = 1
    compress_layers: tuple[int, ...] = ()

    def __str__(self) -> str:
        """Return what hooks are told."""
        return "score"


Output = Pooled | LayerScore


def without_layers(output: Output) -> Pooled:
    """Return the output as it is.

    Raises:
        ConfigurationError: It asks for layers, of a model that has no score heads in them.
    """
    if isinstance(output, LayerScore):
        raise ConfigurationError(f"Layers {output.layers} of this model have no score heads. Leave cutoff_layers= out.")
    return output


def missing_weights(name: str, folder: Path, tensors: Sequence[str]) -> ModelNotFoundError:
    """Return the error for weights that a model's files lack: they are never invented.

    Args:
        name: The model as its caller named it.
        folder: Where its files are.
        tensors: Names of what is missing.
    """
    shown = ", ".join(tensors[:4]) + (", ..." if len(tensors) > 4 else "")
    again = "Copy the whole folder again." if Path(name).is_dir() else f"Fetch them: bge download {name} --force"
    return ModelNotFoundError(
        f"The weights of {name!r} in {str(folder)!r} lack {len(tensors)} tensors that its configuration names "
        f"({shown}), and none are invented. {again}"
    )


def check_table(what: str, largest: int, rows: int | None) -> None:
    """Refuse numbers beyond a table of the model: not every runtime does, and a GPU does not recover from them.

    Args:
        what: What the numbers are: `token` or `segment`.
        largest: The largest of a batch.
        rows: Of the table; `None` if they are not known.

    Raises:
        BackendError: Says which number it is.
    """
    if rows is not None and largest >= rows:
        raise BackendError(
            f"A text has the {what} id {largest}, and the model's table of {what}s ends at {rows - 1}: the tokenizer "
            "knows more than the weights. Use the tokenizer of these weights, or resize the table."
        )


@dataclass(frozen=True, kw_only=True)
class LoadRequest:
    """Everything that loading weights needs.

    Attributes:
        name: The model as its caller named it, for messages.
        folder: Folder with the model's files.
        task: `embed` for token states and vectors, `score` for a classification head.
        device: Device name.
        precision: Number format of the computation.
        adapter: Folder of a LoRA adapter that is added to the weights; `None` for none.
        architecture: `model_type` of its configuration.
        calibration: File of texts, one per line, that set the ranges of an exported int8 model; `None` is our own.
        trust_remote_code: Whether the folder's own Python code may run.
        pickled_weights: Whether the weights are to be read from pickle files (with `weights_only=True`).
        model_kwargs: Extra arguments for the transformers model.
        processor_kwargs: Extra arguments for the tokenizer.
        config_kwargs: Extra arguments for the configuration.
    """

    name: str
    folder: Path
    task: Literal["embed", "score"]
    device: str
    precision: str
    adapter: Path | None = None
    architecture: str = ""
    calibration: Path | None = None
    trust_remote_code: bool = False
    pickled_weights: bool = False
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    processor_kwargs: Mapping[str, Any] = field(default_factory=dict)
    config_kwargs: Mapping[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """A loaded model. Only its own worker thread calls `forward`.

    Attributes:
        tokenizing: The model's tokenizer.
        parameters: Number of weights in memory.
        bytes: Size of the weights in memory.
        pads: Whether a batch costs as much as if all its inputs were as long as the longest.
    """

    pads: bool
    tokenizing: Tokenizing
    parameters: int
    bytes: int

    def forward(self, batch: Sequence[Any], output: Output) -> Sequence[NDArray[np.float32]]:
        """Run one batch, inputs of the kind that the output needs, and return one array per input, in their order.

        Raises:
            OutOfMemoryError: The batch does not fit; the engine halves it and tries again.
        """
        ...
