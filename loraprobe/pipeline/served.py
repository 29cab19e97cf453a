"""`verify --served` asks a running server whether it applies an adapter.

An OpenAI-compatible server gives the log-probability of the first token that it writes after a
prompt. The base model and the base with the adapter, as peft runs it, give the same figure here.
Whichever of the two the server's figures are close to is what it serves.
"""

from __future__ import annotations

import json
import os
import threading
import urllib.request
from collections.abc import Sequence
from concurrent.futures import Future
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

import torch

from loraprobe import hub
from loraprobe.base import Base
from loraprobe.composition import composed
from loraprobe.errors import ServerError, UsageError
from loraprobe.options import Options
from loraprobe.pipeline.evaluator import open_scorer, single
from loraprobe.pipeline.inputs import base_of
from loraprobe.pipeline.session import Ref, Session
from loraprobe.pipeline.task_files import open_probe
from loraprobe.records import Progress, Served
from loraprobe.scoring.forward import answering
from loraprobe.secrets import scrub

KEY = "OPENAI_API_KEY"
TIMEOUT = 60.0  # seconds for one request and its whole answer
LEAST_LOG = -1e6  # of a log-probability; that of the likeliest token is far above
LONGEST = 1 << 20  # bytes of an answer that are read
# A server's figures are those of one side where they are this many times closer to it than the two
# sides are to each other. They cannot be close to both.
CLOSER = 4.0
LEAST = 0.01  # mean difference between base and adapter from which a server's rounding is less
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a",
    "Question: What is 2 + 3?\nAnswer:",
    "def add(a, b):\n    return",
    "Dear customer, thank you for",
    "The doctor looked at the patient and said",
    "In the year 1969, the first",
    "Translate to German: Good morning.\nGerman:",
    "The most important thing about",
    "He opened the door and saw",
    "1, 2, 3, 4,",
    "According to the law, a person who",
)


def ask_server(
    adapter: Ref,
    url: str,
    *,
    model: str | None = None,
    base: Base | Ref | None = None,
    probe: Ref | None = None,
    options: Options = Options(),
    progress: Progress | None = None,
) -> Served:
    """Compares a server with the base and with an adapter, run here, on a few prompts.

    model: the name under which the server has the adapter; None: the only one that it has. probe: a
    file of prompts. The key of OPENAI_API_KEY is sent if it is set. Raises ServerError where the
    server does not answer or gives no log-probabilities, UsageError for a bad URL.
    """
    server = _Endpoint(url)
    (given,) = hub.load_all([adapter])
    opened = open_probe(probe, [])
    prompts = PROMPTS if opened is None else list(opened.answers)  # type: ignore[union-attr]
    name = model or server.only_model()
    theirs = [server.first_token(name, prompt) for prompt in prompts]
    session = Session(options, progress)
    scorer, _ = open_scorer(base_of(base or "auto", [given]), options.dtype, session)
    base_own = _first_tokens(scorer, prompts)
    with composed(scorer.model, single(given)):
        own = _first_tokens(scorer, prompts)
    between, to_adapter, to_base = _mean(own, base_own), _mean(theirs, own), _mean(theirs, base_own)
    if between < LEAST:
        serves = "unclear"
    elif to_adapter * CLOSER <= between:
        serves = "adapter"
    else:
        serves = "base" if to_base * CLOSER <= between else "another"
    return Served(given.name, name, serves, len(prompts), to_adapter, to_base, between)


def _mean(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def _first_tokens(scorer: Any, prompts: Sequence[str]) -> list[float]:
    """The largest log-probability of a next token after each prompt."""
    found = []
    with answering(scorer.model), torch.no_grad():
        for ids in scorer.encoder.prompts(prompts):
            rows = torch.tensor([ids], device=scorer.model.device)
            logits = scorer.model(input_ids=rows).logits[0, -1]
            found.append(float(logits.double().log_softmax(-1).max()))
    return found


class _Endpoint:
    """An OpenAI-compatible server. Its key goes to this address only and into no message."""

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            (parts.hostname or "").encode("idna")
        except ValueError:  # a bracket that is not closed, a port that is no number, a long name
            sound = False
        if not sound or parts.username is not None:
            raise UsageError(
                f"--served takes the address of a server, such as http://localhost:8000, not "
                f"{scrub(url)!r}; a key comes from {KEY}."
            )
        address = parts._replace(query="", fragment="").geturl().rstrip("/")
        self.address = address.removesuffix("/v1")

    def only_model(self) -> str:
        """The name of the only model. Raises UsageError where there are several or none."""
        answer = self._ask("/v1/models", None)
        try:
            names = [str(row["id"]) for row in answer["data"]]
        except (KeyError, TypeError):
            raise self._strange("its list of models") from None
        if len(names) != 1:
            listed = ", ".join(names[:8]) or "none"
            raise UsageError(
                f"{self.address} has {len(names)} models ({listed}); name the adapter's by --model."
            )
        return names[0]

    def first_token(self, model: str, prompt: str) -> float:
        """The log-probability of the most likely token after a prompt."""
        wanted = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
        answer = self._ask("/v1/completions", {**wanted, "logprobs": 1})
        try:
            held = answer["choices"][0]["logprobs"]
            if held is None:
                raise ServerError(
                    f"{self.address} gives no log-probabilities for completions; start it with "
                    "them, or take a server that gives them, such as vLLM or llama.cpp's."
                )
            first = held["content"][0]["logprob"] if held.get("content") else None
            found = held["token_logprobs"][0] if first is None else first
        except (KeyError, IndexError, TypeError, AttributeError):
            raise self._strange("the log-probability of a completion") from None
        if type(found) not in (int, float) or not LEAST_LOG <= found <= 0:
            raise ServerError(
                f"{self.address} gives {found!r:.40} as a log-probability, which is a finite "
                "number of at most 0; correct or replace that server."
            )
        return float(found)

    def _strange(self, what: str) -> ServerError:
        return ServerError(
            f"{self.address} does not give {what} as OpenAI's API has it; check the address, and "
            "that the server has /v1/completions with logprobs."
        )

    def _ask(self, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data)
        request.add_header("Content-Type", "application/json")
        if key := os.environ.get(KEY, "").strip():
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        try:
            status, content = _answer(request)
        except (OSError, HTTPException) as error:
            why = scrub(str(getattr(error, "reason", None) or error or type(error).__name__))
            raise ServerError(
                f"{self.address} cannot be asked ({why}); check that the server runs there."
            ) from None
        if status != 200:
            raise self._refusal(status, content, path)
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise self._strange("JSON") from None

    def _refusal(self, status: int, content: bytes, path: str) -> ServerError:
        if status in (401, 403):
            return ServerError(f"{self.address} wants a key (status {status}); set {KEY}.")
        if 300 <= status < 400:
            return ServerError(
                f"{self.address}{path} sends the request on to another address (status {status}), "
                "where loraprobe does not follow; give the address of the server itself."
            )
        told = scrub(" ".join(content[:2000].decode("utf-8", "replace").split())[:200])
        return ServerError(
            f"{self.address}{path} answers with status {status} ({told or 'no reason'}); "
            "check the address and --model."
        )


class _AsTheyCome(urllib.request.HTTPErrorProcessor):
    """Gives every answer back: another host that a redirect names is not asked."""

    def http_response(
        self, request: urllib.request.Request, response: HTTPResponse
    ) -> HTTPResponse:
        return response

    https_response = http_response


def _answer(request: urllib.request.Request) -> tuple[int, bytes]:
    """Status and content of an answer. Raises TimeoutError after TIMEOUT, however it dribbles."""
    made: Future[tuple[int, bytes]] = Future()

    def ask() -> None:
        try:
            opener = urllib.request.build_opener(_AsTheyCome)
            with opener.open(request, timeout=TIMEOUT) as answer:
                made.set_result((answer.status, answer.read(LONGEST)))
        except BaseException as error:
            made.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return made.result(TIMEOUT)
    except TimeoutError:
        raise TimeoutError(f"no whole answer in {TIMEOUT:g} s") from None
