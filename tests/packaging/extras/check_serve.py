"""A web server answers with vectors."""

import json
import sys
import threading
import time
import urllib.request

import uvicorn
from fastapi import FastAPI
from prometheus_client import generate_latest
from pydantic_settings import BaseSettings

from bge_runtime import Embedder

app = FastAPI()
embedder = Embedder(sys.argv[1])


@app.get("/embed")
async def embed(text: str) -> list[float]:
    """Return the vector of one text."""
    return (await embedder.aencode_queries([text]))[0].tolist()


assert BaseSettings
assert generate_latest()
server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
thread = threading.Thread(target=server.run)
thread.start()
while not server.started and thread.is_alive():
    time.sleep(0.05)
port = server.servers[0].sockets[0].getsockname()[1]
try:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/embed?text=one", timeout=60) as answer:
        assert len(json.load(answer)) == embedder.dimension
finally:
    server.should_exit = True
    thread.join()
