"""`train_reranker`: each kind of model and loss, and what is behind which embedder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset

from bge_runtime import ConfigurationError, Embedder, Reranker, UnsupportedModelError
from bge_runtime.training import train_reranker
from bge_runtime.training.embedder import rows_of, set_dropout
from bge_runtime.training.holding_out import hold_out
from tests.training.toys import quick, toy_data, toy_guard

MODEL, EMBEDDER = "BAAI/bge-reranker-base", "BAAI/bge-small-en-v1.5"


def trained(folder, data=None, **options):
    given = {
        "model": MODEL,
        "embedder": EMBEDDER,
        "settings": quick(negatives=3),
        "guard": toy_guard(),
        "force": True,
        **options,
    }
    return train_reranker(toy_data(negatives=3, scores=True) if data is None else data, folder, **given)


def losses_of(done):
    return [loss for _, loss in done.report["history"]["losses"]]


@pytest.mark.parametrize("loss", ["cross_entropy", "bce", "kl", "margin_mse"])
def test_each_loss_moves_the_scores_and_hands_over_a_reranker(tmp_path, loss, hub_cache):
    done = trained(tmp_path / "out", loss=loss)
    own, base = Reranker(str(done.folder), normalize=False), Reranker(MODEL, normalize=False)
    assert own.method == "cross_encoder"
    assert own.max_length == base.max_length
    assert np.isfinite(losses_of(done)).all()
    assert np.abs(own.score("a cat", ["a dog", "a house"]) - base.score("a cat", ["a dog", "a house"])).max() > 1e-4


@pytest.mark.slow
def test_an_embedder_gets_a_head_and_learns_to_rerank(tmp_path, hub_cache):
    done = trained(tmp_path / "out", model=EMBEDDER, settings=quick(negatives=3, max_steps=25))
    assert Reranker(str(done.folder)).method == "cross_encoder"
    losses = losses_of(done)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    # Before is the embedder alone: there was no reranker.
    assert done.report["model"] == EMBEDDER


@pytest.mark.slow
def test_an_llm_reranker_is_trained_by_adapters_and_handed_over_whole(tmp_path, hub_cache):
    name = "BAAI/bge-reranker-v2-gemma"
    done = trained(tmp_path / "out", model=name, settings=quick(negatives=2, lora_rank=4, batch_size=4))
    own, base = Reranker(str(done.folder), normalize=False), Reranker(name, normalize=False)
    assert own.spec.score == "yes_logit"
    assert np.abs(own.score("a cat", ["a dog"]) - base.score("a cat", ["a dog"])).max() > 1e-4
    assert not list(done.folder.glob("adapter*"))


def test_negatives_are_those_of_the_embedder_that_it_stands_behind(tmp_path, hub_cache):
    done = trained(tmp_path / "out", toy_data())
    assert done.report["embedder_identity"] == Embedder(EMBEDDER).identity
    assert done.report["data"]["digest"] != done.report["given"]


@pytest.mark.slow
def test_groups_are_accumulated_to_the_batch_that_was_asked_for(tmp_path, hub_cache):
    whole = trained(tmp_path / "whole")
    parts = trained(tmp_path / "parts", settings=quick(negatives=3, mini_batch_size=8))
    assert losses_of(parts) == pytest.approx(losses_of(whole), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "negatives"), [("bce", 0), ("cross_entropy", 2)])
def test_the_losses_are_those_of_plain_sentence_transformers(tmp_path, loss, negatives, hub_cache):
    from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.base.sampler import BatchSamplers
    from sentence_transformers.cross_encoder import losses

    data = toy_data(120, negatives=2)
    size = 8 if loss == "bce" else 1  # one group at a time has no negatives of the batch, which theirs would add
    # A group is one forward pass here and several there, so that they draw other numbers for dropout.
    dropout = None if loss == "bce" else 0.0
    settings = quick(
        max_steps=20, dropout=dropout, evaluations=1, negatives=negatives, batch_size=size, learning_rate=2e-5
    )
    done = trained(tmp_path / "ours", data, loss=loss, settings=settings)
    rows = list(rows_of(hold_out(data, seed=0).training, settings))
    columns = [name for name in rows[0] if name != "line"]
    given = [{name: row[name] for name in columns} | ({"label": 1.0} if loss == "bce" else {}) for row in rows]
    model = CrossEncoder(str(Reranker(MODEL).source.folder), device="cpu", num_labels=1, max_length=512)
    set_dropout(model, dropout)
    args = CrossEncoderTrainingArguments(
        output_dir=str(tmp_path / "theirs"),
        max_steps=20,
        per_device_train_batch_size=size,
        learning_rate=2e-5,
        warmup_steps=0.1,
        seed=0,
        data_seed=0,
        use_cpu=True,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        batch_sampler=BatchSamplers.BATCH_SAMPLER,
    )
    theirs = (
        losses.BinaryCrossEntropyLoss(model)
        if loss == "bce"
        else losses.MultipleNegativesRankingLoss(
            model, num_negatives=None, scale=1.0, activation_fn=torch.nn.Identity()
        )
    )
    trainer = CrossEncoderTrainer(model=model, args=args, train_dataset=Dataset.from_list(given), loss=theirs)
    trainer.train()
    told = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses_of(done) == pytest.approx(told, abs=1e-4)
    assert len(told) == 20


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": "hinge"}, ConfigurationError, "loss='hinge'"),
        ({"settings": quick(negatives=0)}, ConfigurationError, "is 0"),
        ({"model": "BAAI/bge-reranker-v2-minicpm-layerwise"}, UnsupportedModelError, "behind each layer"),
        ({"loss": "kl", "data": toy_data(negatives=2)}, ConfigurationError, "Mine with a teacher"),
    ],
)
def test_what_cannot_be_trained_is_an_error_before_weights_load(tmp_path, options, error, message, hub_cache):
    with pytest.raises(error, match=message):
        trained(tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())
