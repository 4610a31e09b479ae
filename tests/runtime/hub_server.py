"""A model hub on the loopback interface, with as much of its protocol as a download needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["HubServer"]


class HubServer:
    """Serves the repositories in `root`, a folder of `organisation/name` folders.

    `requests` lists every path asked for; `refusals` maps a repository to the status it is refused with.
    """

    def __init__(self, root: Path, refusals: Mapping[str, int]) -> None:
        self.root = root
        self.refusals = refusals
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and content for a path."""
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if is_api else parts[:2])
        if name in self.refusals:
            return self.refusals[name], {"X-Error-Code": "GatedRepo" if self.refusals[name] == 403 else ""}, b""
        folder = self.root / name
        if not folder.is_dir():
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        commit = hashlib.sha1(name.encode()).hexdigest()
        if is_api:
            files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
            if parts[4:5] == ["tree"]:
                return 200, {}, json.dumps([_tree_row(folder, file) for file in files]).encode()
            siblings = [{"rfilename": file} for file in files]
            return 200, {}, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode()
        content = (folder / "/".join(parts[4:])).read_bytes()
        return 200, {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": commit}, content


def _tree_row(folder: Path, file: str) -> dict[str, object]:
    content = (folder / file).read_bytes()
    return {"type": "file", "path": file, "size": len(content), "oid": _etag(content)}


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(with_content=True)

        def do_HEAD(self) -> None:
            self._reply(with_content=False)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

        def _reply(self, *, with_content: bool) -> None:
            hub.requests.append(self.path)
            status, headers, content = hub.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_content:
                self.wfile.write(content)

    return Handler
