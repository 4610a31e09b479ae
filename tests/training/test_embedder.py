"""`train_embedder`: what it learns, what it leaves behind, and how it ends when something is wrong."""

from __future__ import annotations

import errno
import json
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset

from bge_runtime import BackendError, ConfigurationError, Embedder, get_spec
from bge_runtime.training import Example, TrainingData, train_embedder
from bge_runtime.training.embedder import rows_of
from bge_runtime.training.folders import Workplace
from bge_runtime.training.holding_out import hold_out
from tests.checkpoints.hub_cache import POISON, poisoned_folder
from tests.training.toys import quick, toy_data, toy_guard

MODEL = "BAAI/bge-small-en-v1.5"


def trained(folder, data=None, **options):
    given = {"model": MODEL, "settings": quick(), "guard": toy_guard(), "force": True, **options}
    return train_embedder(toy_data(negatives=3, scores=True) if data is None else data, folder, **given)


def losses_of(done):
    return [loss for _, loss in done.report["history"]["losses"]]


def test_the_folder_alone_says_all_that_the_model_needs(tuned):
    own = Embedder(str(tuned.folder))
    spec = get_spec(MODEL)
    assert own.query_instruction == spec.query_instruction
    assert (own.spec.pooling, own.normalize, own.max_length) == (spec.pooling, spec.normalize, spec.max_length)
    assert own.spec.temperature == spec.temperature
    assert not np.allclose(own.encode_documents(["a cat"]), Embedder(MODEL).encode_documents(["a cat"]), atol=1e-3)


@pytest.mark.slow
def test_a_tuned_bge_m3_says_that_its_heads_are_gone(tmp_path):
    done = trained(tmp_path / "out", model="BAAI/bge-m3", settings=quick(max_steps=1, evaluations=1))
    own = Embedder(str(done.folder))
    assert own.spec.outputs == ("dense",)
    with pytest.raises(ConfigurationError, match="has no output 'sparse'"):
        own.encode_sparse(["a cat"])


def test_plain_sentence_transformers_gives_the_same_vectors_of_it(tuned):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tuned.folder), device="cpu")
    own = Embedder(str(tuned.folder))
    for prompt, encode in (("query", own.encode_queries), ("document", own.encode_documents)):
        theirs = model.encode(["where is the cat"], prompt_name=prompt)
        assert np.abs(theirs - encode(["where is the cat"])).max() < 1e-5


def test_the_card_and_the_report_say_how_it_came_about(tuned):
    told = json.loads((tuned.folder / "training.json").read_text())
    card = (tuned.folder / "README.md").read_text()
    assert told["data"]["digest"] in card
    assert {each["name"] for each in told["gate"]["measured"]} == {"unseen", "seen", "guard"}
    assert f'base_model: ["{MODEL}"]' in card
    assert (tuned.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [step for step, _ in told["history"]["scores"]] == [3, 6]
    assert not tuned.folder.with_name("model.run").exists()


@pytest.mark.slow
def test_the_same_seed_learns_the_same_and_another_does_not(tmp_path):
    first, again, other = (
        trained(tmp_path / str(number), settings=quick(seed=seed, dropout=None))
        for number, seed in enumerate((0, 0, 1))
    )
    assert losses_of(first) == losses_of(again)
    assert losses_of(first) != losses_of(other)


@pytest.mark.parametrize(
    "options",
    [
        {"settings": quick(lora_rank=4)},
        {"settings": quick(mini_batch_size=4)},
        {"matryoshka": (32, 16)},
        {"loss": "kl", "settings": quick(negatives=3)},
        {"loss": "margin_mse", "settings": quick(negatives=3)},
        {"loss": "contrastive_kl", "settings": quick(negatives=2)},
        pytest.param({"settings": quick(gradient_checkpointing=True)}, marks=pytest.mark.slow),
        pytest.param({"settings": quick(precision="bfloat16")}, marks=pytest.mark.slow),
    ],
    ids=lambda options: " ".join(f"{each}" for each in options),
)
def test_each_way_of_training_moves_the_weights_and_hands_over_a_model(tmp_path, options, hub_cache):
    done = trained(tmp_path / "out", **options)
    assert all(np.isfinite(losses_of(done)))
    vectors = Embedder(str(done.folder)).encode_documents(["a cat"])
    assert np.isfinite(vectors).all()
    assert np.abs(vectors - Embedder(MODEL).encode_documents(["a cat"])).max() > 1e-4


@pytest.mark.slow
def test_cached_gradients_are_those_of_the_whole_batch(tmp_path, hub_cache):
    whole = trained(tmp_path / "whole")
    parts = trained(tmp_path / "parts", settings=quick(mini_batch_size=4))
    assert losses_of(parts) == pytest.approx(losses_of(whole), abs=1e-4)


@pytest.mark.slow
def test_the_losses_are_those_of_plain_sentence_transformers(tmp_path, hub_cache):
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.sampler import BatchSamplers
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    data = toy_data(120, negatives=1)
    settings = quick(max_steps=20, dropout=None, evaluations=1)
    done = trained(tmp_path / "ours", data, settings=settings)
    embedder = Embedder(MODEL)
    rows = list(rows_of(hold_out(data, seed=0).training, settings))
    columns = Dataset.from_list([{name: row[name] for name in ("query", "positive", "negative_1")} for row in rows])
    model = SentenceTransformer(str(embedder.source.folder), device="cpu")
    args = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "theirs"),
        max_steps=20,
        per_device_train_batch_size=8,
        learning_rate=3e-4,
        warmup_steps=0.1,
        seed=0,
        data_seed=0,
        use_cpu=True,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        prompts={"query": embedder.query_instruction},
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=args, train_dataset=columns, loss=MultipleNegativesRankingLoss(model, scale=50)
    )
    trainer.train()
    theirs = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses_of(done) == pytest.approx(theirs, abs=1e-4)
    assert len(theirs) == 20


def test_a_model_that_learned_nothing_is_kept_aside(tmp_path, hub_cache):
    done = trained(tmp_path / "out", force=False, settings=quick(max_steps=1, learning_rate=1e-7, evaluations=1))
    assert not done.gate.is_open
    assert done.folder == tmp_path / "out.rejected"
    assert not (tmp_path / "out").exists()
    assert "gained nothing" in done.gate.reasons[0]
    assert Embedder(str(done.folder)).encode_documents(["a"]).shape == (1, 384)


def test_a_loss_that_is_no_number_names_the_lines_and_keeps_the_last_checkpoint(tmp_path, hub_cache, monkeypatch):
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    forward, calls = MultipleNegativesRankingLoss.forward, []

    def broken(self, features, labels):
        calls.append(len(calls))
        return forward(self, features, labels) * (float("nan") if len(calls) == 5 else 1)

    monkeypatch.setattr(MultipleNegativesRankingLoss, "forward", broken)
    with pytest.raises(BackendError, match=r"The loss is nan.*The last checkpoint is kept") as caught:
        trained(tmp_path / "out")
    named = re.findall(r"toys line (\d+)", str(caught.value))
    assert len(set(named)) == 8
    assert [each.name for each in (tmp_path / "out.run" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-3"]


def test_a_model_whose_vectors_are_no_numbers_is_refused_before_training(tmp_path):
    folder = poisoned_folder(tmp_path / "model")
    data = toy_data()
    poisoned = tuple(replace(each, query=f"{each.query} {POISON}") for each in data.examples)
    with pytest.raises(BackendError, match="gave NaN or infinite numbers"):
        trained(tmp_path / "out", replace(data, examples=poisoned), model=str(folder))


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_whole_and_the_run_goes_on_from_it(tmp_path, hub_cache, monkeypatch):
    from sentence_transformers import SentenceTransformer

    save = SentenceTransformer.save_pretrained
    saved = []

    def full(self, path, *args, **named):
        if len(saved) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(path)
        return save(self, path, *args, **named)

    monkeypatch.setattr(SentenceTransformer, "save_pretrained", full)
    with pytest.raises(ConfigurationError, match=r"No space left.*goes on from its last whole checkpoint"):
        trained(tmp_path / "out")
    assert [each.name for each in (tmp_path / "out.run" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-3"]
    monkeypatch.setattr(SentenceTransformer, "save_pretrained", save)
    whole = trained(tmp_path / "whole")
    assert losses_of(trained(tmp_path / "out")) == losses_of(whole)


def test_ctrl_c_leaves_the_last_checkpoint(tmp_path, hub_cache, monkeypatch):
    from bge_runtime.training import runs

    step = runs._Bar.on_step_end

    def interrupted(self, args, state, control, **named):
        if state.global_step == 4:
            raise KeyboardInterrupt
        step(self, args, state, control, **named)

    monkeypatch.setattr(runs._Bar, "on_step_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "out")
    monkeypatch.setattr(runs._Bar, "on_step_end", step)
    assert runs.last_checkpoint(tmp_path / "out.run" / "checkpoints").name == "checkpoint-3"
    assert losses_of(trained(tmp_path / "out")) == losses_of(trained(tmp_path / "whole"))


def test_a_place_that_is_taken_is_refused_before_anything_is_computed(tmp_path, tuned):
    with pytest.raises(ConfigurationError, match="is there already"):
        trained(tuned.folder)
    (tmp_path / "out.run" / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "out.run" / "run.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="holds a run of other data or settings"):
        trained(tmp_path / "out")


def test_a_place_where_nothing_was_trained_yet_is_taken_by_other_settings(tmp_path):
    workplace = Workplace(tmp_path / "out", {"seed": 0})
    assert Workplace(tmp_path / "out", {"seed": 1}).folder == workplace.folder
    assert json.loads((workplace.folder / "run.json").read_text()) == {"seed": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": quick(batch_size=1, negatives=0)}, "the loss is 0"),
        ({"loss": "kl", "settings": quick(negatives=0)}, "needs negatives"),
        ({"loss": "hinge"}, "loss='hinge'"),
        ({"temperature": 0}, "temperature=0"),
        ({"matryoshka": (384,)}, "matryoshka"),
        ({"tolerance": 1.5}, "tolerance=1.5"),
        ({"share": 0.9}, "share=0.9"),
    ],
)
def test_a_wrong_option_is_an_error_before_weights_load(tmp_path, options, message, hub_cache, monkeypatch):
    monkeypatch.setattr(Embedder, "_hold", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(ConfigurationError, match=message):
        trained(tmp_path / "out", **options)


def test_a_teachers_loss_wants_a_teachers_scores(tmp_path, hub_cache):
    with pytest.raises(ConfigurationError, match=r"toys line 1 has none. Mine with a teacher"):
        trained(tmp_path / "out", toy_data(negatives=2), loss="kl")


def test_an_instruction_of_an_example_that_the_model_does_not_have_is_refused(tmp_path, hub_cache):
    data = toy_data()
    other = replace(data, examples=(replace(data.examples[0], prompt="Find: "), *data.examples[1:]))
    with pytest.raises(ConfigurationError, match="prompt='Find: '"):
        trained(tmp_path / "out", other)


def test_flagembeddings_own_file_trains_as_it_is(tmp_path, hub_cache):
    rows = [
        {"query": each.query, "pos": list(each.positives), "neg": list(each.negatives), "prompt": "", "type": "normal"}
        for each in toy_data(negatives=2).examples
    ]
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = trained(tmp_path / "out", TrainingData.read(file))
    assert done.report["data"]["examples"] == 48


def test_rows_fill_up_negatives_from_other_examples_and_never_with_a_positive():
    examples = tuple(Example(query=f"q{at}", positives=(f"p{at}", f"r{at}")) for at in range(4))
    rows = list(rows_of(TrainingData(name="n", examples=examples), quick(negatives=3)))
    assert len(rows) == 8
    for row in rows:
        own = examples[row["line"]].positives
        others = [row[f"negative_{number}"] for number in (1, 2, 3)]
        assert len(set(others)) == 3
        assert not set(others) & set(own)
    assert rows == list(rows_of(TrainingData(name="n", examples=examples), quick(negatives=3)))
