"""`bge serve`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from bge_runtime import ConfigurationError
from bge_runtime.cli.output import say

__all__ = ["serve"]


def serve(
    model: Annotated[list[str] | None, typer.Option(help="Embedder or reranker, by name or folder; repeat it.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with all settings, [[models]] among them.")] = None,
    host: Annotated[str | None, typer.Option(help="Address; another than 127.0.0.1 needs keys, or --no-auth.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 8080.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File with one key a line.")] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Everybody who reaches the address may call.")] = False,
    max_queued_tokens: Annotated[int | None, typer.Option(help="Of requests of a key that wait; then 429.")] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Ray cluster that serves: auto, local, ray://HOST:PORT.")
    ] = None,
    replicas: Annotated[
        tuple[int, int] | None, typer.Option(metavar="MIN MAX", help="On Ray; one for each device by default.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No line for each request.")] = False,
) -> None:
    """Serve models over HTTP, in the formats of OpenAI, Cohere, Jina and TEI."""
    from bge_runtime import serving

    settings = serving.ServerSettings.read(
        config,
        models=[{"model": each} for each in model] if model else None,
        host=host,
        port=port,
        api_key_file=api_key_file,
        no_auth=no_auth or None,
        max_queued_tokens=max_queued_tokens,
        ray={name: value for name, value in (("address", ray), ("replicas", replicas)) if value is not None},
    )
    if replicas is not None and settings.ray.address is None:
        raise ConfigurationError("--replicas is of a Ray cluster. Name it, as in --ray auto, or leave --replicas out.")
    logging.getLogger("bge_runtime.serving").setLevel(logging.WARNING if quiet else logging.INFO)
    names = ", ".join(each.shown for each in settings.models)
    who = "keys of " + str(settings.api_key_file) if settings.api_key_file else "everybody"
    say(f"serving {names} on http://{settings.host}:{settings.port} for {who}", err=True)
    if settings.ray.address is None:
        serving.serve(settings)
    else:
        serving.serve_on_ray(settings)
