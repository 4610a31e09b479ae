"""The files of seeded LLM rerankers: number of layers, names and files as published, width and vocabulary small."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.checkpoints.decoder_tokenizers import decoder_tokenizer_files, decoder_vocabulary
from tests.checkpoints.files import Checkpoint, Files, to_json

__all__ = ["LLM_FAMILIES", "llm_config", "llm_files"]

LLM_FAMILIES = ("gemma", "minicpm", "cost_wise_gemma")
SHARDS = 3


def llm_files(checkpoint: Checkpoint, **changes: Any) -> Files:
    """Return the content of every file; `changes` are put into `config.json` before the weights are drawn."""
    config = {**llm_config(checkpoint), **changes}
    tokenizer = "llama" if checkpoint.family == "minicpm" else "gemma"
    return {
        "config.json": to_json(config),
        **decoder_tokenizer_files(tokenizer, max_length=checkpoint.max_length),
        **_remote_code(config),
        **_sharded(_seeded_weights(checkpoint, config)),
    }


def llm_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return `config.json` with the keys of the published one."""
    gemma = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "head_dim": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": checkpoint.hidden,
        "initializer_range": 0.02,
        "intermediate_size": 2 * checkpoint.hidden,
        "max_position_embeddings": checkpoint.positions,
        "num_attention_heads": checkpoint.heads,
        "num_hidden_layers": checkpoint.layers,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": len(decoder_vocabulary("gemma")),
    }
    if checkpoint.family == "gemma":
        named = {"architectures": ["GemmaForCausalLM"], "model_type": "gemma"}
        return {**gemma, **named, "num_key_value_heads": 1, "rope_scaling": None}
    if checkpoint.family == "cost_wise_gemma":
        return {**gemma, **_lightweight(checkpoint)}
    return _minicpm(checkpoint)


def _lightweight(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "architectures": ["CostWiseGemmaForCausalLM"],
        "auto_map": {
            "AutoConfig": "gemma_config.CostWiseGemmaConfig",
            "AutoModel": "gemma_model.CostWiseGemmaModel",
            "AutoModelForCausalLM": "gemma_model.CostWiseGemmaForCausalLM",
        },
        "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": 30.0,
        "layer_sep": 1,
        "layer_wise": True,
        "model_type": "cost_wise_gemma",
        "num_key_value_heads": 2,
        "query_pre_attn_scalar": checkpoint.hidden // checkpoint.heads,
        "sliding_window": 4096,
        "sliding_window_size": 4096,
        "start_layer": 8,
        "transformers_version": "4.42.2",
    }


def _minicpm(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "architectures": ["LayerWiseMiniCPMForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_minicpm_reranker.LayerWiseMiniCPMConfig",
            "AutoModel": "modeling_minicpm_reranker.LayerWiseMiniCPMModel",
            "AutoModelForCausalLM": "modeling_minicpm_reranker.LayerWiseMiniCPMForCausalLM",
        },
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "dim_model_base": 256,
        "eos_token_id": 2,
        "head_multi": True,
        "head_type": "simple",
        "hidden_act": "silu",
        "hidden_size": checkpoint.hidden,
        "initializer_range": 0.1,
        "intermediate_size": 2 * checkpoint.hidden,
        "max_position_embeddings": checkpoint.positions,
        "model_type": "minicpm",
        "num_attention_heads": checkpoint.heads,
        "num_hidden_layers": checkpoint.layers,
        "num_key_value_heads": checkpoint.heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "scale_depth": 1.4,
        "scale_emb": 12,
        "start_layer": 8,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.38.1",
        "use_cache": False,
        "vocab_size": len(decoder_vocabulary("llama")),
    }


def _remote_code(config: Mapping[str, Any]) -> Files:
    """The Python files that the configuration names; they must never run."""
    modules = {name.split(".")[0] for name in config.get("auto_map", {}).values()}
    return {f"{module}.py": b"raise SystemExit('the code of a repository was run')\n" for module in modules}


def _seeded_weights(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(checkpoint.seed)
    dtype = getattr(torch, config["torch_dtype"])
    weights = {}
    for name, shape in _shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1:  # Gemma adds 1 to the factors of its norms
            value = 0.1 * noise + (config["model_type"] == "minicpm")
        elif "embed_tokens" in name:
            value = (0.1 if config["model_type"] == "minicpm" else 0.5) * noise
        else:
            value = 1.5 * shape[1] ** -0.5 * noise
        weights[name] = value.to(dtype)
    return weights


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner = config["hidden_size"], config["intermediate_size"]
    size = config.get("head_dim", width // config["num_attention_heads"])
    queries, keys = size * config["num_attention_heads"], size * config["num_key_value_heads"]
    norms = ["input_layernorm", "post_attention_layernorm"]
    if config["model_type"] == "cost_wise_gemma":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    layer = {
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        **dict.fromkeys(norms, (width,)),
    }
    count = config["num_hidden_layers"]
    heads = count + 1 - config["start_layer"] if "start_layer" in config else 0
    return {
        "model.embed_tokens.weight": (config["vocab_size"], width),
        **{f"model.layers.{index}.{name}.weight": shape for index in range(count) for name, shape in layer.items()},
        "model.norm.weight": (width,),
        **{f"lm_head.{index}.linear_head.weight": (1, width) for index in range(heads)},
    }


def _sharded(weights: Mapping[str, Any]) -> Files:
    import safetensors.torch

    names = list(weights)
    step = -(-len(names) // SHARDS)
    files, places = {}, {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = names[shard * step : (shard + 1) * step]
        files[file] = safetensors.torch.save({name: weights[name] for name in part}, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    size = sum(weight.numel() * weight.element_size() for weight in weights.values())
    return {**files, "model.safetensors.index.json": to_json({"metadata": {"total_size": size}, "weight_map": places})}
