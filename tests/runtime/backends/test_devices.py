"""Which device and number format is chosen, from facts handed in."""

from __future__ import annotations

import pytest

from bge_runtime import ConfigurationError, OutOfMemoryError, choose_device
from bge_runtime.backends.devices import Accelerators, check_memory

NOTHING = Accelerators()
METAL = Accelerators(mps=True)
PASCAL = Accelerators(cuda=((6, 1),))
TURING = Accelerators(cuda=((7, 5),))
TWO_HOPPERS = Accelerators(cuda=((9, 0), (9, 0)))


@pytest.mark.parametrize(
    ("found", "device", "dtype"),
    [
        (NOTHING, "cpu", "float32"),
        (METAL, "mps", "float16"),
        (PASCAL, "cuda:0", "float32"),
        (TURING, "cuda:0", "float16"),
        (TWO_HOPPERS, "cuda:0", "float16"),
        (Accelerators(cuda=((8, 0),), mps=True), "cuda:0", "float16"),
    ],
)
def test_cuda_goes_before_metal_and_metal_before_the_cpu(found, device, dtype):
    choice = choose_device(accelerators=found)
    assert (choice.device, choice.precision) == (device, dtype)


@pytest.mark.parametrize(
    ("asked", "found", "device", "dtype"),
    [
        ("cpu", TWO_HOPPERS, "cpu", "float32"),
        ("CUDA:1", TWO_HOPPERS, "cuda:1", "float16"),
        ("cuda", TWO_HOPPERS, "cuda:0", "float16"),
        ("mps", METAL, "mps", "float16"),
        ("auto", NOTHING, "cpu", "float32"),
    ],
)
def test_the_device_asked_for_is_taken(asked, found, device, dtype):
    choice = choose_device(asked, accelerators=found)
    assert (choice.device, choice.precision) == (device, dtype)


@pytest.mark.parametrize(
    ("asked", "dtype"),
    [("float32", "float32"), ("bfloat16", "bfloat16"), ("torch.float16", "float16"), ("bf16", "bfloat16")],
)
def test_the_number_format_asked_for_is_taken(asked, dtype):
    assert choose_device("cpu", asked, accelerators=NOTHING).precision == dtype
    assert choose_device(None, asked, accelerators=TURING).precision == dtype


def test_a_torch_dtype_is_accepted():
    import torch

    assert choose_device("cpu", torch.bfloat16, accelerators=NOTHING).precision == "bfloat16"


def test_the_choice_says_why():
    assert "7.5" in choose_device(accelerators=TURING).reason
    assert "as asked" in choose_device("cpu", "float32", accelerators=TURING).reason
    assert "no CUDA" in choose_device(accelerators=NOTHING).reason


@pytest.mark.parametrize("device", ["gpu0", "cuda:x", "cuda:-1", "", "tpu", 3])
def test_an_unknown_device_name_is_answered_with_the_known_ones(device):
    with pytest.raises(ConfigurationError, match="'cuda:0'"):
        choose_device(device, accelerators=TWO_HOPPERS)


@pytest.mark.parametrize(("device", "found"), [("cuda", NOTHING), ("cuda:2", TWO_HOPPERS), ("mps", TURING)])
def test_a_device_that_is_not_there_is_refused(device, found):
    with pytest.raises(ConfigurationError, match="not there"):
        choose_device(device, accelerators=found)


@pytest.mark.parametrize("dtype", ["float8", "int4", "double", 32])
def test_an_unknown_number_format_is_answered_with_the_known_ones(dtype):
    with pytest.raises(ConfigurationError, match="bfloat16"):
        choose_device("cpu", dtype, accelerators=NOTHING)


def test_memory_is_checked_against_both_figures():
    check_memory("cpu", 1_000, "model", free=2_000)
    with pytest.raises(OutOfMemoryError, match=r"3\.00 GB .* 2\.00 GB free"):
        check_memory("cuda:0", 3_000_000_000, "model", free=2_000_000_000)
