"""The application on Ray Serve: a replica for each device, and as many of them as requests ask for."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bge_runtime import BackendError, ConfigurationError
from bge_runtime.ray_cluster import connected
from bge_runtime.serving.application import create_app
from bge_runtime.serving.server import KEEP_ALIVE_S
from bge_runtime.serving.settings import ServerSettings

__all__ = ["build", "serve_on_ray"]

logger = logging.getLogger("bge_runtime.serving")

NAME = "bge"
EVERYWHERE = "0.0.0.0"
POLL_S = 0.2
# After a replica was given its time, for Ray Serve to say that it has ended.
MARGIN_S = 30


def build(args: Mapping[str, Any]) -> Any:
    """Return the application, as `import_path` of a Ray Serve config file names it, with settings as its `args`.

    Args:
        args: Settings of a server without `host` and `port`, which `http_options` of the file say. Since they may say
            that other machines reach it, `api_key_file` or `no_auth` is needed.

    Raises:
        ConfigurationError: A setting is not allowed, or a package is missing.
    """
    ray, serve = _packages()
    if elsewhere := sorted({"host", "port"}.intersection(args)):
        raise ConfigurationError(f"{elsewhere} of args have no effect on Ray Serve. Say them in http_options.")
    return _application(ray, serve, ServerSettings.read(**{**args, "host": EVERYWHERE}))


def serve_on_ray(settings: ServerSettings) -> None:
    """Serve on the cluster of `settings.ray.address` until SIGTERM or SIGINT; what was taken is answered first.

    Every machine of the cluster must have this package, and models and keys under the same paths. Where Ray Serve runs
    there already, its address counts.

    Args:
        settings: Models, address, limits, and how many replicas there may be.

    Raises:
        ConfigurationError: There is no cluster at the address, a package is missing, or the file of keys is wrong.
        BackendError: Ray Serve cannot run the application.
    """
    ray, serve = _packages()
    if settings.port == 0:
        raise ConfigurationError("port=0 is not allowed on Ray Serve, which takes no free port by itself. Name one.")
    if not settings.keys() and not settings.no_auth and settings.ray.address != "local":
        raise ConfigurationError(
            f"Ray Serve on {settings.ray.address!r} may be reached from other machines, whatever host= says. Name a "
            "file of keys (api_key_file), or say that everybody may call (no_auth)."
        )
    with connected(str(settings.ray.address)), _ended() as ended:
        options = {"host": settings.host, "port": settings.port, "keep_alive_timeout_s": KEEP_ALIVE_S}
        try:
            serve.start(http_options=options)
            target = serve.RunTarget(target=_application(ray, serve, _absolute(settings)), name=NAME, route_prefix="/")
            serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
            _watch(serve, ended)
            _delete(serve, settings.drain_s)
        except (ray.exceptions.RayError, serve.exceptions.RayServeException) as error:
            raise BackendError(f"The Ray cluster at {settings.ray.address!r} failed ({error}).") from error


def _packages() -> tuple[Any, Any]:
    try:
        import ray
        from ray import serve
    except ModuleNotFoundError as error:
        raise ConfigurationError(f'ray= (--ray) needs {error.name}: pip install "bge-integrations[ray]"') from error
    return ray, serve


class _Loaded:
    """The application, whose start ends when the weights are read: until then Ray Serve sends a replica nothing."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                await self._app.state.work.models.load()
            await send(message)

        await self._app(scope, receive, told if scope["type"] == "lifespan" else send)


def _application(ray: Any, serve: Any, settings: ServerSettings) -> Any:
    own = settings.ray
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    gpus = int(sum(each.get("GPU", 0) for each in machines))
    num_gpus = min(gpus, 1) if own.num_gpus is None else own.num_gpus
    cores = 1 if num_gpus else min((each["CPU"] for each in machines), default=1)
    devices = gpus if num_gpus else len(machines)
    fewest, most = own.replicas or (max(devices, 1),) * 2

    # Called by each replica: an application holds locks and threads, which cannot be sent.
    def made() -> ASGIApp:
        return _Loaded(create_app(settings))

    return serve.deployment(
        serve.ingress(made)(),
        name=NAME,
        ray_actor_options={"num_cpus": cores if own.num_cpus is None else own.num_cpus, "num_gpus": num_gpus},
        max_ongoing_requests=own.max_ongoing_requests,
        autoscaling_config={
            "min_replicas": fewest,
            "max_replicas": most,
            "target_ongoing_requests": own.target_ongoing_requests,
        },
        graceful_shutdown_timeout_s=settings.drain_s,
    ).bind()


def _absolute(settings: ServerSettings) -> ServerSettings:
    """Return settings whose paths do not depend on the folder that a process stands in."""
    models = tuple(
        each.model_copy(
            update={
                "name": each.shown,
                **{
                    field: str(Path(value).resolve())
                    for field, value in (("model", each.model), ("adapter", each.adapter))
                    if value is not None and Path(value).is_dir()
                },
            }
        )
        for each in settings.models
    )
    keys = None if settings.api_key_file is None else settings.api_key_file.resolve()
    return settings.model_copy(update={"models": models, "api_key_file": keys})


def _watch(serve: Any, ended: threading.Event) -> None:
    """Wait until the server is asked to end.

    Raises:
        BackendError: The application does not start.
    """
    is_told = False
    while not ended.wait(POLL_S):
        found = serve.status().applications[NAME]
        if found.status == "DEPLOY_FAILED":
            told = [each.message for each in found.deployments.values() if each.message] or [found.message]
            _delete(serve, 0)
            # The end of a traceback, which Ray Serve's own log has whole.
            raise BackendError(f"Ray Serve cannot run the application. {told[0].strip().splitlines()[-1]}")
        if found.status == "RUNNING" and not is_told:
            is_told = True
            logger.info("Ready on Ray Serve.")


def _delete(serve: Any, drain_s: float) -> None:
    """Have replicas answer what they have taken, and end."""
    serve.delete(NAME, _blocking=False)  # it waits for a minute otherwise, however long they may take
    limit = time.monotonic() + drain_s + MARGIN_S
    while NAME in serve.status().applications and time.monotonic() < limit:
        time.sleep(POLL_S)


@contextmanager
def _ended() -> Iterator[threading.Event]:
    """Yield an event that a signal sets."""
    event = threading.Event()

    def note(number: int, frame: object) -> None:
        event.set()

    before = {each: signal.signal(each, note) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
