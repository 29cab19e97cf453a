"""Two Hubs on loopback for tests: a real third-party server, and one that misbehaves on demand."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import making
from loopback import listening

GIT = ("git", "-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "gc.auto=0")


def git(directory: Path, *arguments: str) -> str:
    done = subprocess.run([*GIT, *arguments], cwd=directory, check=True, capture_output=True)
    return done.stdout.decode().strip()


def commit(directory: Path, files: Mapping[str, bytes]) -> str:
    """Writes these files into a repository, which the first use makes, and returns the commit."""
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / ".git").exists():
        git(directory, "init", "-q", "-b", "main")
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    git(directory, "add", "-A")
    git(directory, "commit", "-q", "-m", "files")
    return git(directory, "rev-parse", "HEAD")


@contextlib.contextmanager
def olah(root: Path) -> Iterator[str]:
    """The server olah over the git repositories under root/mirrors/models; its address."""
    command = [str(Path(sys.executable).with_name("olah-cli")), "-c", str(root / "olah.toml")]
    for _ in range(5):  # another program may take the port before olah does
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        (root / "olah.toml").write_text(
            f'[basic]\nhost = "127.0.0.1"\nport = {port}\nrepos-path = "{root}/repos"\n'
            f'mirrors-path = ["{root}/mirrors"]\n[accessibility]\noffline = true\n'
        )
        with (root / "olah.log").open("w") as log:
            server = subprocess.Popen(
                command, cwd=root, stdout=log, stderr=log, start_new_session=True
            )
        try:
            if listens(server, port):
                yield f"http://127.0.0.1:{port}"
                return
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    raise RuntimeError((root / "olah.log").read_text())


def listens(server: subprocess.Popen, port: int) -> bool:
    """Waits until a server takes connections; False if it ends instead."""
    while server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        time.sleep(0.1)
    return False


@dataclass
class Misbehaving:
    """A Hub with the same files in every repository but owner/base; a test can spoil its answers.

    `fail` maps the start of "METHOD path" to (status, headers); `spoil` maps a file to what
    happens to its body: "truncate", "flip" or "html". `requests` lists what was asked. `described`
    maps a repository to what the Hub tells about it, `shards` to the sha256 of its weight files,
    `moved` an old name to the new one.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    fail: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    spoil: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    authorizations: set[str] = field(default_factory=set)
    listed: list[dict[str, Any]] = field(default_factory=list)
    described: dict[str, dict[str, Any]] = field(default_factory=dict)
    shards: dict[str, list[str]] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    commit: str = "c0" * 20
    url: str = ""

    @contextlib.contextmanager
    def running(self) -> Iterator[Misbehaving]:
        with listening(self.answer) as self.url:
            yield self

    def fetched(self) -> set[str]:
        """Names of the files whose bodies were sent."""
        files = [r for r in self.requests if r.startswith("GET ") and "/resolve/" in r]
        return {re.split(f"/resolve/(?:{self.commit}|main)/", file)[-1] for file in files}

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answers GET, and HEAD without a body."""
        body = request.command == "GET"
        line = f"{request.command} {unquote(request.path)}"
        self.requests.append(line)
        self.authorizations.add(request.headers.get("authorization", ""))
        for start, (status, headers) in self.fail.items():
            if line.startswith(start):
                return self.send(request, status, headers, b'{"error": "no"}', body)
        if "/api/models?" in line:
            return self.send_listing(request, line, body)
        if found := re.search(r"/api/models/([^/]+/[^/?]+)(/tree/[^?]*)?", line):
            name, tree = found.groups()
            if name in self.moved:
                place = line.partition(" ")[2].replace(name, self.moved[name], 1)
                return self.send(request, 307, {"Location": place}, b"", body)
            if tree or name in self.described:
                return self.send_described(request, name, tree is not None, body)
        if "/api/models/" in line or "/api/datasets/" in line:
            base = found is not None and found[1] == "owner/base"  # which the adapter names
            siblings = [{"rfilename": name} for name in (() if base else self.files)]
            info = {
                "id": found[1] if found else "acme/math",
                "sha": self.commit,
                "siblings": siblings,
            }
            content = json.dumps(info).encode()
            if self.spoil.get("api") == "html":
                content = b"<html>Please log in to the Wi-Fi</html>"
            return self.send(request, 200, {"content-type": "application/json"}, content, body)
        if "/resolve/" not in line:
            return self.send(request, 404, {}, b"", body)
        name = unquote(request.path).split("/resolve/", 1)[1].split("/", 1)[1]
        if name not in self.files:
            return self.send(request, 404, {"X-Error-Code": "EntryNotFound"}, b"", body)
        return self.send_file(request, name, body)

    def send_described(
        self, request: BaseHTTPRequestHandler, name: str, tree: bool, body: bool
    ) -> None:
        """What the Hub tells about a repository, or the files of its tree."""
        info = {"id": name, "sha": self.commit, "siblings": [], "tags": []}
        told: Any = info | self.described.get(name, {})
        if tree:
            sums = self.shards.get(name, [])
            told = [
                {"type": "file", "path": f"model-{i}.safetensors", "size": 9, "oid": f"{i:040}"}
                | {"lfs": {"oid": digest, "size": 9, "pointerSize": 1}}
                for i, digest in enumerate(sums)
            ] + [{"type": "file", "path": "config.json", "size": 2, "oid": "0" * 40}]
        return self.send(
            request, 200, {"content-type": "application/json"}, json.dumps(told).encode(), body
        )

    def send_listing(self, request: BaseHTTPRequestHandler, line: str, body: bool) -> None:
        """The repositories whose tags are all among those that the query names."""
        query = parse_qs(urlsplit(line.partition(" ")[2]).query)
        named = [name for entry in query.get("filter", []) for name in entry.split(",")]
        searched = query.get("search", [""])[0].lower()
        rows = [row for row in self.listed if set(named) <= set(row["tags"])]
        rows = [row for row in rows if searched in row["id"].lower()]
        content = json.dumps(rows).encode()
        return self.send(request, 200, {"content-type": "application/json"}, content, body)

    def send_file(self, request: BaseHTTPRequestHandler, name: str, body: bool) -> None:
        content = self.files[name]
        etag = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": self.commit}
        spoiled = self.spoil.get(name)
        if spoiled == "flip" and body:
            content = content[:-1] + bytes([content[-1] ^ 255])
        if spoiled == "truncate" and body:
            self.send(request, 200, headers, content, body=False)
            request.wfile.write(content[: len(content) // 2])
            request.close_connection = True
            return None
        return self.send(request, 200, headers, content, body)

    def send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        headers: Mapping[str, str],
        content: bytes,
        body: bool,
    ) -> None:
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if body:
            request.wfile.write(content)


def adapter_files(directory: Path, seed: int = 0, **more: Any) -> dict[str, bytes]:
    """The files of a small adapter, as a Hub would serve them."""
    making.random_adapter(seed=seed, **more).save(directory)
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def use(monkeypatch, url: str, cache: Path, offline: bool = False, token: str | None = None):
    """Directs the Hub's client to a server, as HF_* variables do for a new process."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    close_session()
