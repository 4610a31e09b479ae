"""Clients that people have already, unchanged, against a running server: `make clients-check`.

The name keeps these out of the default run: they need the clients, in an environment of their own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from bge_runtime import Embedder, Reranker
from tests.serving.conftest import EMBEDDER, HEADS, RERANKER
from tests.serving.processes import Process, running

KEY = "a-key-for-the-clients"
QUERY = "which animal eats grass"
TEXTS = [f"The {animal} eats {food}." for animal in ("cat", "dog", "cow") for food in ("bread", "grass", "fish")]
random.Random(7).shuffle(TEXTS)

pytestmark = [
    pytest.mark.enable_socket,
    pytest.mark.filterwarnings("ignore"),  # the clients' own
]


@pytest.fixture(scope="module")
def server(hub_cache, tmp_path_factory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "keys").write_text(KEY)
    models = [part for name in (EMBEDDER, HEADS, RERANKER) for part in ("--model", name)]
    with running(folder, *models, "--api-key-file", str(folder / "keys"), "--quiet") as found:
        yield found


@pytest.fixture(scope="module")
def documents(hub_cache):
    return Embedder(EMBEDDER).encode_documents(TEXTS)


@pytest.fixture(scope="module")
def query(hub_cache):
    return Embedder(EMBEDDER).encode_queries([QUERY])[0]


@pytest.fixture(scope="module")
def scores(hub_cache):
    return Reranker(RERANKER, normalize=True).score(QUERY, TEXTS)


def assert_same(found, wanted):
    assert np.abs(np.array(found, np.float64) - wanted).max() < 1e-6


def assert_ranked(rows, scores, *, top_n):
    """Rows of (index, score): the best ones, each with the score of its own document."""
    assert [index for index, _ in rows] == sorted(range(len(scores)), key=lambda at: -scores[at])[:top_n]
    for index, score in rows:
        assert score == pytest.approx(float(scores[index]), abs=1e-6)


@pytest.mark.parametrize("encoding_format", [None, "float", "base64"])
def check_openai(server, documents, query, encoding_format):
    from openai import NotFoundError, OpenAI

    client = OpenAI(base_url=f"{server.address}/v1", api_key=KEY)
    options = {} if encoding_format is None else {"encoding_format": encoding_format}
    found = client.embeddings.create(model=EMBEDDER, input=TEXTS, **options)
    rows = [each.embedding for each in found.data]
    if encoding_format == "base64":
        rows = [np.frombuffer(__import__("base64").b64decode(each), "<f4") for each in rows]
    assert_same(rows, documents)
    assert found.usage.prompt_tokens > 0
    asked = client.embeddings.create(model=f"{EMBEDDER}:query", input=QUERY)
    assert_same(asked.data[0].embedding, query)
    typed = client.embeddings.create(model=EMBEDDER, input=QUERY, extra_body={"input_type": "query"})
    assert_same(typed.data[0].embedding, query)
    short = client.embeddings.create(model=EMBEDDER, input=TEXTS, dimensions=32)
    assert_same([each.embedding for each in short.data], Embedder(EMBEDDER, truncate_dim=32).encode_documents(TEXTS))
    assert {each.id for each in client.models.list()} == {EMBEDDER, HEADS, RERANKER}
    with pytest.raises(NotFoundError, match="is not served here"):
        client.embeddings.create(model="gpt", input="a")


def check_cohere(server, documents, query, scores):
    import cohere

    client = cohere.ClientV2(KEY, base_url=server.address)
    found = client.embed(
        model=EMBEDDER, texts=TEXTS, input_type="search_document", embedding_types=["float", "int8", "ubinary"]
    )
    assert_same(found.embeddings.float_, documents)
    assert (np.array(found.embeddings.ubinary) == np.packbits(documents > 0, axis=1)).all()
    asked = client.embed(model=EMBEDDER, texts=[QUERY], input_type="search_query", embedding_types=["float"])
    assert_same(asked.embeddings.float_[0], query)
    ranked = client.rerank(model=RERANKER, query=QUERY, documents=TEXTS, top_n=4)
    assert_ranked([(each.index, each.relevance_score) for each in ranked.results], scores, top_n=4)
    with pytest.raises(cohere.NotFoundError):
        client.rerank(model="none", query=QUERY, documents=TEXTS)


def check_langchain_openai(server, documents, query):
    from langchain_openai import OpenAIEmbeddings

    shared = {"base_url": f"{server.address}/v1", "api_key": KEY, "check_embedding_ctx_length": False}
    assert_same(OpenAIEmbeddings(model=EMBEDDER, **shared).embed_documents(TEXTS), documents)
    assert_same(OpenAIEmbeddings(model=f"{EMBEDDER}:query", **shared).embed_query(QUERY), query)


def check_langchain_cohere(server, documents, query, scores):
    from langchain_cohere import CohereEmbeddings, CohereRerank
    from langchain_core.documents import Document

    embeddings = CohereEmbeddings(model=EMBEDDER, cohere_api_key=KEY, base_url=server.address)
    assert_same(embeddings.embed_documents(TEXTS), documents)
    assert_same(embeddings.embed_query(QUERY), query)
    reranker = CohereRerank(model=RERANKER, cohere_api_key=KEY, base_url=server.address, top_n=4)
    found = reranker.compress_documents([Document(text) for text in TEXTS], QUERY)
    rows = [(TEXTS.index(each.page_content), each.metadata["relevance_score"]) for each in found]
    assert_ranked(rows, scores, top_n=4)


def check_llama_index_openai_like(server, documents, query):
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    shared = {"api_base": f"{server.address}/v1", "api_key": KEY}
    embedding = OpenAILikeEmbedding(model_name=EMBEDDER, **shared)
    assert_same(embedding.get_text_embedding_batch(TEXTS), documents)
    asking = OpenAILikeEmbedding(model_name=f"{EMBEDDER}:query", **shared)
    assert_same(asking.get_query_embedding(QUERY), query)


def check_llama_index_text_embeddings_inference(server, documents, query):
    from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

    # It writes instructions itself, from a table of its own; the server is told that all of them are documents.
    instruction = Embedder(EMBEDDER).query_instruction.strip()
    embedding = TextEmbeddingsInference(
        model_name="served", base_url=server.address, auth_token=KEY, query_instruction=instruction
    )
    assert_same(embedding.get_text_embedding_batch(TEXTS), documents)
    assert_same(embedding.get_query_embedding(QUERY), query)


def check_llama_index_tei_rerank(server, scores):
    from llama_index.core.schema import NodeWithScore, TextNode
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    reranker = TextEmbeddingInference(base_url=server.address, auth_token=f"Bearer {KEY}", top_n=4)
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in TEXTS]
    found = reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert_ranked([(TEXTS.index(each.node.text), each.score) for each in found], scores, top_n=4)


def check_huggingface_hub(server, documents, monkeypatch):
    from huggingface_hub import InferenceClient, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # it asks nobody but the server

    client = InferenceClient(model=server.address, token=KEY)
    for text, row in zip(TEXTS, documents, strict=True):
        assert_same(client.feature_extraction(text), row[None])


def check_litellm(server, documents, query, scores):
    import litellm

    shared = {"api_base": f"{server.address}/v1", "api_key": KEY}
    found = litellm.embedding(model=f"openai/{EMBEDDER}", input=TEXTS, **shared)
    assert_same([each["embedding"] for each in found.data], documents)
    asked = litellm.embedding(model=f"openai/{EMBEDDER}:query", input=[QUERY], **shared)
    assert_same(asked.data[0]["embedding"], query)
    ranked = litellm.rerank(
        model=f"cohere/{RERANKER}", query=QUERY, documents=TEXTS, top_n=4,
        api_base=f"{server.address}/v2/rerank", api_key=KEY,
    )  # fmt: skip
    assert_ranked([(each["index"], each["relevance_score"]) for each in ranked.results], scores, top_n=4)
