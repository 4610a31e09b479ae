"""A BERT or XLM-R encoder taken apart: what the executors of this package are built from.

It is read from the files themselves, without transformers and sentence-transformers, whose import takes longer than
all the rest. What only they know (adapters, pickled weights, other modules, their own arguments) they load; the parts
are then taken from their model, by the same names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import safe_open
from tokenizers import Tokenizer, normalizers

from bge_runtime.backends.base import LoadRequest, missing_weights
from bge_runtime.backends.registry import ENCODERS
from bge_runtime.errors import BackendError, ModelNotFoundError
from bge_runtime.inputs.tokenizing import Tokenizing
from bge_runtime.models.describe import modules_of, own_pooling
from bge_runtime.models.folder import read_object
from bge_runtime.models.hub import ADAPTER_CONFIG, weight_files

if TYPE_CHECKING:
    from bge_runtime.backends.torch import TorchBackend

__all__ = ["Encoder", "Layer", "Linear", "read_files", "take_apart"]

# What `sentence_bert_config.json` may say beside lengths and letter case, which are not its to decide here.
ORDINARY = {
    "transformer_task": ("feature-extraction", "sequence-classification"),
    "modality_config": tuple(
        {"text": {"method": "forward", "method_output_name": output}} for output in ("last_hidden_state", "logits")
    ),
    "module_output_name": ("token_embeddings", "scores"),
    "max_seq_length": None,
    "do_lower_case": None,
}
# How `tokenizer_config.json` and the tokenizer itself call what is done to letters.
SPELLING = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


class Linear(NamedTuple):
    """y = x W^T + b: weight [outputs, inputs], bias [outputs]; of a layer norm, both [width]."""

    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One transformer layer."""

    query: Linear
    key: Linear
    value: Linear
    attended: Linear
    norm1: Linear
    up: Linear
    down: Linear
    norm2: Linear


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoder:
    """An encoder, and its classification head if it has one; tensors as they are stored, on the CPU.

    Attributes:
        words: Word vectors, [vocabulary, width].
        places: Position vectors, [positions, width].
        segments: Segment vectors, [segments, width].
        norm: Layer norm of the embeddings.
        layers: The layers.
        head: Two linear layers with tanh between them, over first-token rows.
        heads: Number of attention heads.
        eps: Summand of the layer norms' variance.
        pad_id: Padding token from which RoBERTa counts positions; `None` for BERT.
        own_pooling: What the model's own modules do: `cls`, `mean` or `last`; `None` without modules.
        tokenizing: Its tokenizer.
    """

    words: torch.Tensor
    places: torch.Tensor
    segments: torch.Tensor
    norm: Linear
    layers: tuple[Layer, ...]
    head: tuple[Linear, Linear] | None
    heads: int
    eps: float
    pad_id: int | None
    own_pooling: str | None
    tokenizing: Tokenizing


def read_files(request: LoadRequest) -> Encoder | None:
    """Read a model's folder; `None` where the folder or the request asks for what only transformers does.

    Raises:
        ModelNotFoundError: Weights are missing, or of another shape than the others.
    """
    folder = request.folder
    asked = (request.model_kwargs, request.processor_kwargs, request.config_kwargs, request.adapter)
    if any(asked) or request.pickled_weights or (folder / ADAPTER_CONFIG).exists():
        return None
    config = read_object(folder / "config.json")
    if not _computes(config) or ("auto_map" in config and request.trust_remote_code):
        return None
    own = read_object(folder / "sentence_bert_config.json")
    if any(key not in ORDINARY or not _allowed(ORDINARY[key], value) for key, value in own.items()):
        return None
    pooling = _pooling(folder, request.task)
    tokenizer = _tokenizer(folder)
    if pooling == "model" or tokenizer is None:
        return None
    files = [safe_open(str(file), framework="pt") for file in weight_files(folder)]
    tensors = {name: file for file in files for name in file.keys()}  # type: ignore[no-untyped-call]
    return _assembled(tensors, config, request, pooling, Tokenizing(tokenizer))


def take_apart(loaded: TorchBackend, request: LoadRequest) -> Encoder | None:
    """Return the parts of a model that transformers has loaded; `None` if it is none that is computed here."""
    model: Any = loaded.model
    config = model.config.to_dict()
    known = type(model).__name__.endswith(("BertModel", "RobertaModel", "ForSequenceClassification"))
    if not known or not _computes(config) or loaded.own_pooling == "model":
        return None
    return _assembled(model.state_dict(), config, request, loaded.own_pooling, loaded.tokenizing)


def _computes(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration describes what the executors compute exactly."""
    return (
        config.get("model_type") in ENCODERS
        and config.get("hidden_act", "gelu") == "gelu"
        and not config.get("is_decoder")
        and not config.get("quantization_config")
        and config.get("position_embedding_type", "absolute") in (None, "absolute")
    )


def _allowed(values: Sequence[Any] | None, value: Any) -> bool:
    return values is None or value in values


def _pooling(folder: Path, task: str) -> str | None:
    """Return what the modules of a folder do, `None` without a pooling of theirs, `model` for what is not known here.

    Without `modules.json`, sentence-transformers takes the mean for an embedder.
    """
    modules = modules_of(folder)
    if any(path for kind, path in modules if kind == "Transformer"):
        return "model"
    kinds = [kind for kind, _ in modules]
    if task == "score":
        return None if kinds in ([], ["Transformer"]) else "model"
    if not kinds:
        return "mean"
    settings = [read_object(folder / path / "config.json") for kind, path in modules if kind == "Pooling"]
    leaves_prompt_out = any(each.get("include_prompt") is False for each in settings)
    return "model" if leaves_prompt_out else own_pooling(folder, modules)


def _tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer as its file describes it; `None` without one, or where other files contradict it."""
    file = folder / "tokenizer.json"
    named = read_object(folder / "tokenizer_config.json")
    if not file.exists() or (folder / "added_tokens.json").exists():
        return None
    tokenizer = Tokenizer.from_file(str(file))
    added = named.get("added_tokens_decoder") or {}
    if any(tokenizer.token_to_id(token["content"]) != int(number) for number, token in added.items()):
        return None
    rules = tokenizer.normalizer
    # Which of the two holds differs between versions of transformers, so the installed one decides.
    contradicted = isinstance(rules, normalizers.BertNormalizer) and any(
        named.get(name, getattr(rules, own)) != getattr(rules, own) for name, own in SPELLING.items()
    )
    return None if contradicted else tokenizer


class _Tensors:
    """Tensors by name; what is missing or of a wrong shape is told at the end, all of it."""

    def __init__(self, found: Mapping[str, Any], *, finite: bool) -> None:
        """Take tensors, or the open files that hold them; note those that are not finite if asked."""
        self._found = found
        self._finite = finite
        self.broken: list[str] = []
        self.missing: list[str] = []
        self.misshapen: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def table(self, name: str, width: int) -> torch.Tensor:
        """Return an embedding table, [rows, width]."""
        return self._take(f"{name}.weight", (None, width))

    def linear(self, name: str, outputs: int | None, inputs: int) -> Linear:
        """Return a linear layer; `None` for any number of outputs."""
        return Linear(self._take(f"{name}.weight", (outputs, inputs)), self._take(f"{name}.bias", (outputs,)))

    def norm(self, name: str, width: int) -> Linear:
        """Return a layer norm, under today's names or those of TensorFlow's time."""
        old = f"{name}.gamma" in self
        names = ("gamma", "beta") if old else ("weight", "bias")
        return Linear(*(self._take(f"{name}.{each}", (width,)) for each in names))

    def _take(self, name: str, shape: tuple[int | None, ...]) -> torch.Tensor:
        held = self._found.get(name)
        if held is None:
            self.missing.append(name)
            return torch.empty(0)
        tensor: torch.Tensor = held if isinstance(held, torch.Tensor) else held.get_tensor(name)
        if len(tensor.shape) != len(shape) or any(n not in (None, m) for n, m in zip(shape, tensor.shape, strict=True)):
            self.misshapen.append(f"{name} {tuple(tensor.shape)}")
        if self._finite and not torch.isfinite(tensor).all():
            self.broken.append(name)
        return tensor


def _assembled(
    found: Mapping[str, Any], config: Mapping[str, Any], request: LoadRequest, pooling: str | None, tokens: Tokenizing
) -> Encoder:
    tensors = _Tensors(found, finite=request.precision == "int8")
    is_bert = config["model_type"] == "bert"
    stem = "bert." if is_bert else "roberta."
    inside = "" if "embeddings.word_embeddings.weight" in tensors else stem  # base models are stored without it
    width, inner = int(config.get("hidden_size", 768)), int(config.get("intermediate_size", 3072))
    tables = f"{inside}embeddings."
    encoder = Encoder(
        words=tensors.table(f"{tables}word_embeddings", width),
        places=tensors.table(f"{tables}position_embeddings", width),
        segments=tensors.table(f"{tables}token_type_embeddings", width),
        norm=tensors.norm(f"{tables}LayerNorm", width),
        layers=tuple(
            _layer(tensors, f"{inside}encoder.layer.{number}.", width, inner)
            for number in range(int(config.get("num_hidden_layers", 12)))
        ),
        head=_head(tensors, inside, width, is_bert=is_bert) if request.task == "score" else None,
        heads=int(config.get("num_attention_heads", 12)),
        eps=float(config.get("layer_norm_eps", 1e-12)),
        pad_id=None if is_bert else int(config.get("pad_token_id", 1)),
        own_pooling=pooling,
        tokenizing=tokens,
    )
    if tensors.missing:
        raise missing_weights(request.name, request.folder, tensors.missing)
    if tensors.misshapen:
        raise ModelNotFoundError(
            f"The weights of {request.name!r} in {str(request.folder)!r} do not have the shapes that its config.json "
            f"names: {', '.join(tensors.misshapen[:4])}. Fetch both again: bge download {request.name} --force"
        )
    if tensors.broken:  # rounding would make numbers of them
        raise BackendError(
            f"{tensors.broken[0]!r} of {request.name!r} holds NaN or infinities, which int8 would hide. The weights "
            "are damaged: fetch them again. precision='float32' shows which texts are concerned."
        )
    return encoder


def _layer(tensors: _Tensors, name: str, width: int, inner: int) -> Layer:
    return Layer(
        query=tensors.linear(f"{name}attention.self.query", width, width),
        key=tensors.linear(f"{name}attention.self.key", width, width),
        value=tensors.linear(f"{name}attention.self.value", width, width),
        attended=tensors.linear(f"{name}attention.output.dense", width, width),
        norm1=tensors.norm(f"{name}attention.output.LayerNorm", width),
        up=tensors.linear(f"{name}intermediate.dense", inner, width),
        down=tensors.linear(f"{name}output.dense", width, inner),
        norm2=tensors.norm(f"{name}output.LayerNorm", width),
    )


def _head(tensors: _Tensors, inside: str, width: int, *, is_bert: bool) -> tuple[Linear, Linear]:
    """Return BERT's pooler and classifier, or the two layers of XLM-R's classifier."""
    names = (f"{inside}pooler.dense", "classifier") if is_bert else ("classifier.dense", "classifier.out_proj")
    return tensors.linear(names[0], width, width), tensors.linear(names[1], None, width)
