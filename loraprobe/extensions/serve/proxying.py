"""`loraprobe proxy`: an OpenAI-compatible front that names the adapter of each request.

The front sets `model` of a request by the text of its prompt (`text_profile` has router.json) and
changes nothing else: headers, statuses, streams and errors go through as they are, also those of
paths that it does not know. It keeps and logs no prompt. A request that names another model of the
server than the front's own, `by-text`, goes through unchanged.

starlette and uvicorn are those of `pip install 'loraprobe[proxy]'`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraprobe.cli.parameters import argument, setting
from loraprobe.cli.running import Output
from loraprobe.defaults import BY_TEXT
from loraprobe.errors import UsageError
from loraprobe.formatting import listing

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from loraprobe.extensions.serve.client import ServedModel
    from loraprobe.extensions.serve.router_file import RouterFile

ROUTED = ("/v1/chat/completions", "/v1/completions")
LARGEST = 1 << 26  # bytes of a request
LOOKED_AT = 8  # messages of a user, the newest first
GRACE = 30  # seconds that open answers have after the front was told to stop
START = 60.0  # seconds that the server has to tell its models
# Headers of one connection, which do not go on to the other one.
OF_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding "
    b"upgrade host content-length".split()
)


class NotRoutable(Exception):
    """Why no single adapter can answer a request, as a sentence, and the field that says so."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


class Chooser:
    """Which model of the server answers a request."""

    def __init__(self, router: RouterFile, base: str, prefix: str = "") -> None:
        """prefix: of an adapter's name in a request, as SGLang wants it."""
        self.profile, self.base = router.profile, base
        self.names = [f"{prefix}{name}" for name in router.names]

    def of_text(self, text: str) -> str:
        """The adapter of a prompt, or the base."""
        chosen = self.profile.choice(text)
        return self.base if chosen is None else self.names[chosen]

    def of_messages(self, messages: Any) -> str:
        """The adapter of a conversation: that of the newest message of the user that is like what
        one adapter learned, so that "And why?" stays with the adapter before it."""
        own = [one for one in messages if isinstance(one, dict) and one.get("role") == "user"]
        for message in own[::-1][:LOOKED_AT]:
            content = message.get("content")
            if isinstance(content, list):  # parts, of which pictures and sounds are not read
                texts = [part.get("text") for part in content if isinstance(part, dict)]
                content = "\n".join(text for text in texts if isinstance(text, str))
            if isinstance(content, str) and (model := self.of_text(content)) != self.base:
                return model
        return self.base

    def of_prompt(self, prompt: Any) -> str:
        """The adapter of a text, or of several that one adapter answers. Raises NotRoutable."""
        texts = [prompt] if isinstance(prompt, str) else prompt
        if not (isinstance(texts, list) and texts and all(isinstance(t, str) for t in texts)):
            raise NotRoutable(
                f"{BY_TEXT} chooses an adapter by the text of a prompt, and this one is none; send "
                "text, or name the adapter as the model.",
                "prompt",
            )
        models = sorted({self.of_text(text) for text in texts})
        if len(models) > 1:
            raise NotRoutable(
                f"The prompts of this request need several models ({', '.join(models)}); send them "
                "in requests of their own.",
                "prompt",
            )
        return models[0]

    def routed(self, path: str, body: bytes) -> bytes:
        """The body with its model; as it is where it names one, or where the server has to say what
        is wrong with it. Raises NotRoutable."""
        try:
            request = json.loads(body)
        except (ValueError, RecursionError):
            return body
        if not isinstance(request, dict) or request.get("model", BY_TEXT) != BY_TEXT:
            return body
        if path.endswith("/chat/completions"):
            messages = request.get("messages")
            model = self.of_messages(messages if isinstance(messages, list) else [])
        else:
            model = self.of_prompt(request.get("prompt"))
        request["model"] = model
        return json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")


def front(router: RouterFile, address: str, base: str, prefix: str = "") -> Starlette:
    """The application. address: that of the server; base, prefix: those of a `Chooser`."""
    import httpx
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    from loraprobe.extensions.serve.client import CONNECT

    chooser, server = Chooser(router, base, prefix), httpx.URL(address)
    # One connection each: what httpx does to choose among many takes longer than the rest.
    idle = list[httpx.AsyncHTTPTransport]()
    alone = httpx.Limits(max_connections=1)
    trusted = httpx.create_ssl_context() if server.scheme == "https" else False
    place = server.path.rstrip("/").encode()

    def error(status: int, message: str, field: str | None = None) -> Response:
        kind = "invalid_request_error" if status < 500 else "server_error"
        told = {"message": message, "type": kind, "param": field, "code": None}
        return JSONResponse({"error": told}, status)

    async def passed(request: Request) -> Response:
        body = bytearray()
        try:
            async for part in request.stream():
                body += part
                if len(body) > LARGEST:
                    return error(413, f"A request may have {LARGEST:,} bytes.")
        except ClientDisconnect:
            return Response(status_code=499)
        content, path = bytes(body), request.url.path
        if request.method == "POST" and path in ROUTED:
            try:
                content = chooser.routed(path, content)
            except NotRoutable as why:
                return error(400, str(why), why.field)
        query = request.scope["query_string"]
        raw = (
            place + request.scope.get("raw_path", path.encode()) + (b"?" + query if query else b"")
        )
        asked = httpx.Request(  # which has the host and the length by itself
            request.method,
            server.copy_with(raw_path=raw),
            headers=[(k, v) for k, v in request.headers.raw if k not in OF_HOP],
            content=content,
            extensions={"timeout": {"connect": CONNECT, "read": None, "write": None, "pool": None}},
        )
        transport = idle.pop() if idle else httpx.AsyncHTTPTransport(verify=trusted, limits=alone)
        try:
            answer = await transport.handle_async_request(asked)
        except BaseException as failed:
            await transport.aclose()
            if not isinstance(failed, httpx.TransportError):
                raise
            what = type(failed).__name__
            return error(502, f"The server behind this front does not answer ({what}).")
        headers = [(k.lower(), v) for k, v in answer.headers.raw if k.lower() not in OF_HOP]
        if path == "/v1/models" and request.method == "GET" and answer.status_code == 200:
            held = await with_own_model(stream(answer, transport))
            sent, size = Response(held, answer.status_code), str(len(held))
        else:
            sent = StreamingResponse(stream(answer, transport), answer.status_code)
            size = answer.headers.get("content-length", "")
        sent.raw_headers = [*headers, *([(b"content-length", size.encode())] if size else [])]
        return sent

    async def stream(
        answer: httpx.Response, transport: httpx.AsyncHTTPTransport
    ) -> AsyncIterator[bytes]:
        """The bytes of an answer as they come; its connection is used again."""
        try:
            async for part in answer.stream:  # type: ignore[union-attr]
                yield part
        finally:
            await answer.aclose()
            idle.append(transport)

    async def with_own_model(parts: AsyncIterator[bytes]) -> bytes:
        """The server's models, and the front's own behind them; as they are where they are none."""
        held = b"".join([part async for part in parts])
        try:
            listed = json.loads(held)
            own = {"id": BY_TEXT, "object": "model", "created": 0, "owned_by": "loraprobe"}
            listed["data"] = [*listed["data"], own | {"parent": base}]  # as an adapter has one
            return json.dumps(listed, ensure_ascii=False).encode()
        except (ValueError, KeyError, TypeError):
            return held

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        for transport in idle:
            await transport.aclose()

    methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    routes = [Route("/{path:path}", passed, methods=methods)]
    return Starlette(routes=routes, lifespan=lifespan)


def _broken_off(record: logging.LogRecord) -> bool:
    """Tells in one line, and not as a fault of the front, that the server broke off an answer.

    The front breaks it off as well, so that no client takes it for whole.
    """
    import httpx

    failed = record.exc_info[1] if record.exc_info else None
    if isinstance(failed, httpx.TransportError):
        record.msg = "The server behind this front broke off an answer (%s)."
        record.args, record.exc_info, record.exc_text = (type(failed).__name__,), None, None
    return True


def base_among(models: Sequence[ServedModel], router: RouterFile, given: str | None) -> str:
    """The name of the server's base, after checking that it has the adapters.

    Raises UsageError for an adapter that it lacks, and where its base has several names.
    """
    from loraprobe.extensions.serve.client import absent

    held = {one.id: one for one in models}
    missing = [name for name in router.names if name not in held]
    if missing:
        raise UsageError(
            f"{absent('The server', missing, models)}:",
            "serve the adapters under the names that router.json gives, as in vllm serve BASE "
            f"--enable-lora --lora-modules {missing[0]}=DIR/experts/{missing[0]}.",
        )
    if given is not None:
        if given not in held:
            raise UsageError(
                f"{absent('The server', [given], models)}:", "give one of these as --base-model."
            )
        return given
    parents = {held[name].parent for name in router.names}
    others = [name for name, one in held.items() if name not in router.names and not one.parent]
    named = [name for name in parents if name is not None and name in held] or others
    if len(named) != 1:
        raise UsageError(
            f"Prompts unlike what any adapter learned go to the base, and of {listing([*held])} it "
            "is not clear which that is:",
            "name it by --base-model=NAME.",
        )
    return named[0]


def proxy(
    output: Output,
    directory: Annotated[str, argument("DIR", "A directory of loraprobe route, or a router.json.")],
    server: Annotated[
        str,
        setting("URL", "The server that has the adapters, such as vLLM or SGLang.", typed=True),
    ],
    base_model: Annotated[
        str | None,
        setting("NAME", "The server's name of the base, for prompts unlike all skills."),
    ] = None,
    host: Annotated[str, setting("HOST", "Where to listen.", typed=True)] = "127.0.0.1",
    port: Annotated[int, setting("PORT", "Where to listen.", min=1, max=65535)] = 8080,
) -> None:
    """Stand in front of a server and name the adapter of each request, by the text of its prompt.

    Clients ask the model by-text; what they say of other models goes through. No prompt is logged.
    """
    from loraprobe.extensions.serve.client import Server
    from loraprobe.extensions.serve.router_file import read_router

    router = read_router(directory)
    try:
        import uvicorn
    except ImportError:
        raise UsageError(
            "loraprobe proxy needs starlette and uvicorn; pip install 'loraprobe[proxy]'."
        ) from None
    known = Server(server, "--server", START)
    models = known.models()
    base = base_among(models, router, base_model)
    sglang = any(one.id == base and one.owned_by == "sglang" for one in models)
    app = front(router, known.address, base, f"{base}:" if sglang else "")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise UsageError(
            f"The front cannot listen at {host}, port {port} ({why}):",
            "give another one by --port=PORT or --host=HOST.",
        ) from None
    if not output.quiet:
        names = listing(router.names)
        place = f"[{host}]" if ":" in host else host
        print(
            f"http://{place}:{port}/v1 asks {known.address}: the model {BY_TEXT} is {names}, or "
            f"{base} for other prompts. ^C stops.",
            file=sys.stderr,
            flush=True,
        )
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    logging.getLogger("uvicorn.error").addFilter(_broken_off)
    stopped = list[int]()  # a front ends by a signal, and starts again from nothing that is kept
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stopped.append(number))
    with listening:
        uvicorn.Server(config).run(sockets=[listening])
    if stopped:
        raise typer.Exit(128 + stopped[0])  # as shells tell of a signal
