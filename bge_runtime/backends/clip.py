"""CLIP: texts and pictures to vectors of one space, on transformers' own `CLIPModel`.

BGE-VL's repositories bring code of their own, a copy of that class with `encode`: image features, text features, or
the sum of both for a picture with a text (https://github.com/VectorSpaceLab/MegaPairs, modeling_MMRet_CLIP.py). The
weights are those of a plain CLIP, so nothing of that code is run; on transformers 5 it would look up positions that
were never filled in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from bge_runtime.backends.base import LoadRequest, Output
from bge_runtime.backends.lora import apply_adapter, check_peft
from bge_runtime.backends.results import Computing
from bge_runtime.backends.torch import check_weights, no_progress_bars
from bge_runtime.errors import UnsupportedModelError
from bge_runtime.inputs.images import ImageFormat, ImagePixels
from bge_runtime.inputs.tokenizing import Tokenizing, TokenSequence, copied

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ClipBackend", "load"]


def load(request: LoadRequest) -> ClipBackend:
    """Load a model folder.

    Raises:
        UnsupportedModelError: The precision is int8.
    """
    if request.precision == "int8":
        raise UnsupportedModelError(
            f"{request.name!r} does not run in int8 here. Use precision='bfloat16' or 'float32'."
        )
    if request.adapter is not None:
        check_peft(request.adapter)  # before the weights are read
    model_kwargs = {
        "dtype": getattr(torch, request.precision),
        "use_safetensors": not request.pickled_weights,
        "weights_only": True,
        **request.model_kwargs,
    }
    folder = str(request.folder)
    with no_progress_bars():
        config = CLIPConfig.from_pretrained(folder, local_files_only=True, **request.config_kwargs)
        model: Any = CLIPModel.from_pretrained(folder, config=config, local_files_only=True, **model_kwargs)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True, **request.processor_kwargs)
    check_weights(model, request)
    model.to(request.device)
    if request.adapter is not None:
        apply_adapter(model, request.adapter)
    return ClipBackend(model, tokenizer, ImageFormat.read(request.folder))


class ClipBackend:
    """Text features for the output `model`, image features for `image`: projected, not normalised."""

    pads = True

    def __init__(self, model: Any, tokenizer: Any, images: ImageFormat) -> None:
        """Wrap a loaded model."""
        self.model = model.eval()
        self._computing = Computing(model.device)
        self.tokenizing = Tokenizing(copied(tokenizer.backend_tokenizer))
        weights = list(model.parameters())
        self.parameters = sum(weight.numel() for weight in weights)
        self.bytes = sum(weight.numel() * weight.element_size() for weight in weights)
        self._pad_id = int(tokenizer.pad_token_id or 0)
        self._factor = images.factor
        self._mean, self._std = (
            torch.tensor(values, device=model.device).reshape(1, 3, 1, 1) for values in (images.mean, images.std)
        )

    def forward(self, batch: Sequence[Any], output: Output) -> Sequence[NDArray[np.float32]]:
        """Run one batch; see `Backend.forward`."""
        if output not in ("model", "image"):
            raise UnsupportedModelError(
                f"This CLIP model gives one vector per text or picture, and no output {output!r}. "
                "Use an encoder such as 'BAAI/bge-small-en-v1.5' for token vectors."
            )
        with self._computing(batch):
            features = self._images(batch) if output == "image" else self._texts(batch)
            return list(features.float().cpu().numpy())

    def _texts(self, batch: Sequence[TokenSequence]) -> torch.Tensor:
        # On the right, and read causally: what is filled in changes no vector.
        shape = (len(batch), max(sequence.length for sequence in batch))
        ids = np.full(shape, self._pad_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for row, sequence in enumerate(batch):
            ids[row, : sequence.length] = sequence.ids
            mask[row, : sequence.length] = 1
        device = self.model.device
        states = self.model.text_model(
            input_ids=torch.from_numpy(ids).to(device), attention_mask=torch.from_numpy(mask).to(device)
        )
        return self.model.text_projection(states.pooler_output)  # type: ignore[no-any-return]

    def _images(self, batch: Sequence[ImagePixels]) -> torch.Tensor:
        levels = torch.from_numpy(np.stack([image.pixels for image in batch])).to(self.model.device)
        scaled = (levels.permute(0, 3, 1, 2).float() * self._factor - self._mean) / self._std
        states = self.model.vision_model(pixel_values=scaled.to(self.model.dtype))
        return self.model.visual_projection(states.pooler_output)  # type: ignore[no-any-return]
