"""Seeded checkpoints of the decoder embedders: architecture, width and file layout of the published repositories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.checkpoints.decoder_tokenizers import Family, decoder_tokenizer_files, decoder_vocabulary
from tests.checkpoints.files import Files, to_json

__all__ = ["DECODERS", "DecoderCheckpoint", "decoder_config", "decoder_files"]

WEB_SEARCH = "<instruct>Given a web search query, retrieve relevant passages that answer the query.\n<query>"
SHARDS = 2
# What the published configurations say, but for layers, heads and the vocabulary.
SMALL = {
    "attention_dropout": 0.0,
    "head_dim": 16,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "torch_dtype": "float32",
    "use_cache": True,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gemma2": {
        "architectures": ["Gemma2Model"],
        "attention_bias": False,
        "attn_logit_softcapping": 50.0,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": 1,
        "final_logit_softcapping": 30.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "sliding_window_size": 4096,
    },
    "mistral": {
        "architectures": ["MistralModel"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
    },
    "qwen2": {
        "architectures": ["Qwen2Model"],
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    },
    "qwen3": {
        "architectures": ["Qwen3Model"],
        "attention_bias": False,
        "hidden_act": "silu",
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
    },
}
TOKENIZERS: dict[str, Family] = {"gemma2": "gemma", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen2"}


@dataclass(frozen=True, kw_only=True)
class DecoderCheckpoint:
    """What one seeded repository looks like.

    `added` are the special tokens behind the base model's, `add_eos` and `padding_side` what its tokenizer says;
    `prompts` is what its `config_sentence_transformers.json` holds.
    """

    name: str
    architecture: str
    hidden: int
    seed: int
    max_length: int = 4096
    add_eos: bool = False
    added: tuple[str, ...] = ()
    padding_side: str = "left"
    modules: bool = True
    prompts: Mapping[str, str]


DECODERS = (
    DecoderCheckpoint(
        name="BAAI/bge-multilingual-gemma2",
        architecture="gemma2",
        hidden=3584,
        seed=41,
        add_eos=True,
        added=("<instruct>", "<query>"),
        prompts={"web_search_query": WEB_SEARCH},
    ),
    DecoderCheckpoint(
        name="BAAI/bge-en-icl",
        architecture="mistral",
        hidden=4096,
        seed=42,
        add_eos=True,
        added=("<instruct>", "<query>", "<response>"),
        prompts={"web_search_query": WEB_SEARCH},
    ),
    DecoderCheckpoint(
        name="BAAI/bge-code-v1",
        architecture="qwen2",
        hidden=1536,
        seed=43,
        padding_side="right",
        added=("<instruct>", "<query>"),
        prompts={"query": WEB_SEARCH},
    ),
    DecoderCheckpoint(
        name="BAAI/bge-reasoner-embed-qwen3-8b-0923",
        architecture="qwen3",
        hidden=4096,
        seed=44,
        max_length=32768,
        prompts={},
    ),
)


def decoder_files(checkpoint: DecoderCheckpoint) -> Files:
    """Return the content of every file of a checkpoint."""
    config = decoder_config(checkpoint)
    tokenizer = decoder_tokenizer_files(
        TOKENIZERS[checkpoint.architecture],
        add_eos=checkpoint.add_eos,
        added=checkpoint.added,
        padding_side="left" if checkpoint.padding_side == "left" else "right",
    )
    files = {"config.json": to_json(config), **tokenizer, **_shards(_seeded_weights(config, checkpoint.seed))}
    return {**files, **_sentence_transformers_files(checkpoint)} if checkpoint.modules else files


def decoder_config(checkpoint: DecoderCheckpoint) -> dict[str, Any]:
    """Return `config.json`."""
    vocabulary = decoder_vocabulary(TOKENIZERS[checkpoint.architecture], checkpoint.added)
    return {
        **SMALL,
        **ARCHITECTURES[checkpoint.architecture],
        "hidden_size": checkpoint.hidden,
        "model_type": checkpoint.architecture,
        "vocab_size": len(vocabulary),
    }


def _seeded_weights(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Random weights, large enough for every token to move what the last one sees."""
    import torch
    import transformers

    model_class = getattr(transformers, config["architectures"][0])
    settings = {key: value for key, value in config.items() if key not in ("architectures", "torch_dtype")}
    with torch.device("meta"):
        model = model_class(model_class.config_class(**settings))
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("norm.weight"):
            # Gemma's norms multiply by 1 + weight.
            weights[name] = 0.1 * noise + (0 if config["model_type"] == "gemma2" else 1)
        elif name.startswith("embed_tokens"):
            # Gemma multiplies these by the root of the width, and every text ends with the same token.
            weights[name] = (0.01 if config["model_type"] == "gemma2" else 0.1) * noise
        else:
            weights[name] = (1.5 * tensor.shape[-1] ** -0.5 if tensor.ndim == 2 else 0.05) * noise
    return weights


def _shards(weights: Mapping[str, Any]) -> Files:
    import safetensors.torch

    names = sorted(weights)
    places = {name: f"model-{1 + index % SHARDS:05}-of-{SHARDS:05}.safetensors" for index, name in enumerate(names)}
    files = {
        shard: safetensors.torch.save(
            {name: weights[name] for name in names if places[name] == shard}, metadata={"format": "pt"}
        )
        for shard in sorted(set(places.values()))
    }
    size = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    return {**files, "model.safetensors.index.json": to_json(index)}


def _sentence_transformers_files(checkpoint: DecoderCheckpoint) -> Files:
    types = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(types)
    ]
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")
    pooling = {
        "word_embedding_dimension": checkpoint.hidden,
        **{f"pooling_mode_{mode}": False for mode in modes},
        "pooling_mode_lasttoken": True,
        "include_prompt": True,
    }
    versions = {"sentence_transformers": "3.0.1", "transformers": "4.41.2", "pytorch": "2.2.1+cu121"}
    settings = {"__version__": versions, "prompts": dict(checkpoint.prompts), "default_prompt_name": None}
    return {
        "modules.json": to_json(modules),
        "1_Pooling/config.json": to_json(pooling),
        "sentence_bert_config.json": to_json({"max_seq_length": checkpoint.max_length, "do_lower_case": False}),
        "config_sentence_transformers.json": to_json(settings),
    }
