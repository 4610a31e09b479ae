"""A LoRA adapter is added to a model's weights, and changes its vectors."""

import sys
import tempfile

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel

from bge_runtime import Embedder

torch.manual_seed(0)
model = get_peft_model(AutoModel.from_pretrained(sys.argv[1]), LoraConfig(target_modules=["query", "value"]))
for name, weight in model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(weight)
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    plain = Embedder(sys.argv[1]).encode_documents(["one"])
    adapted = Embedder(sys.argv[1], adapter=folder).encode_documents(["one"])
assert np.abs(plain - adapted).max() > 1e-3, "the adapter changes nothing"
