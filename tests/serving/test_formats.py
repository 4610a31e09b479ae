"""Each format's answers are the vectors and scores of the same models in process, at the right places."""

from __future__ import annotations

import base64
import io
import json
import math
import random

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import bge_runtime
from bge_runtime import Embedder, Reranker, VisionEmbedder
from bge_runtime.serving import create_app
from tests.serving.conftest import EMBEDDER, HEADS, RERANKER, settings

VISION = "BAAI/BGE-VL-base"

TEXTS = ["The cat sleeps in the house.", "Bread is made of flour.", "a river", "The cat sleeps in the house."]
QUERY = "where does the cat sleep"
ROLES = {"query": "encode_queries", "document": "encode_documents"}


@pytest.fixture(scope="module")
def embedder(hub_cache):
    return Embedder(EMBEDDER)


@pytest.fixture
def documents():
    found = [f"The {animal} eats {food}." for animal in ("cat", "dog", "cow") for food in ("bread", "grass", "fish")]
    random.Random(5).shuffle(found)
    return found


def vectors(answer):
    assert answer.status_code == 200, answer.text
    rows = answer.json()["data"]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    return np.array([row["embedding"] for row in rows], np.float32)


@pytest.mark.parametrize("role", ["query", "document"])
@pytest.mark.parametrize("said", ["input_type", "name"])
def test_openai_gives_the_vectors_of_the_role_that_is_asked_for(client, embedder, role, said):
    body = {"model": f"{EMBEDDER}:{role}"} if said == "name" else {"model": EMBEDDER, "input_type": role}
    answer = client.post("/v1/embeddings", json={**body, "input": TEXTS})
    assert np.abs(vectors(answer) - getattr(embedder, ROLES[role])(TEXTS)).max() < 1e-6
    told = answer.json()
    read = embedder.tokenize(TEXTS, role=role)
    assert told["usage"] == dict.fromkeys(("prompt_tokens", "total_tokens"), sum(each.length for each in read))
    assert told["identity"] == answer.headers["x-bge-identity"] == embedder.identity


def test_openai_without_a_role_embeds_documents_and_says_so(client, embedder):
    answer = client.post("/v1/embeddings", json={"model": "bge-small-en-v1.5", "input": QUERY})
    assert np.abs(vectors(answer) - embedder.encode_documents([QUERY])).max() < 1e-6
    listed = {row["id"]: row for row in client.get("/v1/models").json()["data"]}
    assert listed[EMBEDDER]["default_input_type"] == "document"
    assert (listed[EMBEDDER]["kind"], listed[RERANKER]["kind"]) == ("embedder", "reranker")
    assert client.get(f"/v1/models/{EMBEDDER}").json() == listed[EMBEDDER]


def test_openai_in_base64_and_with_fewer_dimensions(client):
    wanted = Embedder(EMBEDDER, truncate_dim=64).encode_documents(TEXTS)
    body = {"model": EMBEDDER, "input": TEXTS, "dimensions": 64, "encoding_format": "base64"}
    rows = client.post("/v1/embeddings", json=body).json()["data"]
    found = np.stack([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows])
    assert np.abs(found - wanted).max() < 1e-6
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"input": [[1, 2, 3]]}, 400, "check_embedding_ctx_length=False"),
        ({"input": [1, 2, 3]}, 400, "check_embedding_ctx_length=False"),
        ({"dimensions": 4000}, 400, "dimensions=4000"),
        ({"model": "text-embedding-ada-002"}, 404, "is not served here. There is 'BAAI/bge-small-en-v1.5'"),
        ({"model": "../../etc/passwd"}, 404, "is not served here"),
        ({"model": RERANKER}, 400, "is a reranker, which has no vectors"),
        ({"input": 5}, 422, "input"),
        ({"encoding_format": "hex"}, 422, "encoding_format"),
        ({"input": ["x"] * 2049}, 400, "2,049 texts in a request; 2,048 are allowed"),
    ],
)
def test_what_is_wrong_is_told_in_openais_shape(client, change, status, message):
    answer = client.post("/v1/embeddings", json={"model": EMBEDDER, "input": ["a"], **change})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert message in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_no_text_is_an_empty_list_and_an_empty_text_is_embedded(client, embedder):
    assert client.post("/v1/embeddings", json={"model": EMBEDDER, "input": []}).json()["data"] == []
    found = vectors(client.post("/v1/embeddings", json={"model": EMBEDDER, "input": [""]}))
    assert np.abs(found - embedder.encode_documents([""])).max() < 1e-6


@pytest.mark.parametrize(("input_type", "role"), [("search_query", "query"), ("search_document", "document")])
def test_cohere_gives_every_form_of_the_same_vectors(client, embedder, input_type, role):
    forms = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    body = {"model": EMBEDDER, "texts": TEXTS, "input_type": input_type, "embedding_types": forms}
    answer = client.post("/v2/embed", json=body)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    found, wanted = told["embeddings"], getattr(embedder, ROLES[role])(TEXTS)
    assert np.abs(np.array(found["float"]) - wanted).max() < 1e-6
    decoded = np.stack([np.frombuffer(base64.b64decode(row), "<f4") for row in found["base64"]])
    assert np.abs(decoded - wanted).max() < 1e-6
    assert (np.array(found["ubinary"]) == np.packbits(wanted > 0, axis=1)).all()
    assert (np.array(found["binary"]) + 128 == np.array(found["ubinary"])).all()
    assert (np.array(found["int8"]) + 128 == np.array(found["uint8"])).all()
    step = 6 / math.sqrt(wanted.shape[1]) / 127
    assert np.abs(np.array(found["int8"]) * step - wanted).max() <= step / 2 + 1e-6
    assert told["response_type"] == "embeddings_by_type"
    assert told["meta"]["billed_units"]["input_tokens"] > 0


def test_cohere_s_older_route_gives_the_same_with_and_without_names(client, embedder):
    body = {"model": EMBEDDER, "texts": TEXTS, "input_type": "search_query"}
    plain = client.post("/v1/embed", json={**body, "truncate": None}).json()
    named = client.post("/v1/embed", json={**body, "embedding_types": ["float"]}).json()
    wanted = embedder.encode_queries(TEXTS)
    assert np.abs(np.array(plain["embeddings"]) - wanted).max() < 1e-6
    assert np.abs(np.array(named["embeddings"]["float"]) - wanted).max() < 1e-6
    assert (plain["response_type"], named["response_type"]) == ("embeddings_floats", "embeddings_by_type")
    assert "message" in client.post("/v1/embed", json={**body, "model": "none"}).json()


def test_cohere_refuses_to_cut_where_it_is_told_not_to_and_counts_what_was_cut(client):
    body = {"model": EMBEDDER, "texts": ["word " * 600, "short"], "input_type": "search_document"}
    refused = client.post("/v2/embed", json={**body, "truncate": "NONE"})
    assert refused.status_code == 413
    assert "1 texts have more than the 512 tokens" in refused.json()["message"]
    cut = client.post("/v2/embed", json=body)
    assert cut.headers["x-bge-truncated-inputs"] == "1"
    for change, message in (({"truncate": "START"}, "START"), ({"texts": None}, "Send texts")):
        assert message in client.post("/v2/embed", json={**body, **change}).json()["message"]


def test_a_text_of_exactly_the_longest_length_is_not_called_cut(client, embedder):
    for role in ("query", "document"):
        room = embedder.max_length - embedder.tokenize([""], role=role)[0].length
        for words, cut in ((room, "0"), (room + 1, "1")):
            body = {"model": EMBEDDER, "input": ["cat " * words], "input_type": role}
            assert client.post("/v1/embeddings", json=body).headers["x-bge-truncated-inputs"] == cut


@pytest.mark.parametrize("model", [RERANKER, EMBEDDER])
def test_rerankings_keep_scores_at_their_documents(client, documents, model):
    served = Reranker(model, normalize=True)
    wanted = served.score(QUERY, documents)
    order = sorted(range(len(documents)), key=lambda at: -wanted[at])
    for path, body, key in (
        ("/v2/rerank", {"documents": documents}, "relevance_score"),
        ("/v1/rerank", {"documents": [{"text": each} for each in documents]}, "relevance_score"),
    ):
        told = client.post(path, json={"model": model, "query": QUERY, "top_n": 5, **body}).json()
        assert [row["index"] for row in told["results"]] == order[:5]
        for row in told["results"]:
            assert row[key] == pytest.approx(float(wanted[row["index"]]), abs=1e-6)
            assert 0 <= row[key] <= 1
            if path == "/v1/rerank":
                assert row["document"]["text"] == documents[row["index"]]


def test_rerankings_of_our_own_have_raw_scores_and_a_budget(client, documents):
    body = {"model": RERANKER, "query": QUERY, "documents": documents, "return_documents": False}
    told = client.post("/v1/rerank", json={**body, "normalize": False}).json()
    wanted = Reranker(RERANKER).score(QUERY, documents)
    assert told["results"][0]["relevance_score"] == pytest.approx(float(wanted.max()), abs=1e-5)
    assert "document" not in told["results"][0]
    assert told["partial"] is False
    late = client.post("/v1/rerank", json={**body, "documents": documents * 60, "time_budget_s": 1e-4})
    assert late.json()["partial"] is True
    assert len(late.json()["results"]) == len(documents) * 60
    assert late.json()["results"][-1]["relevance_score"] is None
    assert "cutoff_layers" in client.post("/v1/rerank", json={**body, "cutoff_layers": 3}).json()["detail"]


def test_all_outputs_of_bge_m3_come_from_one_pass(client):
    before = bge_runtime.stats()["inputs"]
    told = client.post("/v1/encode", json={"model": HEADS, "texts": TEXTS[:3], "input_type": "query"}).json()
    assert bge_runtime.stats()["inputs"] - before == 3
    wanted = Embedder(HEADS).encode_all(TEXTS[:3], role="query")
    assert np.abs(np.array(told["dense"]) - wanted.dense).max() < 1e-6
    for row, sparse, vectors_found, vectors_wanted in zip(
        told["sparse"], wanted.sparse, told["multi_vector"], wanted.multi_vector, strict=True
    ):
        assert dict(zip(row["indices"], row["values"], strict=True)) == pytest.approx(sparse, abs=1e-6)
        assert np.abs(np.array(vectors_found) - vectors_wanted).max() < 1e-6
    only = client.post("/v1/encode", json={"model": HEADS, "texts": ["a"], "outputs": ["sparse"]}).json()
    assert set(only) == {"model", "identity", "usage", "sparse"}
    wrong = client.post("/v1/encode", json={"model": EMBEDDER, "texts": ["a"], "outputs": ["sparse"]})
    assert wrong.status_code == 400
    assert "has no output 'sparse'" in wrong.json()["error"]["message"]


def test_tei_speaks_of_the_first_models(client, embedder, documents):
    found = client.post("/embed", json={"inputs": TEXTS, "prompt_name": "query"})
    assert np.abs(np.array(found.json()) - embedder.encode_queries(TEXTS)).max() < 1e-6
    assert np.array(client.post("/embed", json={"inputs": "one"}).json()).shape == (1, embedder.dimension)
    wanted = Reranker(RERANKER).score(QUERY, documents)
    told = client.post(
        "/rerank", json={"query": QUERY, "texts": documents, "raw_scores": True, "return_text": True}
    ).json()
    assert [row["score"] for row in told] == pytest.approx([float(wanted[row["index"]]) for row in told], abs=1e-5)
    assert [row["text"] for row in told] == [documents[row["index"]] for row in told]
    ids = client.post("/tokenize", json={"inputs": TEXTS[:1]}).json()[0]
    assert [each["id"] for each in ids] == list(embedder.tokenize(TEXTS[:1])[0].ids)
    info = client.get("/info").json()
    assert (info["model_id"], info["max_input_length"]) == (EMBEDDER, 512)
    refused = client.post("/embed", json={"inputs": "word " * 600, "truncate": False})
    assert (refused.status_code, refused.json()["error_type"]) == (413, "Validation")
    wrong = client.post("/embed", json={"inputs": ["a"], "normalize": False})
    assert wrong.status_code == 400
    sparse = client.post("/embed_sparse", json={"inputs": ["a"]})
    assert "has no output 'sparse'" in sparse.json()["error"]


def test_half_a_surrogate_pair_is_told_as_the_model_has_read_it(client):
    half, read = "a \ud800 cat", "a \ufffd cat"
    asked = (
        ("/v2/embed", {"model": EMBEDDER, "texts": [half], "input_type": "search_query"}, lambda told: told["texts"]),
        ("/v1/embed", {"model": EMBEDDER, "texts": [half]}, lambda told: told["texts"]),
        (
            "/v1/rerank",
            {"model": RERANKER, "query": half, "documents": [half]},
            lambda told: [told["results"][0]["document"]["text"]],
        ),
        ("/rerank", {"query": half, "texts": [half], "return_text": True}, lambda told: [told[0]["text"]]),
    )
    for path, body, texts in asked:
        # The client of the test cannot write it either.
        answer = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
        assert answer.status_code == 200, path
        assert texts(answer.json()) == [read]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "none", "input": "a"}),
        ("/v2/embed", {"model": EMBEDDER, "input_type": "image"}),
        ("/v1/embed", {"model": EMBEDDER}),
        ("/v2/rerank", {"model": "none", "query": "a", "documents": []}),
        ("/v1/rerank", {"model": RERANKER, "query": "a", "documents": ["a"], "cutoff_layers": 3}),
        ("/v1/encode", {"model": EMBEDDER, "texts": ["a"], "outputs": ["sparse"]}),
        ("/embed", {"inputs": "word " * 600, "truncate": False}),
        ("/tokenize", {}),
    ],
)
def test_errors_are_those_that_the_description_names(client, path, body):
    answer, document = client.post(path, json=body), client.get("/openapi.json").json()
    answers = document["paths"][path]["post"]["responses"]
    assert set(answers) == {"200", "400", "401", "404", "408", "413", "422", "429", "500", "503", "504"}
    name = answers[str(answer.status_code)]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[-1]
    schema = document["components"]["schemas"][name]
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == set(schema["properties"])


def test_the_description_tells_of_text_and_of_routes_that_fail_otherwise(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths["/metrics"]["get"]["responses"]["200"]["content"]) == {"text/plain"}
    assert paths["/ready"]["get"]["responses"]["503"] == {"description": "Weights are being read."}


def test_pairs_are_scored_raw_in_their_order_and_say_which_were_cut(client, documents):
    pairs = [(QUERY, each) for each in documents] + [("bread", "word " * 900)]
    told = client.post("/v1/score", json={"model": RERANKER, "pairs": pairs}).json()
    np.testing.assert_allclose(told["scores"], Reranker(RERANKER, truncation="silent").score_pairs(pairs), atol=1e-6)
    assert told["usage"]["truncated_inputs"] == [len(pairs) - 1]
    assert told["identity"] == Reranker(RERANKER).score_identity
    packed = client.post("/v1/score", json={"model": RERANKER, "pairs": pairs, "encoding_format": "base64"}).json()
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed["scores"]), "<f4"), np.float32(told["scores"]))
    assert client.post("/v1/score", json={"model": RERANKER, "pairs": []}).json()["scores"] == []


def test_texts_that_were_cut_are_told_by_their_place(client):
    told = client.post("/v1/encode", json={"model": EMBEDDER, "texts": ["a", "word " * 900, "b"]}).json()
    assert told["usage"]["truncated_inputs"] == [1]


@pytest.fixture(scope="module")
def pictures(hub_cache):
    with TestClient(create_app(settings(VISION)), raise_server_exceptions=False) as found:
        yield found


def picture(color):
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(stream, "PNG")
    return stream.getvalue()


def test_pictures_are_data(pictures):
    files = [picture("red"), picture("blue")]
    bare = [base64.b64encode(each).decode() for each in files]
    named = [f"data:image/png;base64,{each}" for each in bare]
    wanted = VisionEmbedder(VISION)
    for sent in (bare, named):
        told = pictures.post("/v1/encode", json={"model": VISION, "images": sent}).json()
        np.testing.assert_allclose(told["dense"], wanted.encode_images(files), atol=1e-6)
    both = pictures.post("/v1/encode", json={"model": VISION, "images": bare, "texts": ["x", "y"]}).json()
    pairs = list(zip(files, ["x", "y"], strict=True))
    np.testing.assert_allclose(both["dense"], wanted.encode_image_texts(pairs), atol=1e-6)
    told = pictures.post("/v1/embeddings", json={"model": VISION, "input": ["a red square"]})
    np.testing.assert_allclose(vectors(told), wanted.encode_texts(["a red square"]), atol=1e-6)


@pytest.mark.parametrize(
    "image",
    ["http://127.0.0.1:9/x.png", "https://host/x.png", "file:///etc/passwd", "/etc/passwd", "bm90IGEgcGljdHVyZQ=="],
)
def test_what_is_no_picture_is_refused_and_nothing_is_fetched(pictures, image):
    told = pictures.post("/v1/encode", json={"model": VISION, "images": [image]})
    assert told.status_code == 400, told.text
    assert "images[0]" in told.json()["error"]["message"]


def test_pictures_and_texts_that_do_not_go_together_are_refused(pictures, client):
    image = base64.b64encode(picture("red")).decode()
    for body in ({"images": [image], "texts": ["a", "b"]}, {}):
        assert pictures.post("/v1/encode", json={"model": VISION, **body}).status_code == 400
    assert "no pictures" in client.post("/v1/encode", json={"model": EMBEDDER, "images": [image]}).text
    assert "reranks nothing" in pictures.post("/v1/score", json={"model": VISION, "pairs": [["a", "b"]]}).text
