"""Backends are entered once; other packages may offer theirs, and cannot disturb ours."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import bge_runtime
from bge_runtime.backends.registry import backend_names, find_backend
from tests.docs.pages import ROOT

MODEL = bge_runtime.DEFAULT_OFFLINE_MODEL
OURS = ["packed", "torch", "onnx", "openvino", "llm"]
GOOD = """
from bge_runtime.backends import torch
from bge_runtime.backends.registry import BackendRecord

RECORD = BackendRecord(name="mine", module="their_backend", runs="what torch runs", cpu_precisions=("float32",))
loads = []


def load(request):
    loads.append(request.name)
    return torch.load(request)
"""


@pytest.fixture
def offered(tmp_path, monkeypatch):
    """Installs a package that offers one backend."""

    def offer(name, source, target="their_backend:RECORD", package="their-package"):
        (tmp_path / "their_backend.py").write_text(source, encoding="utf-8")
        metadata = tmp_path / f"{package.replace('-', '_')}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[bge_runtime.backends]\n{name} = {target}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "their_backend", raising=False)

    yield offer
    sys.modules.pop("their_backend", None)


def test_the_backend_of_another_package_runs_where_it_is_asked_for(offered, minilm):
    offered("mine", GOOD)
    texts = ["panda", "the dog slept"]
    found = bge_runtime.Embedder(MODEL, backend="mine").encode_documents(texts)
    expected = bge_runtime.Embedder(MODEL, backend="torch").encode_documents(texts)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert sys.modules["their_backend"].loads == [MODEL]
    assert [info.backend for info in bge_runtime.loaded_models() if info.backend == "mine"] == ["mine"]
    bge_runtime.unload_models()


def test_it_is_listed_and_never_chosen(offered):
    offered("mine", GOOD)
    assert backend_names() == [*OURS, "mine"]
    assert "what torch runs" in bge_runtime.Execution.backends()["mine"]
    assert bge_runtime.choose_execution().backend != "mine"
    with pytest.raises(bge_runtime.ConfigurationError, match="'mine'"):
        bge_runtime.Embedder(MODEL, backend="yours")


def test_its_precisions_hold(offered):
    offered("mine", GOOD)
    with pytest.raises(bge_runtime.ConfigurationError, match="does not compute in precision='bfloat16'"):
        bge_runtime.choose_execution(precision="bfloat16", backend="mine")


@pytest.mark.parametrize("name", ["packed", "auto"])
def test_our_names_cannot_be_taken(offered, name):
    offered(name, GOOD)
    assert backend_names() == OURS
    assert find_backend("packed").module == "bge_runtime.backends.packed.encoder"


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("raise RuntimeError('broken')", "their_backend:RECORD"),
        ("RECORD = 3", "their_backend:RECORD"),
        (GOOD, "their_backend:MISSING"),
        (GOOD.replace('name="mine"', 'name="other"'), "their_backend:RECORD"),
    ],
)
def test_a_broken_package_is_named_and_disturbs_no_other(offered, source, target):
    offered("mine", source, target)
    with pytest.raises(bge_runtime.ConfigurationError, match="'their-package'"):
        bge_runtime.Embedder(MODEL, backend="mine")
    assert "their-package" in bge_runtime.Execution.backends()["mine"]
    assert bge_runtime.Embedder(MODEL, backend="torch").device == "cpu"


@pytest.mark.parametrize(
    "source",
    [GOOD.replace('module="their_backend"', 'module="their_gone"'), GOOD.replace("def load(", "def open(")],
    ids=["no module", "no load"],
)
def test_a_record_whose_module_does_not_load_is_the_packages_fault_and_not_the_models(offered, minilm, source):
    offered("mine", source)
    with pytest.raises(bge_runtime.ConfigurationError, match="'their-package'"):
        bge_runtime.Embedder(MODEL, backend="mine").encode_documents(["panda"])


def test_a_name_that_two_packages_offer_is_refused_and_both_are_named(offered):
    offered("mine", GOOD)
    offered("mine", GOOD, package="another-package")
    with pytest.raises(bge_runtime.ConfigurationError, match="their-package") as caught:
        bge_runtime.Embedder(MODEL, backend="mine")
    assert "another-package" in str(caught.value)
    assert bge_runtime.Embedder(MODEL, backend="torch").device == "cpu"


def test_the_page_says_what_the_records_say():
    page = (ROOT / "docs" / "backends.md").read_text(encoding="utf-8")
    for name in OURS:
        record = find_backend(name)
        needs = f'`pip install "{record.install}"`' if record.install else "nothing more"
        precisions = ", ".join(f"`{each}`" for each in record.cpu_precisions)
        assert f"| `{name}` | {record.runs} | {needs} | {precisions} | {record.padding} |\n" in page
