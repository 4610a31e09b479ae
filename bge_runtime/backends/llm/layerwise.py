"""Layerwise rerankers: score heads read the last token's state after some of the layers, and the rest is not computed.

The authors publish both models with Python code of their own, which is not run. The layers are transformers' own:

- bge-reranker-v2-minicpm-layerwise is MiniCPM, whose arithmetic is Granite's: embeddings times `scale_emb`, and what a
  layer adds times `scale_depth / sqrt(layers)`. Each layer from `start_layer` on has a head.
- bge-reranker-v2.5-gemma2-lightweight is Gemma 2 that can merge neighbouring tokens of the document before a layer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import Gemma2Config, Gemma2Model, GraniteConfig, GraniteModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from bge_runtime.backends.base import LayerScore, LoadRequest, Output
from bge_runtime.backends.llm import decoder
from bge_runtime.backends.llm.prompts import DOCUMENT, HEAD, PREDICT, YES_OR_NO
from bge_runtime.backends.results import Computing
from bge_runtime.errors import ConfigurationError, UnsupportedModelError
from bge_runtime.inputs.tokenizing import Tokenizing, TokenSequence

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FAMILIES", "LayerwiseBackend", "load"]

# transformers 5.24 calls it `cache`, and warns of the older name; to be written out when 5.24 is the oldest we take.
CACHE_ARGUMENT = "cache" if "cache" in signature(create_causal_mask).parameters else "past_key_values"


def load(request: LoadRequest, config: dict[str, Any]) -> LayerwiseBackend:
    """Load a folder whose `config.json` names one of `FAMILIES`.

    Raises:
        UnsupportedModelError: The folder holds a variant that was never published.
        ModelNotFoundError: Weights are missing.
    """
    backend: LayerwiseBackend = FAMILIES[config["model_type"]](request, config)
    return backend


class _MiniCPM(GraniteModel):  # type: ignore[no-untyped-call]
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]  # noqa: RUF012 - as transformers declares it


class _Gemma2(Gemma2Model):  # type: ignore[no-untyped-call]
    _supports_sdpa = True  # without a cap on attention logits
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]  # noqa: RUF012 - as transformers declares it


class _Part(NamedTuple):
    """Where a pair's document begins and ends among its tokens, and where its last token is behind."""

    start: int
    stop: int
    end: int


class LayerwiseBackend(ABC):
    """A decoder with score heads."""

    pads = True

    def __init__(self, request: LoadRequest, config: dict[str, Any], prompt: str) -> None:
        """Read the weights."""
        self._check(request, config)
        self.tokenizing: Tokenizing = decoder.read_tokenizer(request, config, prompt)
        self.layers = range(config["start_layer"], config["num_hidden_layers"] + 1)
        self._model = self._read(request, config)
        self._device = self._model.embed_tokens.weight.device
        self._computing = Computing(self._device)
        self._heads = decoder.read_heads(request, self._head_names()).to(self._device)
        self._limit = config.get("final_logit_softcapping")
        weights = [*self._model.parameters(), self._heads]
        self.parameters = sum(weight.numel() for weight in weights)
        self.bytes = sum(weight.numel() * weight.element_size() for weight in weights)

    def forward(self, batch: Sequence[TokenSequence], output: Output) -> Sequence[NDArray[np.float32]]:
        """Run one padded batch as far as the last layer asked for; see `Backend.forward`."""
        wanted = output if isinstance(output, LayerScore) else LayerScore(layers=(self.layers[-1],))
        if not isinstance(output, LayerScore) and output != "score":
            raise ConfigurationError(
                f"output={output!r} is not what an LLM reranker gives. Use an embedder for vectors."
            )
        if not wanted.layers or not set(wanted.layers) <= set(self.layers):
            raise ConfigurationError(
                f"Layers {wanted.layers} are not all among those that have a score head: "
                f"{self.layers[0]} to {self.layers[-1]}."
            )
        with self._computing(batch):
            scores = self._run(batch, wanted).cpu().numpy()
        return list(scores) if isinstance(output, LayerScore) else list(scores[:, 0])

    def _run(self, batch: Sequence[TokenSequence], wanted: LayerScore) -> torch.Tensor:
        """Return float32 [pairs, layers]."""
        ids, _ = decoder.padded(batch, self._device)
        parts = [_part(sequence) for sequence in batch]
        states = self._embed(ids)
        context = self._context(states)
        scores = []
        for index in range(wanted.layers[-1]):
            if wanted.compress_ratio > 1 and index in wanted.compress_layers:
                states, parts = _compressed(states, parts, wanted.compress_ratio)
                context = self._context(states)
            states = self._model.layers[index](states, **self._for_layer(context, index))
            if index + 1 in wanted.layers:
                scores.append(self._score(states, parts, index + 1))
        return torch.stack(scores, dim=1)

    def _context(self, states: torch.Tensor) -> dict[str, Any]:
        """Return positions and masks for states of this length."""
        positions = torch.arange(states.shape[1], device=states.device).unsqueeze(0)
        asked = {
            "config": self._model.config,
            "inputs_embeds": states,
            "attention_mask": None,
            CACHE_ARGUMENT: None,
            "position_ids": positions,
        }
        kinds = set(getattr(self._model.config, "layer_types", None) or ["full_attention"])
        makers = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
        return {
            "position_ids": positions,
            "position_embeddings": self._model.rotary_emb(states, positions),
            "masks": {kind: makers[kind](**asked) for kind in kinds},
        }

    def _for_layer(self, context: dict[str, Any], index: int) -> dict[str, Any]:
        kinds = getattr(self._model.config, "layer_types", None)
        return {
            "position_ids": context["position_ids"],
            "position_embeddings": context["position_embeddings"],
            "attention_mask": context["masks"][kinds[index] if kinds else "full_attention"],
        }

    def _score(self, states: torch.Tensor, parts: Sequence[_Part], layer: int) -> torch.Tensor:
        """Return the logit of each pair after a layer, float32 [pairs]."""
        last = torch.tensor([part.end - 1 for part in parts], device=states.device)
        read = self._model.norm(states[torch.arange(len(parts), device=states.device), last]).float()
        return decoder.cap(read @ self._head(layer).to(read.device), self._limit)

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self._model.embed_tokens(ids)
        return states

    @abstractmethod
    def _check(self, request: LoadRequest, config: dict[str, Any]) -> None:
        """Refuse variants of the architecture that nobody has published."""

    @abstractmethod
    def _read(self, request: LoadRequest, config: dict[str, Any]) -> Any:
        """Return the decoder with its weights."""

    @abstractmethod
    def _head_names(self) -> list[str]:
        """Return the names of the heads' weights."""

    @abstractmethod
    def _head(self, layer: int) -> torch.Tensor:
        """Return the weights of the head that reads after a layer, float32 [width]."""


class MiniCPMLayerwise(LayerwiseBackend):
    """The architecture of bge-reranker-v2-minicpm-layerwise."""

    def __init__(self, request: LoadRequest, config: dict[str, Any]) -> None:
        """Read the weights."""
        super().__init__(request, config, YES_OR_NO)

    def _check(self, request: LoadRequest, config: dict[str, Any]) -> None:
        _refuse_other(request, config, head_type="simple", head_multi=True, rope_scaling=None)

    def _read(self, request: LoadRequest, config: dict[str, Any]) -> Any:
        same = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "hidden_act",
            "max_position_embeddings",
            "rms_norm_eps",
            "attention_bias",
        )
        granite = GraniteConfig(
            **{name: config[name] for name in same if name in config},
            rope_parameters={"rope_type": "default", "rope_theta": float(config.get("rope_theta", 10000.0))},
            embedding_multiplier=float(config["scale_emb"]),
            residual_multiplier=config["scale_depth"] / math.sqrt(config["num_hidden_layers"]),
            attention_multiplier=(config["hidden_size"] // config["num_attention_heads"]) ** -0.5,
            bos_token_id=config.get("bos_token_id"),
            eos_token_id=config.get("eos_token_id"),
        )
        return decoder.read_decoder(_MiniCPM, request, config=granite)

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = super()._embed(ids) * self._model.embedding_multiplier
        return states

    def _head_names(self) -> list[str]:
        return [f"lm_head.{index}.linear_head.weight" for index in range(len(self.layers))]

    def _head(self, layer: int) -> torch.Tensor:
        return self._heads[layer - self.layers[0]]


class Gemma2Lightweight(LayerwiseBackend):
    """The architecture of bge-reranker-v2.5-gemma2-lightweight.

    Two habits of the authors' code decide its scores. The head is counted within the list of cut-off layers, so that a
    single layer, wherever it is, is read by the first head; several layers are read here as if each were asked for
    alone. And attention runs through torch's fused function, which leaves out the cap on attention logits that the
    configuration names; `model_kwargs={"attn_implementation": "eager"}` applies it.
    """

    def __init__(self, request: LoadRequest, config: dict[str, Any]) -> None:
        """Read the weights."""
        super().__init__(request, config, PREDICT)

    def _check(self, request: LoadRequest, config: dict[str, Any]) -> None:
        _refuse_other(request, config, layer_wise=True, layer_sep=1, rope_scaling=None)

    def _read(self, request: LoadRequest, config: dict[str, Any]) -> Any:
        same = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "hidden_activation",
            "max_position_embeddings",
            "rms_norm_eps",
            "attention_bias",
            "query_pre_attn_scalar",
            "sliding_window",
            "pad_token_id",
            "bos_token_id",
            "eos_token_id",
        )
        attention = request.model_kwargs.get("attn_implementation", "sdpa")
        gemma = Gemma2Config(
            **{name: config[name] for name in same if name in config},
            rope_parameters={"rope_type": "default", "rope_theta": float(config.get("rope_theta", 10000.0))},
            attn_logit_softcapping=None if attention == "sdpa" else config.get("attn_logit_softcapping"),
        )
        return decoder.read_decoder(_Gemma2, request, config=gemma, attn_implementation=attention)

    def _head_names(self) -> list[str]:
        return ["lm_head.0.linear_head.weight"]

    def _head(self, layer: int) -> torch.Tensor:
        return self._heads[0]


FAMILIES: dict[str, Any] = {"minicpm": MiniCPMLayerwise, "cost_wise_gemma": Gemma2Lightweight}


def _refuse_other(request: LoadRequest, config: dict[str, Any], **published: Any) -> None:
    other = {name: config.get(name) for name, value in published.items() if config.get(name) != value}
    if other:
        raise UnsupportedModelError(
            f"The config.json of {request.name!r} says {other!r}; only the published form of this architecture, "
            f"{ {name: published[name] for name in other}!r}, runs here."
        )


def _part(sequence: TokenSequence) -> _Part:
    start = sequence.type_ids.count(HEAD)
    return _Part(start, start + sequence.type_ids.count(DOCUMENT), len(sequence.ids))


def _compressed(states: torch.Tensor, parts: Sequence[_Part], ratio: int) -> tuple[torch.Tensor, list[_Part]]:
    """Merge each `ratio` neighbouring tokens of the documents into their mean; the last ones may be fewer."""
    rows, places = [], []
    for row, (start, stop, end) in zip(states, parts, strict=True):
        means = _means(row[start:stop], ratio)
        rows.append(torch.cat([row[:start], means, row[stop:end]]))
        places.append(_Part(start, start + len(means), len(rows[-1])))
    return pad_sequence(rows, batch_first=True), places


def _means(rows: torch.Tensor, ratio: int) -> torch.Tensor:
    """Return the mean of each `ratio` rows: [rows / ratio rounded up, width]."""
    groups = -(-len(rows) // ratio)
    short = groups * ratio - len(rows)
    sums = functional.pad(rows.float(), (0, 0, 0, short)).view(groups, ratio, rows.shape[1]).sum(1)
    sizes = torch.full((groups, 1), float(ratio), device=rows.device)
    sizes[groups - 1 : groups] -= short
    return (sums / sizes).to(rows.dtype)
