"""A run on a Ray cluster gives what a run on one machine gives, whoever is killed on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import numpy as np
import pytest

from bge_runtime import ConfigurationError
from bge_runtime.bulk import embed_to_parquet
from tests.bulk.corpora import ids_of, parts_of, sentences, vectors_of, write_lines
from tests.bulk.ray_runs import PART_ROWS

ROWS = 60


@pytest.fixture
def corpus(tmp_path):
    return write_lines(tmp_path / "corpus.jsonl", sentences(ROWS))


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_it_names_the_extra(tmp_path, corpus, embedder):
    with pytest.raises(ConfigurationError, match=r'needs ray: pip install "bge-integrations\[ray\]"'):
        embed_to_parquet(corpus, tmp_path / "out", embedder, ray="auto")
    assert not (tmp_path / "out").exists()


def test_an_address_that_is_no_text_is_refused(tmp_path, corpus, embedder):
    with pytest.raises(ConfigurationError, match="ray=True is not allowed"):
        embed_to_parquet(corpus, tmp_path / "out", embedder, ray=True)


def begun(source, out, format, *what):
    command = [sys.executable, "-m", "tests.bulk.ray_runs", str(source), str(out), format, *what]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process):
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def check_same(folder, whole, allowed):
    assert ids_of(folder) == ids_of(whole)
    one, other = (vectors_of(each).astype(float) for each in (folder, whole))
    assert np.abs(one - other).max() <= allowed


@pytest.mark.slow
@pytest.mark.timeout(600)  # a cluster is started, and each worker imports the model's packages
class TestOnACluster:
    @pytest.fixture(autouse=True)
    def needs_ray(self):
        pytest.importorskip("ray")

    @pytest.mark.parametrize(("format", "allowed"), [("float32", 1e-6), ("int8", 1)])
    def test_it_gives_the_rows_of_a_run_on_one_machine(self, tmp_path, corpus, embedder, format, allowed):
        whole = embed_to_parquet(corpus, tmp_path / "whole", embedder, format=format, part_rows=PART_ROWS)
        told = ended(begun(corpus, tmp_path / "out", format))
        assert (told["rows"], told["computed"], told["recomputed"]) == (ROWS, ROWS, 0)
        check_same(tmp_path / "out", whole.folder, allowed)
        assert not embed_to_parquet(corpus, tmp_path / "out", embedder, format=format, part_rows=PART_ROWS).changed

    def test_a_worker_that_is_killed_is_replaced(self, tmp_path, corpus, embedder):
        whole = embed_to_parquet(corpus, tmp_path / "whole", embedder, part_rows=PART_ROWS)
        told = ended(begun(corpus, tmp_path / "out", "float32", "local", "kill-a-worker"))
        assert told["recomputed"] == PART_ROWS
        check_same(tmp_path / "out", whole.folder, 1e-6)
        assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == [".lock"]

    def test_a_machine_that_is_lost_is_done_without(self, tmp_path, embedder):
        from ray.cluster_utils import Cluster

        corpus = write_lines(tmp_path / "long.jsonl", sentences(1500))
        whole = embed_to_parquet(corpus, tmp_path / "whole", embedder, part_rows=PART_ROWS)
        machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            second = machines.add_node(num_cpus=1)
            machines.wait_for_nodes()
            driver = begun(corpus, tmp_path / "out", "float32", machines.address)
            while not parts_of(tmp_path / "out"):
                assert driver.poll() is None, driver.stderr.read()[-3000:]
                time.sleep(0.005)
            machines.remove_node(second, allow_graceful=False)
            assert len(parts_of(tmp_path / "out")) < 1500 // PART_ROWS
            told = ended(driver)
        finally:
            machines.shutdown()
        assert told["computed"] == 1500
        check_same(tmp_path / "out", whole.folder, 1e-6)

    def test_a_driver_that_is_killed_is_started_again(self, tmp_path, corpus, embedder):
        whole = embed_to_parquet(corpus, tmp_path / "whole", embedder, part_rows=PART_ROWS)
        driver = begun(corpus, tmp_path / "out", "float32")
        while not parts_of(tmp_path / "out"):
            assert driver.poll() is None, driver.stderr.read()[-3000:]
            time.sleep(0.005)
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
        there = len(parts_of(tmp_path / "out"))
        told = ended(begun(corpus, tmp_path / "out", "float32"))
        assert there < ROWS // PART_ROWS
        assert 0 < told["computed"] <= ROWS - there * PART_ROWS
        check_same(tmp_path / "out", whole.folder, 1e-6)
