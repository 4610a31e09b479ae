"""The facts about a model that is not a row of the table, read from its own files."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from bge_runtime.errors import ModelNotFoundError
from bge_runtime.models.registry import find_spec, get_spec
from bge_runtime.models.spec import Kind, ModelSpec, Pooling, Score

__all__ = ["describe_folder", "own_pooling"]

logger = logging.getLogger("bge_runtime")

_POOLING: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
_CLIP_POSITIONS = 77  # what a configuration means that does not say
LAYERWISE = ("LayerWiseMiniCPMForCausalLM", "CostWiseGemmaForCausalLM")
_NO_LIMIT = 1_000_000  # tokenizers without a limit say 1e30


def describe_folder(folder: Path, name: str, base_model: str | None = None) -> ModelSpec:
    """Return the spec of the model in `folder`.

    A fine-tuned BGE model takes its family's facts where its own files are silent; any other model is taken
    as its files describe it, and nothing is invented.

    Args:
        folder: Folder with the model's files.
        name: What the caller calls the model; it becomes the id.
        base_model: Row of the table that the model was tuned from; `None` finds it in the metadata.

    Raises:
        ModelNotFoundError: There is no readable configuration, or `base_model` is not in the table.
    """
    config = _read(folder / "config.json")
    if not config:
        raise ModelNotFoundError(f"Folder {str(folder)!r} has no readable config.json, so it holds no model.")
    family = get_spec(base_model) if base_model else _family(folder, config, name)
    score = _score(config, family)
    kind: Kind = "reranker" if score else "vision" if config.get("model_type") == "clip" else "embedder"
    if family is not None and family.kind != kind:
        family = None
    max_length, positions = _lengths(folder, config)
    architecture = str(config.get("model_type", "unknown"))
    parameters = family.parameters if family else 0
    if score:
        facts: dict[str, Any] = {"dimension": None, "score": score, "outputs": ("score",)}
        facts["layers"] = (config.get("start_layer", 0), config["num_hidden_layers"]) if score == "layerwise" else None
    elif kind == "vision":
        facts = {"dimension": int(config.get("projection_dim", 512)), "normalize": True}
    else:
        facts = _vector_facts(folder, config, family)
    facts |= {"id": name, "max_length": max_length, "positions": positions, "package": None, "checked": ""}
    if family is not None:
        logger.info("Model %r is taken as a fine-tuned %s.", name, family.id)
        return replace(family, **facts)
    logger.info("Model %r is not in the BGE table; its own files decide its prompts and pooling.", name)
    return ModelSpec(
        kind=kind, architecture=architecture, parameters=parameters, languages=(), license="unknown", **facts
    )


def _score(config: dict[str, Any], family: ModelSpec | None) -> Score | None:
    """Return how a reranker's score arises; `None` for an embedder.

    Only its family tells a language model that answers `Yes` from any other.
    """
    architectures = config.get("architectures") or ()
    if any(each.endswith("ForSequenceClassification") for each in architectures):
        return "logit"
    if any(each in LAYERWISE for each in architectures):
        return "layerwise"
    is_asked = family is not None and family.score == "yes_logit"
    return "yes_logit" if is_asked and any(each.endswith("ForCausalLM") for each in architectures) else None


def _family(folder: Path, config: dict[str, Any], name: str) -> ModelSpec | None:
    """Find the table's row that the metadata names: the model itself, its configuration, its model card."""
    card = folder / "README.md"
    header = card.read_text(encoding="utf-8", errors="replace")[:4000] if card.exists() else ""
    candidates = [
        name,
        folder.name,
        str(config.get("_name_or_path", "")),
        *re.findall(r"^base_model:\s*(?:\n\s*-\s*)?[\"']?([\w./-]+)", header, re.MULTILINE),
        *re.findall(r"^-\s*name:\s*([\w.-]+)\s*$", header, re.MULTILINE),
    ]
    for candidate in candidates:
        # BAAI's own configurations carry the training path, such as .../BAAI_bge-small-en/
        basename = candidate.rstrip("/").rsplit("/", 1)[-1].removeprefix("BAAI_")
        spec = find_spec(basename) if basename else None
        if spec is not None and spec.architecture == config.get("model_type"):
            return spec
    return None


def _vector_facts(folder: Path, config: dict[str, Any], family: ModelSpec | None) -> dict[str, Any]:
    modules = [module["type"].rsplit(".", 1)[-1] for module in _read(folder / "modules.json") or ()]
    pooling: Pooling = family.pooling if family is not None and family.pooling else "mean"
    normalize = family.normalize if family else False
    dimension = int(config.get("hidden_size", 0)) or None
    if modules:
        pooling = own_pooling(folder, modules)
        normalize = normalize or "Normalize" in modules
        dense = [file.parent for file in folder.glob("*_Dense/config.json")]
        if dense:
            dimension = int(_read(sorted(dense)[-1] / "config.json")["out_features"])
    elif family is None:
        logger.warning("%s has no modules.json and its family is unknown: mean pooling is assumed.", folder)
    prompts = (_read(folder / "config_sentence_transformers.json") or {}).get("prompts") or {}
    own = {
        "query_instruction": prompts.get("query"),
        "document_instruction": prompts.get("document") or prompts.get("passage"),
    }
    if any(own.values()):
        # A prompt stands before the text; what the family puts behind it stays.
        own["query_format"] = "{instruction}{text}" + (family.query_format.split("{text}", 1)[1] if family else "")
    facts: dict[str, Any] = {key: value for key, value in own.items() if value}
    return {**facts, "dimension": dimension, "pooling": pooling, "normalize": normalize}


def own_pooling(folder: Path, modules: list[str]) -> Pooling:
    """Return the pooling of a plain Transformer, Pooling (, Normalize) chain, else `model`."""
    if modules[:2] != ["Transformer", "Pooling"] or modules[2:] not in ([], ["Normalize"]):
        return "model"
    config = _read(folder / "1_Pooling" / "config.json") or {}
    mode = config.get("pooling_mode")
    if mode is None:
        legacy = {
            "pooling_mode_cls_token": "cls",
            "pooling_mode_mean_tokens": "mean",
            "pooling_mode_lasttoken": "lasttoken",
        }
        active = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
        mode = legacy.get(active[0]) if len(active) == 1 else None
    return _POOLING.get(mode, "model") if isinstance(mode, str) else "model"


def _lengths(folder: Path, config: dict[str, Any]) -> tuple[int, int]:
    """Return the model's own maximum length and what its position table allows."""
    if config.get("model_type") == "clip":
        config = {"max_position_embeddings": _CLIP_POSITIONS, **(config.get("text_config") or {})}
    positions = int(config.get("max_position_embeddings") or _NO_LIMIT)
    if config.get("model_type") in ("xlm-roberta", "roberta", "camembert"):
        positions -= int(config.get("pad_token_id", 1)) + 1  # the table's first rows are never used
    limits = [
        (_read(folder / "sentence_bert_config.json") or {}).get("max_seq_length"),
        (_read(folder / "tokenizer_config.json") or {}).get("model_max_length"),
    ]
    known = [int(limit) for limit in limits if limit and limit < _NO_LIMIT]
    own = known[0] if known else positions
    return min(own, positions), positions


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
