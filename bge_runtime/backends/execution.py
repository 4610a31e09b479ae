"""Which backend executes a model, on which device and in which precision, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec as find_module

from bge_runtime.backends.devices import Accelerators, check_device_name, check_precision, choose_device
from bge_runtime.backends.registry import ENCODERS, BackendRecord, backend_names, find_backend
from bge_runtime.errors import ConfigurationError, public

__all__ = ["Execution", "check_backend_runs", "check_execution", "choose_execution"]

# Asked for by the kind of score, not by name.
LLM = find_backend("llm")


@public
@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """How a model runs.

    Attributes:
        backend: Way of executing: `packed`, `torch`, `onnx`, `openvino`, `llm`.
        device: Device name.
        precision: Number format of the computation.
        reason: Why these, in words.
    """

    backend: str
    device: str
    precision: str
    reason: str

    @staticmethod
    def backends() -> dict[str, str]:
        """Return what each backend runs and in which number formats, or what is missing for it; reads no weights."""
        return {name: _described(name) for name in backend_names()}


def choose_execution(
    device: str | None = None,
    precision: str | None = None,
    backend: str = "auto",
    *,
    architecture: str = "bert",
    score: str | None = None,
    accelerators: Accelerators | None = None,
    installed: Callable[[str], bool] | None = None,
) -> Execution:
    """Choose what the caller left open.

    The default is exact: float32 on CPUs, through `packed`. A faster precision is the caller's to ask for; then
    `openvino` is taken on CPUs where it is installed. GPUs run `torch`. LLM rerankers run `llm` everywhere.

    Args:
        device: `cpu`, `cuda`, `cuda:N`, `mps`, or `None` to choose.
        precision: `float32`, `float16`, `bfloat16`, `int8`, or `None` to choose.
        backend: A backend's name, or `auto` to choose.
        architecture: `model_type` of the model.
        score: How a reranker's number arises, as in its spec.
        accelerators: What the machine offers; `None` asks torch, unless the backend runs on CPUs only.
        installed: Says whether a package is installed; `None` looks.

    Raises:
        ConfigurationError: A name is unknown, the device is not there, or the three do not go together.
    """
    if not isinstance(backend, str):
        find_backend(backend)  # raises
    check_backend_runs(backend, score)
    has = installed or (lambda package: find_module(package) is not None)
    record = None if backend == "auto" else find_backend(backend)
    if record is not None and not record.gpu_precisions:
        return _on_cpu(record, check_device_name(device), check_precision(precision), has)
    place = choose_device(device, precision, accelerators=accelerators)
    if score in LLM.scores:
        name, why = LLM.name, f"llm because the score is a {score}"
    else:
        name, why = _pick_backend(backend, place.device, place.precision, architecture, has)
    chosen = find_backend(name)
    allowed = chosen.cpu_precisions if place.device == "cpu" else chosen.gpu_precisions
    if place.precision not in allowed:
        raise ConfigurationError(
            f"precision={place.precision!r} does not run on {place.device!r} with backend={name!r}, which takes "
            f"{', '.join(map(repr, allowed))}. "
            + ("int8 runs on device='cpu', with 'packed' or an export." if place.precision == "int8" else "")
        )
    return Execution(backend=name, device=place.device, precision=place.precision, reason=f"{place.reason}; {why}")


def check_execution(
    device: str | None, precision: str | None, backend: str, *, architecture: str = "bert", score: str | None = None
) -> None:
    """Refuse what `choose_execution` is going to refuse, as far as that can be known without torch.

    A CPU is everywhere; torch is imported and asked where a GPU is named. Where the device is to be chosen, it is
    enough that one kind could be.

    Raises:
        ConfigurationError: As `choose_execution`.
    """
    named = check_device_name(device)
    runs_on_gpus = backend == "auto" or bool(find_backend(backend).gpu_precisions)
    kinds = [Accelerators(), Accelerators(cuda=((8, 0),)), Accelerators(mps=True)]
    if named == "cpu" or not runs_on_gpus:
        kinds = kinds[:1]
    elif named is not None:
        kinds = [Accelerators.counted()]
    refusals = []
    for kind in kinds:
        try:
            choose_execution(named, precision, backend, architecture=architecture, score=score, accelerators=kind)
        except ConfigurationError as error:
            refusals.append(error)
    if len(refusals) == len(kinds):
        raise refusals[0]


def check_backend_runs(backend: str, score: str | None) -> None:
    """Refuse a backend that does not compute this kind of score.

    Raises:
        ConfigurationError: Says which backend does.
    """
    own = () if backend == "auto" else find_backend(backend).scores
    if score in LLM.scores and backend != "auto" and score not in own:
        raise ConfigurationError(
            f"backend={backend!r} does not run LLM rerankers (score {score!r}). Use backend='auto' or 'llm'."
        )
    if own and score not in own:
        raise ConfigurationError(
            f"backend={backend!r} runs LLM rerankers only. Use backend='auto', 'packed' or 'torch'."
        )


def _pick_backend(
    backend: str, device: str, precision: str, architecture: str, installed: Callable[[str], bool]
) -> tuple[str, str]:
    if backend != "auto":
        return backend, f"{backend} as asked"
    if device != "cpu":
        return "torch", "torch because the device is a GPU"
    if architecture not in ENCODERS:
        return "torch", f"torch because {architecture!r} is not one of {', '.join(ENCODERS)}"
    if precision in ("bfloat16", "int8"):
        if installed("openvino"):
            return "openvino", f"openvino because it is installed and the fastest in {precision}"
        return "packed", f"packed, because openvino, which is faster in {precision}, is not installed"
    return "packed", "packed because it computes no padding"


def _on_cpu(
    record: BackendRecord, device: str | None, precision: str | None, installed: Callable[[str], bool]
) -> Execution:
    """Choose without torch: an export starts faster than torch is imported."""
    backend, allowed = record.name, record.cpu_precisions
    if device not in (None, "cpu"):
        raise ConfigurationError(
            f"backend={backend!r} runs on the CPU, not on device={device!r}. Use backend='torch' or 'packed' there."
        )
    if precision is not None and precision not in allowed:
        raise ConfigurationError(
            f"backend={backend!r} does not compute in precision={precision!r}. "
            f"Use {', '.join(map(repr, allowed))}, or backend='packed'."
        )
    if record.package is not None and not installed(record.package):
        raise ConfigurationError(
            f'backend={backend!r} needs {record.package}. Install it with: pip install "{record.install}"'
        )
    chosen = precision or allowed[0]
    return Execution(
        backend=backend,
        device="cpu",
        precision=chosen,
        reason=f"cpu because {backend} runs there; {chosen} {'as asked' if precision else 'is exact'}; "
        f"{backend} as asked",
    )


def _described(name: str) -> str:
    try:
        record = find_backend(name)
    except ConfigurationError as error:  # another package's, which is broken
        return str(error)
    if record.package is not None and find_module(record.package) is None:
        return f'{record.package} is missing: pip install "{record.install}"'
    where = "CPUs and GPUs" if record.gpu_precisions else "CPUs"
    return f"{record.runs}; {where}; {', '.join(record.cpu_precisions)}"
