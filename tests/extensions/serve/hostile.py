"""Cases of `verify --served`: servers that answer with other things, or not at all."""

import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from unittest import mock

import pytest
from adversarial import call, case
from adversarial.errors import tiny, told
from adversarial.privacy import ADDRESSES, SECRET
from loopback import listening

from loraprobe.extensions.serve import recognising

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


@case("server-redirects", VERIFY)
def _(place: Path) -> str:
    tiny(place)
    asked = []

    def other(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        answering(b"{}")(handler)

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

    with listening(reply) as address, mock.patch.object(recognising, "TIMEOUT", 1.0):
        found = _served(place, address)
    return found if len(sent) < 300 else "a minute, as long as it sends"


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
