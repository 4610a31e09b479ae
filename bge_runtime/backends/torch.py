"""The forward pass of sentence-transformers, for any architecture that it loads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers.utils import logging as transformers_logging

from bge_runtime.backends.base import LoadRequest, Output, Pooled, check_table, without_layers
from bge_runtime.backends.lora import apply_adapter, check_peft
from bge_runtime.errors import BackendError, OutOfMemoryError, UnsupportedModelError
from bge_runtime.inputs.tokenizing import Tokenizing, TokenSequence

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TorchBackend", "check_weights", "device_errors", "load", "no_progress_bars", "one_logit"]


def load(request: LoadRequest) -> TorchBackend:
    """Load a model folder through sentence-transformers, and add the adapter to its weights."""
    if request.adapter is not None:
        check_peft(request.adapter)  # before the weights are read
    model_class = SentenceTransformer if request.task == "embed" else CrossEncoder
    model_kwargs = {
        "dtype": getattr(torch, request.precision),
        "use_safetensors": not request.pickled_weights,
        "weights_only": True,
        **request.model_kwargs,
    }
    if model_kwargs.get("quantization_config") is not None and model_kwargs.get("device_map") is None:
        model_kwargs["device_map"] = {"": request.device}  # quantised weights cannot be moved afterwards
    placed = model_kwargs.get("device_map") is not None
    with no_progress_bars():
        model = model_class(
            str(request.folder),
            device=None if placed else request.device,
            trust_remote_code=request.trust_remote_code,
            local_files_only=True,
            model_kwargs=model_kwargs,
            processor_kwargs=dict(request.processor_kwargs) or None,
            config_kwargs=dict(request.config_kwargs) or None,
        )
    loaded = TorchBackend(model, str(request.folder))
    if request.adapter is not None:
        apply_adapter(loaded.model, request.adapter)
        loaded.model.eval()
    return loaded


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep transformers quiet while it reads weights; loads happen one at a time."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


class TorchBackend:
    """A sentence-transformers model whose inputs are token ids and whose pooling is ours to choose.

    Attributes:
        model: The transformers model.
        own_pooling: What the model's own modules do: `cls`, `mean` or `last`; `model` for anything else.
    """

    pads = True

    def __init__(self, model: SentenceTransformer | CrossEncoder, name: str) -> None:
        """Wrap a loaded model."""
        transformer = model[0]
        fast = getattr(getattr(transformer, "tokenizer", None), "backend_tokenizer", None)
        if not isinstance(transformer, Transformer) or fast is None:
            raise UnsupportedModelError(
                f"Model {name!r} starts with {type(transformer).__name__}; only transformer models "
                "with a fast tokenizer run here. Use sentence-transformers directly for it."
            )
        model.eval()
        self._transformer = transformer
        self.model = transformer.model
        self._tail = [module for module in list(model)[1:] if not isinstance(module, Normalize)]
        pooling = next((module for module in self._tail if isinstance(module, Pooling)), None)
        if pooling is not None and not pooling.include_prompt:
            raise UnsupportedModelError(
                f"Model {name!r} leaves its prompt out of the pooling, which is not supported. "
                "Use sentence-transformers directly for it."
            )
        self.own_pooling = _own_pooling(self._tail)
        self._device = model.device
        self._pad_id = int(transformer.tokenizer.pad_token_id or 0)
        self._nothing = TokenSequence([self._pad_id], [0])
        weights = list(model.parameters())
        self.tokenizing = Tokenizing(fast)
        self.parameters = sum(weight.numel() for weight in weights)
        self.bytes = sum(weight.numel() * weight.element_size() for weight in weights)

    def forward(self, batch: Sequence[TokenSequence], output: Output) -> Sequence[NDArray[np.float32]]:
        """Run one padded batch; see `Backend.forward`."""
        # Qwen's tokenizer gives an empty text no token at all.
        batch = [sequence if sequence.ids else self._nothing for sequence in batch]
        with torch.inference_mode(), device_errors(self._device, len(batch)):
            return self._run(batch, without_layers(output))

    def _run(self, batch: Sequence[TokenSequence], output: Pooled) -> Sequence[NDArray[np.float32]]:
        features = self._pad(batch)
        mask = features["attention_mask"]
        features = self._transformer(features)
        if output == "score":
            return list(one_logit(features["scores"]).cpu().numpy())
        if output == "model":
            for module in self._tail:
                features = module(features)
            return list(features["sentence_embedding"].float().cpu().numpy())
        states = features["token_embeddings"]
        if output == "tokens":
            rows = states.float().cpu().numpy()
            return [row[: len(sequence.ids)] for row, sequence in zip(rows, batch, strict=True)]
        return list(_pool(states, mask, output).cpu().numpy())

    def _pad(self, batch: Sequence[TokenSequence]) -> dict[str, Any]:
        longest = max(len(sequence.ids) for sequence in batch)
        shape = (len(batch), longest)
        ids = np.full(shape, self._pad_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        types = np.zeros(shape, dtype=np.int64)
        for row, sequence in enumerate(batch):
            length = len(sequence.ids)
            ids[row, :length] = sequence.ids
            mask[row, :length] = 1
            types[row, :length] = sequence.type_ids
        check_table("token", int(ids.max()), _words_of(self.model))
        features = {"input_ids": ids, "attention_mask": mask}
        if types.any():
            features["token_type_ids"] = types
        return {name: torch.from_numpy(array).to(self._device) for name, array in features.items()}


def check_weights(model: torch.nn.Module, name: str) -> None:
    """Refuse weights that are not finite where rounding them would make numbers of them.

    Raises:
        BackendError: Names the first one.
    """
    broken = next((each for each, weight in model.named_parameters() if not torch.isfinite(weight).all()), None)
    if broken is not None:
        raise BackendError(
            f"{broken!r} of {name!r} holds NaN or infinities, which int8 would hide. The weights are damaged: fetch "
            "them again. precision='float32' shows which texts are concerned."
        )


def _words_of(model: Any) -> int | None:
    """Return the rows of the word table; `None` where there is none of the usual kind."""
    try:
        return getattr(model.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):
        return None


def _own_pooling(tail: Sequence[torch.nn.Module]) -> str | None:
    """Return the pooling of a chain that has no other module, `None` without modules, else `model`."""
    if not tail:
        return None
    mode = tail[0].pooling_mode if len(tail) == 1 and isinstance(tail[0], Pooling) else "model"
    return {"cls": "cls", "mean": "mean", "lasttoken": "last"}.get(mode if isinstance(mode, str) else "model", "model")


@contextmanager
def device_errors(device: torch.device, texts: int) -> Iterator[None]:
    """Turn torch's errors into ours."""
    try:
        yield
    except RuntimeError as error:
        # The CPU allocator and MPS raise plain RuntimeError when memory is out.
        if isinstance(error, torch.OutOfMemoryError) or re.search("(not enough|out of) memory", str(error)):
            if device.type == "cuda":
                torch.cuda.empty_cache()
            raise OutOfMemoryError(f"{texts} texts do not fit in the memory of {device}.") from error
        raise BackendError(f"The forward pass failed: {error}") from error


def _pool(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Return one float32 vector per row of `states` [n, length, dimension], right-padded."""
    if pooling == "cls":
        return states[:, 0].float()
    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1].float()
    weights = mask.unsqueeze(-1).to(torch.float32)
    return (states.float() * weights).sum(1) / weights.sum(1).clamp_min(1)


def one_logit(logits: torch.Tensor) -> torch.Tensor:
    """Return one float32 logit per row; two labels become the log-odds of the second."""
    if logits.ndim == 1 or logits.shape[1] == 1:
        return logits.reshape(len(logits)).float()
    if logits.shape[1] == 2:
        return logits[:, 1].float() - logits[:, 0].float()
    raise UnsupportedModelError(
        f"The classifier has {logits.shape[1]} labels; a reranker has one, or two of which the second means relevant."
    )
