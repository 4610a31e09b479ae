"""What is around a forward pass on the CPU: freed memory goes back to the system."""

from __future__ import annotations

import torch

from bge_runtime.backends import results
from bge_runtime.inputs.tokenizing import TokenSequence


def test_freed_memory_is_given_back_after_many_tokens(monkeypatch):
    trims = []
    monkeypatch.setattr(results, "give_memory_back", lambda: trims.append(1))
    monkeypatch.setattr(results, "TRIM_TOKENS", 100)
    computing = results.Computing(torch.device("cpu"))
    batch = [TokenSequence([1] * 20, [0] * 20)] * 2
    for expected in (0, 0, 1, 1, 1, 2):
        with computing(batch):
            pass
        assert len(trims) == expected


def test_memory_is_given_back_without_harm():
    kept = [torch.ones(1000) for _ in range(100)]
    results.give_memory_back()
    assert all(float(each.sum()) == 1000 for each in kept)
