"""MTEB's tasks over the runtime, built from the small collection, without a network."""

from __future__ import annotations

import pytest

from bge_runtime import DEFAULT_OFFLINE_MODEL, ConfigurationError, Embedder
from bge_runtime.evaluation.evaluation import evaluate
from bge_runtime.evaluation.mteb import BGEEncoder, evaluate_tasks

mteb = pytest.importorskip("mteb", reason="mteb is not installed: pip install bge-integrations[mteb]")

FACTS = {
    "description": "Made for a test.",
    "dataset": {"path": "none", "revision": "none"},
    "eval_splits": ["test"],
    "eval_langs": ["eng-Latn"],
    "modalities": ["text"],
}


@pytest.fixture(scope="module")
def retrieval(data):
    """The collection as a task of MTEB."""
    from datasets import Dataset
    from mteb import TaskMetadata
    from mteb.abstasks import AbsTaskRetrieval

    class SmallRetrieval(AbsTaskRetrieval):
        metadata = TaskMetadata(type="Retrieval", name="SmallRetrieval", main_score="ndcg_at_10", **FACTS)

        def load_data(self, **_):
            rows = [{"id": name, "title": "", "text": text} for name, text in data.documents.items()]
            split = {
                "corpus": Dataset.from_list(rows),
                "queries": Dataset.from_list([{"id": name, "text": text} for name, text in data.queries.items()]),
                "relevant_docs": {name: dict(grades) for name, grades in data.grades.items()},
                "top_ranked": None,
            }
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    return SmallRetrieval()


@pytest.fixture(scope="module")
def similarity():
    """A symmetric task."""
    from datasets import Dataset, DatasetDict
    from mteb import TaskMetadata
    from mteb.abstasks.sts import AbsTaskSTS

    class SmallSTS(AbsTaskSTS):
        metadata = TaskMetadata(type="STS", name="SmallSTS", main_score="cosine_spearman", **FACTS)
        min_score, max_score = 0, 1

        def load_data(self, **_):
            pairs = {
                "sentence1": ["The heart pumps blood.", "Paris is a city.", "Bread is baked."],
                "sentence2": ["The heart moves blood.", "Lungs take up air.", "Bread is made in an oven."],
                "score": [1.0, 0.0, 0.7],
            }
            self.dataset, self.data_loaded = DatasetDict({"test": Dataset.from_dict(pairs)}), True

    return SmallSTS()


@pytest.mark.filterwarnings("ignore")
def test_a_task_of_retrieval_gives_the_figure_of_evaluate(retrieval, data):
    with Embedder(DEFAULT_OFFLINE_MODEL, truncation="silent") as embedder:
        told = []
        scores = evaluate_tasks(embedder, [retrieval], notify=told.append)
        # MTEB rounds its scores to five places.
        assert scores == {"SmallRetrieval": pytest.approx(evaluate(embedder, data).metrics["nDCG@10"], abs=1e-5)}
    assert told == ["1 of 1: SmallRetrieval"]


@pytest.mark.filterwarnings("ignore")
def test_only_queries_of_retrieval_get_the_instruction(retrieval, similarity, monkeypatch):
    asked = []
    embedder = Embedder(DEFAULT_OFFLINE_MODEL, query_instruction="Represent: ", truncation="silent")
    real = embedder.encode_queries
    monkeypatch.setattr(
        embedder, "encode_queries", lambda texts, **options: asked.extend(texts) or real(texts, **options)
    )
    assert evaluate_tasks(embedder, [similarity])["SmallSTS"] > 0.9
    assert asked == []
    evaluate_tasks(embedder, [retrieval])
    assert len(asked) == 12


def test_results_name_the_model_and_what_changes_its_vectors(minilm):
    encoder = BGEEncoder(DEFAULT_OFFLINE_MODEL)
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.revision) == (DEFAULT_OFFLINE_MODEL, encoder.embedder.identity)
    assert BGEEncoder(str(minilm)).mteb_model_meta.name.count("/") == 1


def test_a_task_that_there_is_not_is_an_error_and_so_is_none():
    with pytest.raises(ConfigurationError, match="'NoSuchTask' does not exist"):
        evaluate_tasks(DEFAULT_OFFLINE_MODEL, ["NoSuchTask"])
    with pytest.raises(ConfigurationError, match="No task is named"):
        evaluate_tasks(DEFAULT_OFFLINE_MODEL, [])


def test_a_task_of_pictures_is_refused():
    class Pictures:
        type, name = "Any2AnyRetrieval", "Pictures"

    with pytest.raises(ConfigurationError, match=r"'Pictures' gives \['image'\]"):
        BGEEncoder(DEFAULT_OFFLINE_MODEL).encode([{"image": []}], task_metadata=Pictures, hf_split="", hf_subset="")
