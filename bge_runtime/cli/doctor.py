"""What `bge doctor` finds out about this machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec as find_module
from threading import Thread
from urllib.parse import urlsplit
from urllib.request import getproxies

from bge_runtime import BGEError, DeviceChoice, Execution, choose_execution, list_models, locate

__all__ = ["DeviceReport", "HubReport", "Report", "examine", "examine_hub", "render"]

PACKAGES = (
    "bge-integrations",
    "torch",
    "sentence-transformers",
    "transformers",
    "tokenizers",
    "huggingface-hub",
    "onnxruntime",
    "openvino",
    "langchain-core",
    "llama-index-core",
)
HUB_TIMEOUT_S = 3.0
PRECISIONS = ("float32", "bfloat16", "float16", "int8")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceReport:
    """Devices, and which one a model would run on.

    Attributes:
        found: One line per device.
        device: The one that would be chosen; `None` when torch does not work.
        precision: The number format that would be chosen.
        backend: The way of executing that would be chosen.
        reason: Why these.
        by_precision: What would run each precision when it is asked for, and why, or why nothing can.
        backends: What each backend runs and in which number formats, or what is missing for it.
    """

    found: tuple[str, ...]
    device: str | None
    precision: str | None
    backend: str | None
    reason: str
    by_precision: dict[str, str]
    backends: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class HubReport:
    """The model hub.

    Attributes:
        endpoint: Its address, `HF_ENDPOINT` if that is set.
        offline: Whether `HF_HUB_OFFLINE` forbids to ask it.
        reachable: Whether it answered; `None` when it was not asked.
        detail: What happened.
        cache_folder: Where downloaded models are.
        proxies: What the environment puts between, by scheme, without passwords.
    """

    endpoint: str
    offline: bool
    reachable: bool | None
    detail: str
    cache_folder: str
    proxies: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything that `bge doctor` prints.

    Attributes:
        versions: Version of each package; `None` when it is not installed.
        devices: Devices and the choice among them.
        hub: The model hub.
        models: Folder of each model of the table that is on this machine.
        offline_packages: Whether each package that carries weights is installed, by the model's id.
    """

    versions: dict[str, str | None]
    devices: DeviceReport
    hub: HubReport
    models: dict[str, str]
    offline_packages: dict[str, bool]

    def as_dict(self) -> dict[str, object]:
        """Return the report as plain values, for JSON."""
        return asdict(self)


def examine() -> Report:
    """Look at this machine; the hub gets one request, with a limit of three seconds."""
    located = {spec.id: locate(spec.id) for spec in list_models()}
    return Report(
        versions={
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
        devices=_examine_devices(),
        hub=examine_hub(),
        models={name: str(folder) for name, folder in located.items() if folder is not None},
        offline_packages={spec.id: find_module(spec.package) is not None for spec in list_models() if spec.package},
    )


def render(report: Report) -> str:
    """Return the report as text."""
    devices, hub = report.devices, report.hub
    reach = {True: "reachable", False: "NOT reachable", None: "not asked"}[hub.reachable]
    choice = f"{devices.backend} on {devices.device} in {devices.precision}" if devices.device else "none"
    parts = {
        "Versions": [f"{name:<22} {found or 'not installed'}" for name, found in report.versions.items()],
        "Devices": [*devices.found, f"chosen: {choice} ({devices.reason})"],
        "Precisions": [f"{name:<9} {way}" for name, way in devices.by_precision.items()],
        "Backends": [f"{name:<9} {what}" for name, what in devices.backends.items()],
        "Model hub": [
            f"{hub.endpoint}: {reach} ({hub.detail})",
            *(f"proxy for {kind}: {address}" for kind, address in hub.proxies.items()),
            f"cache: {hub.cache_folder}",
        ],
        "Models on this machine": [f"{name:<42} {folder}" for name, folder in report.models.items()] or ["none"],
        "Offline package": [
            f"{name:<42} {'installed' if found else 'missing: pip install bge-integrations[offline]'}"
            for name, found in report.offline_packages.items()
        ],
    }
    return "\n\n".join("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in parts.items())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _examine_devices() -> DeviceReport:
    try:
        found = DeviceChoice.available()
        choice = choose_execution()
    except (ImportError, OSError, BGEError) as error:
        # A torch of the wrong build fails on import with either.
        reason = f"torch does not work here: {error}"
        return DeviceReport(
            found=(),
            device=None,
            precision=None,
            backend=None,
            reason=reason,
            by_precision={},
            backends=Execution.backends(),
        )
    return DeviceReport(
        found=found,
        device=choice.device,
        precision=choice.precision,
        backend=choice.backend,
        reason=choice.reason,
        by_precision={name: _way(name) for name in PRECISIONS},
        backends=Execution.backends(),
    )


def _way(precision: str) -> str:
    try:
        choice = choose_execution(precision=precision)
    except BGEError as error:
        return str(error)
    return f"{choice.backend} on {choice.device} ({choice.reason})"


def examine_hub() -> HubReport:
    """Ask the model hub whether it answers, with a limit of three seconds."""
    from huggingface_hub import constants

    offline = bool(constants.HF_HUB_OFFLINE)
    if offline:
        reachable, detail = None, "HF_HUB_OFFLINE is set"
    else:
        reachable, detail = _ask(constants.ENDPOINT)
    return HubReport(
        endpoint=constants.ENDPOINT,
        offline=offline,
        reachable=reachable,
        detail=detail,
        cache_folder=os.path.expanduser(os.environ.get("SENTENCE_TRANSFORMERS_HOME") or constants.HF_HUB_CACHE),
        proxies=_proxies(),
    )


def _proxies() -> dict[str, str]:
    parts = {kind: urlsplit(address) for kind, address in getproxies().items() if kind != "no"}
    return {kind: f"{each.scheme}://{each.netloc.rpartition('@')[2]}" for kind, each in parts.items()}


def _ask(endpoint: str) -> tuple[bool, str]:
    """Return whether `endpoint` answers at all, and what it said, on the way that a download takes."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    started = time.monotonic()

    def ask() -> tuple[bool, str]:
        try:
            status = get_session().head(endpoint, timeout=HUB_TIMEOUT_S).status_code
        except Exception as error:  # noqa: BLE001 - of the transport, a proxy's settings, certificates, ...
            return False, f"{type(error).__name__}: {error}"
        return status < 500, f"HTTP {status} in {time.monotonic() - started:.1f} s"

    return _within(HUB_TIMEOUT_S, ask, (False, f"no answer within {HUB_TIMEOUT_S:g} s"))


def _within(seconds: float, call: Callable[[], tuple[bool, str]], otherwise: tuple[bool, str]) -> tuple[bool, str]:
    """Return what `call` returns, or `otherwise` when it takes longer: name resolution knows no limit of ours."""
    results: list[tuple[bool, str]] = []
    worker = Thread(target=lambda: results.append(call()), daemon=True)
    worker.start()
    worker.join(seconds)
    return results[0] if results else otherwise
