"""Write the extracts of the schemas, as SOURCE.md tells.

python tests/data/deploy_schemas/make_schemas.py COMPOSE KUBERNETES CRD
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
KINDS = {
    "Deployment": "deployment-apps-v1",
    "HorizontalPodAutoscaler": "horizontalpodautoscaler-autoscaling-v2",
    "PersistentVolumeClaim": "persistentvolumeclaim-v1",
    "Service": "service-v1",
}
POD = "io.k8s.api.core.v1.PodTemplateSpec"
DEFINITIONS = "/api/_definitions.json"


def bare(value: Any, *, names: bool = False) -> Any:
    """Return a schema without what only people read; `names` where keys are names of properties."""
    if isinstance(value, list):
        return [bare(each) for each in value]
    if not isinstance(value, dict):
        return value
    inner = ("properties", "patternProperties", "$defs", "definitions")
    return {
        key: bare(each, names=not names and key in inner)
        for key, each in value.items()
        if names or not (key in ("description", "default", "format") or key.startswith("x-"))
    }


def references(value: Any) -> set[str]:
    """Return the names of the definitions that a schema names."""
    if isinstance(value, dict):
        own = {value["$ref"].rpartition("/")[2]} if "$ref" in value else set()
        return own.union(*(references(each) for each in value.values()))
    return set().union(*(references(each) for each in value)) if isinstance(value, list) else set()


def within(value: Any) -> Any:
    """Return a schema whose references lead into its own file."""
    if isinstance(value, dict):
        return {key: each.removeprefix(DEFINITIONS) if key == "$ref" else within(each) for key, each in value.items()}
    return [within(each) for each in value] if isinstance(value, list) else value


def closed(value: Any) -> Any:
    """Return a schema of a CRD that takes the fields it names and no others."""
    if isinstance(value, list):
        return [closed(each) for each in value]
    if not isinstance(value, dict):
        return value
    found = {key: closed(each) for key, each in value.items()}
    is_open = value.get("x-kubernetes-preserve-unknown-fields", False)
    if isinstance(value.get("properties"), dict) and value.get("type") == "object" and not is_open:
        found.setdefault("additionalProperties", False)
    return found


def kubernetes(folder: Path) -> dict[str, Any]:
    """Return the kinds that are used, with the definitions that they need."""
    kinds = {kind: json.loads((folder / f"{file}.json").read_text(encoding="utf-8")) for kind, file in KINDS.items()}
    for each in kinds.values():
        del each["$id"], each["$schema"]  # references of a schema with an id of its own would start there
        each["properties"].pop("status", None)
        each["required"] = ["apiVersion", "kind", "metadata", "spec"]
    known = json.loads((folder / "_definitions.json").read_text(encoding="utf-8"))["$defs"]
    wanted, more = set(), {POD}.union(*(references(each) for each in kinds.values()))
    while more:
        wanted |= more
        more = set().union(*(references(known[name]) for name in more)) - wanted
    return within(bare({"$defs": {**kinds, **{name: known[name] for name in sorted(wanted)}}}))


def ray_service(crd: Path) -> dict[str, Any]:
    """Return version v1 of RayService; a pod is looked up in Kubernetes' own schema."""
    versions = yaml.safe_load(crd.read_text(encoding="utf-8"))["spec"]["versions"]
    (schema,) = [each["schema"]["openAPIV3Schema"] for each in versions if each["name"] == "v1"]
    fields = {key: each for key, each in schema["properties"].items() if key != "status"}
    fields |= {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": "RayService"}}
    return bare(closed(_with_pods({**schema, "properties": fields, "required": [*fields]})))


def _with_pods(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_pods(each) for each in value]
    if not isinstance(value, dict):
        return value
    pod = {"$ref": f"kubernetes.json#/$defs/{POD}"}
    return {
        key: pod if key == "template" and "spec" in each.get("properties", {}) else _with_pods(each)
        for key, each in value.items()
    }


def main(compose: str, folder: str, crd: str) -> None:
    """Write the three files."""
    made = {
        "compose": bare(json.loads(Path(compose).read_text(encoding="utf-8"))),
        "kubernetes": kubernetes(Path(folder)),
        "rayservice": ray_service(Path(crd)),
    }
    for name, schema in made.items():
        (HERE / f"{name}.json").write_text(json.dumps(schema, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
