"""`bge serve` answers, and ends with status 0 when it is asked to."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
command = [Path(sys.executable).parent / "bge", "serve", "--model", sys.argv[1], "--port", str(port)]
server = subprocess.Popen(command)
address = f"http://127.0.0.1:{port}"
try:
    for _ in range(600):
        try:
            if urllib.request.urlopen(f"{address}/ready", timeout=5).status == 200:
                break
        except OSError:
            assert server.poll() is None, "the server has ended"
            time.sleep(0.1)
    body = json.dumps({"model": sys.argv[1], "input": ["The heart pumps blood."]}).encode()
    asked = urllib.request.Request(f"{address}/v1/embeddings", body, {"content-type": "application/json"})
    assert json.load(urllib.request.urlopen(asked, timeout=60))["data"][0]["embedding"]
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0
finally:
    server.kill()
