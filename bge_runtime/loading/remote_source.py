"""A model that a server has: its facts are told by the server, or by the table."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from importlib.util import find_spec as find_module
from pathlib import Path
from typing import Any

from bge_runtime.backends.execution import Execution
from bge_runtime.backends.remote import APIS, CONNECTIONS, Address, RemoteBackend, check_base_url, no_files
from bge_runtime.errors import ConfigurationError, check_choice, check_string
from bge_runtime.loading.options import DEFAULTS, LoadingOptions
from bge_runtime.loading.source import ModelSource
from bge_runtime.locks import cached_property
from bge_runtime.models import hub
from bge_runtime.models.registry import find_spec, get_spec
from bge_runtime.models.spec import ModelSpec
from bge_runtime.vectors.query_map import QueryMap

__all__ = ["RemoteSource", "source_of"]

# What can be said of a model that somebody else runs.
ALLOWED = {"model", "base_url", "api", "token", "keep_alive_s", "base_model"}
# Of one request: a small server answers within seconds, and a large one has several at a time.
BATCH_TOKENS = 8192


def source_of(model: str | os.PathLike[str] | ModelSpec, loading: LoadingOptions) -> ModelSource:
    """Return the source that a constructor's arguments describe, here or on a server."""
    return (ModelSource if loading.get("base_url") is None else RemoteSource).of(model, loading)


@dataclass(frozen=True, kw_only=True)
class RemoteSource(ModelSource):
    """A model on the server at `base_url`, which speaks `api`."""

    def __post_init__(self) -> None:
        """Check all that can be checked without asking.

        Raises:
            ConfigurationError: An option has a wrong value, or is the server's to settle.
        """
        object.__setattr__(self, "base_url", check_base_url(self.base_url))
        object.__setattr__(self, "api", check_choice("bge" if self.api is None else self.api, "api", APIS))
        object.__setattr__(self, "token", hub.check_token(self.token))
        if not isinstance(self.model, str) or check_string(self.model, "model") is None:
            raise ConfigurationError(f"model={self.model!r} is not what a server calls a model. Pass its name.")
        given = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ALLOWED}
        told = [f"{name}={value!r}" for name, value in given.items() if value not in (None, {}, DEFAULTS.get(name))]
        if told:
            raise ConfigurationError(
                f"{', '.join(told)} beside base_url= is the server's to settle. Leave it out here, and start the "
                "server with it."
            )
        self._check_keep_alive()
        if self.api == "bge" and self.base_model is not None:
            raise ConfigurationError(f"base_model={self.base_model!r} is told by a server of ours. Leave it out.")
        if self.api != "bge":
            self._check_row()
        for package in ("httpx", "tenacity"):
            if find_module(package) is None:
                raise ConfigurationError(
                    f'base_url= needs {package}. Install it with: pip install "bge-integrations[remote]"'
                )

    @property
    def is_remote(self) -> bool:
        """Whether a server runs the model."""
        return True

    @property
    def known_spec(self) -> ModelSpec | None:
        """The spec when it can be had without asking."""
        return None if self.api == "bge" else self.spec

    @cached_property
    def spec(self) -> ModelSpec:
        """The facts in force, as the server tells them, or those of the table."""
        if self.api != "bge":
            row = get_spec(self.base_model or self.name)
            return replace(row, id=self.name, positions=None, outputs=("dense",), layers=None, tasks=row.tasks)
        facts = self._facts
        try:
            told = dict(facts["facts"]["spec"])
            for name in ("outputs", "languages", "layers"):
                told[name] = None if told[name] is None else tuple(told[name])
            told["tasks"] = {name: tuple(pair) for name, pair in told["tasks"].items()}
            return ModelSpec(**{name: value for name, value in told.items() if name in ModelSpec.__dataclass_fields__})
        except (LookupError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"The server {self.base_url!r} describes {self.name!r} in a way that is not known here "
                f"({type(error).__name__}: {error}). Use the same version of bge-integrations on both sides."
            ) from error

    @property
    def folder(self) -> Path:
        """There is none.

        Raises:
            ConfigurationError: Always.
        """
        raise no_files(self.name, str(self.base_url))

    @property
    def location(self) -> str:
        """Where the model is."""
        return str(self.base_url)

    @property
    def key(self) -> str:
        """What makes it different from any other model: another one that comes to stand there is another."""
        return f"{self.base_url} {self.api} {self.name} {self.weights_digest} {self._address.identity} {self.token!r}"

    @property
    def weights_digest(self) -> str:
        """SHA-256 that names the weights; where the format says nothing of them, that of their declared name."""
        if self.api == "bge":
            return str(self._facts["facts"]["weights_digest"])
        return hashlib.sha256(f"declared {self.name}".encode()).hexdigest()

    @property
    def query_map(self) -> QueryMap | None:
        """The server applies it."""
        return None

    @property
    def query_map_digest(self) -> str | None:
        """SHA-256 that names it."""
        return self._facts["facts"]["query_map_digest"] if self.api == "bge" else None

    @property
    def missing_heads(self) -> list[str]:
        """None: the server says which outputs there are."""
        return []

    @property
    def precision_class(self) -> str:
        """What a stored vector remembers of the precision."""
        return str(self._facts["facts"]["precision_class"]) if self.api == "bge" else "float"

    @property
    def vector_arguments(self) -> dict[str, str]:
        """Loading arguments that change vectors beyond their last digits, by name."""
        return dict(self._facts["facts"]["vector_arguments"]) if self.api == "bge" else {}

    @property
    def execution(self) -> Execution:
        """How the model runs, as far as it is known here."""
        return Execution(
            backend="remote", device=self.location, precision=self.precision_class, reason="remote by base_url="
        )

    @property
    def executions(self) -> list[Execution]:
        """The same for each connection."""
        return [self.execution] * CONNECTIONS

    def check_executions(self, spec: ModelSpec | None = None) -> None:
        """Leave that to the server."""

    def batch_tokens(self, device: str) -> int:
        """Return the tokens of one request."""
        return BATCH_TOKENS

    def connect(self) -> RemoteBackend:
        """Return a connection to the server."""
        return RemoteBackend(self._address)

    @property
    def advice(self) -> str:
        """What to do where something is wrong with the model."""
        return f"Look at the server {self.base_url!r}."

    @cached_property
    def _facts(self) -> dict[str, Any]:
        plain = Address(base_url=str(self.base_url), api="bge", name=self.name, token=self.token)
        return RemoteBackend(plain).facts()

    @cached_property
    def _address(self) -> Address:
        facts = self._facts if self.api == "bge" else {}
        return Address(
            base_url=str(self.base_url),
            api=str(self.api),
            name=self.name,
            token=self.token,
            identity=facts.get("identity"),
            score_identity=facts.get("score_identity"),
            dimension=self.spec.dimension,
            outputs=self.spec.outputs,
        )

    def _check_row(self) -> None:
        if self.base_model is not None:
            get_spec(self.base_model)
        elif find_spec(self.name) is None:
            raise ConfigurationError(
                f"model={self.name!r} is not in the model table, and api={self.api!r} does not tell what it is. Name "
                "the model that it comes from: base_model='BAAI/bge-base-en-v1.5'."
            )
