"""The scores of LLM rerankers, written down from the authors' code in plain torch: one pair at a time, no padding.

The formulas are those of FlagEmbedding's `modeling_minicpm_reranker.py` and `gemma_model.py`, of Gemma's report, and
of the tokenising in FlagEmbedding's `decoder_only` rerankers. Nothing of ours and none of transformers' models runs.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

__all__ = ["PREDICT", "YES_OR_NO", "joined", "reference_score", "yes_logits"]

YES_OR_NO = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)
PREDICT = "Predict whether passage B contains an answer to query A."


def joined(folder: Path, query: str, document: str, prompt: str, max_length: int) -> tuple[list[int], int, int]:
    """Return ids, and how many stand before the document and behind it."""
    separator, tail = ids_of(folder, "\n"), ids_of(folder, prompt)
    first = [_config(folder)["bos_token_id"], *ids_of(folder, f"A: {query}")[: max_length * 3 // 4]]
    second = [*separator, *ids_of(folder, f"B: {document}")[:max_length]]
    too_many = len(first) + len(second) - (max_length + len(separator) + len(tail))
    if too_many > 0:
        second = second[:-too_many]
    return [*first, *second, *separator, *tail], len(first) + len(separator), len(separator) + len(tail)


@cache
def reference_score(
    folder: Path,
    query: str,
    document: str,
    *,
    layer: int | None = None,
    ratio: int = 1,
    compress: tuple[int, ...] = (8,),
    prompt: str | None = None,
    max_length: int = 2048,
    cap_attention: bool = False,
) -> float:
    """Return the raw score of a pair; `layer` counts those before the score head."""
    config, weights = _config(folder), _weights(folder)
    family = config["model_type"]
    own = PREDICT if family == "cost_wise_gemma" else YES_OR_NO
    ids, before, behind = joined(folder, query, document, own if prompt is None else prompt, max_length)
    last = layer or config["num_hidden_layers"]
    states = _states(folder, ids, last, before, behind, ratio, compress, cap_attention)
    state = _norm(states[-1], weights["model.norm.weight"], config)
    if family == "gemma":
        return float(state @ weights["model.embed_tokens.weight"][ids_of(folder, "Yes")[0]])
    head = last - config["start_layer"] if family == "minicpm" else 0
    logit = float(state @ weights[f"lm_head.{head}.linear_head.weight"][0])
    limit = config.get("final_logit_softcapping")
    return math.tanh(logit / limit) * limit if limit else logit


def yes_logits(folder: Path, ids: list[int], answers: list[str]) -> list[float]:
    """Return the logits of some answers behind a text: what wrong paths would subtract or read."""
    config, weights = _config(folder), _weights(folder)
    states = _states(folder, ids, config["num_hidden_layers"], len(ids), 0, 1, (), False)
    state = _norm(states[-1], weights["model.norm.weight"], config)
    return [float(state @ weights["model.embed_tokens.weight"][ids_of(folder, answer)[0]]) for answer in answers]


def ids_of(folder: Path, text: str) -> list[int]:
    """Return the tokens of a text, without special ones."""
    return list(_tokenizer(folder).encode(text, add_special_tokens=False).ids)


def _states(
    folder: Path,
    ids: list[int],
    last: int,
    before: int,
    behind: int,
    ratio: int,
    compress: tuple[int, ...],
    cap_attention: bool,
) -> torch.Tensor:
    config, weights = _config(folder), _weights(folder)
    scale = config["scale_emb"] if config["model_type"] == "minicpm" else math.sqrt(config["hidden_size"])
    states = weights["model.embed_tokens.weight"][ids] * scale
    for index in range(last):
        if ratio > 1 and index in compress:
            document = states[before : len(states) - behind]
            means = [document[start : start + ratio].mean(0) for start in range(0, len(document), ratio)]
            states = torch.cat([states[:before], torch.stack(means), states[len(states) - behind :]])
        states = _layer(states, index, config, weights, cap_attention)
    return states


def _layer(
    states: torch.Tensor, index: int, config: dict[str, Any], weights: dict[str, torch.Tensor], cap_attention: bool
) -> torch.Tensor:
    def weight(name: str) -> torch.Tensor:
        return weights[f"model.layers.{index}.{name}.weight"]

    def norm(rows: torch.Tensor, name: str) -> torch.Tensor:
        return _norm(rows, weight(name), config)

    family = config["model_type"]
    attended = _attention(norm(states, "input_layernorm"), weight, index, config, cap_attention)
    if family == "cost_wise_gemma":
        states = states + norm(attended, "post_attention_layernorm")
        return states + norm(
            _feed(norm(states, "pre_feedforward_layernorm"), weight, family), "post_feedforward_layernorm"
        )
    share = config["scale_depth"] / math.sqrt(config["num_hidden_layers"]) if family == "minicpm" else 1.0
    states = states + share * attended
    return states + share * _feed(norm(states, "post_attention_layernorm"), weight, family)


def _attention(
    rows: torch.Tensor, weight: Any, index: int, config: dict[str, Any], cap_attention: bool
) -> torch.Tensor:
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim", config["hidden_size"] // heads)
    count = len(rows)
    query = _rotated((rows @ weight("self_attn.q_proj").T).view(count, heads, size), config)
    key = _rotated((rows @ weight("self_attn.k_proj").T).view(count, shared, size), config)
    value = (rows @ weight("self_attn.v_proj").T).view(count, shared, size)
    window = config.get("sliding_window", count) if index % 2 == 0 else count
    distance = torch.arange(count)[:, None] - torch.arange(count)[None, :]
    seen = (distance >= 0) & (distance < (window if config["model_type"] == "cost_wise_gemma" else count))
    context = []
    for head in range(heads):
        owner = head * shared // heads
        logits = query[:, head] @ key[:, owner].T / math.sqrt(config.get("query_pre_attn_scalar", size))
        if cap_attention:
            logits = 50 * torch.tanh(logits / 50)
        context.append(torch.softmax(logits.masked_fill(~seen, -math.inf), dim=-1) @ value[:, owner])
    return torch.cat(context, dim=-1) @ weight("self_attn.o_proj").T


def _feed(rows: torch.Tensor, weight: Any, family: str) -> torch.Tensor:
    gate = rows @ weight("mlp.gate_proj").T
    tanh = torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))
    gate = gate * torch.sigmoid(gate) if family == "minicpm" else 0.5 * gate * (1 + tanh)
    return (gate * (rows @ weight("mlp.up_proj").T)) @ weight("mlp.down_proj").T


def _rotated(vectors: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    half = vectors.shape[-1] // 2
    rates = config["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = (torch.arange(len(vectors), dtype=torch.float64)[:, None] * rates)[:, None, :]
    left, right = vectors[..., :half], vectors[..., half:]
    return torch.cat([left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()], dim=-1)


def _norm(rows: torch.Tensor, weight: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    factor = weight if config["model_type"] == "minicpm" else 1 + weight
    return rows / torch.sqrt(rows.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]) * factor


@cache
def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@cache
def _weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {name: tensor.double() for name, tensor in load_file(file).items()}
    return found


@cache
def _tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
