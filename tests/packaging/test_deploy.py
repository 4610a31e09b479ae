"""The files of deploy/ are what Docker, Compose and Kubernetes read, and start the server that this project has."""

from __future__ import annotations

import fnmatch
import importlib
import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from prometheus_client.parser import text_string_to_metric_families
from referencing import Registry
from referencing.jsonschema import DRAFT202012
from starlette.testclient import TestClient
from typer.testing import CliRunner

import bge_runtime.serving
from bge_runtime.cli.commands import app
from bge_runtime.serving import ServerSettings, create_app, ray_serve
from bge_runtime.serving.monitoring import Monitoring
from bge_runtime.serving.server import KEEP_ALIVE_S
from tests.packaging.project import ROOT, extras

DEPLOY = ROOT / "deploy"
# Keys are whoever's who runs it.
FILES = sorted(file for file in DEPLOY.iterdir() if file.name != "keys")
SCHEMAS = {
    file.stem: json.loads(file.read_text(encoding="utf-8"))
    for file in (ROOT / "tests" / "data" / "deploy_schemas").glob("*.json")
}
# In seconds: how long a server that was asked to end still answers what it has taken.
DRAIN = ServerSettings.model_fields["drain_s"].default
PREFIX = str(ServerSettings.model_config["env_prefix"])
WEIGHTS = (".safetensors", ".bin", ".pt", ".onnx", ".gguf", ".h5")


@dataclass(frozen=True)
class Instruction:
    """A line of a Dockerfile.

    Attributes:
        stage: Which `FROM` it is below, from 1.
        name: Such as `RUN`.
        words: Of the exec form; those of a line otherwise.
        is_exec: Whether it is the exec form.
    """

    stage: int
    name: str
    words: list[str]
    is_exec: bool

    @property
    def arguments(self) -> list[str]:
        """The words without the options of the instruction itself."""
        return [word for word in self.words if not word.startswith("--")]


def instructions() -> list[Instruction]:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    found, stage = [], 0
    for line in filter(str.strip, lines):
        name, _, rest = line.partition(" ")
        stage += name == "FROM"
        # HEALTHCHECK has an instruction in it.
        body = rest.partition(" CMD ")[2].strip() if name == "HEALTHCHECK" else rest.strip()
        is_exec = body.startswith("[")
        found.append(Instruction(stage, name, json.loads(body) if is_exec else body.split(), is_exec))
    return found


def last(name: str) -> Instruction:
    """Return the instruction that counts: the last of its kind in the last stage."""
    known = instructions()
    return [each for each in known if each.name == name and each.stage == known[-1].stage][-1]


def environment() -> dict[str, str]:
    return dict(word.split("=", 1) for word in last("ENV").words)


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return found


def manifests(file: str = "kubernetes.yaml") -> dict[str, Any]:
    """Return kind -> manifest; none stands twice."""
    found = list(yaml.safe_load_all((DEPLOY / file).read_text(encoding="utf-8")))
    kinds = {each["kind"]: each for each in found}
    assert len(kinds) == len(found)
    return kinds


def pod() -> dict[str, Any]:
    found: dict[str, Any] = manifests()["Deployment"]["spec"]["template"]["spec"]
    return found


def container() -> dict[str, Any]:
    (found,) = pod()["containers"]
    return dict(found)


def ray_service() -> dict[str, Any]:
    found: dict[str, Any] = manifests("kuberay.yaml")["RayService"]["spec"]
    return found


def served_by_ray() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(ray_service()["serveConfigV2"])
    return found


def ray_pods() -> dict[str, dict[str, Any]]:
    """Return head and worker."""
    groups = {"head": ray_service()["rayClusterConfig"]["headGroupSpec"]}
    (groups["worker"],) = ray_service()["rayClusterConfig"]["workerGroupSpecs"]
    return {name: each["template"]["spec"] for name, each in groups.items()}


def wrong(document: Any, schema: str, kind: str | None = None) -> list[str]:
    """Return where a document has what its schema does not allow, or lacks what it asks for."""
    known = [(f"{name}.json", DRAFT202012.create_resource(each)) for name, each in SCHEMAS.items()]
    checks = jsonschema.Draft202012Validator(
        {"$ref": f"{schema}.json#/$defs/{kind}"} if kind else SCHEMAS[schema],
        registry=Registry().with_resources(known),
    )
    return [f"{error.json_path}: {error.message[:200]}" for error in checks.iter_errors(document)]


def test_compose_has_what_its_specification_allows() -> None:
    assert wrong(compose(), "compose") == []


@pytest.mark.parametrize("kind", manifests())
def test_a_manifest_has_what_its_kind_allows(kind: str) -> None:
    assert wrong(manifests()[kind], "kubernetes", kind) == []


def test_the_manifest_of_kuberay_has_what_its_kind_allows() -> None:
    assert wrong(manifests("kuberay.yaml")["RayService"], "rayservice") == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("apiVersion", "ray.io/v1alpha1"),
        ("spec/serveConfig", {}),
        ("spec/rayClusterConfig/headGroupSpec/template", None),
        ("spec/rayClusterConfig/headGroupSpec/rayStartParams/num-cpus", 0),
        ("spec/rayClusterConfig/workerGroupSpecs/0/maxReplica", 4),
        ("spec/rayClusterConfig/workerGroupSpecs/0/template/spec/containers/0/readinesProbe", {}),
        ("spec/rayClusterConfig/workerGroupSpecs/0/template/spec/containers/0/name", None),
    ],
)
def test_a_slip_in_the_manifest_of_kuberay_is_found(path: str, value: Any) -> None:
    assert wrong(changed(manifests("kuberay.yaml")["RayService"], path, value), "rayservice")


def test_ray_serve_runs_the_builder_with_settings_of_a_server() -> None:
    (application,) = served_by_ray()["applications"]
    module, _, name = application["import_path"].partition(":")
    assert getattr(importlib.import_module(module), name) is ray_serve.build
    assert application["route_prefix"] == "/"
    assert not {"host", "port"}.intersection(application["args"])
    settings = ServerSettings.read(**application["args"], host="0.0.0.0")
    worker = ray_pods()["worker"]
    (group,) = ray_service()["rayClusterConfig"]["workerGroupSpecs"]
    assert settings.ray.replicas == (group["minReplicas"], group["maxReplicas"])
    limits = worker["containers"][0]["resources"]["limits"]
    assert settings.ray.num_gpus == limits["nvidia.com/gpu"]
    assert settings.ray.num_cpus is not None
    assert settings.ray.num_cpus <= int(limits["cpu"])
    assert worker["terminationGracePeriodSeconds"] > settings.drain_s
    for each in ray_pods().values():
        mounts = {mount["name"]: mount["mountPath"] for mount in each["containers"][0]["volumeMounts"]}
        assert str(settings.api_key_file) == f"{mounts['keys']}/keys"
        assert mounts["weights"] == environment()["HF_HOME"]


def test_the_cluster_listens_where_ray_serve_does_and_has_its_version() -> None:
    options = served_by_ray()["http_options"]
    assert options["keep_alive_timeout_s"] == KEEP_ALIVE_S
    for each in ray_pods().values():
        (own,) = each["containers"]
        (serve,) = [port for port in own["ports"] if port["name"] == "serve"]
        assert serve["containerPort"] == options["port"] == started_by([]).port
        assert each["enableServiceLinks"] is False
        assert each["securityContext"] == pod()["securityContext"]
    assert ray_pods()["worker"]["containers"][0]["readinessProbe"]["httpGet"]["port"] == "serve"
    lock = (ROOT / "locks" / "ray.txt").read_text(encoding="utf-8")
    assert f"\nray=={ray_service()['rayClusterConfig']['rayVersion']} " in lock
    # Whose volume it is.
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for each in ray_pods().values()
        for volume in each["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {manifests()["PersistentVolumeClaim"]["metadata"]["name"]}


def changed(document: Any, path: str, value: Any) -> Any:
    """Return a copy with another value at a path; `None` drops the place."""
    copy = deepcopy(document)
    *way, end = [int(part) if part.isdigit() else part for part in path.split("/")]
    place = copy
    for part in way:
        place = place[part]
    if value is None:
        del place[end]
    else:
        place[end] = value
    return copy


POD = "spec/template/spec/containers/0"


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", f"{POD}/livenesProbe", {}),
        ("Deployment", f"{POD}/readinessProbe/httpGet/port", None),
        ("Deployment", f"{POD}/args", "--model"),
        ("Deployment", "spec/selector", None),
        ("Deployment", "spec/template/spec/terminationGracePeriodSeconds", "90s"),
        ("HorizontalPodAutoscaler", "spec/metrics/0/pods/target/type", None),
        ("HorizontalPodAutoscaler", "apiVersion", "autoscaling/v1"),
        ("Service", "spec/ports/0/port", None),
        ("PersistentVolumeClaim", "spec/accessModes", "ReadWriteMany"),
    ],
)
def test_a_slip_in_a_manifest_is_found(kind: str, path: str, value: Any) -> None:
    assert wrong(changed(manifests()[kind], path, value), "kubernetes", kind)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("services/server/stop_grace", "90s"),
        ("services/server/ports", "8080:8080"),
        ("services/gpu/deploy/resources/reservations/devices/0/capabilities", None),
        ("secret", {}),
    ],
)
def test_a_slip_in_compose_is_found(path: str, value: Any) -> None:
    assert wrong(changed(compose(), path, value), "compose")


def asked(code: str, monkeypatch: pytest.MonkeyPatch) -> urllib.parse.ParseResult:
    """Return the address that the code of a health check asks."""
    addresses: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(urllib.request, "urlopen", lambda address, timeout: addresses.append(address))
        exec(code, {})
    (address,) = addresses
    return urllib.parse.urlparse(address)


def http_probes(of: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        yield name, of[name]["httpGet"]


def test_probes_ask_routes_that_need_no_key(hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-a-test-server")
    settings = ServerSettings.read(models=[{"model": "BAAI/bge-small-en-v1.5"}], api_key_file=keys)
    paths = dict(http_probes(container()))
    assert [each["path"] for each in paths.values()] == ["/ready", "/ready", "/health"]
    health = asked(last("HEALTHCHECK").words[-1], monkeypatch)
    ready = [asked(each["healthcheck"]["test"][-1], monkeypatch) for each in compose()["services"].values()]
    assert {health.path, *(each.path for each in ready)} == {"/health", "/ready"}
    assert {health.port, *(each.port for each in ready)} == {started_by([]).port}
    with TestClient(create_app(settings)) as client:
        for path in ("/health", "/ready"):
            assert client.get(path).status_code in (200, 503)
        assert client.get("/nowhere").status_code == 401


def started_by(arguments: list[str]) -> ServerSettings:
    """Return the settings that the image's command makes of arguments and of the image's environment."""
    command = last("ENTRYPOINT").words
    found: list[ServerSettings] = []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            if name.startswith("BGE_"):
                patch.setenv(name, value)
        patch.setattr(bge_runtime.serving, "serve", found.append)
        result = CliRunner().invoke(app, [*command[1:], *(arguments or ["--model", "a/b", "--no-auth"])])
    assert result.exit_code == 0, result.output
    (settings,) = found
    return settings


def test_the_image_starts_the_command_of_this_project_by_itself() -> None:
    # Without a shell in between, which would keep SIGTERM for itself.
    assert last("ENTRYPOINT").is_exec
    assert last("ENTRYPOINT").words == ["bge", "serve"]
    assert last("HEALTHCHECK").is_exec
    assert last("HEALTHCHECK").words[0] == "python"


def test_the_arguments_of_all_files_are_options_and_name_a_file_of_keys_that_is_there() -> None:
    services = compose()["services"]
    assert set(services) == {"server", "gpu"}
    for each in services.values():
        (secret,) = each["secrets"]
        assert secret in compose()["secrets"]
        assert str(started_by(each["command"]).api_key_file) == f"/run/secrets/{secret}"
    mounts = {each["name"]: each["mountPath"] for each in container()["volumeMounts"]}
    assert str(started_by(container()["args"]).api_key_file) == f"{mounts['keys']}/keys"


def test_environments_name_settings_and_the_volume_of_weights() -> None:
    services = list(compose()["services"].values())
    for names in (environment(), *(each.get("environment", {}) for each in services)):
        told = {name for name in names if name.startswith(PREFIX)}
        assert told <= {f"{PREFIX}{field}".upper() for field in ServerSettings.model_fields}
    place = environment()["HF_HOME"]
    assert last("VOLUME").words == [place]
    assert Path(place) in Path(environment()["BGE_CACHE_DIR"]).parents
    assert place in [each["mountPath"] for each in container()["volumeMounts"]]
    for each in services:
        (volume,) = each["volumes"]
        name, _, where = volume.partition(":")
        assert name in compose()["volumes"]
        assert where == place


def test_ports_agree() -> None:
    port = started_by([]).port
    assert last("EXPOSE").words == [str(port)]
    for each in compose()["services"].values():
        (published,) = each["ports"]
        assert published.startswith("127.0.0.1:")
        assert published.endswith(f":{port}")
    (named,) = container()["ports"]
    assert named["containerPort"] == port
    (service,) = manifests()["Service"]["spec"]["ports"]
    assert {service["targetPort"], *(each["port"] for _, each in http_probes(container()))} == {named["name"]}


def test_what_was_taken_is_answered_before_a_server_is_killed() -> None:
    for each in compose()["services"].values():
        assert int(each["stop_grace_period"].removesuffix("s")) > DRAIN
    before = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod()["terminationGracePeriodSeconds"] > DRAIN + before


def test_manifests_name_each_other() -> None:
    kinds = manifests()
    labels = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert kinds["Deployment"]["spec"]["selector"]["matchLabels"] == labels == kinds["Service"]["spec"]["selector"]
    target = kinds["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    deployment = kinds["Deployment"]
    assert target == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    claims = [
        each["persistentVolumeClaim"]["claimName"] for each in pod()["volumes"] if "persistentVolumeClaim" in each
    ]
    assert claims == [kinds["PersistentVolumeClaim"]["metadata"]["name"]]
    assert {each["name"] for each in container()["volumeMounts"]} == {each["name"] for each in pod()["volumes"]}


def test_the_autoscaler_looks_at_a_metric_that_is_told() -> None:
    told = {each.name for each in text_string_to_metric_families(Monitoring().text().decode())}
    (metric,) = manifests()["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in told


def test_a_service_sets_no_setting_of_the_server() -> None:
    # Kubernetes writes NAME_PORT=tcp://... of every service into every container.
    name = manifests()["Service"]["metadata"]["name"].upper().replace("-", "_")
    assert not f"{name}_PORT".startswith(PREFIX)
    assert pod()["enableServiceLinks"] is False


def test_nobody_is_root_and_nothing_but_volumes_is_written() -> None:
    user, _, group = last("USER").words[0].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    known = instructions()
    after = known[known.index(last("USER")) :]
    assert {each.name for each in after}.isdisjoint({"RUN", "COPY", "ADD"})
    rights = pod()["securityContext"]
    assert rights["runAsNonRoot"] is True
    assert (rights["runAsUser"], rights["fsGroup"]) == (int(user), int(group))
    own = container()["securityContext"]
    assert own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert environment()["HOME"] in [each["mountPath"] for each in container()["volumeMounts"]]
    for each in compose()["services"].values():
        assert each["read_only"] is True
        assert each["tmpfs"] == [environment()["HOME"]]


def is_sent(path: str) -> bool:
    """Whether a file goes to the builder: the last pattern counts that matches it or a folder above it."""
    ways = [path, *map(str, Path(path).parents)]
    answer = True
    for line in (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        if pattern and not line.startswith("#"):
            deep = pattern.removeprefix("**/")
            names = [part for way in ways for part in Path(way).parts] if deep != pattern else ways
            if any(fnmatch.fnmatchcase(name, deep) for name in names):
                answer = line.startswith("!")
    return answer


def copied() -> list[Path]:
    """Return the files that the Dockerfile copies from the repository."""
    found: list[Path] = []
    for each in instructions():
        if each.name in ("COPY", "ADD") and not any(word.startswith("--from") for word in each.words):
            for source in each.arguments[:-1]:
                place = ROOT / source.replace("${LOCK}", "serve")
                assert place.exists(), source
                found += [file for file in ([place] if place.is_file() else place.rglob("*")) if file.is_file()]
    return [file for file in found if "__pycache__" not in file.parts]


def test_the_image_holds_what_it_is_built_from_and_no_weights() -> None:
    names = [file.relative_to(ROOT).as_posix() for file in copied()]
    assert {"pyproject.toml", "README.md", "LICENSE", "locks/serve.txt", "bge_runtime/cli/serving.py"} <= set(names)
    assert [name for name in names if not is_sent(name)] == []
    assert [name for name in names if name.endswith(WEIGHTS)] == []
    for name in (
        ".git/config",
        ".venv/bin/python",
        "deploy/keys",
        "bge_runtime/__pycache__/x.pyc",
        "tests/conftest.py",
    ):
        assert not is_sent(name), name
    # Nothing is downloaded but packages.
    runs = [" ".join(each.words) for each in instructions() if each.name == "RUN"]
    assert [run for run in runs if "bge download" in run or "huggingface" in run] == []


def test_the_image_is_installed_from_a_lock_with_hashes_and_torch_as_the_makefile_has_it() -> None:
    runs = [" ".join(each.words) for each in instructions() if each.name == "RUN"]
    installs = [run for run in runs if "pip install" in run]
    with_hashes = [run for run in installs if "--require-hashes" in run and "locks/${LOCK}.txt" in run]
    rest = [run for run in installs if run not in with_hashes]
    assert len(with_hashes) == 1
    assert len(rest) == 2
    assert '"${TORCH}"' in rest[0]
    assert "--no-deps --no-build-isolation ." in rest[1]
    given = dict(each.words[0].partition("=")[::2] for each in instructions() if each.name == "ARG")
    chosen = re.search(r"^TORCH \?= (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert chosen is not None
    assert given["TORCH"] == chosen[1]
    assert given["LOCK"] in extras()
    for each in compose()["services"].values():
        build = each["build"]
        assert set(build["args"]) <= set(given)
        assert build["args"]["TORCH"] == f"${{TORCH:-{given['TORCH']}}}"
        assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")


def test_no_file_names_a_host_or_a_place_of_one_machine() -> None:
    for file in FILES:
        addresses = re.findall(r"https?://([\w.-]+)", file.read_text(encoding="utf-8"))
        assert set(addresses) <= {"127.0.0.1"}, file.name
        assert not re.search(r"/(home|root|Users|work)/", file.read_text(encoding="utf-8")), file.name


def test_the_source_distribution_has_the_files() -> None:
    held = {each.distribution_path for each in SdistBuilder(str(ROOT)).recurse_included_files()}
    assert {f"deploy/{file.name}" for file in FILES} <= held
