"""What is loaded, how often, from which files, and when it is freed."""

from __future__ import annotations

import gc
import json
import signal
import threading
import time
import weakref

import numpy as np
import pytest

import bge_runtime
from tests.checkpoints.hub_cache import (
    Checkpoint,
    fine_tuned_folder,
    folder_without_weights,
    padded_tokenizer_folder,
    pickled_folder,
    place_in_hub_cache,
    write_checkpoint,
)
from tests.contracts.concurrency import in_threads
from tests.runtime import references

SMALL = Checkpoint(name="somebody/small", family="bert", hidden=64, seed=31)
TEXT = "The giant panda is a bear species endemic to China."
LONG = "the dog slept in the garden " * 60


def test_pickled_weights_of_the_table_are_read_with_weights_only(hub_cache, fresh_store, monkeypatch):
    import torch

    seen = []
    load = torch.load

    def spy(*args, **kwargs):
        seen.append(kwargs.get("weights_only"))
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", spy)
    bge_runtime.Embedder("BAAI/bge-m3").encode_queries([TEXT])
    assert seen
    assert set(seen) == {True}


def test_a_folder_with_pickles_only_is_refused_at_construction(tmp_path):
    with pytest.raises(bge_runtime.UnsafeWeightsError, match="safetensors"):
        bge_runtime.Embedder(pickled_folder(tmp_path))


def test_an_unknown_repository_with_pickles_only_is_refused(tmp_path):
    folder = pickled_folder(tmp_path / "folder")
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    place_in_hub_cache(tmp_path / "hub", "somebody/pickled", files)
    embedder = bge_runtime.Embedder("somebody/pickled", cache_folder=str(tmp_path / "hub"))
    with pytest.raises(bge_runtime.UnsafeWeightsError, match="safetensors"):
        embedder.encode_queries([TEXT])


def test_a_folder_without_weights_is_refused_at_construction(tmp_path):
    with pytest.raises(bge_runtime.ModelNotFoundError, match="no weights"):
        bge_runtime.Embedder(folder_without_weights(tmp_path))


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_says_so(tmp_path, missing):
    changes = {missing: None, **({"vocab.txt": None} if missing == "tokenizer.json" else {})}
    folder = write_checkpoint(tmp_path, SMALL, **changes)
    with pytest.raises(bge_runtime.ModelNotFoundError, match=missing.split(".")[0]):
        bge_runtime.Embedder(folder)


def test_a_folder_that_does_not_exist_is_refused_at_construction(tmp_path):
    with pytest.raises(bge_runtime.ModelNotFoundError, match="does not exist"):
        bge_runtime.Embedder(tmp_path / "nothing")


def test_damaged_weights_are_an_error_of_ours(tmp_path):
    folder = write_checkpoint(tmp_path, SMALL, **{"model.safetensors": b"\0" * 100})
    with pytest.raises(bge_runtime.BGEError, match="cannot be loaded"):
        bge_runtime.Embedder(folder).encode_queries([TEXT])


def test_truncation_and_padding_of_tokenizer_json_are_cleared(tmp_path):
    folder = padded_tokenizer_folder(tmp_path)
    embedder = bge_runtime.Embedder(folder, truncation="silent")
    expected = [references.vector(folder, text, max_length=512) for text in (TEXT, LONG)]
    np.testing.assert_allclose(embedder.encode_documents([TEXT, LONG]), expected, atol=1e-5)
    assert embedder.count_tokens(["panda", LONG]) == [3, 362]
    assert embedder.truncated_count == 0


def test_a_fine_tuned_folder_takes_its_familys_facts(tmp_path):
    embedder = bge_runtime.Embedder(fine_tuned_folder(tmp_path))
    base = bge_runtime.get_spec("BAAI/bge-small-en-v1.5")
    assert embedder.query_instruction == base.query_instruction
    assert (embedder.spec.pooling, embedder.normalize, embedder.dimension) == ("cls", True, 384)


def test_base_model_names_the_family_of_a_folder_that_does_not(tmp_path):
    folder = write_checkpoint(tmp_path / "tuned", Checkpoint(name="x", family="bert", hidden=64, seed=5, modules=False))
    plain = bge_runtime.Embedder(folder)
    assert (plain.query_instruction, plain.spec.pooling) == ("", "mean")
    tuned = bge_runtime.Embedder(folder, base_model="bge-small-zh-v1.5")
    assert tuned.query_instruction == bge_runtime.get_spec("BAAI/bge-small-zh-v1.5").query_instruction
    expected = references.vector(folder, TEXT, max_length=512)
    np.testing.assert_allclose(tuned.encode_documents([TEXT])[0], expected, atol=1e-5)


def test_a_model_outside_the_table_keeps_its_own_prompts_and_pooling(tmp_path):
    prompts = {"prompts": {"query": "ask: ", "document": "tell: "}}
    pooling = {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    folder = write_checkpoint(
        tmp_path,
        SMALL,
        **{
            "config_sentence_transformers.json": json.dumps(prompts).encode(),
            "1_Pooling/config.json": json.dumps(pooling).encode(),
        },
    )
    embedder = bge_runtime.Embedder(folder)
    for encode, prompt in ((embedder.encode_queries, "ask: "), (embedder.encode_documents, "tell: ")):
        expected = references.vector(folder, prompt + TEXT, max_length=512, pooling="mean")
        np.testing.assert_allclose(encode([TEXT])[0], expected, atol=1e-5)


def test_a_model_with_further_modules_runs_all_of_them(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    transformer = Transformer(str(write_checkpoint(tmp_path / "base", SMALL)))
    chain = [transformer, Pooling(64, "mean"), Dense(in_features=64, out_features=16), Normalize()]
    model = SentenceTransformer(modules=chain, device="cpu")
    model.save(str(tmp_path / "chain"))
    embedder = bge_runtime.Embedder(tmp_path / "chain")
    assert (embedder.dimension, embedder.spec.pooling) == (16, "model")
    np.testing.assert_allclose(
        embedder.encode_documents([TEXT, "cat"]), model.encode([TEXT, "cat"], show_progress_bar=False), atol=1e-5
    )


def test_names_in_any_letter_case_share_the_weights(hub_cache, fresh_store):
    for name in ("BAAI/bge-small-en-v1.5", "baai/BGE-small-en-v1.5", "bge-small-en-v1.5"):
        bge_runtime.Embedder(name).encode_queries([TEXT])
    assert len(bge_runtime.loaded_models()) == 1


def test_each_number_format_is_a_copy_of_its_own(hub_cache, fresh_store):
    bge_runtime.Embedder(precision="float32", backend="packed").warm_up()
    bge_runtime.Embedder(precision="bfloat16", backend="packed").warm_up()
    rows = {row.precision: row.bytes for row in bge_runtime.loaded_models()}
    assert rows["float32"] == pytest.approx(2 * rows["bfloat16"], rel=0.01)  # norms stay in float32


def test_loaded_models_tell_what_is_in_memory(hub_cache, fresh_store):
    bge_runtime.Embedder().warm_up()
    (row,) = bge_runtime.loaded_models()
    assert (row.name, row.device, row.precision) == (
        "BAAI/bge-small-en-v1.5",
        bge_runtime.choose_device().device,
        "float32",
    )
    assert row.folder == str(references.snapshot_of(hub_cache, "BAAI/bge-small-en-v1.5"))
    assert row.bytes == 4 * row.parameters > 1_000_000


@pytest.mark.parametrize("attempt", range(3))
def test_concurrent_loads_of_different_number_formats_do_not_corrupt_each_other(hub_cache, fresh_store, attempt):
    folder = references.snapshot_of(hub_cache, "BAAI/bge-small-en-v1.5")
    ranked = references.snapshot_of(hub_cache, "BAAI/bge-reranker-base")
    vector = references.vector(folder, TEXT, max_length=512)
    logit = references.pair_logit(ranked, "panda", TEXT, max_length=512)
    formats = ["float32", "bfloat16"] * 2
    options = [{"precision": each, "backend": "packed"} for each in formats]
    embed = [lambda each=each: bge_runtime.Embedder(**each).encode_documents([TEXT])[0] for each in options]
    score = [lambda each=each: bge_runtime.Reranker(**each).score("panda", [TEXT]) for each in options]
    results = in_threads([*embed, *score])
    for found, dtype in zip(results[:4], formats, strict=True):
        np.testing.assert_allclose(found, vector, atol=1e-5 if dtype == "float32" else 0.02)
    for found, dtype in zip(results[4:], formats, strict=True):
        np.testing.assert_allclose(found, logit, atol=1e-5 if dtype == "float32" else 0.1)
    rows = bge_runtime.loaded_models()
    assert sorted(row.precision for row in rows) == ["bfloat16", "bfloat16", "float32", "float32"]
    widths = {"float32": 4, "bfloat16": 2}
    assert all(row.bytes == pytest.approx(row.parameters * widths[row.precision], rel=0.05) for row in rows)


def test_many_first_callers_load_the_weights_once(hub_cache, fresh_store):
    before = bge_runtime.stats()["loads"]
    in_threads([lambda: bge_runtime.Embedder().encode_queries([TEXT])] * 8)
    assert bge_runtime.stats()["loads"] - before == 1


def test_close_frees_the_weights_when_nobody_else_holds_them(hub_cache, fresh_store):
    left, right = bge_runtime.Embedder().warm_up(), bge_runtime.Embedder(query_instruction="").warm_up()
    left.close()
    assert len(bge_runtime.loaded_models()) == 1
    right.close()
    assert len(bge_runtime.loaded_models()) == 0


def test_a_closed_embedder_loads_again_on_the_next_call(hub_cache, fresh_store):
    embedder = bge_runtime.Embedder()
    expected = embedder.encode_queries([TEXT])
    embedder.close()
    embedder.close()
    np.testing.assert_allclose(embedder.encode_queries([TEXT]), expected, atol=1e-6)


def test_leaving_the_context_closes(hub_cache, fresh_store):
    with bge_runtime.Embedder() as embedder, bge_runtime.Reranker() as reranker:
        embedder.encode_queries([TEXT])
        reranker.score("panda", [TEXT])
        assert len(bge_runtime.loaded_models()) == 2
    assert len(bge_runtime.loaded_models()) == 0


@pytest.mark.parametrize("backend", ["packed", "torch"])
def test_unloading_frees_memory_even_while_embedders_live(hub_cache, fresh_store, backend):
    from bge_runtime.loading.store import STORE

    embedder = bge_runtime.Embedder(backend=backend).warm_up()
    (loaded,) = STORE._models.values()
    reference = weakref.ref(loaded.engine.replicas[0].backend)
    del loaded
    bge_runtime.unload_models()
    gc.collect()
    assert reference() is None
    assert embedder.encode_queries([TEXT]).shape == (1, 384)


def test_closing_ends_the_worker_thread(hub_cache, fresh_store):
    with bge_runtime.Embedder() as embedder:
        embedder.encode_queries([TEXT])
        assert _workers()
    assert not _workers()


def test_equal_texts_are_computed_once(hub_cache, fresh_store):
    embedder = bge_runtime.Embedder()
    before = bge_runtime.stats()
    embedder.encode_documents(["cat", "dog", "cat"] * 50)
    after = bge_runtime.stats()
    assert after["texts"] - before["texts"] == 150
    assert after["inputs"] - before["inputs"] == 2
    assert after["duplicates"] - before["duplicates"] == 148


def test_a_call_is_sliced_by_token_budget_and_not_by_tens(hub_cache):
    embedder = bge_runtime.Embedder(batch_tokens=4096)
    before = bge_runtime.stats()["batches"]
    embedder.encode_documents([f"cat {number}" for number in range(300)])
    assert bge_runtime.stats()["batches"] - before <= 2


def test_weights_too_large_for_memory_are_refused_with_both_figures(hub_cache, fresh_store, monkeypatch):
    monkeypatch.setattr("bge_runtime.backends.devices._free_bytes", lambda device: 1_000_000)
    with pytest.raises(bge_runtime.OutOfMemoryError, match=r"0\.00 GB free"):
        bge_runtime.Embedder().encode_queries([TEXT])


def test_replicas_share_a_queue_and_give_the_same_vectors(hub_cache, fresh_store):
    texts = [f"{TEXT} {number}" for number in range(300)]
    expected = bge_runtime.Embedder().encode_documents(texts)
    single = bge_runtime.loaded_models()[0]
    bge_runtime.unload_models()
    embedder = bge_runtime.Embedder(devices=["cpu", "cpu"], batch_tokens=512)
    np.testing.assert_allclose(embedder.encode_documents(texts), expected, atol=1e-5)
    (row,) = bge_runtime.loaded_models()
    assert (row.device, row.parameters, row.bytes) == ("cpu, cpu", single.parameters, 2 * single.bytes)
    assert len(_workers()) == 2


def test_replicas_that_would_run_differently_are_refused():
    from bge_runtime.backends.execution import Execution
    from bge_runtime.loading.weights import check_alike

    gpu = Execution(backend="torch", device="cuda:0", precision="float16", reason="")
    cpu = Execution(backend="packed", device="cpu", precision="float32", reason="")
    check_alike([gpu, gpu])
    with pytest.raises(bge_runtime.ConfigurationError, match=r"cuda:0 \(torch, float16\), cpu \(packed, float32\)"):
        check_alike([gpu, cpu])


@pytest.mark.parametrize("backend", ["packed", "torch"])
def test_idle_weights_leave_memory_and_come_back_with_the_next_call(
    hub_cache, fresh_store, backend, monkeypatch, request
):
    from bge_runtime.loading import weights as reading

    loaded, load = weakref.WeakSet(), reading.load_backend

    def watched(*arguments):
        found = load(*arguments)
        loaded.add(getattr(found, "model", found))  # the backend itself may go while its weights stay in a cycle
        return found

    monkeypatch.setattr(reading, "load_backend", watched)
    request.addfinalizer(gc.enable)
    gc.disable()  # what is freed must not depend on when Python looks for cycles
    embedder = bge_runtime.Embedder(keep_alive_s=0.05, backend=backend)
    before = bge_runtime.stats()
    expected = embedder.encode_queries([TEXT])
    _until(lambda: not bge_runtime.loaded_models())
    _until(lambda: not _workers())
    assert len(loaded) == 0
    np.testing.assert_allclose(embedder.encode_queries([TEXT]), expected, atol=1e-6)
    after = bge_runtime.stats()
    assert (after["loads"] - before["loads"], after["unloads"] - before["unloads"] >= 1) == (2, True)


def test_weights_that_are_never_used_leave_memory_too(hub_cache, fresh_store):
    bge_runtime.Embedder(keep_alive_s=0.05).warm_up()
    _until(lambda: not bge_runtime.loaded_models())


def test_the_most_patient_holder_decides_how_long_idle_weights_stay(hub_cache, fresh_store):
    from bge_runtime.loading.store import STORE

    hasty, patient, forever = (bge_runtime.Embedder(keep_alive_s=each).warm_up() for each in (5, 60, None))
    (loaded,) = STORE._models.values()
    assert loaded.engine.keep_alive_s is None
    forever.close()
    assert loaded.engine.keep_alive_s == 60
    patient.close()
    assert loaded.engine.keep_alive_s == 5
    hasty.close()


def test_a_reload_that_fails_gives_the_callers_the_error_of_loading(tmp_path, fresh_store):
    folder = write_checkpoint(tmp_path, SMALL)
    embedder = bge_runtime.Embedder(folder, keep_alive_s=0.05)
    expected = embedder.encode_queries([TEXT])
    weights = (folder / "model.safetensors").read_bytes()
    _until(lambda: not bge_runtime.loaded_models())
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(bge_runtime.ModelNotFoundError, match="cannot be loaded"):
        embedder.encode_queries([TEXT])
    (folder / "model.safetensors").write_bytes(weights)
    np.testing.assert_allclose(embedder.encode_queries([TEXT]), expected, atol=1e-6)


def test_a_reranker_is_no_embedder(hub_cache):
    with pytest.raises(bge_runtime.ConfigurationError, match="Reranker"):
        bge_runtime.Embedder("BAAI/bge-reranker-base")


def _until(condition):
    """Wait for what the workers do."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never happens"
        time.sleep(0.01)


def _workers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("bge-BAAI")]


def test_weights_are_read_on_a_thread_that_ends_with_it(hub_cache, fresh_store, monkeypatch):
    """A caller's own OpenMP threads beside the worker's would be more than cores: then all of them sleep a lot."""
    from bge_runtime.loading import store as loading

    threads = []
    read = loading.read_backend

    def noting(*arguments):
        threads.append(threading.current_thread())
        return read(*arguments)

    monkeypatch.setattr(loading, "read_backend", noting)
    bge_runtime.Embedder("BAAI/bge-small-en-v1.5").encode_queries(["panda"])
    (thread,) = threads
    assert thread is not threading.main_thread()
    assert not thread.is_alive()


def test_an_error_of_loading_reaches_the_caller(hub_cache, fresh_store, monkeypatch):
    from bge_runtime.loading import store as loading

    def fail(*arguments):
        raise bge_runtime.BackendError("injected")

    monkeypatch.setattr(loading, "read_backend", fail)
    embedder = bge_runtime.Embedder("BAAI/bge-small-en-v1.5")
    with pytest.raises(bge_runtime.BackendError, match="injected"):
        embedder.encode_queries(["panda"])
    monkeypatch.undo()
    assert embedder.encode_queries(["panda"]).shape == (1, embedder.dimension)


def test_a_model_that_is_asked_for_while_another_is_loaded_is_an_error_and_no_hang(hub_cache, fresh_store, monkeypatch):
    from bge_runtime.loading import store as loading

    read, errors = loading.read_backend, []

    def nested(*arguments):
        try:
            bge_runtime.Reranker().warm_up()
        except bge_runtime.BackendError as error:
            errors.append(str(error))
        return read(*arguments)

    monkeypatch.setattr(loading, "read_backend", nested)
    assert bge_runtime.Embedder().encode_queries([TEXT]).shape == (1, 384)
    assert "would wait for itself" in errors[0]


def test_an_interrupt_during_the_first_load_loses_nothing(hub_cache, fresh_store, monkeypatch):
    from bge_runtime.loading import store as loading

    begun, going_on = threading.Event(), threading.Event()
    read = loading.read_backend

    def slow(*arguments):
        begun.set()
        assert going_on.wait(10)
        return read(*arguments)

    def interrupt():
        begun.wait(10)
        time.sleep(0.3)  # a signal that comes just before the wait would be seen after it only
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    monkeypatch.setattr(loading, "read_backend", slow)
    # A shell that runs the tests in the background has it ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt).start()
    embedder = bge_runtime.Embedder("BAAI/bge-small-en-v1.5")
    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        embedder.encode_queries(["panda"])
    signal.signal(signal.SIGINT, handler)
    assert time.perf_counter() - started < 8  # long before the weights are there
    going_on.set()
    assert embedder.encode_queries(["panda"]).shape == (1, embedder.dimension)
    assert len(bge_runtime.loaded_models()) == 1


def test_a_signal_is_survived_after_openvino_was_unloaded(hub_cache, fresh_store):
    """OpenVINO takes the loading thread's signal stack away with the model; that must not be the main thread's."""
    pytest.importorskip("openvino")
    seen = []
    handler = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    names = ("BAAI/bge-small-en-v1.5", "BAAI/bge-small-zh-v1.5")
    embedders = [bge_runtime.Embedder(name, backend="openvino").warm_up() for name in names]
    for embedder in embedders:  # each puts back what it found: the other order would be harmless
        embedder.close()
        gc.collect()
    signal.raise_signal(signal.SIGTERM)  # would end the process at once, without a word
    signal.signal(signal.SIGTERM, handler)
    assert seen == [signal.SIGTERM]
