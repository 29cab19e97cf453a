"""Asks a running OpenAI-compatible server, such as vLLM: many requests at once."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypeVar

import httpx
from pydantic import AliasChoices, AliasPath, BaseModel, Field, RootModel, ValidationError

from loraprobe.errors import EngineError, UsageError
from loraprobe.formatting import listing
from loraprobe.secrets import scrub

KEY = "OPENAI_API_KEY"
IN_FLIGHT = 64  # requests that are open at once
CONNECT = 10.0  # seconds until a connection stands
PATIENCE = 600.0  # seconds for one request, with its repetitions and its whole answer
BUSY = (429, 503)  # a server that answers so is asked again
LONGEST = 1 << 20  # bytes of an answer that are read
LONGEST_TOKEN = 1000  # characters of a token's text; bytes beside it that an answer may say of it
LONGEST_NAME = 1000  # characters of a model's name
LISTED = 8  # models that are named where another was asked for
VERSION = re.compile(r"[\w.+-]{1,60}", re.ASCII)  # no path, and no text that goes on
LEAST_LOG = -1e6  # of a log-probability; that of the likeliest token is far above
# A server takes values that are not given from the base's generation_config.json.
GREEDY = {"temperature": 0, "seed": 0, "presence_penalty": 0, "frequency_penalty": 0}
GREEDY |= {"top_p": 1, "repetition_penalty": 1}


class ServerError(EngineError):
    """A server does not answer as it should.

    status: that of its answer, if it gave one. beyond_rank: it takes no adapter of this rank.
    """

    code = "server"
    status: int | None = None
    beyond_rank = False
    remedy = "check the address and that the server runs."


class _Version(BaseModel):
    """a version"""

    version: Annotated[str, Field(validation_alias=AliasChoices("version", "build_info"))]


class ServedModel(BaseModel):
    """A model of a server.

    parent: of an adapter, its base. max_model_len: how long a text may be, in tokens. owned_by:
    what the server is, such as "vllm" or "sglang".
    """

    id: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
    parent: str | None = None
    max_model_len: Annotated[int | None, Field(strict=True, ge=2)] = None
    owned_by: str = ""


class _Models(BaseModel):
    """a list of models, with names and lengths of at least 2 tokens,"""

    data: list[ServedModel]


def absent(server: str, names: Sequence[str], models: Sequence[ServedModel]) -> str:
    """What is told where a server lacks models of these names: a sentence without its end.

    server: its address. models: those that it has, of which a few are named.
    """
    held = ", ".join(one.id for one in models[:LISTED]) or "none"
    return f"{server} has no model named {listing(names)} (it has {held})"


# What a server gives as a log-probability: no text, no infinity and nothing that is no number.
LogProbability = Annotated[float, Field(strict=True, ge=LEAST_LOG, le=0)]
_LOGPROBS = "choices", 0, "logprobs"
_FIRST = AliasChoices(
    AliasPath(*_LOGPROBS, "content", 0, "logprob"), AliasPath(*_LOGPROBS, "token_logprobs", 0)
)


class _FirstToken(BaseModel):
    """log-probabilities, finite numbers of at most 0,"""

    logprob: Annotated[LogProbability, Field(validation_alias=_FIRST)]


class _Classic(BaseModel):
    tokens: list[str]
    token_logprobs: list[LogProbability]


class _Token(BaseModel):
    token: str
    logprob: LogProbability


class _Content(BaseModel):
    content: list[_Token]


class WrittenTokens(BaseModel):
    """tokens with their log-probabilities, finite numbers of at most 0,"""

    held: Annotated[_Classic | _Content, Field(validation_alias=AliasPath(*_LOGPROBS))]

    @property
    def steps(self) -> tuple[tuple[str, float], ...]:
        """Each token with its log-probability."""
        if isinstance(self.held, _Content):
            return tuple((one.token, one.logprob) for one in self.held.content)
        return tuple(zip(self.held.tokens, self.held.token_logprobs, strict=False))


class WrittenText(BaseModel):
    """a completion"""

    text: Annotated[str, Field(validation_alias=AliasPath("choices", 0, "text"))]
    end: Annotated[str | None, Field(validation_alias=AliasPath("choices", 0, "finish_reason"))]


class _Loaded(BaseModel):
    """An adapter that a server of llama.cpp has."""

    id: int
    path: str


class _AllLoaded(RootModel[list[_Loaded]]):
    """a list of adapters"""


class _TokenLog(BaseModel):
    logprob: LogProbability


class ScoredPrompt(BaseModel):
    """log-probabilities of prompts, finite numbers of at most 0,

    by_id: of each position, by token id.
    """

    by_id: Annotated[
        list[dict[int, _TokenLog] | None] | None,
        Field(validation_alias=AliasPath("choices", 0, "prompt_logprobs")),
    ] = None

    def of(self, ids: Sequence[int], start: int) -> tuple[float, ...] | None:
        """The log-probabilities of ids[start:] after ids[:start]; None where one is missing."""
        held = list(zip(ids, self.by_id or [], strict=False))[start:]
        found = [one[token].logprob for token, one in held if one and token in one]
        return tuple(found) if len(found) == len(ids) - start else None


Document = TypeVar("Document", bound=BaseModel)
Answer = TypeVar("Answer")


@functools.cache
def _certificates() -> ssl.SSLContext:
    """The certificates that httpx trusts; to read them takes longer than many an answer."""
    return httpx.create_ssl_context()


def _longest(body: Mapping[str, Any]) -> int:
    """How many bytes of the answer to a request are read: more, where it is about many tokens."""
    tokens = len(body.get("prompt", ())) + int(body.get("max_tokens", 0))
    return LONGEST + LONGEST_TOKEN * tokens


class Server:
    """An OpenAI-compatible server. Its key goes to this address only and into no message.

    Raises UsageError where the URL is none; a request raises ServerError where the server does not
    answer as it should. flag: the option that gave the URL, for messages. patience: seconds for a
    request; None for PATIENCE. `loading`: what comes before the paths that load adapters.
    """

    loading = "/v1"

    def __init__(self, url: str, flag: str = "--engine", patience: float | None = None) -> None:
        self.patience = PATIENCE if patience is None else patience
        try:
            parsed = httpx.URL(url if "://" in url else f"http://{url}")
            known = parsed.scheme in ("http", "https") and parsed.host and not parsed.userinfo
        except (httpx.InvalidURL, ValueError):  # a bracket that is not closed, no name of a host
            parsed, known = httpx.URL(), False
        if not known or parsed.port not in (None, *range(1, 1 << 16)):
            raise UsageError(
                f"{flag} takes the address of a server, such as http://localhost:8000, not "
                f"{scrub(url)[:200]!r}; a key comes from {KEY}."
            )
        address = str(parsed.copy_with(query=None, fragment=None)).rstrip("/")
        self.address = address.removesuffix("/v1")
        self.headers = {"Accept-Encoding": "identity"}
        if key := os.environ.get(KEY, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise UsageError(
                    f"{KEY} holds a character that no key has, such as a line break; set it to the "
                    "key alone."
                )
            self.headers["Authorization"] = f"Bearer {key}"

    def models(self) -> list[ServedModel]:
        """The models that the server has, adapters among them."""
        return self.ask("/v1/models", [None], _Models)[0].data

    def only_model(self) -> str:
        """The name of the only model. Raises UsageError where there are several or none."""
        names = [model.id for model in self.models()]
        if len(names) != 1:
            listed = ", ".join(names[:LISTED]) or "none"
            raise UsageError(
                f"{self.address} has {len(names)} models ({listed}); name the adapter's by --model."
            )
        return names[0]

    def version(self) -> str:
        """The server's name and version, as far as it tells them."""
        paths = {"vllm": "/version", "sglang": "/server_info", "llama.cpp": "/props"}
        for name, path in paths.items():
            with contextlib.suppress(ServerError):
                version = VERSION.match(self.ask(path, [None], _Version)[0].version)
                return f"{name} {version[0] if version else ''}".strip()
        return "a server"

    def weighed(self) -> dict[str, int] | None:
        """The ids of the adapters that a server of llama.cpp has, by the names of their files.

        Each request weighs them. None of other servers.
        """
        with contextlib.suppress(ServerError):
            held = self.ask("/lora-adapters", [None], _AllLoaded)[0].root
            return {Path(one.path).stem: one.id for one in held}
        return None

    def load(self, name: str, directory: Path) -> None:
        """Loads a LoRA directory, which the server has to see, under a name."""
        body = {"lora_name": name, "lora_path": str(directory)}
        self._answers(f"{self.loading}/load_lora_adapter", [body], bytes)

    def unload(self, name: str) -> None:
        """Takes a loaded adapter out again; an error is of no interest."""
        with contextlib.suppress(ServerError):
            self._answers(f"{self.loading}/unload_lora_adapter", [{"lora_name": name}], bytes)

    def first_tokens(
        self, model: Mapping[str, Any], prompts: Sequence[str | Sequence[int]]
    ) -> list[float]:
        """The log-probability of the most likely token after each prompt (text or token ids).

        model: what a request says of the model, its name at least.
        """
        wanted = {**model, "max_tokens": 1, **GREEDY, "logprobs": 1}
        bodies = [{**wanted, "prompt": prompt} for prompt in prompts]
        return [answer.logprob for answer in self.ask("/v1/completions", bodies, _FirstToken)]

    def ask(
        self, path: str, bodies: Sequence[dict[str, Any] | None], kind: type[Document]
    ) -> list[Document]:
        """The answers to requests, in their order; IN_FLIGHT of them are asked at once.

        A busy server is asked again, until its patience ends. Redirects are not followed.
        """
        try:
            return self._answers(path, bodies, kind.model_validate_json)
        except ValidationError:
            what = (kind.__doc__ or "").splitlines()[0]
            raise self._error(
                f"does not give {what} as OpenAI's API has it",
                path,
                "check the address, or take a server that does, such as vLLM or llama.cpp's",
            ) from None

    def _answers(
        self,
        path: str,
        bodies: Sequence[dict[str, Any] | None],
        read: Callable[[bytes], Answer],
    ) -> list[Answer]:
        """What `read` makes of each answer as soon as it is there, so that no other bytes stay."""
        work = self._all(path, bodies, read)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(work)
        with ThreadPoolExecutor(1) as thread:  # a notebook's own loop runs already
            return thread.submit(asyncio.run, work).result()

    async def _all(
        self,
        path: str,
        bodies: Sequence[dict[str, Any] | None],
        read: Callable[[bytes], Answer],
    ) -> list[Answer]:
        if not bodies:
            return []
        room = asyncio.Semaphore(IN_FLIGHT)
        async with self.opened() as client:

            async def one(body: dict[str, Any] | None) -> Answer:
                async with room:
                    return read(await self._patiently(client, path, body))

            return await asyncio.gather(*map(one, bodies))

    def opened(self, most: int = 100) -> httpx.AsyncClient:
        """The client that sends requests, with at most so many connections."""
        # A server that has much to do answers late, and then at once.
        waits = httpx.Timeout(self.patience, connect=CONNECT)
        held = httpx.Limits(max_connections=most, max_keepalive_connections=most)
        return httpx.AsyncClient(
            headers=self.headers, timeout=waits, verify=_certificates(), limits=held
        )

    async def once(
        self, client: httpx.AsyncClient, path: str, body: dict[str, Any] | None
    ) -> tuple[int, bytes, httpx.Headers]:
        """Status, content and headers of the answer to one request.

        Raises ServerError where there is none, or a longer one than is read.
        """
        method, most = "POST" if body else "GET", _longest(body or {})
        try:
            async with client.stream(method, self.address + path, json=body) as answer:
                content = bytearray()
                async for part in answer.aiter_raw():
                    content += part
                    if len(content) > most:
                        what = f"answers {path} at length"
                        raise self._error(what, f"more than {most:,} bytes")
                return answer.status_code, bytes(content), answer.headers
        except httpx.HTTPError as error:
            late = isinstance(error, httpx.ReadTimeout)
            told = self._late() if late else str(error) or type(error).__name__
            raise self._error("cannot be asked", told) from None

    def _late(self) -> str:
        return f"no whole answer in {self.patience:g} s"

    async def _patiently(
        self, client: httpx.AsyncClient, path: str, body: dict[str, Any] | None
    ) -> bytes:
        """The answer to one request, which is sent again while the server is busy."""
        wait, busy = 0.5, 0
        try:
            async with asyncio.timeout(self.patience):
                while True:
                    status, content, headers = await self.once(client, path, body)
                    if status not in BUSY:
                        break
                    busy, told = status, headers.get("retry-after", "")
                    await asyncio.sleep(float(told) if told.isdecimal() else wait)
                    wait = min(2 * wait, 30.0)
        except TimeoutError:
            if busy:
                why, cure = (
                    f"status {busy} for {self.patience:g} s",
                    "try again when it has less to do",
                )
                raise self._error("is busy", why, cure, busy) from None
            raise self._error("cannot be asked", self._late()) from None
        if status != 200:
            raise self.refusal(path, status, content, headers)
        return content

    def refusal(
        self, path: str, status: int, content: bytes, headers: httpx.Headers
    ) -> ServerError:
        """What is told of an answer of another status than 200."""
        if status in (401, 403):
            return self._error("wants a key", f"status {status}", f"set {KEY}")
        told = " ".join(content[:2000].decode("utf-8", "replace").split())
        moved = headers.get("location", told)[:300] or "no reason"
        cure = "check the address and the name of the model"
        return self._error(f"gives no answer to {path}", f"status {status}, {moved}", cure, status)

    def _error(
        self,
        what: str,
        why: str,
        cure: str = "check that the server runs there",
        status: int | None = None,
    ) -> ServerError:
        error = ServerError(scrub(f"{self.address} {what} ({why}); {cure}."))
        error.status = status
        return error
