"""A Ray cluster, for what computes on one: bulk embedding, and a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bge_runtime import ConfigurationError

__all__ = ["connected"]


@contextmanager
def connected(address: str, **options: Any) -> Iterator[Any]:
    """Be connected to a cluster as long as the block lasts; a connection of the caller's own stays.

    Args:
        address: `auto`, `local`, or where the cluster is.
        options: Further arguments of `ray.init`.

    Yields:
        The package.

    Raises:
        ConfigurationError: There is no cluster.
    """
    import ray

    if ray.is_initialized():
        yield ray
        return
    if address == "local":
        options = {"include_dashboard": False, **options}
    try:
        ray.init(address=address, configure_logging=False, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"There is no Ray cluster at {address!r} ({error}). Name one that runs, 'auto' for this machine's, "
            "or 'local' to start one."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()
