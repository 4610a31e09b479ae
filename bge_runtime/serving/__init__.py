"""A server with the wire formats that people already speak: OpenAI's, Cohere's, Jina's, TEI's, and one of our own.

Needs the extra `serve`. The names below are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bge_runtime import ConfigurationError

if TYPE_CHECKING:
    from bge_runtime.serving.application import create_app
    from bge_runtime.serving.ray_serve import serve_on_ray
    from bge_runtime.serving.server import serve
    from bge_runtime.serving.settings import ModelSettings, RaySettings, ServerSettings

_HOME = {
    "create_app": "application",
    "serve": "server",
    "serve_on_ray": "ray_serve",
    "ModelSettings": "settings",
    "RaySettings": "settings",
    "ServerSettings": "settings",
}
PACKAGES = ("fastapi", "orjson", "prometheus_client", "pydantic", "pydantic_settings", "starlette", "uvicorn")

__all__ = ["ModelSettings", "RaySettings", "ServerSettings", "create_app", "serve", "serve_on_ray"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in PACKAGES:
            raise
        raise ConfigurationError(f'{name} needs {error.name}: pip install "bge-integrations[serve]"') from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
