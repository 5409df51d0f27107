"""A small hub on loopback: enough of the protocol for the clients of models and data sets, through ``HF_ENDPOINT``.

    with HubServer(root) as hub:            # root/models/org/name/..., root/datasets/org/name/...
        env["HF_ENDPOINT"] = hub.url        # in a new process: the clients read it at import
        hub.requests                        # [("HEAD", "/org/name/resolve/main/config.json"), ...]

Like the real one it answers a large file (here: by its suffix) with a redirect to another host and the file's SHA-256
as entity tag, and a small one directly with its git blob id. ``fault`` spoils the content of chosen files.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".parquet")
API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
RESOLVE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


def commit_of(repo: Path) -> str:
    """The repository's commit id: a hash of its files, so that changed content is a new commit."""
    total = hashlib.sha1()
    for path in files_of(repo):
        total.update(str(path.relative_to(repo)).encode() + path.read_bytes())
    return total.hexdigest()


def files_of(repo: Path) -> list[Path]:
    return sorted(path for path in repo.rglob("*") if path.is_file())


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(repo: Path, path: Path) -> dict:
    """One row of a tree listing."""
    name, content = str(path.relative_to(repo)), path.read_bytes() if path.is_file() else b""
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": git_blob_id(name.encode()), "size": 0}
    row = {"type": "file", "path": name, "oid": git_blob_id(content), "size": len(content)}
    if path.suffix in LARGE:
        row["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return row


class HubServer:
    """Serves ``root`` while used as a context manager.

    Args:
        root: folder with ``models/ORG/NAME`` and ``datasets/ORG/NAME``.
        fault: file suffix -> ``"truncated"`` (half of the bytes, then the connection closes) or ``"flipped"`` (the
            right length, one byte wrong).
    """

    def __init__(self, root: Path, fault: dict[str, str] | None = None):
        self.root, self.fault, self.requests = root, fault or {}, []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        port = self._server.server_port
        # Large files come from "another host": the clients take size and checksum from the redirect itself only then.
        self.url, self.large_url = f"http://127.0.0.1:{port}", f"http://localhost:{port}/large"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def asked(self, path_part: str) -> list[tuple[str, str]]:
        """The logged requests whose path contains ``path_part``."""
        return [request for request in self.requests if path_part in request[1]]


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.route()

        def do_GET(self) -> None:
            self.route()

        def do_POST(self) -> None:
            self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.route()

        def route(self) -> None:
            url = urlsplit(self.path)
            path, self.query = unquote(url.path), parse_qs(url.query)
            hub.requests.append((self.command, path))
            if path in ("", "/"):
                self.answer(200, b"a small hub")
            elif match := re.fullmatch(r"/large/(\w+)", path):
                self.large(match[1])
            elif match := API.fullmatch(path):
                self.api(*match.groups())
            elif match := RESOLVE.fullmatch(path):
                self.resolve(*match.groups())
            else:
                self.missing("EntryNotFound")

        def api(self, kind: str, name: str, action: str | None, revision: str | None, inner: str | None) -> None:
            repo = hub.root / kind / name
            if not repo.is_dir():
                return self.missing("RepoNotFound")
            if revision not in (None, "main", commit_of(repo)):
                return self.missing("RevisionNotFound")
            if action == "tree":
                folder = repo / (inner or "")
                if not folder.is_dir():
                    return self.missing("EntryNotFound")
                found = sorted(
                    folder.rglob("*") if "true" in self.query.get("recursive", [""])[0].lower() else folder.iterdir()
                )
                return self.json([entry(repo, path) for path in found])
            if action == "paths-info":
                asked = self.asked_paths()
                return self.json([entry(repo, repo / path) for path in asked if (repo / path).exists()])
            siblings = [{"rfilename": str(path.relative_to(repo))} for path in files_of(repo)]
            facts = {"_id": "0", "id": name, "sha": commit_of(repo), "siblings": siblings, "tags": [], "downloads": 0}
            return self.json({**facts, "private": False, "gated": False, "disabled": False, "likes": 0})

        def asked_paths(self) -> list[str]:
            if "json" in self.headers.get("Content-Type", ""):
                return json.loads(self.body)["paths"]
            return parse_qs(self.body.decode())["paths"]

        def resolve(self, kind: str | None, name: str, revision: str, file: str) -> None:
            repo = hub.root / (kind or "models") / name
            if not repo.is_dir():
                return self.missing("RepoNotFound")
            commit = {"X-Repo-Commit": commit_of(repo)}
            if revision not in ("main", commit["X-Repo-Commit"]):
                return self.missing("RevisionNotFound")
            path = repo / file
            if not path.is_file():
                return self.missing("EntryNotFound", commit)
            content = path.read_bytes()
            if path.suffix not in LARGE:
                return self.content(
                    content, hub.fault.get(path.suffix), {**commit, "ETag": f'"{git_blob_id(content)}"'}
                )
            digest = hashlib.sha256(content).hexdigest()
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"'}
            return self.answer(302, b"", {**commit, **linked, "Location": f"{hub.large_url}/{digest}"})

        def large(self, digest: str) -> None:
            for path in files_of(hub.root):
                content = path.read_bytes()
                if path.suffix in LARGE and hashlib.sha256(content).hexdigest() == digest:
                    return self.content(content, hub.fault.get(path.suffix), {"ETag": f'"{digest}"'})
            return self.missing("EntryNotFound")

        def content(self, content: bytes, fault: str | None, headers: dict[str, str]) -> None:
            headers["Accept-Ranges"] = "bytes"
            if fault == "flipped":
                middle = len(content) // 2
                content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            status, start, stop = 200, 0, len(content)
            if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                start, stop = int(match[1]), min(int(match[2] or stop) + 1, stop)
                status, headers["Content-Range"] = 206, f"bytes {start}-{stop - 1}/{len(content)}"
            if start >= len(content) and status == 206:
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            self.answer(
                status, content[start:stop], headers, sent=None if fault != "truncated" else len(content) // 2 - start
            )

        def json(self, value: object) -> None:
            self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def missing(self, code: str, headers: dict[str, str] | None = None) -> None:
            self.answer(404, b"", {"X-Error-Code": code, **(headers or {})})

        def answer(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, sent: int | None = None
        ) -> None:
            """Send ``body``; with ``sent``, announce all of it and close the connection after that many bytes."""
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body if sent is None else body[: max(sent, 0)])
            if sent is not None:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Requests are in ``hub.requests``; the terminal stays quiet."""

    return Handler
