"""Cases of `verify --served`: servers that answer with other things, or not at all."""

import os
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from unittest import mock

import pytest
from adversarial import call, case, cases
from adversarial.errors import tiny, told
from adversarial.privacy import ADDRESSES, SECRET
from loopback import listening

from loraprobe.extensions.serve import acceptance
from loraprobe.extensions.serve.client import KEY

PAGE, VERIFY = "serving.md", pytest.mark.needs("verify")


def answering(body: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    """A server that gives one body to every request."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def _served(place: Path, address: str) -> str:
    base = ["--base", place / "base", "--model", "m"]
    return told("verify", place / "a", *base, "--served", address, names=address)


def _logprob(number: str) -> bytes:
    return b'{"choices":[{"logprobs":{"token_logprobs":[%s]}}]}' % number.encode()


FIGURES = {
    "nan": "NaN",
    "infinite": "-Infinity",
    "positive": "0.5",
    "true": "true",
    "digits": "-" + "9" * 401,
    "nested": "[" * 3000 + "]" * 3000,
}


@cases("server", FIGURES, VERIFY)
def _(place: Path, number: str) -> str:
    tiny(place)
    with listening(answering(_logprob(number))) as address:
        return _served(place, address)


@case("server-redirects", VERIFY)
def _(place: Path) -> str:
    tiny(place)
    asked = []

    def other(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        answering(_logprob("-1.0"))(handler)

    with listening(other) as second:

        def redirect(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(302)
            handler.send_header("location", f"{second}/inside")
            handler.end_headers()

        with listening(redirect) as first:
            found = _served(place, first)
    return "the other host is asked" if asked else found


@case("server-slow", VERIFY)
def _(place: Path) -> str:
    tiny(place)

    sent = []

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nx: ")
        while len(sent) < 300:  # a minute, unless the client goes
            time.sleep(0.2)
            handler.wfile.write(b"x")
            sent.append("x")

    with listening(reply) as address, mock.patch.object(acceptance, "TIMEOUT", 1.0):
        found = _served(place, address)
    return found if len(sent) < 300 else "a minute, as long as it sends"


@case("server-endless", VERIFY)
def _(place: Path) -> str:
    tiny(place)
    sent = [0]

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for number in range(300):
            handler.wfile.write(b"[" * 1_000_000)
            sent.append(number)

    with listening(reply) as address:
        found = _served(place, address)
    return found if max(sent) < 30 else "reads more than 30 MB of one answer"


@case("server-port", VERIFY)
def _(place: Path) -> str:
    tiny(place)
    return _served(place, "http://127.0.0.1:99999")


KEYS = {"letters": "sk-\u00fcnter-0001", "break": "sk-first-0001\nsk-second-0002"}


@cases("server-key", KEYS, VERIFY)
def _(place: Path, key: str) -> str:
    tiny(place)
    words = ["--base", place / "base", "--model", "m", "--served", "http://127.0.0.1:9"]
    with mock.patch.dict(os.environ, {KEY: key}):
        shown = call("verify", place / "a", *words).stderr
        found = told("verify", place / "a", *words, names=KEY)
    return "the key is printed" if "0001" in shown or "0002" in shown else found


@case("server-bracket", VERIFY)
def _(place: Path) -> str:
    tiny(place)
    return _served(place, "http://[::1")


@case("server-label", VERIFY)
def _(place: Path) -> str:
    tiny(place)
    served_by = ("--model", "m", "--served", f"http://{'é' * 70}.org")
    error = call("verify", place / "a", "--base", place / "base", *served_by).stderr
    blamed = "does not give" in error
    return f"exit 2, {'the server is blamed' if blamed else 'the address is named'}"


@case("password-in-the-address-of-a-server", VERIFY)
def _(place: Path) -> str:
    tiny(place)
    calls = [("verify", place / "a", "--served", address, "--json") for address in ADDRESSES]
    shown = any(SECRET in call(*words).output for words in calls)
    return "printed" if shown else "never printed"
