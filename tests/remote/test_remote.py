"""A model on a server: the same vectors and scores, another model never unnoticed, what a server settles said once."""

from __future__ import annotations

import json
import pickle
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import uvicorn

import bge_runtime
from bge_runtime import (
    ConfigurationError,
    Embedder,
    IndexIdentityError,
    ModelChangedError,
    Reranker,
    ServerUnreachableError,
    bind_index,
)
from bge_runtime.serving import ServerSettings, create_app
from bge_runtime.serving.models import Models
from bge_runtime.serving.settings import ModelSettings
from langchain_bge import BGEEmbeddings, BGERerank, BGESparseEmbeddings
from llamaindex_bge import BGEEmbedding
from llamaindex_bge import BGERerank as LlamaIndexRerank
from tests.contracts.concurrency import in_threads

pytestmark = pytest.mark.enable_socket

MODEL, HEADS, RERANKER = "BAAI/bge-small-en-v1.5", "BAAI/bge-m3", "BAAI/bge-reranker-base"
TEXTS = ["the cat sleeps", "a dog runs", "the cat sleeps", "rivers and mountains " * 20]


@pytest.fixture
def changing(hub_cache) -> Iterator[tuple[str, uvicorn.Server]]:
    """A server in this process, whose models a test can put others in the place of."""
    app = create_app(
        ServerSettings.read(models=[{"model": MODEL, "name": "ours"}, {"model": RERANKER, "name": "best"}])
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    server.app = app
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", server
    server.should_exit = True
    thread.join()


@pytest.mark.slow
def test_all_outputs_and_identities_are_those_of_in_process(server):
    here, there = Embedder(HEADS), Embedder(HEADS, base_url=server)
    assert (here.identity, here.document_identity) == (there.identity, there.document_identity)
    assert (here.dimension, here.max_length) == (there.dimension, there.max_length)
    ours, theirs = here.encode_all(TEXTS), there.encode_all(TEXTS)
    np.testing.assert_allclose(theirs.dense, ours.dense, atol=1e-6)
    for one, other in zip(ours.sparse, theirs.sparse, strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose(list(other.values()), list(one.values()), atol=1e-6)
    for one, other in zip(ours.multi_vector, theirs.multi_vector, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6)


@pytest.mark.parametrize("model", [RERANKER, HEADS, MODEL])
def test_scores_are_those_of_in_process_also_by_late_interaction(server, model):
    here, there = Reranker(model), Reranker(model, base_url=server)
    assert (here.identity, here.score_identity) == (there.identity, there.score_identity)
    np.testing.assert_allclose(there.score("cats", TEXTS), here.score("cats", TEXTS), atol=1e-6)


@pytest.mark.parametrize("api", ["openai", "tei", "cohere"])
def test_another_format_gets_the_instruction_here(server, api):
    there = Embedder(MODEL, base_url=f"{server}/v1", api=api)
    np.testing.assert_allclose(there.encode_queries(TEXTS), Embedder(MODEL).encode_queries(TEXTS), atol=1e-6)
    assert there.identity == Embedder(MODEL, base_url="http://elsewhere", api=api).identity != Embedder(MODEL).identity


def test_dense_and_sparse_views_share_one_request(server):
    dense, sparse = BGEEmbeddings(model=HEADS, base_url=server), BGESparseEmbeddings(model=HEADS, base_url=server)
    bge_runtime.unload_models()
    before = bge_runtime.stats()["batches"]
    dense.embed_documents(["one text", "another"])
    found = sparse.embed_documents(["one text", "another"])
    assert bge_runtime.stats()["batches"] == before + 1
    assert sorted(found[0]) == sorted(Embedder(HEADS).encode_sparse(["one text"])[0])


@pytest.mark.parametrize(
    ("first", "model", "use"),
    [
        (lambda url: BGEEmbeddings(model="ours", base_url=url), "ours", lambda each: each.embed_query("cat")),
        (
            lambda url: BGEEmbedding(model_name="ours", base_url=url),
            "ours",
            lambda each: each.get_query_embedding("cat"),
        ),
        (lambda url: BGERerank(model="best", base_url=url), "best", lambda each: each.rerank(["cat"], "dog")),
        (lambda url: Embedder("ours", base_url=url), "ours", lambda each: each.encode_documents(["cat"])),
        (
            lambda url: LlamaIndexRerank(model="best", base_url=url).reranker,
            "best",
            lambda each: each.score("dog", ["cat"]),
        ),
    ],
    ids=["langchain", "llamaindex", "langchain rerank", "runtime", "llamaindex rerank"],
)
def test_another_model_behind_the_name_is_refused_at_the_first_call(changing, tmp_path, first, model, use):
    address, server = changing
    ours = first(address)
    use(ours)
    bound = Embedder("ours", base_url=address)
    bind_index(tmp_path, bound)
    record = (tmp_path / "bge-index.json").read_bytes()
    others = {"ours": "BAAI/bge-small-zh-v1.5", "best": "BAAI/bge-reranker-v2-m3"}
    server.app.state.work.models = Models([ModelSettings(model=each, name=name) for name, each in others.items()])
    with pytest.raises(ModelChangedError, match=repr(model)):
        use(ours)
    use(first(address))  # who asks anew gets what is there now
    with pytest.raises(IndexIdentityError):
        bind_index(tmp_path, Embedder("ours", base_url=address))
    assert (tmp_path / "bge-index.json").read_bytes() == record


@pytest.mark.parametrize(
    "options",
    [{"query_instruction": "search: "}, {"normalize": False}, {"max_length": 64}, {"document_instruction": "text: "}],
)
def test_what_the_server_settles_is_refused_where_it_is_said_otherwise(server, options):
    (name,) = options
    with pytest.raises(ConfigurationError, match=rf"{name}=.*start the server with it"):
        Embedder(MODEL, base_url=server, **options).encode_queries(["cat"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Embedder(MODEL, base_url="localhost:8080"), "is no address"),
        (lambda: Embedder(MODEL, base_url="http://user:key@host"), "Use token="),
        (lambda: Embedder(MODEL, api="tei"), "Pass base_url= too"),
        (lambda: Embedder(MODEL, base_url="http://host", api="grpc"), "api='grpc'"),
        (lambda: Embedder(MODEL, base_url="http://host", device="cpu"), "device='cpu' beside base_url="),
        (lambda: Embedder("mine", base_url="http://host", api="openai"), "base_model="),
        (lambda: Embedder(MODEL, base_url="http://host", api="tei", normalize=False), "normalize=False"),
        (lambda: Embedder(MODEL, base_url="http://host", api="tei", truncation="error").encoding, "says what it cuts"),
        (lambda: Reranker(RERANKER, base_url="http://host", api="openai"), "no reranking"),
        (lambda: Reranker(MODEL, base_url="http://host", token_pooling=2), "token_pooling=2 beside base_url="),
        (lambda: Reranker(Embedder(MODEL, base_url="http://host")), "Pass its name and base_url="),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize(
    "use",
    [
        lambda each: each.tokenize(["cat"]),
        lambda each: each.count_tokens(["cat"]),
        lambda each: each.encode_tokens(["cat"]),
        lambda each: each.token_offsets("cat"),
    ],
)
def test_what_needs_the_models_files_says_so(server, use):
    with pytest.raises(ConfigurationError, match="runs on the server"):
        use(Embedder(MODEL, base_url=server))


def test_a_key_is_in_no_pickle(server):
    ours = Embedder(MODEL, base_url=server, token="a-secret-key")
    assert b"a-secret-key" not in pickle.dumps(ours)
    assert "a-secret-key" not in repr(ours) + repr(ours.source) + repr(bge_runtime.loaded_models())


def test_nobody_at_the_address_is_told_in_seconds():
    started = time.monotonic()
    with pytest.raises(ServerUnreachableError, match=r"127\.0\.0\.1:9.*does not answer") as caught:
        Embedder(MODEL, base_url="http://127.0.0.1:9").encode_queries(["cat"])
    assert isinstance(caught.value, ConnectionError)
    assert time.monotonic() - started < 20


def test_nobody_at_the_address_is_told_to_all_callers_at_once(odd):
    ours = Embedder(MODEL, base_url=odd, api="openai")
    ours.encode_queries(["cat"])
    Odd.answers = [(200, json.dumps({"model": "another", "data": []}).encode())] * 200
    errors = in_threads([lambda at=at: ours.encode_queries([f"cat {at}"]) for at in range(40)])
    assert all(isinstance(each, ModelChangedError) for each in errors)
    assert len(Odd.answers) > 160  # whoever shared a request is told with it, and nobody is asked for again


def test_what_an_ingestion_cache_keys_on_tells_servers_and_their_models_apart(changing):
    address, server = changing
    ours = BGEEmbedding("ours", base_url=address)
    dump = ours.to_dict()
    assert BGEEmbedding.from_dict(dump).get_query_embedding("cat") == ours.get_query_embedding("cat")
    server.app.state.work.models = Models([ModelSettings(model="BAAI/bge-small-zh-v1.5", name="ours")])
    assert BGEEmbedding("ours", base_url=address).to_dict() != dump
    assert "identity" in dump
    assert "token" not in dump


class Odd(BaseHTTPRequestHandler):
    """Speaks OpenAI's format, after some answers that are none."""

    answers: list[tuple[int, bytes]]

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        status, body = self.answers.pop(0) if self.answers else (200, b"")
        if not body:
            rows = [{"index": at, "embedding": [1.0] + [0.0] * 383} for at in range(len(asked["input"]))]
            body = json.dumps({"model": "odd", "data": rows[::-1]}).encode()
        self.send_response(status)
        self.send_header("retry-after", "0")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        return


@pytest.fixture
def odd() -> Iterator[str]:
    Odd.answers = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_without_room_is_asked_again(odd):
    Odd.answers = [(429, b"busy"), (503, b"busy")]
    assert Embedder(MODEL, base_url=odd, api="openai").encode_queries(["cat"]).shape == (1, 384)
    assert not Odd.answers


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((200, b'{"model": "odd", "data": []}'), bge_runtime.BackendError),
        ((200, b'{"model": "odd", "data": [{"index": 0, "embedding": [1.0]}]}'), ModelChangedError),
        ((200, b"no JSON"), bge_runtime.BackendError),
        ((401, b"no key"), ConfigurationError),
        ((400, b"no sense"), bge_runtime.InputError),
        ((500, b"broken"), bge_runtime.BackendError),
    ],
)
def test_an_answer_that_makes_no_sense_is_an_error_and_the_next_call_is_right(odd, answer, error):
    ours = Embedder(MODEL, base_url=odd, api="openai")
    Odd.answers = [answer]
    with pytest.raises(error):
        ours.encode_documents(["cat"])
    assert ours.encode_documents(["cat"]).shape == (1, 384)


def test_queries_pass_an_ingestion_that_fills_the_other_connections(server):
    ours = Embedder(MODEL, base_url=server)
    ours.encode_queries(["first"])
    ingestion = threading.Thread(target=lambda: ours.encode_documents([f"{TEXTS[3]} {n}" for n in range(300)]))
    ingestion.start()
    times = []
    while ingestion.is_alive():
        started = time.monotonic()
        ours.encode_queries(["the next question"])
        times.append(time.monotonic() - started)
        time.sleep(0.02)
    ingestion.join()
    assert len(times) >= 3
