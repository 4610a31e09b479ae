"""LLM rerankers: a decoder reads query, document and a prompt, and its last token gives the score.

bge-reranker-v2-gemma is a language model whose score is the logit of `Yes`. Layerwise rerankers, whose score heads
read the states between layers, are in `layerwise.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModel

from bge_runtime.backends.base import Backend, LoadRequest, Output, without_layers
from bge_runtime.backends.llm import decoder, layerwise
from bge_runtime.backends.llm.prompts import YES_OR_NO
from bge_runtime.backends.results import Computing
from bge_runtime.errors import ConfigurationError, UnsupportedModelError
from bge_runtime.inputs.tokenizing import Tokenizing, TokenSequence

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["YesLogitBackend", "load"]

ANSWER = "Yes"


def load(request: LoadRequest) -> Backend:
    """Load a model folder.

    Raises:
        UnsupportedModelError: Its architecture is none of those.
        ModelNotFoundError: Weights are missing.
    """
    config = decoder.read_config(request)
    if config.get("model_type") in layerwise.FAMILIES:
        return layerwise.load(request, config)
    if not any(name.endswith("ForCausalLM") for name in config.get("architectures") or ()):
        raise UnsupportedModelError(
            f"{request.name!r} is no language model (architectures {config.get('architectures')!r}), so it has no "
            f"logit of {ANSWER!r}. LLM rerankers are language models, {', '.join(layerwise.FAMILIES)}."
        )
    return YesLogitBackend(request, config)


class YesLogitBackend:
    """A language model; the score of a pair is the logit of `Yes` behind the prompt, not of `Yes` minus `No`."""

    pads = True

    def __init__(self, request: LoadRequest, config: dict[str, Any]) -> None:
        """Read the weights."""
        tokenizing = decoder.read_tokenizer(request, config, YES_OR_NO)
        self.tokenizing: Tokenizing = tokenizing
        self._model = decoder.read_decoder(AutoModel, request, **request.config_kwargs)
        self._device = self._model.get_input_embeddings().weight.device
        self._computing = Computing(self._device)
        self._answer = self._read_answer(request, tokenizing.first_id(ANSWER)).to(self._device)
        self._limit = config.get("final_logit_softcapping")
        weights = list(self._model.parameters())
        self.parameters = sum(weight.numel() for weight in weights)
        self.bytes = sum(weight.numel() * weight.element_size() for weight in weights)

    def forward(self, batch: Sequence[TokenSequence], output: Output) -> Sequence[NDArray[np.float32]]:
        """Run one padded batch; see `Backend.forward`."""
        if without_layers(output) != "score":
            raise ConfigurationError(
                f"output={output!r} is not what an LLM reranker gives. Use an embedder for vectors."
            )
        with self._computing(batch):
            ids, lengths = decoder.padded(batch, self._device)
            states = self._model(input_ids=ids, use_cache=False).last_hidden_state
            last = states[torch.arange(len(batch), device=self._device), lengths - 1].float()
            return list(decoder.cap(last @ self._answer, self._limit).cpu().numpy())

    def _read_answer(self, request: LoadRequest, token: int) -> torch.Tensor:
        """Return the output weights of `Yes`, float32 [width]; tied weights are those of its embedding."""
        own = None if self._model.config.tie_word_embeddings else decoder.read_row(request, "lm_head.weight", token)
        tied: torch.Tensor = self._model.get_input_embeddings().weight[token].detach().float()
        return tied if own is None else own
