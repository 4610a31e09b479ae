"""What a server is told: its models, its address, who may call, and how much each may ask for."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from bge_runtime import ConfigurationError

__all__ = ["ModelSettings", "RaySettings", "ServerSettings"]

LOOPBACK = ("127.0.0.1", "::1", "localhost")
SHORTEST_KEY = 16


class ModelSettings(BaseModel):
    """One model of a server.

    Attributes:
        model: Name or folder.
        name: What clients call it; the model's own name where `None`.
        load: `start` reads the weights before the server is ready, `first_use` when somebody asks.
        keep_alive_s: Seconds without work after which weights are freed; `None` never.
        device: As for `Embedder`.
        devices: Copies on several devices.
        precision: As for `Embedder`.
        backend: As for `Embedder`.
        max_length: Longest text, or pair, in tokens; `None` takes the model's own.
        query_instruction: Instead of the model's own.
        document_instruction: Instead of the model's own.
        revision: Branch, tag or commit on the hub.
        adapter: LoRA adapter.
        normalize: Vectors of length 1, or scores between 0 and 1; `None` is the model's own, and raw scores.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str = Field(min_length=1)
    name: str | None = None
    load: Literal["start", "first_use"] = "start"
    keep_alive_s: float | None = Field(default=None, gt=0)
    device: str | None = None
    devices: tuple[str, ...] | None = None
    precision: str | None = None
    backend: str = "auto"
    max_length: int | None = Field(default=None, ge=1)
    query_instruction: str | None = None
    document_instruction: str | None = None
    revision: str | None = None
    adapter: str | None = None
    normalize: bool | None = None

    @field_validator("name")
    @classmethod
    def _no_role(cls, value: str | None) -> str | None:
        if value is not None and (":" in value or not value.strip()):
            raise ValueError("a colon stands before the role, as in NAME:query; use another name")
        return value

    @property
    def shown(self) -> str:
        """What clients call it."""
        return self.name or self.model


class RaySettings(BaseModel):
    """How a server is spread over a Ray cluster.

    Attributes:
        address: Of the cluster, as `ray.init` takes it: `auto`, `local`, `ray://HOST:PORT`; `None` serves without Ray.
        replicas: Fewest and most; `None` is one for each device that the cluster has at the start.
        num_gpus: Of a replica; `None` is one where the cluster has any.
        num_cpus: Of a replica; `None` is one beside a GPU, and else all cores of the smallest machine.
        target_ongoing_requests: Of a replica, in the mean; where there are more, another replica is started.
        max_ongoing_requests: Of a replica; more wait in front of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str | None = Field(default=None, min_length=1)
    replicas: tuple[int, int] | None = None
    num_gpus: float | None = Field(default=None, ge=0)
    num_cpus: float | None = Field(default=None, ge=0)
    target_ongoing_requests: float = Field(default=32.0, gt=0)
    max_ongoing_requests: int = Field(default=256, ge=1)

    @field_validator("replicas")
    @classmethod
    def _in_order(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not 0 <= value[0] <= max(value[1], 1) <= value[1]:
            raise ValueError("the fewest come first, and the most are at least 1, as in 1 4")
        return value


class ServerSettings(BaseSettings):
    """Settings of a server: arguments, then the environment (`BGE_SERVE_PORT` and so on), then a TOML file.

    Attributes:
        models: What is served; the first embedder and the first reranker answer where a format names no model.
        host: Address; another than this machine's own needs `api_key_file` or `no_auth`.
        port: Port; 0 takes a free one.
        api_key_file: File with one key a line; comments begin with `#`.
        no_auth: Everybody may call.
        max_body_bytes: Of a request.
        max_texts: Of a request; documents of a reranking count too.
        max_tokens: Of a request, as the model counts them.
        max_queued_tokens: Of all requests of one key that are not answered yet.
        max_queued_bytes: Of their bodies.
        body_timeout_s: In which the headers of a request must have come, and then its body.
        timeout_s: In which it must be answered.
        drain_s: How long an ending server waits for requests that it has taken.
        ray: On which Ray cluster, and in how many replicas.
    """

    model_config = SettingsConfigDict(env_prefix="BGE_SERVE_", extra="forbid", frozen=True)

    models: tuple[ModelSettings, ...] = Field(min_length=1)
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    api_key_file: Path | None = None
    no_auth: bool = False
    max_body_bytes: int = Field(default=32 * 2**20, ge=1024)
    max_texts: int = Field(default=2048, ge=1)
    max_tokens: int = Field(default=1_000_000, ge=1)
    max_queued_tokens: int = Field(default=4_000_000, ge=1)
    max_queued_bytes: int = Field(default=256 * 2**20, ge=1024)
    body_timeout_s: float = Field(default=30.0, gt=0)
    timeout_s: float = Field(default=600.0, gt=0)
    drain_s: float = Field(default=60.0, ge=0)
    ray: RaySettings = RaySettings()

    @model_validator(mode="after")
    def _check(self) -> ServerSettings:
        if self.host not in LOOPBACK and self.api_key_file is None and not self.no_auth:
            raise ValueError(
                f"host={self.host!r} can be reached from other machines. Name a file of keys (api_key_file), or say "
                "that everybody may call (no_auth)"
            )
        names = [each.shown for each in self.models]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{sorted(twice)} stand for two models each. Give each a name of its own")
        return self

    @classmethod
    def read(cls, file: Path | None = None, **given: Any) -> ServerSettings:
        """Return settings of a TOML file and of arguments, which win.

        Args:
            file: TOML with the names of the attributes, and a table `[[models]]` for each model.
            given: Arguments; `None` leaves the file's value, as one that a mapping does not name does.

        Raises:
            ConfigurationError: The file cannot be read, or a value is not allowed.
        """
        told: dict[str, Any] = {}
        if file is not None:
            try:
                told = tomllib.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ConfigurationError(f"{str(file)!r} cannot be read as TOML ({error}).") from error
        for name, value in given.items():
            if isinstance(value, dict) and isinstance(told.get(name), dict):
                told[name] = told[name] | value
            elif value is not None:
                told[name] = value
        try:
            return cls(**told)
        except ValidationError as error:
            # A model that is wrong leaves too few, which pydantic tells beside it.
            few = ("missing", "too_short")
            wrong = [each for each in error.errors() if each["loc"] != ("models",) or each["type"] not in few]
            if not wrong:
                raise ConfigurationError(
                    "No model is named. Pass models=, --model NAME, or [[models]] in the file."
                ) from error
            # What is wrong with several settings together names them itself.
            together = [each["msg"].removeprefix("Value error, ") for each in wrong if not each["loc"]]
            if together:
                raise ConfigurationError(f"{'. '.join(together)}.") from error
            raise ConfigurationError.from_validation("ServerSettings", wrong) from error

    def keys(self) -> tuple[bytes, ...]:
        """Return the keys of the file; none where everybody may call.

        Raises:
            ConfigurationError: The file cannot be read, has no key, or one that is too short to be secret.
        """
        if self.api_key_file is None:
            return ()
        try:
            lines = [line.strip() for line in self.api_key_file.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{str(self.api_key_file)!r} cannot be read ({error}).") from error
        found = [line for line in lines if line and not line.startswith("#")]
        short = sum(len(each) < SHORTEST_KEY for each in found)
        if not found or short:
            raise ConfigurationError(
                f"{str(self.api_key_file)!r} has {len(found)} keys, {short} of them shorter than {SHORTEST_KEY} "
                "characters. Write one key a line: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
        return tuple(each.encode() for each in found)
