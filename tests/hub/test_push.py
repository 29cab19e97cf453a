"""--push: what is uploaded, to whom it is visible, and how an upload that broke off goes on."""

import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from hubs import use
from loopback import body_of, listening
from making import call

TOKEN = "hf_writesecret0123456789"
WEIGHTS = "adapter_model.safetensors"


@dataclass
class Hub:
    """A Hub that takes uploads: small files in the commit, safetensors by LFS."""

    private: dict[str, bool] = field(default_factory=dict)  # repository -> whether it is private
    sent: list[str] = field(default_factory=list)  # hashes of LFS files in the order they came
    commits: list[dict[str, str]] = field(default_factory=list)  # path -> lfs or file
    tokens: set[str] = field(default_factory=set)
    fail: str = ""  # the start of "METHOD path" that is answered with `status`
    status: int = 500
    url: str = ""

    def answer(self, line: str, body: bytes) -> tuple[int, Any]:
        if self.fail and line.startswith(self.fail):
            return self.status, {"error": f"no, {TOKEN}"}
        if line == "POST /api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            private = asked.get("private", asked.get("visibility") == "private")
            known = name in self.private
            self.private.setdefault(name, bool(private))
            return (409 if known else 200), {"url": f"{self.url}/{name}"}
        if found := re.fullmatch(r"GET /api/models/([\w.-]+/[\w.-]+)", line):
            row = {"id": found[1], "private": self.private[found[1]], "sha": "0" * 40}
            return 200, {**row, "siblings": []}
        if "/preupload/" in line:
            files = json.loads(body)["files"]
            for file in files:
                file["uploadMode"] = "lfs" if file["path"].endswith("tensors") else "regular"
            return 200, {"files": [file | {"shouldIgnore": False} for file in files]}
        if line.endswith("/objects/batch"):
            objects = [self.lfs(row) for row in json.loads(body)["objects"]]
            return 200, {"transfer": "basic", "objects": objects}
        if line.startswith("PUT /lfs/"):
            self.sent.append(line.removeprefix("PUT /lfs/"))
            return 200, {}
        if "/commit/" in line:
            rows = [json.loads(row) for row in body.splitlines()]
            held = {r["value"]["path"]: r["key"] for r in rows if r["key"] != "header"}
            self.commits.append(held)
            repository = line.split("/api/models/")[1].split("/commit/")[0]
            url = f"{self.url}/{repository}/commit/{'1' * 40}"
            return 200, {"commitUrl": url, "commitOid": "1" * 40, "success": True}
        return 200, {}

    def lfs(self, row: dict) -> dict:
        held = {"oid": row["oid"], "size": row["size"]}
        if row["oid"] in self.sent:
            return held
        return {**held, "actions": {"upload": {"href": f"{self.url}/lfs/{row['oid']}"}}}


@pytest.fixture
def taking(monkeypatch, tmp_path):
    """The Hub's client directed to such a Hub, with a token."""
    hub = Hub()

    def reply(request: BaseHTTPRequestHandler) -> None:
        hub.tokens.add(request.headers.get("authorization", ""))
        line = f"{request.command} {request.path}"
        status, document = hub.answer(line, body_of(request))
        content = json.dumps(document).encode()
        request.send_response(status)
        request.send_header("content-type", "application/json")
        request.send_header("content-length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with listening(reply) as hub.url:
        use(monkeypatch, hub.url, tmp_path / "cache", token=TOKEN)
        yield hub


FILES = {"README.md", "adapter_config.json", WEIGHTS}


@pytest.mark.parametrize("command", ["merge", "route", "convert"])
def test_what_is_written_is_uploaded_and_private(taking, pair, tmp_path, command):
    given = pair[:1] if command == "convert" else pair
    ended = call(command, *given, "-o", tmp_path / "out", "--push", "acme/made")
    assert ended.exit_code == 0, ended.output
    assert taking.private == {"acme/made": True}
    written = {str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*.*")}
    (held,) = taking.commits
    assert held.keys() == {name for name in written if (tmp_path / "out" / name).is_file()}
    assert held.keys() >= FILES or command == "route"
    assert "(private)" in ended.stderr and f"{taking.url}/acme/made" in ended.stderr
    assert TOKEN not in ended.output and taking.tokens >= {f"Bearer {TOKEN}"}


def test_public_is_said_and_done(taking, pair, tmp_path):
    ended = call("merge", *pair, "-o", tmp_path / "out", "--push", "acme/made", "--public")
    assert ended.exit_code == 0 and taking.private == {"acme/made": False}
    assert "public, unless it exists and is private" in ended.stderr


def test_nothing_goes_to_a_public_repository_unasked(taking, pair, tmp_path):
    taking.private["acme/open"] = False
    ended = call("merge", *pair, "-o", tmp_path / "out", "--push", "acme/open")
    assert ended.exit_code == 2 and "--public" in ended.stderr and not taking.commits
    assert (tmp_path / "out" / WEIGHTS).is_file()


def test_an_upload_that_broke_off_goes_on_with_what_is_missing(taking, pair, tmp_path):
    words = ("merge", *pair, "-o", tmp_path / "out", "--push", "acme/made")
    taking.fail, taking.status = "POST /api/models/acme/made/commit", 400
    ended = call(*words)
    assert ended.exit_code == 2 and "--overwrite goes on" in ended.stderr
    assert len(taking.sent) == 1 and not taking.commits and TOKEN not in ended.output
    assert (tmp_path / "out" / WEIGHTS).is_file()
    taking.fail = ""
    assert call(*words, "--overwrite").exit_code == 0
    assert len(taking.sent) == 1 and len(taking.commits) == 1  # the weights were not sent again


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_may_not_write_is_said_without_showing_it(taking, pair, tmp_path, status):
    taking.fail, taking.status = "POST /api/repos/create", status
    ended = call("convert", pair[0], "-o", tmp_path / "out", "--push", "acme/made", "--debug")
    assert ended.exit_code == 2 and "token" in ended.stderr and TOKEN not in ended.output


def test_without_a_token_or_a_network_nothing_is_begun(taking, pair, tmp_path, monkeypatch):
    from huggingface_hub import constants

    words = ("merge", *pair, "-o", tmp_path / "out", "--push", "acme/made")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in call(*words).stderr
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    ended = call(*words)
    assert ended.exit_code == 2 and "HF_TOKEN" in ended.stderr and not (tmp_path / "out").exists()
