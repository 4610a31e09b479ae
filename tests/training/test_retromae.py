"""Pre-training by RetroMAE: what it writes, that it goes on after its end, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import bge_runtime
from bge_runtime import BackendError, ConfigurationError, Embedder, InputError, UnsupportedModelError
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.training import retromae
from bge_runtime.training.embedder import train_embedder
from bge_runtime.training.examples import Example, TrainingData
from bge_runtime.training.retromae import train_retromae
from bge_runtime.training.settings import TrainingSettings
from tests.checkpoints.hub_cache import BY_NAME, Checkpoint, poisoned_folder, write_checkpoint
from tests.training.test_retromae_model import texts

TEXTS = texts(150)
PARTS = ("encoder_loss", "decoder_loss")
# 8 steps an epoch: the checkpoint of step 20 is from within one.
LONG = TrainingSettings(
    epochs=9, max_steps=40, batch_size=20, mini_batch_size=10, learning_rate=2e-3, evaluations=4, seed=1
)
SHORT = TrainingSettings(max_steps=4, batch_size=20, learning_rate=2e-3, evaluations=1)
KILLED = """
import os, signal, sys
from bge_runtime.training import retromae
from tests.training.test_retromae import LONG, TEXTS

told = retromae.RetroMAETrainer.log

def log(self, logs, start_time=None):
    told(self, logs, start_time)
    if self.state.global_step == 23:
        os.kill(os.getpid(), signal.SIGKILL)

retromae.RetroMAETrainer.log = log
retromae.train_retromae(TEXTS, sys.argv[2], model=sys.argv[1], settings=LONG)
"""


def checkpoint(**facts):
    return Checkpoint(name="a/b", hidden=64, seed=3, positions=66, max_length=64, layers=2, **facts)


@pytest.fixture(scope="module", params=["bert", "xlmr"])
def base(request, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp(request.param), checkpoint(family=request.param))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("small"), checkpoint(family="bert"))


@pytest.fixture(scope="module")
def pretrained(base, tmp_path_factory):
    return train_retromae(TEXTS, tmp_path_factory.mktemp("out") / "model", model=str(base), settings=LONG)


def weights(folder: Path):
    return load_file(folder / "model.safetensors")


def test_both_losses_fall(pretrained):
    history, held = pretrained.report["history"], pretrained.report["held_out"]
    for name in PARTS:
        steps, values = zip(*history[name], strict=True)
        assert steps == tuple(range(1, 41))
        assert np.mean(values[-5:]) < 0.85 * np.mean(values[:5])
        assert held["after"][name] < 0.9 * held["before"][name]
    for at, (_, loss) in enumerate(history["losses"]):
        assert loss == pytest.approx(sum(history[name][at][1] for name in PARTS), rel=1e-5)


def test_the_folder_tells_what_was_done(pretrained):
    folder, report = pretrained.folder, pretrained.report
    assert json.loads((folder / "training.json").read_text())["held_out"] == report["held_out"]
    assert report["held_out"]["texts"] == 8
    assert report["data"]["texts"] == len(set(TEXTS)) - 8
    assert report["mask_rates"] == {"encoder": pytest.approx(0.3, abs=0.02), "decoder": pytest.approx(0.5, abs=0.02)}
    card = (folder / "README.md").read_text()
    assert "encoder 0.30, decoder 0.50" in card
    assert f"| encoder_loss | {report['held_out']['before']['encoder_loss']:.4f} |" in card
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not folder.with_name("model.run").exists()


def test_the_folder_loads_by_its_path_with_the_names_and_the_pooling_of_the_base(pretrained, base):
    new, old = weights(pretrained.folder), weights(base)
    assert new.keys() == old.keys()
    assert {name for name in old if torch.equal(new[name], old[name])} <= {"pooler.dense.weight", "pooler.dense.bias"}
    trained, before = Embedder(str(pretrained.folder)), Embedder(str(base))
    for name in ("pooling", "normalize", "max_length", "dimension", "architecture"):
        assert getattr(trained.spec, name) == getattr(before.spec, name)
    assert (pretrained.folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    vectors = [each.encode_documents(TEXTS[:3]) for each in (trained, before)]
    assert (np.sum(vectors[0] * vectors[1], axis=1) < 0.99).all()
    assert trained.tokenize(TEXTS[:3]) == before.tokenize(TEXTS[:3])


def test_training_for_retrieval_starts_from_it(pretrained, tmp_path):
    examples = [Example(query=" ".join(text.split()[:3]), positives=(text,)) for text in dict.fromkeys(TEXTS[:40])]
    guard = Judgements(name="guard", queries={"q": "panda"}, grades={"q": {"d": 1}}, documents={"d": "a panda"})
    trained = train_embedder(
        TrainingData(name="few", examples=tuple(examples)),
        tmp_path / "embedder",
        model=str(pretrained.folder),
        settings=TrainingSettings(max_steps=2, batch_size=4, negatives=0, learning_rate=1e-7, evaluations=1),
        share=0.2,
        guard=guard,
        force=True,
    )
    new, old = weights(trained.folder), weights(pretrained.folder)
    assert new.keys() == old.keys()
    assert all(torch.allclose(new[name], old[name], atol=1e-5) for name in old)


@pytest.mark.parametrize("base", ["bert"], indirect=True)
@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(pretrained, base, tmp_path):
    out = tmp_path / "model"
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(base), str(out)],
        cwd=Path(__file__).parents[2],
        env=os.environ,
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert not out.exists()
    assert [each.name for each in (tmp_path / "model.run" / "checkpoints").iterdir()] == ["checkpoint-20"]
    resumed = train_retromae(TEXTS, out, model=str(base), settings=LONG)
    new, old = weights(resumed.folder), weights(pretrained.folder)
    assert all(torch.allclose(new[name], old[name], atol=1e-5) for name in old)
    for name in PARTS:
        assert [step for step, _ in resumed.report["history"][name]] == list(range(1, 41))
        whole = [value for _, value in pretrained.report["history"][name]]
        assert [value for _, value in resumed.report["history"][name]] == pytest.approx(whole, abs=1e-4)
    assert resumed.report["held_out"]["after"] == pytest.approx(pretrained.report["held_out"]["after"], abs=1e-4)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_losses_from_a_list_and_from_json_lines(small, tmp_path):
    file = tmp_path / "texts.jsonl"
    rows = [{"text": text} for text in TEXTS[:60]]
    rows[3] = {"title": TEXTS[3].split(" ", 1)[0], "text": TEXTS[3].split(" ", 1)[1]}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [
        train_retromae(given, tmp_path / f"out{at}", model=str(small), settings=settings).report
        for at, (given, settings) in enumerate(
            [(iter(TEXTS[:60]), SHORT), (file, SHORT), (file, TrainingSettings(**{**SHORT.as_dict(), "seed": 1}))]
        )
    ]
    assert found[0]["data"]["digest"] == found[1]["data"]["digest"]
    losses = [report["history"]["encoder_loss"] for report in found]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_each_epoch_has_masks_of_its_own(small, tmp_path, monkeypatch):
    seen = {}

    class Watching(retromae.Collator):
        def collate(self, ids, *, lines, epoch):
            batch = super().collate(ids, lines=lines, epoch=epoch)
            for line, labels in zip(lines, batch["labels"], strict=True):
                seen.setdefault(line, {}).setdefault(epoch, labels[: len(ids[lines.index(line)])])
            return batch

    monkeypatch.setattr(retromae, "Collator", Watching)
    settings = TrainingSettings(epochs=3, batch_size=20, learning_rate=2e-3, evaluations=1)
    report = train_retromae(TEXTS[:40], tmp_path / "out", model=str(small), settings=settings).report
    epochs = [sorted(masks) for masks in seen.values()]
    assert epochs.count([0]) == report["held_out"]["texts"] == 2
    assert epochs.count([0, 1, 2]) == 38
    assert sum(torch.equal(masks[0], masks[1]) for masks in seen.values() if len(masks) == 3) < 10


def test_documents_of_a_folder_are_split_as_search_splits_them(small, tmp_path):
    place = tmp_path / "documents"
    place.mkdir()
    (place / "guide.md").write_text("# Guide\n\n" + " ".join(TEXTS))
    found = train_retromae(place, tmp_path / "out", model=Embedder(str(small), max_length=32), settings=SHORT)
    assert found.report["data"]["texts"] > 40
    assert Embedder(str(found.folder)).max_length == 32


def test_a_model_whose_losses_rose_is_put_aside(small, tmp_path):
    settings = TrainingSettings(max_steps=6, batch_size=20, learning_rate=1.0, evaluations=1)
    with pytest.raises(ConfigurationError, match=r"a loss did not fall: encoder_loss \d+\.\d+ to \d+\.\d+") as told:
        train_retromae(TEXTS[:60], tmp_path / "out", model=str(small), settings=settings)
    aside = tmp_path / "out.rejected"
    assert repr(str(aside)) in str(told.value)
    assert json.loads((aside / "training.json").read_text())["handed_over"] is False
    assert [each.name for each in tmp_path.iterdir()] == ["out.rejected"]


def test_a_loss_that_is_no_number_names_the_texts(tmp_path):
    folder = poisoned_folder(tmp_path / "base")
    with pytest.raises(BackendError, match=r"The loss is nan.*text \d+, text \d+.*last checkpoint is kept"):
        train_retromae(TEXTS[:40], tmp_path / "out", model=str(folder), settings=SHORT)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("fresh_store")
def test_what_cannot_be_learned_from_is_refused_before_weights_are_read(small, tmp_path):
    reranker = write_checkpoint(tmp_path / "reranker", checkpoint(family="xlmr", head=1, modules=False))
    decoder = write_checkpoint(tmp_path / "decoder", BY_NAME["BAAI/bge-multilingual-gemma2"])
    lines = tmp_path / "texts.jsonl"
    lines.write_text('{"text": "a panda"}\n{"query": "panda"}\n')
    for given, model, options, error, message in (
        ([], small, {}, InputError, r"There are 0 different texts to learn from, of 20 at least"),
        (["a panda"] * 30, small, {}, InputError, r"There are 1 different texts"),
        ([*TEXTS, " \n"], small, {}, InputError, r"text 151 is ' \\n'\. Leave out"),
        ([*TEXTS, None], small, {}, InputError, r"texts\[150\] is NoneType None"),
        (lines, small, {}, InputError, r"texts\.jsonl line 2 has no text"),
        (str(tmp_path / "nothing"), small, {}, ConfigurationError, r"nothing' does not exist"),
        (TEXTS, reranker, {}, ConfigurationError, r"is a reranker, not an embedder"),
        (TEXTS, decoder, {}, UnsupportedModelError, r"of the architecture 'gemma2', and RetroMAE trains 'bert'"),
        (TEXTS, small, {"decoder_rate": 1}, ConfigurationError, r"decoder_rate=1 is not allowed"),
        (TEXTS, small, {"settings": TrainingSettings(lora_rank=4)}, ConfigurationError, r"lora_rank=4 is not allowed"),
        (TEXTS, small, {"settings": TrainingSettings(batch_size=48)}, ConfigurationError, r"mini_batch_size=32 texts"),
    ):
        with pytest.raises(error, match=message):
            train_retromae(given, tmp_path / "out", model=str(model), **options)
    assert not bge_runtime.loaded_models()
    assert not (tmp_path / "out.run").exists()
