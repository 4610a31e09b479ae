"""Attention of the packed executor: groups, and the path of CUDA with injected functions."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

import bge_runtime
from bge_runtime.backends.packed.attention import Layout, by_boundaries, by_group, choose_attention, find_varlen

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LENGTHS = [40, 17, 17, 17, 9, 3, 3, 1]
HEADS, SIZE = 4, 32


class Varlen:
    """What flash-attn and torch compute for texts of any lengths, written out; it records its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, query, key, value, ends_q, ends_k, longest_q, longest_k):
        self.calls.append((query.shape, key.shape, ends_q, ends_k, longest_q, longest_k))
        context = torch.zeros_like(query)
        for text in range(len(ends_q) - 1):
            asked, read = (slice(int(ends[text]), int(ends[text + 1])) for ends in (ends_q, ends_k))
            parts = (each.transpose(0, 1)[None] for each in (query[asked], key[read], value[read]))
            context[asked] = functional.scaled_dot_product_attention(*parts)[0].transpose(0, 1)
        return context


def projected(rows, dtype=torch.float32):
    torch.manual_seed(rows)
    return torch.randn(rows, 3 * HEADS * SIZE).to(dtype).view(rows, 3, HEADS, SIZE).unbind(1)


@pytest.mark.parametrize("one_query", [False, True])
def test_groups_and_one_call_for_all_texts_agree(one_query):
    layout = Layout.of(LENGTHS, CPU)
    query, key, value = projected(layout.rows)
    query = query[: layout.texts] if one_query else query
    varlen = Varlen()
    expected = by_boundaries(varlen)(query, key, value, layout, one_query=one_query)
    grouped = by_group(functional.scaled_dot_product_attention)(query, key, value, layout, one_query=one_query)
    assert grouped.shape == (len(query), HEADS * SIZE)
    torch.testing.assert_close(grouped, expected, atol=1e-6, rtol=1e-5)


def test_a_varlen_function_gets_boundaries_and_the_longest_text():
    layout = Layout.of(LENGTHS, CPU)
    query, key, value = projected(layout.rows, torch.float16)
    varlen = Varlen()
    attend = choose_attention(CUDA, torch.float16, lambda device: varlen)
    attend(query, key, value, layout)
    attend(query[: layout.texts], key, value, layout, one_query=True)
    ends = [0, *np.cumsum(LENGTHS)]
    (full, one) = varlen.calls
    assert full[:2] == ((layout.rows, HEADS, SIZE),) * 2
    assert one[:2] == ((layout.texts, HEADS, SIZE), (layout.rows, HEADS, SIZE))
    assert [call[2].dtype for call in varlen.calls] == [torch.int32, torch.int32]
    assert full[2].tolist() == full[3].tolist() == one[3].tolist() == ends
    assert one[2].tolist() == list(range(len(LENGTHS) + 1))
    assert (full[4:], one[4:]) == ((40, 40), (1, 40))


@pytest.mark.parametrize(
    ("device", "dtype"),
    [(CUDA, torch.float32), (CPU, torch.float16), (CPU, torch.float32), (torch.device("mps"), None)],
)
def test_elsewhere_attention_runs_by_group(device, dtype):
    varlen = Varlen()
    attend = choose_attention(device, dtype, lambda device: varlen)
    layout = Layout.of(LENGTHS, CPU)
    attend(*projected(layout.rows), layout)
    assert varlen.calls == []


def test_a_gpu_without_a_varlen_function_runs_by_group():
    layout = Layout.of(LENGTHS, CPU)
    query, key, value = projected(layout.rows)
    found = choose_attention(CUDA, torch.bfloat16, lambda device: None)(query, key, value, layout)
    torch.testing.assert_close(found, by_boundaries(Varlen())(query, key, value, layout), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("capability", "modules", "expected"),
    [
        ((8, 0), ("torch.nn.attention.varlen", "flash_attn"), "varlen_attn"),
        ((9, 0), ("flash_attn",), "flash_attn_varlen_func"),
        ((8, 0), (), None),
        ((7, 5), ("torch.nn.attention.varlen", "flash_attn"), None),
    ],
)
def test_torchs_own_function_comes_before_flash_attn(capability, modules, expected, monkeypatch):
    names = {"torch.nn.attention.varlen": "varlen_attn", "flash_attn": "flash_attn_varlen_func"}
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    for module, name in names.items():
        there = SimpleNamespace(**{name: name}) if module in modules else None
        monkeypatch.setitem(sys.modules, module, there)
    assert find_varlen(CUDA) == expected


def test_on_gpus_no_row_is_idle():
    assert (Layout.of([9, 4], CUDA).rows, Layout.of([9, 4], CPU).rows) == (13, 16)


@pytest.mark.parametrize("model", ["BAAI/bge-small-en-v1.5", "BAAI/bge-m3"])
def test_a_whole_model_computes_the_same_through_a_varlen_function(model, hub_cache, fresh_store, monkeypatch):
    texts = ["panda", "the dog slept in the garden", "a house", "cat " * 90]
    expected = bge_runtime.Embedder(model, backend="packed").encode_documents(texts)
    bge_runtime.unload_models()
    varlen = Varlen()
    monkeypatch.setattr(
        "bge_runtime.backends.packed.encoder.choose_attention", lambda device, dtype: by_boundaries(varlen)
    )
    found = bge_runtime.Embedder(model, backend="packed").encode_documents(texts)
    assert varlen.calls
    np.testing.assert_allclose(found, expected, atol=1e-5)
