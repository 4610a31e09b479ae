"""`evaluate`: the same figures for a model, the frameworks' retrievers over it, and a saved run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import pytrec_eval

from bge_runtime import DEFAULT_OFFLINE_MODEL, ConfigurationError, Embedder, InputError, Reranker, VectorCache
from bge_runtime.evaluation import exact
from bge_runtime.evaluation.evaluation import Evaluation, evaluate
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.metrics import METRICS, measure
from bge_runtime.evaluation.sources import Passage


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return VectorCache(tmp_path_factory.mktemp("vectors") / "vectors.sqlite")


@pytest.fixture(scope="module")
def embedder(cache):
    with Embedder(DEFAULT_OFFLINE_MODEL, vector_cache=cache, truncation="silent") as embedder:
        yield embedder.warm_up()


@pytest.fixture(scope="module")
def by_model(data, embedder):
    return evaluate(embedder, data)


@pytest.fixture(scope="module")
def store(data, embedder):
    """The documents in LangChain's FAISS, under ids of its own."""
    from langchain_community.vectorstores import FAISS

    from langchain_bge import BGEEmbeddings

    metadatas = [{"doc_id": name} for name in data.documents]
    return FAISS.from_texts(list(data.documents.values()), BGEEmbeddings(embedder=embedder), metadatas)


def test_the_figures_are_those_of_trec_eval(data, by_model):
    names = {"nDCG@10": "ndcg_cut_10", "R@100": "recall_100", "AP@100": "map_cut_100", "success@5": "success_5"}
    run = {query: dict(found) for query, found in by_model.run.items()}
    evaluator = pytrec_eval.RelevanceEvaluator(
        {q: dict(g) for q, g in data.grades.items()}, {"ndcg_cut", "recall", "map_cut", "success"}
    )
    told = evaluator.evaluate(run)
    for name, theirs in names.items():
        assert by_model.metrics[name] == pytest.approx(np.mean([each[theirs] for each in told.values()]), abs=1e-6)
    short = {query: dict(found[:10]) for query, found in by_model.run.items()}
    ranks = pytrec_eval.RelevanceEvaluator({q: dict(g) for q, g in data.grades.items()}, {"recip_rank"}).evaluate(short)
    assert by_model.metrics["RR@10"] == pytest.approx(
        np.mean([each["recip_rank"] for each in ranks.values()]), abs=1e-6
    )
    assert 0.4 < by_model.metrics["nDCG@10"] < 1


def test_a_second_run_embeds_nothing(data, by_model, cache):
    again = evaluate(DEFAULT_OFFLINE_MODEL, data, vector_cache=cache)
    assert (again.texts_embedded, again.metrics) == (0, by_model.metrics)
    assert again.identity == by_model.identity


def test_both_frameworks_rank_as_the_model_does(data, embedder, by_model, store):
    from llama_index.core import VectorStoreIndex
    from llama_index.core.llms import MockLLM
    from llama_index.core.schema import TextNode

    from langchain_bge import BGERetriever
    from llamaindex_bge import BGEEmbedding

    nodes = [TextNode(id_=name, text=text) for name, text in data.documents.items()]
    index = VectorStoreIndex(nodes, embed_model=BGEEmbedding(embedder=embedder))
    subjects = [
        store,
        store.as_retriever(search_kwargs={"k": 100}),
        BGERetriever(vectorstore=store, k=100),
        index,
        index.as_retriever(similarity_top_k=100),
        index.as_query_engine(llm=MockLLM(), similarity_top_k=100),
    ]
    for subject in subjects:
        found = evaluate(subject, data)
        assert found.metrics == pytest.approx(by_model.metrics, abs=1e-6), type(subject)
        for query, ranked in by_model.run.items():
            assert [name for name, _ in found.run[query]] == [name for name, _ in ranked]


def test_a_saved_run_gives_the_same_figures_and_is_loaded_again(data, by_model, tmp_path):
    file = by_model.save(tmp_path)
    assert evaluate(tmp_path / "run.trec", data).metrics == pytest.approx(by_model.metrics, abs=1e-9)
    loaded = Evaluation.load(file)
    assert loaded is not None
    assert (loaded.metrics, loaded.per_query, loaded.run) == (by_model.metrics, by_model.per_query, by_model.run)
    assert Evaluation.load(tmp_path / "none.json") is None
    assert {"metrics", "queries", "texts_embedded", "identity", "seconds", "versions", "machine"} <= json.loads(
        file.read_text()
    ).keys()


def test_ids_with_spaces_are_the_same_after_loading_and_words_in_trec(embedder, tmp_path):
    data = Judgements(
        name="spaces",
        queries={"a question": "heart?"},
        grades={"a question": {"my doc": 1}},
        documents={"my doc": "Heart."},
    )
    found = evaluate(embedder, data)
    loaded = Evaluation.load(found.save(tmp_path))
    assert loaded is not None
    assert loaded.run == found.run
    assert (tmp_path / "run.trec").read_text().startswith("a_question Q0 my_doc 1 ")


def test_a_reranker_orders_the_best_and_its_scores_are_remembered(data, embedder, cache, by_model):
    reranker = Reranker(embedder)
    first = evaluate(embedder, data, reranker=reranker, depth=5, vector_cache=cache)
    pairs = [
        (data.queries[query], data.documents[name]) for query, found in by_model.run.items() for name, _ in found[:5]
    ]
    expected = dict(zip(pairs, reranker.score_pairs(pairs), strict=True))
    for query, found in first.run.items():
        assert {name for name, _ in found} == {name for name, _ in by_model.run[query][:5]}
        for name, score in found:
            assert score == pytest.approx(expected[data.queries[query], data.documents[name]], abs=1e-6)
        assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    before = cache.stats.misses
    again = evaluate(embedder, data, reranker=reranker, depth=5, vector_cache=cache)
    assert (again.run, cache.stats.misses) == (first.run, before)
    assert first.identity != by_model.identity


@pytest.mark.parametrize(("bits", "size", "most"), [("int8", 384, 0.02), ("binary", 48, 0.2)])
def test_fewer_bits_cost_little(data, embedder, by_model, bits, size, most):
    found = evaluate(embedder, data, bits=bits)
    assert found.costs.bytes_per_vector == size
    assert abs(found.metrics["nDCG@10"] - by_model.metrics["nDCG@10"]) < most


def test_judged_passages_are_found_in_whatever_a_retriever_returns(store, data):
    query, name = next((query, name) for query, grades in data.grades.items() for name in grades)
    quote = data.documents[name][20:120]
    places = Judgements(name="places", queries={query: data.queries[query]}, passages={query: (Passage(quote=quote),)})
    assert evaluate(store, places).metrics["R@100"] == 1


def test_unanswerable_questions_are_asked_and_not_judged(data, embedder, by_model):
    more = Judgements(
        name="more", queries=data.queries, grades=data.grades, documents=data.documents, unanswerable={"x": "Who am I?"}
    )
    found = evaluate(embedder, more)
    assert found.metrics == by_model.metrics
    assert found.best_scores.keys() == {*data.queries, "x"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth=0"),
        ({"top_k": True}, "top_k=True"),
        ({"bits": "int4"}, "bits='int4'"),
        ({"metrics": ["nDCG"]}, "metric 'nDCG' does not exist"),
    ],
)
def test_a_wrong_option_is_an_error_before_anything_is_embedded(data, options, message):
    with pytest.raises(ConfigurationError, match=message):
        evaluate("BAAI/bge-small-en-v1.5", data, **options)


def test_what_cannot_be_evaluated_is_refused_with_what_can(data, store):
    with pytest.raises(ConfigurationError, match="cannot be evaluated"):
        evaluate(5, data)
    with pytest.raises(ConfigurationError, match="ranks by itself"):
        evaluate(store, data, bits="int8")
    bare = Judgements(name="bare", queries=data.queries, grades=data.grades)
    with pytest.raises(ConfigurationError, match="has no documents"):
        evaluate(DEFAULT_OFFLINE_MODEL, bare)


@pytest.mark.parametrize(
    ("line", "message"),
    [("1 Q0 a", "line 2 is"), ("q Q0 a 1 nan x", "line 2 has the score nan"), ("q Q0 d 2 0.5 x", "a second time")],
)
def test_a_damaged_run_is_an_error_with_its_line(tmp_path, line, message):
    file = tmp_path / "run.trec"
    file.write_text(f"q Q0 d 1 0.9 x\n{line}\n")
    with pytest.raises(InputError, match=message):
        evaluate(file, Judgements(name="d", queries={"q": "?"}, grades={"q": {"d": 1}}))


def test_a_reciprocal_rank_beyond_the_cut_is_zero_and_a_question_without_results_counts():
    run = {"a": [(f"x{at:02}", 1 - at / 100) for at in range(12)], "b": []}
    values = measure(run, {"a": {"x11": 1}, "b": {"x": 1}}, ["RR@10", "RR@20", "success@20"])
    assert values["RR@10"] == {"a": 0.0, "b": 0.0}
    assert values["RR@20"]["a"] == pytest.approx(1 / 12)
    assert values["success@20"] == {"a": 1.0, "b": 0.0}
    assert set(METRICS) >= {"nDCG@10", "R@100", "RR@10", "AP@100"}


@pytest.mark.parametrize("count", [1, 7, 100])
@pytest.mark.parametrize("block", [16, 1000])
def test_exact_search_returns_what_a_whole_sort_does(monkeypatch, count, block):
    monkeypatch.setattr(exact, "DOCUMENTS", block)
    monkeypatch.setattr(exact, "PRODUCTS", 5 * block)
    random = np.random.default_rng(0)
    # Few different values, so that there are ties at every place.
    documents = random.integers(-1, 2, (300, 4)).astype(np.float32)
    queries = random.integers(-1, 2, (11, 4)).astype(np.float32)
    rows, scores = exact.search(queries, documents, count)
    products = queries @ documents.T
    expected = np.argsort(-products, axis=1, kind="stable")[:, :count]
    assert (rows == expected).all()
    assert (scores == np.take_along_axis(products, expected, axis=1)).all()


def test_exact_search_refuses_what_cannot_be_compared():
    with pytest.raises(InputError, match="cannot be compared"):
        exact.search(np.ones((1, 3), np.float32), np.ones((1, 4), np.float32), 1)
    with pytest.raises(InputError, match="not finite"):
        exact.search(np.ones((1, 3), np.float32), np.full((2, 3), np.nan, np.float32), 1)
