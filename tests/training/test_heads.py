"""bge-m3's heads in training: what is compared, what is learned, what is left behind, and when it stops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bge_runtime import BackendError, ConfigurationError, Embedder, Reranker, lexical_score
from bge_runtime.training import heads, train_embedder
from bge_runtime.training.embedder import _table, model_to_train
from bge_runtime.training.reading import Texts
from tests.training.toys import quick, toy_data, toy_guard

MODEL = "BAAI/bge-m3"
QUERIES = ["where is the cat", "harbour with a goose of the island"]
DOCUMENTS = ["The cat sleeps in the house all day.", "a goose", "The harbour of the island, the cat and the goose."]


def trained(folder, **options):
    given = {"model": MODEL, "settings": quick(learning_rate=2e-6), "guard": toy_guard(), "force": True, **options}
    return train_embedder(toy_data(negatives=1), folder, **given)


@pytest.fixture(scope="module")
def all_heads(hub_cache, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("heads") / "model", outputs=heads.OUTPUTS)


def reading(model, embedder, given, role):
    texts = Texts(embedder, pad_id=model.tokenizer.pad_token_id)
    texts.add(given, role)
    return heads.read(model, texts.features(given, role))


@pytest.fixture
def scored(hub_cache):
    """What training compares, before anything is learned."""
    embedder = Embedder(MODEL)
    model = model_to_train(embedder).eval()
    heads.add_heads(model, embedder.source.folder)
    own, others = (reading(model, embedder, *each) for each in ((QUERIES, "query"), (DOCUMENTS, "document")))
    return embedder, {name: each.detach().numpy() for name, each in heads.compared(own, others, heads.OUTPUTS).items()}


@pytest.mark.parametrize("output", heads.OUTPUTS)
def test_training_compares_texts_as_inference_does(output, scored):
    embedder, found = scored
    reranker = Reranker(embedder, mode=output, normalize=False)
    wanted = np.stack([reranker.score(query, DOCUMENTS) for query in QUERIES])
    assert np.abs(found[output] - wanted).max() < 1e-4
    if output == "sparse":
        rows, others = embedder.encode_sparse(QUERIES), embedder.encode_sparse(DOCUMENTS)
        assert found["sparse"][1, 2] == pytest.approx(lexical_score(rows[1], others[2]), abs=1e-4)
        assert found["sparse"][1, 2] > 0


def test_the_loss_is_that_of_the_paper():
    chance = torch.Generator().manual_seed(3)
    scores = {name: torch.randn(3, 6, generator=chance) * 5 for name in heads.OUTPUTS}
    dense, sparse, multi = (scores[name].double().numpy() for name in heads.OUTPUTS)

    def log_softmax(table):
        return table - np.log(np.exp(table).sum(axis=1, keepdims=True))

    def hard(table):
        return -np.mean(np.diag(log_softmax(table)))

    together = dense + 0.3 * sparse + multi
    first = (hard(dense) + hard(together) + 0.1 * hard(sparse) + hard(multi)) / 4
    teacher = np.exp(log_softmax(together))
    taught = [-(teacher * log_softmax(each)).sum(axis=1).mean() for each in (dense, sparse, multi)]
    second = (taught[0] + 0.1 * taught[1] + taught[2]) / 3
    assert float(heads.loss_of(scores)) == pytest.approx((first + second) / 2, abs=1e-5)
    assert float(heads.loss_of({"sparse": scores["sparse"]})) == pytest.approx(hard(sparse), abs=1e-5)


@pytest.mark.slow
def test_all_heads_learn_together_and_the_folder_has_them(all_heads):
    before, after = Embedder(MODEL), Embedder(str(all_heads.folder))
    assert after.spec.outputs == heads.OUTPUTS
    old, new = (each.encode_all(DOCUMENTS, outputs=heads.OUTPUTS) for each in (before, after))
    assert np.abs(old.dense - new.dense).max() > 1e-4
    assert old.sparse != new.sparse
    assert np.abs(old.multi_vector[0] - new.multi_vector[0]).max() > 1e-4
    assert sorted(each.name for each in all_heads.folder.iterdir() if "linear" in each.name) == [
        "colbert_linear.safetensors",
        "sparse_linear.safetensors",
    ]


@pytest.mark.slow
def test_plain_sentence_transformers_reads_the_dense_vectors_of_it(all_heads):
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(all_heads.folder), device="cpu").encode(DOCUMENTS)
    assert np.abs(theirs - Embedder(str(all_heads.folder)).encode_documents(DOCUMENTS)).max() < 1e-5


def test_development_questions_are_scored_by_the_sum_that_the_gate_reads(hub_cache):
    embedder = Embedder(MODEL)
    model = model_to_train(embedder).eval()
    heads.add_heads(model, embedder.source.folder)
    texts = Texts(embedder, pad_id=model.tokenizer.pad_token_id)
    texts.add(QUERIES, "query")
    texts.add(DOCUMENTS, "document")
    with torch.no_grad():
        table = _table(model, texts, QUERIES, DOCUMENTS, heads.OUTPUTS)
    reranker = Reranker(embedder, mode="hybrid", normalize=False)
    assert np.abs(table - [reranker.score(query, DOCUMENTS) for query in QUERIES]).max() < 1e-4


@pytest.mark.slow
def test_heads_that_were_not_chosen_are_gone(tmp_path):
    done = trained(
        tmp_path / "out", outputs=("sparse", "dense"), settings=quick(max_steps=2, evaluations=1, learning_rate=2e-6)
    )
    own = Embedder(str(done.folder))
    assert own.spec.outputs == ("dense", "sparse")
    assert own.encode_sparse(DOCUMENTS)[0]
    with pytest.raises(ConfigurationError, match="has no output 'multi_vector'"):
        own.encode_all(DOCUMENTS, outputs=("multi_vector",))
    assert Reranker(own, mode="sparse").score(QUERIES[0], DOCUMENTS).shape == (3,)
    with pytest.raises(ConfigurationError, match="needs a model with trained heads"):
        Reranker(own, mode="hybrid").score(QUERIES[0], DOCUMENTS)


@pytest.mark.slow
def test_a_run_goes_on_from_a_checkpoint_with_its_heads(tmp_path, all_heads, monkeypatch):
    def dies(self, *args, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bge_runtime.training.folders.Workplace.candidate", dies)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "model", outputs=heads.OUTPUTS)
    loaded = []
    own = heads.load_checkpoint
    monkeypatch.setattr(
        "bge_runtime.training.embedder.load_checkpoint",
        lambda model, folder: loaded.append(folder) or own(model, folder),
    )
    done = trained(tmp_path / "model", outputs=heads.OUTPUTS)
    assert loaded
    for name in ("sparse_linear", "colbert_linear", "model"):
        from safetensors.torch import load_file

        ours, wanted = (load_file(folder / f"{name}.safetensors") for folder in (done.folder, all_heads.folder))
        assert all(torch.allclose(ours[key], wanted[key], atol=1e-5) for key in wanted), name


@pytest.mark.slow
def test_lexical_weights_that_collapse_stop_the_run_and_leave_a_checkpoint(tmp_path, monkeypatch):
    own, calls = heads.read, []

    def fading(model, features):
        found = own(model, features)
        if model.training:
            calls.append(1)
        return found._replace(weights=found.weights * (0.0 if len(calls) > 12 else 1.0))

    monkeypatch.setattr(heads, "read", fading)
    with pytest.raises(BackendError, match=r"have fallen from \d.* to 0 .*leave 'sparse' out of outputs="):
        trained(tmp_path / "out", outputs=heads.OUTPUTS)
    assert list((tmp_path / "out.run" / "checkpoints").glob("checkpoint-3/*_Heads/heads.safetensors"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": ("dense", "colbert")}, r"outputs=\('dense', 'colbert'\).*'multi_vector'"),
        ({"outputs": ()}, r"outputs=\(\)"),
        ({"outputs": ("sparse",), "model": "BAAI/bge-small-en-v1.5"}, "has 'dense'"),
        ({"outputs": heads.OUTPUTS, "loss": "kl"}, "loss='kl'"),
        ({"outputs": heads.OUTPUTS, "matryoshka": (8,)}, "matryoshka"),
    ],
)
def test_outputs_that_cannot_learn_are_an_error_before_weights_load(tmp_path, options, message, monkeypatch):
    monkeypatch.setattr(Embedder, "_hold", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(ConfigurationError, match=message):
        train_embedder(
            toy_data(negatives=1, scores=True), tmp_path / "out", **{"model": MODEL, "settings": quick(), **options}
        )
