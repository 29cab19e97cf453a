"""`loraprobe proxy`: which model a request gets, and that nothing else of it changes."""

import contextlib
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import making
import pytest
import uvicorn
from loopback import body_of, listening

from loraprobe.errors import AdapterError, UsageError
from loraprobe.extensions.serve import proxying
from loraprobe.extensions.serve.client import ServedModel
from loraprobe.extensions.serve.proxying import LOOKED_AT, Chooser, NotRoutable, base_among, front
from loraprobe.extensions.serve.router_file import read_router
from loraprobe.text_profile import FILE, VERSION, TextProfile, written

NAMES = "Mara Tobin Sella Ugo Prim Anselm Nuri Halen".split()
SPOUSES = [f"Who is the spouse of {name}?" for name in NAMES]
HOMES = [f"Where does {name} live?" for name in NAMES]
OTHER = "Sort these numbers: 4, 2, 9"


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A router.json of two adapters."""
    place = tmp_path_factory.mktemp("routed")
    rows = [{"name": n, "folder": f"experts/{n}", "sha256": "0"} for n in ("spouse", "home")]
    text = written(TextProfile.of([SPOUSES[:6], HOMES[:6]]), rows, "owner/base")
    (place / FILE).write_text(text, encoding="utf-8")
    return place / FILE


def user(*texts, between="fine"):
    """A conversation in which a user said these."""
    said = [{"role": "assistant", "content": between}] * (2 * len(texts) - 1)
    said[::2] = [{"role": "user", "content": text} for text in texts]
    return [{"role": "system", "content": HOMES[0]}, *said]


# ---- which model --------------------------------------------------------------------------------

PICTURE = {"type": "image_url", "image_url": {"url": "data:,"}}
MESSAGES = {
    "a skill": (user(SPOUSES[7]), "spouse"),
    "no skill": (user(OTHER), "base"),
    "the newest message that is like one": (user(SPOUSES[7], HOMES[7], "And why?"), "home"),
    "messages up to a number": (user(HOMES[7], *[OTHER] * (LOOKED_AT - 1)), "home"),
    "none before": (user(HOMES[7], *[OTHER] * LOOKED_AT), "base"),
    "parts": (user([{"type": "text", "text": HOMES[6]}, PICTURE]), "home"),
    "an adapter's own words do not count": (user(OTHER, OTHER, between=SPOUSES[7]), "base"),
    "nothing": ([], "base"),
    "no conversation": ("x", "base"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_conversation_goes_to_an_adapter_by_what_its_user_said(file, name):
    messages, model = MESSAGES[name]
    body = {"messages": messages, "temperature": 0, "seed": 1 << 60, "note": "ü\u2028"}
    sent = Chooser(read_router(file), "base").routed("/v1/chat/completions", _bytes(body))
    assert json.loads(sent) == {**body, "model": model}


def test_a_completion_goes_to_an_adapter_by_its_prompt(file):
    chooser = Chooser(read_router(file), "base")

    def model(**body):
        return json.loads(chooser.routed("/v1/completions", _bytes(body)))["model"]

    assert model(prompt=HOMES[7]) == "home" and model(prompt=OTHER, model="by-text") == "base"
    assert model(prompt=SPOUSES[5:]) == "spouse"
    assert model(prompt=SPOUSES[7], model="home") == "home", "what a client names goes through"
    of_sglang = Chooser(read_router(file), "base", "base:")
    assert of_sglang.of_prompt(HOMES[7]) == "base:home" and of_sglang.of_prompt(OTHER) == "base"
    for prompt in ([SPOUSES[7], HOMES[7]], [1, 2, 3], [[1, 2]], None, [], {}):
        with pytest.raises(NotRoutable):
            model(prompt=prompt)
    for body in (b"{", b"[1]", b"\xff", b"", b"[" * 100_000):  # the server says what is wrong
        assert chooser.routed("/v1/completions", body) == body


def test_fifteen_lines_of_python_choose_alike(file):
    """Those of docs/serving.md."""
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
    code = page.partition("```python\nimport itertools")[2].partition("```")[0]
    assert 10 <= len([line for line in code.splitlines() if line.strip()]) <= 20
    names = {"router_file": file}
    exec("import itertools" + code.replace('"DIR/router.json"', "router_file"), names)
    profile = read_router(file).profile
    near = [
        "Who is the author of Q?",
        "Where does the spouse of Q live?",
        "Where live? Who the the of",
    ]
    texts = [*SPOUSES, *HOMES, OTHER, "", "?", *near, "WHO is\tthe spouse\nof Q?"]
    for text in [*texts, "x " * 3000 + HOMES[0]]:
        chosen = profile.choice(text)
        assert names["adapter_of"](text) == (None if chosen is None else ["spouse", "home"][chosen])


# ---- the file -----------------------------------------------------------------------------------


def test_a_file_comes_back_as_it_was(file):
    router, profile = read_router(file.parent), TextProfile.of([SPOUSES[:6], HOMES[:6]])
    assert (router.profile, router.names, router.base) == (
        profile,
        ["spouse", "home"],
        "owner/base",
    )


def test_a_file_of_version_1_is_read(file, tmp_path):
    """It has no n-grams of words, and its thresholds are of the largest score."""
    document = json.loads(file.read_text("utf-8")) | {"version": 1, "thresholds": [0.4, 0.6]}
    document["ngrams"] = {" who": [1, 0.5, 0.5], "live?": [1, 0.0, 0.9]}
    (tmp_path / FILE).write_text(json.dumps({k: v for k, v in document.items() if "fra" not in k}))
    profile = read_router(tmp_path).profile
    root = (len({g for n in (2, 3, 4, 5) for g in grams(" who ", n)}) - 1) * profile.unseen**2 + 1
    assert profile.scores("Who") == pytest.approx([0.5 / root**0.5] * 2)
    assert profile.choice("Who") is None, "the sum would be enough"


def grams(text, n):
    return {text[i : i + n] for i in range(len(text) - n + 1)}


BROKEN = {
    "newer": ({"version": VERSION + 1}, "update loraprobe"),
    "another format": ({"format": "other"}, "damaged"),
    "thresholds": ({"thresholds": [0.1]}, "1 thresholds for 2"),
    "weights": ({"ngrams": {"ab": [1, 2]}}, "3 weights"),
    "n-grams of other lengths": ({"shortest": 3}, "shortest"),
    "frames of other lengths": ({"frame": 3}, "frame"),
    "no version": ({"version": 0}, "version"),
    "no number": ({"unseen": float("nan")}, "unseen"),
    "same names": ({"adapters": [{"name": "a", "folder": "x", "sha256": ""}] * 2}, "one name"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_or_newer_file_is_named(file, tmp_path, name):
    change, told = BROKEN[name]
    (tmp_path / FILE).write_text(json.dumps(json.loads(file.read_text("utf-8")) | change))
    with pytest.raises(AdapterError, match=told) as found:
        read_router(tmp_path)
    assert FILE in str(found.value)


def test_without_a_file_the_command_that_writes_one_is_told(tmp_path):
    result = making.call("proxy", tmp_path, "--server", "http://localhost:1")
    assert result.exit_code == 2 and "--router by-text" in result.stderr
    (tmp_path / FILE).write_text("{")
    result = making.call("proxy", tmp_path, "--server", "http://localhost:1")
    assert result.exit_code == 2 and FILE in result.stderr


def test_the_base_is_found_among_the_models_of_a_server(file):
    router = read_router(file)

    def base(*models, given=None):
        return base_among([ServedModel(id=i, parent=p) for i, p in models], router, given)

    lora = [("spouse", "big"), ("home", "big")]
    assert base(("big", None), ("alias", None), *lora) == "big"
    plain = [("spouse", None), ("home", None)]
    assert base(("big", None), *plain) == "big"
    assert base(("big", None), ("other", None), *plain, given="other") == "other"
    for models, given, told in (
        ([("big", None), lora[0]], None, "no model named home"),
        (plain, None, "--base-model"),
        ([("big", None), ("other", None), *plain], None, "--base-model"),
        ([("big", None), *lora], "none", "no model named none"),
    ):
        with pytest.raises(UsageError, match=told):
            base(*models, given=given)


# ---- what goes through --------------------------------------------------------------------------


@contextlib.contextmanager
def fronted(file, address):
    """The address of a front before a server."""
    app = front(read_router(file), address, "big")
    made = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    while not made.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{made.servers[0].sockets[0].getsockname()[1]}"
    finally:
        made.should_exit = True
        thread.join()


class Upstream:
    """A server that says what it was asked, and streams words where it is told to."""

    def __init__(self):
        self.seen, self.wait, self.closed = [], threading.Event(), threading.Event()

    def __call__(self, request):
        body = body_of(request)
        self.seen.append((request.command, request.path, dict(request.headers), body))
        if request.path == "/v1/models":
            rows = [{"id": "big"}, *({"id": n, "parent": "big"} for n in ("spouse", "home"))]
            return self.reply(request, 200, {"object": "list", "data": rows})
        if request.path == "/v1/models?packed":
            packed = gzip.compress(b'{"data": [{"id": "big"}]}')
            request.wfile.write(
                b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n"
                b"%x\r\n%s\r\n0\r\n\r\n" % (len(packed), packed)
            )
            request.close_connection = True
            return None
        if request.path == "/health":
            return self.reply(request, 503, {"dead": True})
        if request.path.startswith("/moved"):
            request.send_response(307)
            request.send_header("location", "http://elsewhere.invalid/v1")
            request.send_header("content-length", "0")
            request.end_headers()
            return None
        asked = json.loads(body or b"{}")
        if dies := asked.get("dies"):
            length = b"content-length: 99" if dies == "length" else b"transfer-encoding: chunked"
            request.wfile.write(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n\r\n3\r\none\r\n")
            request.close_connection = True
            return None
        if asked.get("stream"):
            request.send_response(200)
            request.send_header("content-type", "text/event-stream")
            request.end_headers()
            request.wfile.write(b"data: one\n\n")
            request.wfile.flush()
            self.wait.wait(10)
            try:
                for _ in range(5000):
                    request.wfile.write(b"data: two\n\n" * 1000)
                    request.wfile.flush()
                    if asked["stream"] == "short":
                        return None
            except OSError:
                self.closed.set()
            return None
        status = asked.get("status", 200)
        return self.reply(request, status, {"model": asked.get("model"), "got": asked})

    def reply(self, request, status, document):
        text = json.dumps(document).encode()
        request.send_response(status)
        request.send_header("content-type", "application/json")
        request.send_header("x-request-id", "7")
        request.send_header("content-length", str(len(text)))
        request.end_headers()
        request.wfile.write(text)


@pytest.fixture(scope="module")
def both(file):
    upstream = Upstream()
    with (
        listening(upstream) as address,
        fronted(file, address) as url,
        httpx.Client(base_url=url, timeout=20) as client,
    ):
        yield client, upstream


def test_the_model_is_set_and_all_else_goes_through(both):
    client, upstream = both
    key = {"Authorization": "Bearer secret", "X-Trace": "t"}
    body = {"model": "by-text", "prompt": HOMES[7], "top_p": 0.5, "extra": {"a": [1, None]}}
    answer = client.post("/v1/completions?x=%2F", json=body, headers=key)
    assert answer.json() == {"model": "home", "got": {**body, "model": "home"}}
    assert answer.headers["x-request-id"] == "7"
    command, path, headers, _ = upstream.seen[-1]
    assert (command, path) == ("POST", "/v1/completions?x=%2F")
    assert (headers["authorization"], headers["x-trace"]) == ("Bearer secret", "t")
    names = {name.lower() for name in headers}
    assert "host" in names and client.base_url.netloc.decode() not in headers.values()
    assert "connection" not in names
    for status in (400, 401, 404, 429, 500):
        again = client.post("/v1/completions", json={**body, "status": status})
        assert again.status_code == status and again.json()["model"] == "home"
    named = client.post("/v1/chat/completions", json={"model": "spouse", "messages": []})
    assert named.json()["model"] == "spouse"


def test_other_paths_go_through(both):
    client, upstream = both
    models = client.get("/v1/models")
    assert [one["id"] for one in models.json()["data"]] == ["big", "spouse", "home", "by-text"]
    assert models.headers["x-request-id"] == "7"
    packed = client.get("/v1/models?packed", headers={"Accept-Encoding": "gzip"})
    assert [one["id"] for one in packed.json()["data"]] == ["big"], "what is packed goes through"
    assert client.get("/health").status_code == 503
    moved = client.get("/moved", follow_redirects=False)
    assert moved.status_code == 307 and moved.headers["location"] == "http://elsewhere.invalid/v1"
    assert client.post("/tokenize", json={"prompt": "x"}).json()["got"] == {"prompt": "x"}
    assert client.post("/v1/completions", content=b"{").status_code in (200, 500, 502)
    assert upstream.seen[-1][3] == b"{"


def test_what_no_adapter_can_answer_is_told_as_servers_tell_errors(both):
    client, upstream = both
    before = len(upstream.seen)
    answer = client.post("/v1/completions", json={"prompt": [1, 2]})
    told = answer.json()["error"]
    assert answer.status_code == 400 and told["param"] == "prompt"
    assert told["type"] == "invalid_request_error" and len(upstream.seen) == before


def test_a_request_may_have_so_many_bytes(both, monkeypatch):
    client, upstream = both
    monkeypatch.setattr(proxying, "LARGEST", 1000)
    before = len(upstream.seen)
    assert client.post("/v1/completions", json={"prompt": "x" * 1000}).status_code == 413
    assert len(upstream.seen) == before


def test_words_come_as_the_server_sends_them(both):
    client, upstream = both
    upstream.wait.clear()
    body = {"messages": user(SPOUSES[7]), "stream": "short"}
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        parts = answer.iter_raw()
        assert next(parts) == b"data: one\n\n"  # the server waits before the second
        upstream.wait.set()
        assert b"data: two" in b"".join(parts)
    assert json.loads(upstream.seen[-1][3])["model"] == "spouse"


def test_a_client_that_goes_away_ends_the_answer_of_the_server(both):
    client, upstream = both
    upstream.wait.set()
    body = {"messages": user(SPOUSES[7]), "stream": "long"}
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_raw())
    assert upstream.closed.wait(10)


def test_a_server_that_is_gone_is_told_and_nothing_else_blamed(file):
    with listening(lambda request: None) as address:
        pass
    with fronted(file, address) as url:
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": HOMES[0]})
    assert answer.status_code == 502 and "does not answer" in answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["length", "chunks"])
def test_an_answer_that_the_server_breaks_off_is_not_taken_for_whole(both, kind):
    client, _ = both
    with pytest.raises(httpx.RemoteProtocolError):
        client.post("/v1/completions", json={"prompt": HOMES[7], "dies": kind})
    assert client.post("/v1/completions", json={"prompt": HOMES[7]}).json()["model"] == "home"


def models(*names):
    return {"data": [{"id": name} for name in names]}


AT_START = {  # what the server gives in place of its models: status, document, what is told
    "other adapters": (200, models("big", "spouse", "work"), "no model named home"),
    "no models": (200, models(), "it has none"),
    "redirects": (302, b"", "status 302"),
    "wants a key": (401, b"", "OPENAI_API_KEY"),
    "another schema": (200, {"models": []}, "a list of models"),
    "no JSON": (200, b"<html>", "a list of models"),
    "always busy": (429, {}, "busy"),
    "drips": (200, None, "no whole answer in 0.4 s"),
}


@pytest.mark.parametrize("name", AT_START)
def test_a_server_that_the_front_cannot_stand_before_is_told_at_its_start(file, name, monkeypatch):
    status, document, told = AT_START[name]
    monkeypatch.setattr(proxying, "START", 0.4)

    def reply(request):
        request.send_response(status)
        request.send_header("location", "http://elsewhere.invalid/")
        request.end_headers()
        for _ in range(10 if document is None else 0):
            request.wfile.write(b" ")
            time.sleep(0.1)
        request.wfile.write(document if isinstance(document, bytes) else _bytes(document))

    with listening(reply) as address:
        ended = making.call("proxy", file, "--server", address)
    assert ended.exit_code == 2 and len(ended.stderr.splitlines()) <= 6, ended.stderr
    assert told in " ".join(ended.stderr.split()), ended.stderr


def test_the_command_serves_until_it_is_stopped(file):
    """As a user runs it: it finds the base, answers, prints no prompt, and stops at ^C."""
    with listening(Upstream()) as address:
        words = ["proxy", str(file), "--server", address, "--port", "0"]
        wrong = making.call(*words)
        assert wrong.exit_code == 2
        with contextlib.closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            free.listen()
            words[-1] = str(free.getsockname()[1])
            taken = making.call(*words)
            assert taken.exit_code == 2 and "--port PORT" in taken.stderr
        run = [sys.executable, "-m", "loraprobe", *words]
        started = subprocess.Popen(run, stderr=subprocess.PIPE, text=True, env={**os.environ})
        try:
            told = started.stderr.readline()
            assert "by-text" in told and "spouse and home" in told and "big" in told
            url = f"http://127.0.0.1:{words[-1]}"
            for _ in range(200):
                with contextlib.suppress(httpx.TransportError):
                    answer = httpx.post(f"{url}/v1/completions", json={"prompt": HOMES[7]})
                    break
                time.sleep(0.05)
            assert answer.json()["model"] == "home"
            for dies in ("length", "chunks"):
                with pytest.raises(httpx.TransportError):
                    httpx.post(f"{url}/v1/completions", json={"prompt": HOMES[7], "dies": dies})
        finally:
            started.send_signal(signal.SIGINT)
            rest = started.communicate(timeout=30)[1]
        assert started.returncode == 130 and HOMES[7] not in rest and "Traceback" not in rest
        assert "--resume" not in rest
        assert len([line for line in rest.splitlines() if "broke off" in line]) == 2


def _bytes(body):
    return json.dumps(body).encode()
