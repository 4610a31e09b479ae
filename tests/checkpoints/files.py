"""The files of one seeded checkpoint: configuration, weights, tokenizer and sentence-transformers files."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tests.checkpoints.encoder_tokenizers import bert_tokenizer, vocabulary, xlmr_tokenizer

__all__ = ["Checkpoint", "Files", "checkpoint_files", "config_of", "to_json"]

Files = dict[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What one seeded repository looks like.

    `inner` is the width of the inner layers, twice that of the states unless given; `words` the rows of the table of
    words, as many as the tokenizer has tokens unless given; the others hold zeros and are never read. `max_length` is
    what its tokenizer and sentence-transformers files say; `head` is the number of labels, 0 for an embedder;
    `modules` says whether the sentence-transformers files are there; `m3_heads` adds the two extra heads of bge-m3;
    `poisoned_token` makes every text that holds this token come out as NaN.
    """

    name: str
    family: Literal["bert", "xlmr", "gemma", "minicpm", "cost_wise_gemma"]
    hidden: int
    seed: int
    positions: int = 512
    max_length: int = 512
    layers: int = 2
    heads: int = 4
    inner: int | None = None
    words: int | None = None
    head: int = 0
    modules: bool = True
    pickled: bool = False
    m3_heads: bool = False
    poisoned_token: str | None = None


def checkpoint_files(checkpoint: Checkpoint) -> Files:
    """Return the content of every file of a checkpoint."""
    from tests.checkpoints.llm_rerankers import LLM_FAMILIES, llm_files

    if checkpoint.family in LLM_FAMILIES:
        return llm_files(checkpoint)
    config = config_of(checkpoint)
    files = {
        "config.json": to_json(config),
        **_tokenizer_files(checkpoint),
        **_weight_files(checkpoint, config),
    }
    if checkpoint.modules:
        files |= _sentence_transformers_files(checkpoint)
    return files


def config_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return `config.json` as the published repositories have it."""
    bert = checkpoint.family == "bert"
    stem = "Bert" if bert else "XLMRoberta"
    labels = {str(index): f"LABEL_{index}" for index in range(checkpoint.head)}
    return {
        "architectures": [f"{stem}ForSequenceClassification" if checkpoint.head else f"{stem}Model"],
        "model_type": "bert" if bert else "xlm-roberta",
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": checkpoint.hidden,
        "initializer_range": 0.02,
        "intermediate_size": checkpoint.inner or 2 * checkpoint.hidden,
        "layer_norm_eps": 1e-12 if bert else 1e-5,
        "max_position_embeddings": checkpoint.positions,
        "num_attention_heads": checkpoint.heads,
        "num_hidden_layers": checkpoint.layers,
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        "type_vocab_size": 2 if bert else 1,
        "use_cache": True,
        "vocab_size": checkpoint.words or len(vocabulary(checkpoint.family)),
        **({"pad_token_id": 0} if bert else {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}),
        **({"id2label": labels, "label2id": {name: int(key) for key, name in labels.items()}} if labels else {}),
    }


def _weight_files(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Files:
    import safetensors.torch
    import torch

    weights = _seeded_weights(checkpoint, config)
    if not checkpoint.pickled:
        return {"model.safetensors": safetensors.torch.save(weights, metadata={"format": "pt"})}
    files = {"pytorch_model.bin": _pickle(weights)}
    if checkpoint.m3_heads:
        generator = torch.Generator().manual_seed(checkpoint.seed + 100)
        # About half of the tokens get a lexical weight, of the published size; special ones are among them.
        heads = (("sparse_linear.pt", 1, 0.015, 0.45), ("colbert_linear.pt", checkpoint.hidden, 0.05, 0.0))
        for name, rows, size, middle in heads:
            weight = size * torch.randn((rows, checkpoint.hidden), generator=generator)
            bias = middle + 14 * size * torch.randn(rows, generator=generator)
            files[name] = _pickle({"weight": weight, "bias": bias})
    return files


def _seeded_weights(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """Random weights, large enough for texts to differ and for each pooling to give its own vector."""
    import torch
    import transformers

    model_class = getattr(transformers, config["architectures"][0])
    settings = {key: value for key, value in config.items() if key not in ("architectures", "torch_dtype")}
    with torch.device("meta"):
        shapes = {
            name: tensor.shape
            for name, tensor in model_class(model_class.config_class(**settings)).state_dict().items()
        }
    generator = torch.Generator().manual_seed(checkpoint.seed)
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("word_embeddings.weight"):
            noise = torch.zeros(shape)
            noise[: len(vocabulary(checkpoint.family))].normal_(generator=generator)
        else:
            noise = torch.randn(shape, generator=generator)
        if name.endswith("LayerNorm.weight"):
            weights[name] = 1 + 0.1 * noise
        elif name.endswith(".bias"):
            weights[name] = 0.05 * noise
        elif "embeddings" in name:
            weights[name] = (0.1 if "word" in name else 0.03) * noise
        else:
            weights[name] = 1.5 * shape[1] ** -0.5 * noise
    if checkpoint.poisoned_token is not None:
        row = vocabulary(checkpoint.family).index(checkpoint.poisoned_token)
        table = next(name for name in weights if name.endswith("word_embeddings.weight"))
        weights[table][row] = float("nan")
    return weights


def _tokenizer_files(checkpoint: Checkpoint) -> Files:
    if checkpoint.family == "bert":
        special = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
        own = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
        tokenizer, tokenizer_class = bert_tokenizer(), "BertTokenizer"
        extra = {"vocab.txt": "\n".join(vocabulary("bert")).encode() + b"\n"}
    else:
        special = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>"}
        special["mask"] = "<mask>"
        own = {}
        tokenizer, tokenizer_class = xlmr_tokenizer(), "XLMRobertaTokenizer"
        extra = {}
    tokens = {f"{name}_token": token for name, token in special.items()}
    return {
        **extra,
        "tokenizer.json": tokenizer.to_str().encode(),
        "special_tokens_map.json": to_json(tokens),
        "tokenizer_config.json": to_json(
            {**tokens, **own, "model_max_length": checkpoint.max_length, "tokenizer_class": tokenizer_class}
        ),
    }


def _sentence_transformers_files(checkpoint: Checkpoint) -> Files:
    types = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(types)
    ]
    versions = {"sentence_transformers": "2.2.2", "transformers": "4.28.1", "pytorch": "1.13.0+cu117"}
    pooling = {"word_embedding_dimension": checkpoint.hidden, "pooling_mode_cls_token": True}
    pooling |= {f"pooling_mode_{mode}": False for mode in ("mean_tokens", "max_tokens", "mean_sqrt_len_tokens")}
    return {
        "modules.json": to_json(modules),
        "1_Pooling/config.json": to_json(pooling),
        "sentence_bert_config.json": to_json(
            {"max_seq_length": checkpoint.max_length, "do_lower_case": checkpoint.family == "bert"}
        ),
        "config_sentence_transformers.json": to_json({"__version__": versions}),
    }


def _pickle(value: Any) -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def to_json(value: Any) -> bytes:
    """Return `value` as a JSON file's content."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode()
