"""From what the caller named to a spec and a folder of files."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec as find_module
from pathlib import Path
from typing import Any

from bge_runtime.backends.base import Backend, LoadRequest
from bge_runtime.backends.devices import check_device_name, check_precision, default_batch_tokens
from bge_runtime.backends.execution import Execution, check_execution, choose_execution
from bge_runtime.backends.registry import find_backend
from bge_runtime.errors import (
    ConfigurationError,
    ModelNotFoundError,
    UnsupportedModelError,
    check_flag,
    check_path,
    check_string,
)
from bge_runtime.loading.options import LoadingOptions
from bge_runtime.locks import cached_property
from bge_runtime.models import hub
from bge_runtime.models import lora as adapters
from bge_runtime.models.describe import describe_folder
from bge_runtime.models.folder import find_folder, is_path
from bge_runtime.models.registry import find_spec, get_spec
from bge_runtime.models.spec import ModelSpec
from bge_runtime.vectors.query_map import QUERY_MAP, QueryMap

__all__ = ["ModelSource"]

# Like device and precision, these move the last digits of a vector only.
NUMERIC_ARGUMENTS = {"attn_implementation", "device_map", "dtype", "low_cpu_mem_usage", "torch_dtype"}
# With one of these, transformers decides where the weights are and how large they become.
PLACING_ARGUMENTS = {"device_map", "quantization_config"}
# Options that are themselves arguments, of transformers' loaders.
GROUPS = ("model_kwargs", "processor_kwargs", "config_kwargs")
FLAGS = ("local_files_only", "trust_remote_code")
TEXTS = ("revision", "base_model")


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model as the caller names it, and how it is to be loaded: the fields are those of `LoadingOptions`.

    Attributes:
        model: Folder, hub id, name in the table, or a spec.
    """

    model: str | os.PathLike[str] | ModelSpec
    device: str | None = None
    precision: str | None = None
    backend: str = "auto"
    calibration: str | os.PathLike[str] | None = None
    devices: Sequence[str] | None = None
    keep_alive_s: float | None = None
    revision: str | None = None
    token: str | None = field(default=None, repr=False)
    cache_folder: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    trust_remote_code: bool = False
    base_model: str | None = None
    adapter: str | os.PathLike[str] | None = None
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    processor_kwargs: Mapping[str, Any] = field(default_factory=dict)
    config_kwargs: Mapping[str, Any] = field(default_factory=dict)
    base_url: str | None = None
    api: str | None = None

    @classmethod
    def of(cls, model: str | os.PathLike[str] | ModelSpec, loading: LoadingOptions) -> ModelSource:
        """Return the source that a constructor's arguments describe; see `__post_init__` for the errors."""
        given: dict[str, Any] = {
            name: {} if value is None and name in GROUPS else value for name, value in loading.items()
        }
        return cls(model=model, **given)

    def __post_init__(self) -> None:
        """Check all that can be checked without files.

        Raises:
            ConfigurationError: An option has a wrong value.
            ModelNotFoundError: The name is neither in the table, nor a folder, nor a hub id.
        """
        if self.api is not None:
            raise ConfigurationError(f"api={self.api!r} says what a server speaks. Pass base_url= too.")
        if not isinstance(self.backend, str):
            find_backend(self.backend)  # raises
        for name in FLAGS:
            check_flag(getattr(self, name), name)
        for name in TEXTS:
            check_string(getattr(self, name), name)
        object.__setattr__(self, "token", hub.check_token(self.token))
        if self.cache_folder is not None:
            check_path(self.cache_folder, "cache_folder")
            object.__setattr__(self, "cache_folder", os.fspath(self.cache_folder))
        object.__setattr__(self, "device", check_device_name(self.device))
        object.__setattr__(self, "precision", check_precision(self.precision))
        self._check_running()
        for name in GROUPS:  # copies: what the caller does to theirs later must not change this
            object.__setattr__(self, name, _copied(getattr(self, name), name))
        self._check_placing()
        self.check_executions()
        if self.base_model is not None:
            get_spec(self.base_model)
        if isinstance(self.model, os.PathLike):
            object.__setattr__(self, "model", os.fspath(self.model))
        if not isinstance(self.model, str | ModelSpec) or self.model == "":
            raise ConfigurationError(f"model={self.model!r} is not a name. Pass a hub id, a folder or a ModelSpec.")
        if self._local is not None:
            # A folder is looked into at once: what it lacks is the constructor's error, not the first call's.
            hub.check_folder(self._local, pickles_allowed=self.spec.pickled_weights)
        else:
            self._check_name(self.name)
        if self.adapter is not None:
            object.__setattr__(self, "adapter", adapters.check_name(self.adapter))
            if Path(str(self.adapter)).is_dir() and self.known_spec is not None:
                self._check_adapter(Path(str(self.adapter)))

    @property
    def name(self) -> str:
        """The model as the caller wrote it."""
        return self.model.id if isinstance(self.model, ModelSpec) else str(self.model)

    @property
    def is_remote(self) -> bool:
        """Whether a server runs the model."""
        return False

    @property
    def known_spec(self) -> ModelSpec | None:
        """The spec when it can be had without fetching anything."""
        # With base_model= a hub id is described by its own files, which may have to be fetched; a folder's are there.
        is_known = isinstance(self.model, ModelSpec) or self._local is not None or self._row is not None
        return self.spec if is_known and (self.base_model is None or self._local is not None) else None

    @cached_property
    def spec(self) -> ModelSpec:
        """The facts in force; reads (and, for an unknown hub id, fetches) the model's files when the table has none."""
        if isinstance(self.model, ModelSpec):
            return self.model
        if self._local is None and self._row is not None and self.base_model is None:
            return self._row
        return describe_folder(self.folder, self.name, self.base_model)

    @cached_property
    def folder(self) -> Path:
        """The folder with the model's files, fetched when this machine lacks them."""
        if self._local is not None:
            return self._local
        return self._fetch(self.name, self.revision)

    @property
    def location(self) -> str:
        """Where the model is, for people."""
        return str(self.folder)

    @property
    def key(self) -> str:
        """What tells the model, in memory, from any other; two links to one snapshot are one model."""
        folder = os.path.realpath(self.folder)
        return folder if self.adapter is None else f"{folder} with {self.adapter_digest}"

    @cached_property
    def adapter_folder(self) -> Path | None:
        """The folder with the adapter's files, checked, fetched when this machine lacks them; `None` without one."""
        if self.adapter is None:
            return None
        name = str(self.adapter)
        folder = Path(name) if Path(name).is_dir() else self._fetch(name, None)
        self._check_adapter(folder)
        return folder

    @cached_property
    def adapter_digest(self) -> str | None:
        """SHA-256 that names the adapter, wherever it is stored; `None` without one."""
        return adapters.adapter_digest(self.adapter_folder) if self.adapter_folder else None

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 that names the weights, the adapter's included."""
        hub.check_folder(self.folder, pickles_allowed=self.spec.pickled_weights)
        base = hub.weights_digest(self.folder)
        if self.adapter_digest is None:
            return base
        return hashlib.sha256(f"{base} with {self.adapter_digest}".encode()).hexdigest()

    @cached_property
    def query_map(self) -> QueryMap | None:
        """What the model's folder says is done to vectors of queries; `None` for all but a few."""
        return QueryMap.read(self.folder)

    @cached_property
    def query_map_digest(self) -> str | None:
        """SHA-256 that names the query map; `None` without one."""
        file = self.folder / QUERY_MAP
        return hub.file_digest(file) if file.is_file() else None

    @property
    def missing_heads(self) -> list[str]:
        """Which trained heads of further outputs the folder lacks."""
        return sorted(set(hub.HEADS) - set(hub.head_files(self.folder)))

    @property
    def vector_arguments(self) -> dict[str, str]:
        """Loading arguments that change vectors beyond their last digits, by name."""
        return {
            f"{group}.{key}": repr(value)
            for group in GROUPS
            for key, value in sorted(getattr(self, group).items())
            if key not in NUMERIC_ARGUMENTS
        }

    def check_supported(self) -> None:
        """Refuse models of a kind that cannot run.

        Raises:
            UnsupportedModelError: Says which kind.
        """
        if self.spec.unsupported is not None:
            raise UnsupportedModelError(
                f"{self.name!r} cannot run here: {self.spec.unsupported}. `bge models` lists those that can."
            )

    @property
    def precision_class(self) -> str:
        """What a stored vector remembers of the precision: `float` of any width, or `int8`."""
        return "int8" if self.precision == "int8" else "float"

    @property
    def placing_arguments(self) -> list[str]:
        """Names of the loading arguments by which transformers places or quantises the weights itself."""
        return sorted(PLACING_ARGUMENTS & {key for key, value in self.model_kwargs.items() if value is not None})

    @property
    def execution(self) -> Execution:
        """How the model runs, the first of several replicas; of an unknown model, how most do."""
        if self.known_spec is not None:
            return self.executions[0]
        return choose_execution((self.devices or (self.device,))[0], self.precision, self.backend)

    @property
    def executions(self) -> list[Execution]:
        """How the model runs, once for each replica; `device=None` chooses and gives one."""
        return [
            choose_execution(
                device, self.precision, self._backend, architecture=self.spec.architecture, score=self.spec.score
            )
            for device in self.devices or (self.device,)
        ]

    def check_executions(self, spec: ModelSpec | None = None) -> None:
        """Refuse a backend, precision and devices that do not go together or are not there.

        Args:
            spec: The model's facts, where they are known already.

        Raises:
            ConfigurationError: Says what goes together.
        """
        facts: dict[str, Any] = {}
        if spec is not None:
            facts = {"architecture": spec.architecture, "score": spec.score}
        elif self._backend != "auto" and (scores := find_backend(self._backend).scores):
            facts = {"score": scores[0]}  # whether it is the model's is known when the model is
        for device in self.devices or (self.device,):
            check_execution(device, self.precision, self._backend, **facts)

    def connect(self) -> Backend | None:
        """Return what stands for weights that are elsewhere; `None` where they are here."""
        return None

    def batch_tokens(self, device: str) -> int:
        """Return the padded tokens of one forward pass that run best."""
        return default_batch_tokens(device)

    @property
    def advice(self) -> str:
        """What to do about damaged files: they are copied, or fetched, again."""
        if self._local is not None:
            return "Copy the model's folder again."
        return f"Fetch them again: {hub.fetch_command(self.name, self.revision, self.cache_folder, force=True)}"

    def request(self, device: str, precision: str, task: str) -> LoadRequest:
        """Return what the backend needs, after a look at the folder."""
        self.check_supported()
        hub.check_folder(self.folder, pickles_allowed=self.spec.pickled_weights)
        if self.placing_arguments and find_module("accelerate") is None:
            raise ConfigurationError(
                f"model_kwargs with {' and '.join(map(repr, self.placing_arguments))} needs accelerate. "
                "Install it with: pip install accelerate"
            )
        return LoadRequest(
            name=self.name,
            folder=self.folder,
            task="embed" if task == "embed" else "score",
            device=device,
            precision=precision,
            adapter=self.adapter_folder,
            architecture=self.spec.architecture,
            calibration=Path(self.calibration) if self.calibration else None,
            trust_remote_code=self.trust_remote_code,
            pickled_weights=hub.weight_files(self.folder)[0].suffix != ".safetensors",
            model_kwargs=self.model_kwargs,
            processor_kwargs=self.processor_kwargs,
            config_kwargs=self.config_kwargs,
        )

    def _fetch(self, name: str, revision: str | None) -> Path:
        return hub.fetch(
            name,
            revision=revision,
            token=self.token,
            cache_folder=self.cache_folder,
            local_files_only=self.local_files_only,
            facts_are_known=self.base_model is not None or isinstance(self.model, ModelSpec),
        )

    @property
    def _backend(self) -> str:
        return "torch" if self.placing_arguments else self.backend

    def _check_adapter(self, folder: Path) -> None:
        names = [self.name, self.base_model or self.name]
        if self._local is not None:
            names += adapters.known_names(self._local)
        adapters.check_adapter(folder, self.spec, names)

    @cached_property
    def _local(self) -> Path | None:
        return find_folder(self.name)

    @cached_property
    def _row(self) -> ModelSpec | None:
        # What looks like a path is one, whatever the name of its last folder.
        row = None if is_path(self.name) else find_spec(self.name)
        # Somebody else's copy of a model: its facts hold, but its files are trusted no more than any stranger's.
        is_mirror = row is not None and "/" in self.name and row.id.lower() != self.name.lower()
        return replace(row, id=self.name, package=None, pickled_weights=False) if row and is_mirror else row

    def _check_running(self) -> None:
        if self.devices is not None:
            names = tuple(self.devices) if isinstance(self.devices, Iterable) else ()
            if isinstance(self.devices, str | Mapping) or not names or self.device is not None:
                raise ConfigurationError(
                    f"devices={self.devices!r} is not allowed beside device={self.device!r}. Pass a list of one or "
                    "more names, such as devices=['cuda:0', 'cuda:1'], and leave device= out."
                )
            object.__setattr__(self, "devices", tuple(map(check_device_name, names)))
        self._check_keep_alive()
        if self.calibration is not None:
            path = check_path(self.calibration, "calibration")
            object.__setattr__(self, "calibration", str(Path(path)))
            if not os.path.isfile(path):
                raise ConfigurationError(
                    f"calibration={path!r} is not a file. Pass a text file with one text per line."
                )

    def _check_keep_alive(self) -> None:
        seconds = self.keep_alive_s
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if seconds is not None and not (is_number and 0 <= seconds <= threading.TIMEOUT_MAX):
            raise ConfigurationError(
                f"keep_alive_s={seconds!r} is not allowed. Pass seconds, or None to keep the weights."
            )

    def _check_placing(self) -> None:
        names = " and ".join(map(repr, self.placing_arguments))
        if names and self.backend not in ("auto", "torch"):
            raise ConfigurationError(
                f"backend={self.backend!r} is not allowed beside {names} in model_kwargs. Use backend='torch'."
            )
        if "device_map" in self.placing_arguments and (self.device or self.devices):
            raise ConfigurationError(
                f"device_map={self.model_kwargs['device_map']!r} in model_kwargs is not allowed beside "
                f"device={self.device!r}, devices={self.devices!r}. Pass one of them."
            )

    def _check_name(self, name: str) -> None:
        if is_path(name) or (self._row is None and os.path.exists(name)):
            raise ModelNotFoundError(f"Folder {name!r} does not exist. Pass a model folder or a hub id.")
        if not isinstance(self.model, str):
            return
        if "/" not in name:
            get_spec(name)
        elif (row := find_spec(name)) is None or row.id.lower() != name.lower():
            hub.check_repository(name)  # a stranger's, or his copy of a model of the table


def _copied(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigurationError(f"{name}={value!r} is not a dictionary of arguments. Pass one, or leave it out.")
    return dict(value)
