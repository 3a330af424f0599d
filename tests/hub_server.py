"""A stand-in for the Hugging Face Hub on this machine: what `huggingface_hub` asks of it for models, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants, hf_api

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The repositories, and what was asked for.

    Attributes:
        url: of the server.
        files: name of a repository -> name of a file -> content.
        private: names of private repositories.
    """

    def __init__(self) -> None:
        self.url = ""
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *words: Any) -> None:
            pass

        def answer(self, content: Any, status: int = 200, **headers: str) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path).path.strip("/").split("/")
            name = "/".join(parts[2:4])
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
                hub.files.setdefault(name, {})
                if asked.get("private") or asked.get("visibility") == "private":
                    hub.private.add(name)
                self.answer({"url": f"{hub.url}/{name}", "id": name})
            elif self.path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif parts[4:5] == ["preupload"]:
                files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                         for one in json.loads(body)["files"]]  # fmt: skip
                self.answer({"files": files})
            elif parts[4:5] == ["commit"]:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        hub.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                url = f"{hub.url}/{name}/commit/{COMMIT}"
                self.answer({"commitUrl": url, "commitOid": COMMIT, "pullRequestUrl": None, "hookOutput": ""})
            else:
                self.answer({"error": f"no {self.path}"}, 404)

        def do_GET(self) -> None:
            parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
            if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in hub.files:
                files = hub.files["/".join(parts[2:4])]
                if parts[4:5] == ["tree"]:
                    self.answer([{"type": "file", "path": path, "size": len(content), "oid": _tag(content)}
                                 for path, content in files.items()])  # fmt: skip
                else:
                    siblings = [{"rfilename": path} for path in files]
                    self.answer({"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": siblings})
            elif parts[2:3] == ["resolve"] and parts[4] in hub.files.get("/".join(parts[:2]), {}):
                content = hub.files["/".join(parts[:2])][parts[4]]
                self.answer(content, ETag=f'"{_tag(content)}"', X_Repo_Commit=COMMIT)
            else:
                self.answer({"error": f"no {self.path}"}, 404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

    return Handler


def _tag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """Context in which the stand-in answers."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def instead_of_the_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Context in which `huggingface_hub` takes the stand-in for the Hub, with a cache of its own."""
    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
        for name in ("HF_HUB_CACHE", "HF_XET_CACHE"):
            monkeypatch.setattr(constants, name, str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub
