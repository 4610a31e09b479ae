"""BERT's forward written out, for the ONNX export: tracing the library's own gives a silently wrong graph."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

__all__ = ["PlainForward"]

MASKED = -10000.0


class PlainForward(nn.Module):
    """Token vectors of an encoder, or the logits of a classifier."""

    def __init__(self, model: Any) -> None:
        """Take over the weights of a transformers model."""
        super().__init__()
        self.model = model
        self.bert = getattr(model, "bert", model)
        self.heads = model.config.num_attention_heads
        self.size = model.config.hidden_size // self.heads

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        """Compute from token ids, attention mask and token types, each of shape (batch, length)."""
        inputs = self.bert.embeddings
        places = torch.arange(ids.shape[1]).unsqueeze(0)
        rows = inputs.word_embeddings(ids) + inputs.token_type_embeddings(types) + inputs.position_embeddings(places)
        rows = inputs.LayerNorm(rows)
        added = (1.0 - mask[:, None, None, :].to(rows.dtype)) * MASKED
        for layer in self.bert.encoder.layer:
            joined = layer.attention.output.dense(self._attention(layer.attention.self, rows, added))
            rows = layer.attention.output.LayerNorm(joined + rows)
            inner = layer.intermediate.dense(rows)
            inner = inner * 0.5 * (1.0 + torch.erf(inner / math.sqrt(2.0)))
            rows = layer.output.LayerNorm(layer.output.dense(inner) + rows)
        if not hasattr(self.model, "classifier"):
            return rows
        logits: torch.Tensor = self.model.classifier(torch.tanh(self.bert.pooler.dense(rows[:, 0])))
        return logits

    def _attention(self, attention: Any, rows: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        batch, length, _ = rows.shape
        query, key, value = (
            layer(rows).view(batch, length, self.heads, self.size).permute(0, 2, 1, 3)
            for layer in (attention.query, attention.key, attention.value)
        )
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(self.size) + added
        read = torch.matmul(torch.softmax(scores, -1), value)
        return read.permute(0, 2, 1, 3).reshape(batch, length, self.heads * self.size)
