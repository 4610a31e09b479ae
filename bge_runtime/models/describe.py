"""The facts about a model that is not a row of the table, read from its own files."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bge_runtime.errors import ConfigurationError, ModelNotFoundError
from bge_runtime.models.folder import read_card, read_object, read_values
from bge_runtime.models.hub import ADAPTER_CONFIG, HEADS, head_files
from bge_runtime.models.registry import find_spec, get_spec, list_models
from bge_runtime.models.spec import Kind, ModelSpec, Pooling, Score

__all__ = ["OWN_ROW", "describe_folder", "modules_of", "own_pooling"]

logger = logging.getLogger("bge_runtime")

_POOLING: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
# The facts of a model as JSON, a row of the table; what was trained here carries it.
OWN_ROW = "bge_model.json"
# What older versions of sentence-transformers write in place of a mode.
_LEGACY_POOLING: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_CLIP_POSITIONS = 77  # what a configuration means that does not say
LAYERWISE = ("LayerWiseMiniCPMForCausalLM", "CostWiseGemmaForCausalLM")
_NO_LIMIT = 1_000_000  # tokenizers without a limit say 1e30
# The row whose training adds heads to the encoder, which nobody else has.
_WITH_HEADS = "BAAI/bge-m3"


def describe_folder(folder: Path, name: str, base_model: str | None = None) -> ModelSpec:
    """Return the spec of the model in `folder`.

    A fine-tuned BGE model takes its family's facts where its own files are silent; any other model is taken
    as its files describe it, and nothing is invented.

    Args:
        folder: Folder with the model's files.
        name: What the caller calls the model; it becomes the id.
        base_model: Row of the table that the model was tuned from; `None` finds it in the metadata.

    Raises:
        ModelNotFoundError: A file is damaged, there is no configuration, or `base_model` is not in the table.
    """
    config = read_object(folder / "config.json")
    if not config:
        raise ModelNotFoundError(f"Folder {str(folder)!r} has no readable config.json, so it holds no model.")
    if base_model is None and (own := read_object(folder / OWN_ROW)):
        return _own_row(folder, own, name)
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
        facts["layers"] = None
        if score == "layerwise":
            last = _number(folder, config, "num_hidden_layers", 0)
            if not last:
                raise _wrong(folder / "config.json", "num_hidden_layers", config.get("num_hidden_layers"))
            facts["layers"] = (_number(folder, config, "start_layer", 0), last)
    elif kind == "vision":
        facts = {"dimension": _number(folder, config, "projection_dim", 512), "normalize": True}
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


def _own_row(folder: Path, row: dict[str, Any], name: str) -> ModelSpec:
    """Return the row that training has written beside the weights."""
    known = {key: value for key, value in row.items() if key in ModelSpec.__dataclass_fields__}
    try:
        # Neither a package nor permissions: a folder cannot grant them to itself.
        spec = ModelSpec(**{**known, "id": name, "package": None, "remote_code": False, "pickled_weights": False})
    except (ConfigurationError, TypeError) as error:
        raise _wrong(folder / OWN_ROW, "the model's facts", str(error)) from error
    if spec.architecture != read_object(folder / "config.json").get("model_type"):
        raise _wrong(folder / OWN_ROW, "architecture", spec.architecture)
    return spec


def _score(config: dict[str, Any], family: ModelSpec | None) -> Score | None:
    """Return how a reranker's score arises; `None` for an embedder.

    Only its family tells a language model that answers `Yes` from any other.
    """
    architectures = _texts(config.get("architectures"))
    if any(each.endswith("ForSequenceClassification") for each in architectures):
        return "logit"
    if any(each in LAYERWISE for each in architectures):
        return "layerwise"
    is_asked = family is not None and family.score == "yes_logit"
    return "yes_logit" if is_asked and any(each.endswith("ForCausalLM") for each in architectures) else None


def _family(folder: Path, config: dict[str, Any], name: str) -> ModelSpec | None:
    """Find the table's row that the folder comes from: by its names, what tools write into it, or its heads."""
    for candidate in _candidates(folder, config, name):
        # BAAI's own configurations carry the training path, such as .../BAAI_bge-small-en/
        basename = candidate.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].removeprefix("BAAI_")
        spec = find_spec(basename) if basename else None
        if spec is not None and spec.architecture == config.get("model_type"):
            return spec
    if len(head_files(folder)) == len(HEADS) and config.get("model_type") == get_spec(_WITH_HEADS).architecture:
        return get_spec(_WITH_HEADS)
    return None


def _candidates(folder: Path, config: dict[str, Any], name: str) -> Iterator[str]:
    """Yield what a model may be called or come from, the surest first."""
    yield name
    yield folder.name
    if folder.name.startswith("checkpoint-"):  # of a trainer, whose output folder has the name
        yield folder.resolve().parent.name
    # Of transformers before 5, which writes neither any more; of peft, also where an adapter was merged.
    yield from _texts([config.get("_name_or_path")])
    yield from _texts([read_object(folder / "tokenizer_config.json").get("name_or_path")])
    yield from _texts([read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")])
    # Of sentence-transformers, peft and people.
    card = read_card(folder)
    base = card.get("base_model")
    yield from _texts(base if isinstance(base, list) else [base])
    index = card.get("model-index")
    rows = [each for each in index if isinstance(each, dict)] if isinstance(index, list) else []
    yield from _texts([each.get("name") for each in rows])


def _vector_facts(folder: Path, config: dict[str, Any], family: ModelSpec | None) -> dict[str, Any]:
    modules = modules_of(folder)
    kinds = [kind for kind, _ in modules]
    pooling: Pooling = family.pooling if family is not None and family.pooling else "mean"
    normalize = family.normalize if family else False
    dimension = _number(folder, config, "hidden_size", 0) or None
    if modules:
        pooling = own_pooling(folder, modules)
        normalize = normalize or "Normalize" in kinds
        dense = [path for kind, path in modules if kind == "Dense"]
        if dense:
            dimension = _number(folder, read_object(folder / dense[-1] / "config.json"), "out_features", 0) or None
    elif settings := read_object(folder / "1_Pooling" / "config.json"):
        # A copy that lost the list of its modules, but not the modules.
        found = _mode(settings)
        if found is None:
            raise _wrong(folder / "1_Pooling" / "config.json", "without modules.json a pooling", settings)
        pooling, normalize = found, normalize or os.path.isdir(folder / "2_Normalize")
    elif family is None:
        _warn_of_mean(folder, config, dimension)
    prompts = _prompts(folder)
    own = {
        "query_instruction": prompts.get("query"),
        "document_instruction": prompts.get("document") or prompts.get("passage"),
    }
    if any(own.values()):
        # A prompt stands before the text; what the family puts behind it stays.
        own["query_format"] = "{instruction}{text}" + (family.query_format.split("{text}", 1)[1] if family else "")
    facts: dict[str, Any] = {key: value for key, value in own.items() if value}
    return {**facts, "dimension": dimension, "pooling": pooling, "normalize": normalize}


def _warn_of_mean(folder: Path, config: dict[str, Any], dimension: int | None) -> None:
    alike = [
        repr(spec.id)
        for spec in list_models()
        if (spec.kind, spec.architecture, spec.dimension) == ("embedder", config.get("model_type"), dimension)
        and spec.unsupported is None
    ]
    logger.warning(
        "%s does not say how it pools (it has no modules.json) nor which model it was tuned from: the mean of all "
        "tokens is taken, without an instruction and without normalisation. BGE models want others: if it was tuned "
        "from one, name it with base_model=%s",
        folder,
        f"... Alike are {', '.join(alike)}." if alike else "...",
    )


def _prompts(folder: Path) -> dict[str, str | None]:
    """Return the prompts by name."""
    file = folder / "config_sentence_transformers.json"
    prompts = read_object(file).get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise _wrong(file, "prompts", prompts)
    return prompts


def modules_of(folder: Path) -> list[tuple[str, str]]:
    """Return kind and place of each module of a sentence-transformers chain; none when there is no chain."""
    file = folder / "modules.json"
    rows = read_values(file)
    if rows is None:
        return []
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("type"), str) for row in rows
    ):
        raise _wrong(file, "its list of modules", rows)
    return [(row["type"].rsplit(".", 1)[-1], str(row.get("path") or "")) for row in rows]


def own_pooling(folder: Path, modules: list[tuple[str, str]]) -> Pooling:
    """Return the pooling of a plain Transformer, Pooling (, Normalize) chain, else `model`."""
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        return "model"
    return _mode(read_object(folder / modules[1][1] / "config.json")) or "model"


def _mode(settings: dict[str, Any]) -> Pooling | None:
    """Return what the settings of a pooling module mean, `None` for a mode that is not one of ours."""
    mode = settings.get("pooling_mode")
    if mode is None:
        active = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]
        return _LEGACY_POOLING.get(active[0]) if len(active) == 1 else None
    return _POOLING.get(mode) if isinstance(mode, str) else None


def _lengths(folder: Path, config: dict[str, Any]) -> tuple[int, int]:
    """Return the model's own maximum length and what its position table allows."""
    if config.get("model_type") == "clip":
        inner = config.get("text_config") or {}
        if not isinstance(inner, dict):
            raise _wrong(folder / "config.json", "text_config", inner)
        config = {"max_position_embeddings": _CLIP_POSITIONS, **inner}
    positions = _number(folder, config, "max_position_embeddings", 0) or _NO_LIMIT
    if config.get("model_type") in ("xlm-roberta", "roberta", "camembert"):
        # The table's first rows are never used.
        positions -= _number(folder, config, "pad_token_id", 1) + 1
    if positions < 1:
        raise _wrong(folder / "config.json", "max_position_embeddings", config.get("max_position_embeddings"))
    limits = [
        _number(folder, read_object(folder / "sentence_bert_config.json"), "max_seq_length", 0),
        _number(folder, read_object(folder / "tokenizer_config.json"), "model_max_length", 0),
    ]
    known = [limit for limit in limits if 0 < limit < _NO_LIMIT]
    own = known[0] if known else positions
    return min(own, positions), positions


def _number(folder: Path, settings: dict[str, Any], key: str, otherwise: int) -> int:
    """Return a whole number of the settings, which may be written as 1e30; `otherwise` where there is none."""
    value = settings.get(key)
    if value is None:
        return otherwise
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < 0 or value != int(value):
        raise _wrong(folder, key, value)
    return int(value)


def _texts(values: Any) -> list[str]:
    return [each for each in values if isinstance(each, str)] if isinstance(values, list) else []


def _wrong(place: Path, what: str, value: Any) -> ModelNotFoundError:
    shown = repr(value)
    return ModelNotFoundError(
        f"{str(place)!r} has {what} = {shown if len(shown) <= 200 else shown[:197] + '...'}, which no model has. "
        "Copy the model's folder again."
    )
