"""A local stand-in of the calls of Hugging Face's hub that an upload makes."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_standin"


@dataclass
class Hub:
    """What the server keeps. ``failing``: a part of a path to the status that it answers with."""

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    failing: dict[str, int] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    def post(self, path: str, body: bytes) -> Any:
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            return {"transfer": "basic", "objects": [self._to_send(one) for one in objects]}
        name, _, action = path.removeprefix("/api/models/").removesuffix("/main").rpartition("/")
        if action == "preupload":
            files = json.loads(body)["files"]
            return {"files": [_mode(file["path"]) for file in files]}
        if action == "commit":
            return self._commit(name, body)
        raise KeyError(path)

    def get(self, path: str) -> Any:
        name = (
            path.removeprefix("/api/models/").partition("/tree/")[0].removesuffix("/revision/main")
        )
        files = self.repositories[name]
        if "/tree/" in path:
            return [
                {"type": "file", "path": p, "size": len(data), "oid": "0" * 40}
                for p, data in files.items()
            ]
        siblings = [{"rfilename": p} for p in files]
        known = {"id": name, "private": self.private[name], "sha": "1" * 40}
        return known | {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0}

    def _create(self, asked: dict[str, Any]) -> Any:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            raise FileExistsError(name)
        self.repositories[name] = {".gitattributes": b""}
        self.private[name] = asked.get("visibility") == "private"
        return {"url": f"{self.address}/{name}", "name": name, "id": name}

    def _to_send(self, one: dict[str, Any]) -> dict[str, Any]:
        where = f"{self.address}/large/{one['oid']}"
        return {**one, "actions": {"upload": {"href": where}}}

    def _commit(self, name: str, body: bytes) -> Any:
        files = self.repositories[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                self.commits.append(value["summary"])
        return {"commitUrl": f"{self.address}/{name}/commit/{'2' * 40}", "commitOid": "2" * 40}


def _mode(path: str) -> dict[str, Any]:
    large = path.endswith(".safetensors")
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, make: Any, body: bytes = b"") -> None:
        path = self.path.partition("?")[0]
        status = next((s for part, s in self.hub.failing.items() if part in path), 200)
        value: Any = {"error": "refused"}
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and "/large/" not in path:
            status = 401
        if status == 200:
            try:
                value = make(path, body) if body else make(path)
            except FileExistsError as error:
                said = "You already created this model repo"
                status, value = 409, {"error": said, "url": f"{self.hub.address}/{error}"}
            except KeyError:
                status, value = 404, {"error": f"no {path}"}
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self._answer(self.hub.get)

    def do_POST(self) -> None:
        self._answer(self.hub.post, self._body())

    def do_PUT(self) -> None:
        data = self._body()

        def keep(path: str) -> Any:
            oid = path.rpartition("/")[2]
            assert hashlib.sha256(data).hexdigest() == oid
            self.hub.large[oid] = data
            return {}

        self._answer(keep)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def standing_in() -> Iterator[Hub]:
    """A hub on a port of this machine while the block runs."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
