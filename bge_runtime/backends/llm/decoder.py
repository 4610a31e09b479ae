"""What LLM rerankers have in common: reading a decoder and its tokenizer, and laying out a batch.

Batches are padded on the right and need no padding mask: a token sees only those before it, which are all real.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from bge_runtime.backends.base import LoadRequest, missing_weights
from bge_runtime.backends.llm.prompts import PromptedPairs
from bge_runtime.backends.lora import apply_adapter, check_peft
from bge_runtime.backends.torch import check_weights, no_progress_bars
from bge_runtime.inputs.tokenizing import TokenSequence
from bge_runtime.models.hub import weight_files

__all__ = ["cap", "padded", "read_config", "read_decoder", "read_heads", "read_row", "read_tokenizer"]


def read_config(request: LoadRequest) -> dict[str, Any]:
    """Return `config.json`, with the caller's changes."""
    config: dict[str, Any] = json.loads((request.folder / "config.json").read_text(encoding="utf-8"))
    return {**config, **request.config_kwargs}


def read_decoder(model_class: Any, request: LoadRequest, **arguments: Any) -> Any:
    """Return transformers' decoder with the weights of the folder and of the adapter; no code of the folder runs.

    Args:
        model_class: A class of transformers without a head.
        request: What to read.
        **arguments: For `from_pretrained`; those of the request go before them.

    Raises:
        ModelNotFoundError: Weights are missing, which transformers would invent.
    """
    if request.adapter is not None:
        check_peft(request.adapter)  # before the weights are read
    settings = {"dtype": getattr(torch, request.precision), **arguments, **request.model_kwargs}
    with no_progress_bars():
        model, found = model_class.from_pretrained(
            str(request.folder), use_safetensors=True, local_files_only=True, output_loading_info=True, **settings
        )
    missing = sorted(found["missing_keys"])
    if missing:
        raise missing_weights(request.name, request.folder, missing)
    check_weights(model, request)
    if "device_map" not in request.model_kwargs:
        model.to(request.device)
    if request.adapter is not None:
        apply_adapter(model, request.adapter, inside="model.")
    return model.eval()


def read_row(request: LoadRequest, name: str, row: int = 0) -> torch.Tensor | None:
    """Return one row of a weight matrix in float32, from whichever file holds it; `None` if none does."""
    for file in weight_files(request.folder):
        with safe_open(str(file), framework="pt") as weights:
            if name in weights.keys():
                return weights.get_slice(name)[row : row + 1][0].float()  # type: ignore[no-any-return]
    return None


def read_heads(request: LoadRequest, names: Iterable[str]) -> torch.Tensor:
    """Return score heads of one row each: float32 [heads, width].

    Raises:
        ModelNotFoundError: One is missing.
    """
    rows = {name: read_row(request, name) for name in names}
    missing = [name for name, row in rows.items() if row is None]
    if missing:
        raise missing_weights(request.name, request.folder, missing)
    return torch.stack([row for row in rows.values() if row is not None])


def read_tokenizer(request: LoadRequest, config: dict[str, Any], prompt: str) -> PromptedPairs:
    """Return the folder's tokenizer for pairs with this prompt."""
    file = request.folder / "tokenizer.json"
    # The file is what the authors' transformers ran; newer ones build some tokenizers anew from their vocabulary.
    if file.exists() and not request.processor_kwargs:
        tokenizer = Tokenizer.from_file(str(file))
    else:
        loaded = AutoTokenizer.from_pretrained(str(request.folder), local_files_only=True, **request.processor_kwargs)
        tokenizer = loaded.backend_tokenizer
    named = _read_json(request.folder / "tokenizer_config.json")
    bos = _id_of(tokenizer, named.get("bos_token"), config.get("bos_token_id"))
    pad = _id_of(tokenizer, named.get("pad_token"), config.get("pad_token_id"))
    return PromptedPairs(tokenizer, [] if bos is None or bos == pad else [bos], prompt)


def padded(batch: Sequence[TokenSequence], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids, int64 [texts, longest], and the number of tokens of each text, int64 [texts]."""
    lengths = [len(sequence.ids) for sequence in batch]
    ids = np.zeros((len(batch), max(lengths)), dtype=np.int64)
    for row, sequence in enumerate(batch):
        ids[row, : lengths[row]] = sequence.ids
    return torch.from_numpy(ids).to(device), torch.tensor(lengths, device=device)


def cap(logits: torch.Tensor, limit: float | None) -> torch.Tensor:
    """Return logits bent towards plus and minus `limit`; without one, as they are."""
    return logits if limit is None else torch.tanh(logits / limit) * limit


def _id_of(tokenizer: Tokenizer, token: Any, otherwise: Any) -> int | None:
    """Return the id of a token as `tokenizer_config.json` names it, else what `config.json` says."""
    text = token.get("content") if isinstance(token, dict) else token
    found = tokenizer.token_to_id(text) if text else None
    return otherwise if found is None else found


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
