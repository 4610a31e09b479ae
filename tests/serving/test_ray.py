"""On Ray Serve the answers, keys and limits are those of a server alone, and nothing that was taken is lost."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import httpx
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from bge_runtime import ConfigurationError, Embedder, Reranker, serving
from bge_runtime.cli import app
from bge_runtime.serving import RaySettings
from bge_runtime.serving.ray_serve import build
from tests.serving.conftest import EMBEDDER, RERANKER, settings
from tests.serving.processes import free_port, running

KEY = "a-key-for-ray-serve"
TEXTS = [f"text {number} of a cat" for number in range(40)]
BODY = {"model": EMBEDDER, "input": TEXTS}


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_it_names_the_extra():
    with pytest.raises(ConfigurationError, match=r'needs ray: pip install "bge-integrations\[ray\]"'):
        serving.serve_on_ray(settings(EMBEDDER, ray={"address": "auto"}))
    with pytest.raises(ConfigurationError, match=r'needs ray: pip install "bge-integrations\[ray\]"'):
        build({"models": [{"model": EMBEDDER}], "no_auth": True})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"replicas": [3, 2]}, "the fewest come first"),
        ({"replicas": [0, 0]}, "the most are at least 1"),
        ({"replicas": [1]}, "replicas"),
        ({"num_gpu": 1}, "num_gpu"),
        ({"address": ""}, "address"),
        ({"max_ongoing_requests": 0}, "max_ongoing_requests=0"),
    ],
)
def test_settings_of_ray_that_are_wrong_are_refused(given, message):
    with pytest.raises(ConfigurationError, match=message):
        settings(EMBEDDER, ray=given)


def called(monkeypatch, *arguments):
    """Return what the command does: exit status and output, and the settings with which it serves on Ray."""
    found = []
    monkeypatch.setattr(serving, "serve_on_ray", found.append)
    monkeypatch.setattr(serving, "serve", lambda given: pytest.fail("it serves without Ray"))
    return CliRunner().invoke(app, ["serve", *arguments]), found


def test_arguments_win_over_the_table_of_the_file_field_by_field(tmp_path, monkeypatch):
    file = tmp_path / "serve.toml"
    file.write_text('[[models]]\nmodel = "a/b"\n[ray]\naddress = "ray://head:10001"\nreplicas = [1, 2]\nnum_cpus = 3\n')
    _, (alone,) = called(monkeypatch, "--config", str(file))
    assert alone.ray == RaySettings(address="ray://head:10001", replicas=(1, 2), num_cpus=3)
    _, (given,) = called(monkeypatch, "--config", str(file), "--ray", "auto", "--replicas", "2", "5")
    assert given.ray == RaySettings(address="auto", replicas=(2, 5), num_cpus=3)


def test_replicas_without_a_cluster_are_refused(monkeypatch):
    result, found = called(monkeypatch, "--model", "a/b", "--replicas", "1", "2")
    assert (result.exit_code, found) == (2, [])
    assert "Name it, as in --ray auto" in result.output


class TestWithRay:
    @pytest.fixture(autouse=True)
    def needs_ray(self):
        pytest.importorskip("ray")

    @pytest.mark.parametrize("name", ["host", "port"])
    def test_an_address_in_the_arguments_of_an_application_is_refused(self, name):
        with pytest.raises(ConfigurationError, match=rf"\['{name}'\] of args have no effect"):
            build({"models": [{"model": EMBEDDER}], "no_auth": True, name: 1})

    def test_an_application_needs_keys_or_the_word_that_it_needs_none(self):
        with pytest.raises(ConfigurationError, match="Name a file of keys"):
            build({"models": [{"model": EMBEDDER}]})

    def test_so_does_a_cluster_that_may_be_reached_from_elsewhere(self):
        with pytest.raises(ConfigurationError, match="may be reached from other machines"):
            serving.serve_on_ray(settings(EMBEDDER, ray={"address": "auto"}))

    def test_a_port_that_nobody_named_is_refused(self):
        with pytest.raises(ConfigurationError, match="port=0 is not allowed on Ray Serve"):
            serving.serve_on_ray(settings(EMBEDDER, port=0, ray={"address": "local"}))


def asked(address, path, body, key=KEY):
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.post(address + path, json=body, headers=headers, timeout=120)


def check_vectors(answer):
    assert answer.status_code == 200, answer.text
    found = np.array([row["embedding"] for row in answer.json()["data"]])
    embedder = Embedder(EMBEDDER)
    assert np.abs(found - embedder.encode_documents(TEXTS)).max() < 1e-5
    assert answer.headers["x-bge-identity"] == embedder.identity


@pytest.mark.slow
@pytest.mark.enable_socket
@pytest.mark.timeout(900)  # a cluster is started, and each replica imports the model's packages
class TestOnACluster:
    @pytest.fixture(autouse=True)
    def needs_ray(self):
        pytest.importorskip("ray.serve")

    def test_it_answers_as_a_server_alone_does_and_loses_nothing_at_its_end(self, hub_cache, tmp_path):
        (tmp_path / "keys").write_text(KEY)
        config = tmp_path / "serve.toml"
        models = "".join(f'[[models]]\nmodel = "{each}"\n' for each in (EMBEDDER, RERANKER))
        config.write_text(
            f"max_body_bytes = 65536\n{models}[ray]\naddress = 'local'\nreplicas = [1, 1]\nnum_cpus = 1\n"
        )
        with running(tmp_path, "--config", str(config), "--api-key-file", str(tmp_path / "keys")) as server:
            check_vectors(asked(server.address, "/v1/embeddings", BODY))
            body = {"model": RERANKER, "query": "a cat", "documents": TEXTS}
            rows = asked(server.address, "/v2/rerank", body).json()["results"]
            scores = Reranker(RERANKER, normalize=True).score("a cat", TEXTS)
            assert len(rows) == len(TEXTS)
            assert max(abs(row["relevance_score"] - scores[row["index"]]) for row in rows) < 1e-4

            assert [asked(server.address, "/v1/embeddings", BODY, key).status_code for key in ("", "wrong")] == [
                401
            ] * 2
            large = asked(server.address, "/v1/embeddings", {**BODY, "input": ["x" * 70_000]})
            assert large.status_code == 413
            assert "larger than 65,536 bytes" in large.json()["error"]["message"]
            assert asked(server.address, "/v2/embed", {"model": EMBEDDER}).json().keys() == {"message"}

            answered, refused = [], []

            def asks():
                while not refused:
                    try:
                        answered.append(asked(server.address, "/v1/embeddings", BODY))
                    except httpx.TransportError as error:
                        refused.append(error)
                    else:
                        if answered[-1].status_code != 200:
                            refused.append(answered.pop())

            threads = [threading.Thread(target=asks) for _ in range(8)]
            for each in threads:
                each.start()
            time.sleep(5)
            server.end()
            assert server.status() == 0, server.log.read_text()
            for each in threads:
                each.join()
        assert len(answered) > 8
        for each in answered:
            check_vectors(each)
        # What came after the end was asked for finds no application any more.
        assert {each.status_code for each in refused if isinstance(each, httpx.Response)} <= {404, 503}

    def test_what_a_replica_meets_ends_the_command(self, tmp_path):
        command = [
            sys.executable,
            "-m",
            "bge_runtime.cli",
            "serve",
            "--model",
            str(tmp_path / "nowhere"),
            "--ray",
            "local",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 2
        assert re.search(r"Error: Ray Serve cannot run .*nowhere' does not exist\.", done.stderr), done.stderr[-3000:]

    def test_a_config_file_of_ray_serve_names_the_builder(self, hub_cache, tmp_path):
        (tmp_path / "keys").write_text(KEY)
        port = free_port()
        args = {
            "models": [{"model": EMBEDDER}],
            "api_key_file": str(tmp_path / "keys"),
            "ray": {"replicas": [1, 2], "num_cpus": 0.5, "target_ongoing_requests": 1},
        }
        application = {"name": "bge", "route_prefix": "/", "import_path": "bge_runtime.serving.ray_serve:build"}
        file = tmp_path / "config.yaml"
        file.write_text(
            yaml.safe_dump({"http_options": {"port": port}, "applications": [{**application, "args": args}]})
        )
        command = [sys.executable, "-m", "ray.serve.scripts", "run", str(file)]
        log = tmp_path / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=stream, env=os.environ)
        address, limit = f"http://127.0.0.1:{port}", time.monotonic() + 300
        try:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{address}/ready", timeout=10).status_code == 200:
                        break
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < limit, log.read_text()
                time.sleep(0.5)
            check_vectors(asked(address, "/v1/embeddings", BODY))
            assert asked(address, "/v1/embeddings", BODY, "").status_code == 401
            # More requests than one replica is to have: another one is started.
            limit = time.monotonic() + 200
            with ThreadPoolExecutor(8) as pool:
                while not re.search("Adding 1 replica .*\n(.*\n)*.*Adding 1 replica", log.read_text()):
                    assert time.monotonic() < limit, log.read_text()
                    for answer in pool.map(lambda _: asked(address, "/v1/embeddings", BODY), range(16)):
                        check_vectors(answer)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            finally:
                process.kill()
