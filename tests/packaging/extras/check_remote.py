"""A model on a server that nobody has started is told as such, without weights."""

from bge_runtime import Embedder, ServerUnreachableError


def told() -> str:
    try:
        Embedder("BAAI/bge-m3", base_url="http://127.0.0.1:9").encode_queries(["heart"])
    except ServerUnreachableError as error:
        return str(error)
    return "somebody answered"


assert "'http://127.0.0.1:9' does not answer" in told(), told()
