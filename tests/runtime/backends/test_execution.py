"""Which backend, device and precision a model gets, and what is said about it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import bge_runtime
from bge_runtime.backends.devices import Accelerators
from bge_runtime.backends.execution import choose_execution

NOTHING = Accelerators()
GPU = Accelerators(cuda=((8, 0), (7, 0)))


def choice(device=None, precision=None, backend="auto", *, found=NOTHING, installed=(), architecture="bert"):
    return choose_execution(
        device,
        precision,
        backend,
        architecture=architecture,
        accelerators=found,
        installed=lambda package: package in installed,
    )


@pytest.mark.parametrize(
    ("asked", "found", "installed", "expected"),
    [
        ({}, NOTHING, (), ("packed", "cpu", "float32")),
        ({}, NOTHING, ("openvino", "onnxruntime"), ("packed", "cpu", "float32")),
        ({"precision": "bfloat16"}, NOTHING, (), ("packed", "cpu", "bfloat16")),
        ({"precision": "bfloat16"}, NOTHING, ("openvino",), ("openvino", "cpu", "bfloat16")),
        ({"precision": "int8"}, NOTHING, (), ("packed", "cpu", "int8")),
        ({"precision": "int8"}, NOTHING, ("openvino",), ("openvino", "cpu", "int8")),
        ({"precision": "float16"}, NOTHING, ("openvino",), ("packed", "cpu", "float16")),
        ({"architecture": "gemma2"}, NOTHING, (), ("torch", "cpu", "float32")),
        ({"architecture": "gemma2", "precision": "bfloat16"}, NOTHING, ("openvino",), ("torch", "cpu", "bfloat16")),
        ({}, GPU, ("openvino",), ("torch", "cuda:0", "float16")),
        ({"device": "cuda:1", "backend": "packed"}, GPU, (), ("packed", "cuda:1", "float16")),
        ({"backend": "openvino"}, GPU, ("openvino",), ("openvino", "cpu", "float32")),
        ({"backend": "onnx", "precision": "int8"}, GPU, ("onnxruntime",), ("onnx", "cpu", "int8")),
    ],
)
def test_what_is_left_open_is_chosen(asked, found, installed, expected):
    chosen = choice(**asked, found=found, installed=installed)
    assert (chosen.backend, chosen.device, chosen.precision) == expected
    assert chosen.backend in chosen.reason


@pytest.mark.parametrize(
    ("asked", "found", "message"),
    [
        ({"backend": "vulkan"}, NOTHING, "'packed'"),
        ({"backend": "torch", "precision": "int8"}, NOTHING, "takes 'float32'"),
        ({"precision": "int8"}, GPU, "int8 runs on device='cpu'"),
        ({"backend": "onnx"}, NOTHING, r"bge-integrations\[onnx\]"),
        ({"backend": "openvino", "device": "cuda:0"}, GPU, "runs on the CPU"),
        ({"backend": "onnx", "precision": "bfloat16"}, NOTHING, "'float32', 'int8'"),
        ({"architecture": "gemma2", "precision": "int8"}, NOTHING, "takes 'float32'"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_does(asked, found, message):
    with pytest.raises(bge_runtime.ConfigurationError, match=message):
        choice(**asked, found=found)


def test_an_export_is_chosen_without_importing_torch():
    code = (
        "import sys; from bge_runtime import choose_execution;"
        "choose_execution(None, 'int8', 'onnx', installed=lambda package: True);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": []}, "one or more"),
        ({"devices": "cpu"}, "one or more"),
        ({"devices": ["cpu"], "device": "cpu"}, "leave device= out"),
        ({"devices": ["gpu"]}, "'gpu'"),
        ({"keep_alive_s": -1}, "Pass seconds"),
        ({"calibration": "no/such/file.txt"}, "is not a file"),
        ({"precision": "int4"}, "'int8'"),
    ],
)
def test_options_are_checked_before_anything_is_loaded(options, message):
    with pytest.raises(bge_runtime.ConfigurationError, match=message):
        bge_runtime.Embedder(**options)


def test_the_precision_class_is_part_of_the_identity_and_the_float_width_is_not(hub_cache):
    exact, half, int8 = (bge_runtime.Embedder(precision=each).identity for each in (None, "bfloat16", "int8"))
    assert exact == half
    assert exact != int8
