"""LoRA adapters made by peft on the seeded checkpoints, and what peft computes with them, unmerged."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

__all__ = [
    "adapted_answer",
    "adapted_score",
    "adapted_states",
    "adapted_text",
    "clip_adapter",
    "embedder_adapter",
    "language_model_adapter",
    "reranker_adapter",
]


def embedder_adapter(folder: Path, base: Path, *, seed: int = 71, **settings: Any) -> Path:
    """An adapter of the bare encoder in `base`, in every linear layer."""
    settings = {"task_type": "FEATURE_EXTRACTION", "target_modules": ["query", "key", "value", "dense"], **settings}
    return _save(folder, base, "AutoModel", seed, settings)


def reranker_adapter(folder: Path, base: Path, *, seed: int = 72, **settings: Any) -> Path:
    """An adapter of the classifier in `base`, with a head of its own."""
    return _save(
        folder,
        base,
        "AutoModelForSequenceClassification",
        seed,
        {"task_type": "SEQ_CLS", "target_modules": ["query", "value"], **settings},
    )


def language_model_adapter(folder: Path, base: Path, *, seed: int = 73) -> Path:
    """An adapter of the language model in `base`."""
    settings = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj", "down_proj"]}
    return _save(folder, base, "AutoModelForCausalLM", seed, settings)


def clip_adapter(folder: Path, base: Path, *, seed: int = 74) -> Path:
    """An adapter of both towers of the CLIP model in `base`."""
    return _save(folder, base, "CLIPModel", seed, {"target_modules": ["q_proj", "v_proj"]})


def adapted_answer(base: Path, adapter: Path, ids: list[int], answer: int) -> float:
    """Return a language model's logit of a token behind `ids` by peft's own forward."""
    with torch.inference_mode():
        return float(
            _unmerged("AutoModelForCausalLM", base, adapter)(input_ids=torch.tensor([ids])).logits[0, -1, answer]
        )


def adapted_text(base: Path, adapter: Path, text: str) -> np.ndarray:
    """Return a CLIP model's text features by peft's own forward, not normalised."""
    ids = torch.tensor([_tokenizer(base).encode(text).ids])
    with torch.inference_mode():
        features = _unmerged("CLIPModel", base, adapter).get_text_features(input_ids=ids)
    rows = features if isinstance(features, torch.Tensor) else features.pooler_output
    return rows[0].double().numpy()


def adapted_states(base: Path, adapter: Path, text: str) -> np.ndarray:
    """Return the last hidden states of one text by peft's own forward, special tokens included."""
    ids = torch.tensor([_tokenizer(base).encode(text).ids])
    with torch.inference_mode():
        return _unmerged("AutoModel", base, adapter)(input_ids=ids).last_hidden_state[0].double().numpy()


def adapted_score(base: Path, adapter: Path, query: str, document: str) -> float:
    """Return the raw logit of one pair by peft's own forward."""
    ids = torch.tensor([_tokenizer(base).encode(query, document).ids])
    with torch.inference_mode():
        return float(_unmerged("AutoModelForSequenceClassification", base, adapter)(input_ids=ids).logits[0, 0])


def _save(folder: Path, base: Path, model_class: str, seed: int, settings: dict[str, Any]) -> Path:
    import peft

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with _without_peft_warnings():
            model = peft.get_peft_model(_model(model_class, base), peft.LoraConfig(r=4, lora_alpha=8, **settings))
        for name, weight in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                torch.nn.init.normal_(weight, std=0.1)
        model.save_pretrained(folder)
    return folder


def _unmerged(model_class: str, base: Path, adapter: Path) -> Any:
    import peft

    with _without_peft_warnings():
        return peft.PeftModel.from_pretrained(_model(model_class, base), adapter).eval()


def _without_peft_warnings() -> Any:
    # peft asks the model for an attribute that transformers has renamed.
    return warnings.catch_warnings(action="ignore", category=FutureWarning)


def _model(model_class: str, base: Path) -> Any:
    import transformers

    return getattr(transformers, model_class).from_pretrained(base, dtype=torch.float32, local_files_only=True)


def _tokenizer(base: Path) -> Tokenizer:
    return Tokenizer.from_file(str(base / "tokenizer.json"))
