"""`verify --served` asks a running server whether it applies an adapter.

An OpenAI-compatible server gives the log-probability of the first token that it writes after a
prompt. The base model and the base with the adapter, as peft runs it, give the same figure here.
Whichever of the two the server's figures are close to is what it serves.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import httpx
import torch
from pydantic import AliasChoices, AliasPath, BaseModel, Field, ValidationError

from loraprobe import hub
from loraprobe.base import Base
from loraprobe.composition import composed
from loraprobe.errors import ServerError, UsageError
from loraprobe.limits import deadline
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


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    """The models of a server."""

    data: list[_Model]


LOGPROBS = "choices", 0, "logprobs"
FIRST = AliasChoices(
    AliasPath(*LOGPROBS, "content", 0, "logprob"), AliasPath(*LOGPROBS, "token_logprobs", 0)
)


class _Completion(BaseModel):
    """The log-probability of the first token of a completion, in either form of OpenAI's API."""

    logprob: Annotated[float, Field(validation_alias=FIRST, strict=True, ge=LEAST_LOG, le=0)]


Answer = TypeVar("Answer", bound=BaseModel)


class _Endpoint:
    """An OpenAI-compatible server. Its key goes to this address only and into no message."""

    def __init__(self, url: str) -> None:
        try:
            parsed = httpx.URL(url if "://" in url else f"http://{url}")
        except httpx.InvalidURL:  # a bracket that is not closed, a port that is no number
            parsed = httpx.URL()
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
            raise UsageError(
                f"--served takes the address of a server, such as http://localhost:8000, not "
                f"{scrub(url)!r}; a key comes from {KEY}."
            )
        address = str(parsed.copy_with(query=None, fragment=None)).rstrip("/")
        self.address = address.removesuffix("/v1")

    def only_model(self) -> str:
        """The name of the only model. Raises UsageError where there are several or none."""
        names = [one.id for one in self._ask("/v1/models", None, _Models).data]
        if len(names) != 1:
            listed = ", ".join(names[:8]) or "none"
            raise UsageError(
                f"{self.address} has {len(names)} models ({listed}); name the adapter's by --model."
            )
        return names[0]

    def first_token(self, model: str, prompt: str) -> float:
        """The log-probability of the most likely token after a prompt."""
        wanted = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
        return self._ask("/v1/completions", {**wanted, "logprobs": 1}, _Completion).logprob

    def _ask(self, path: str, body: dict[str, Any] | None, kind: type[Answer]) -> Answer:
        """The answer to a request; redirects are not followed. Raises ServerError."""
        headers = {"Accept-Encoding": "identity"}
        if key := os.environ.get(KEY, "").strip():
            headers["Authorization"] = f"Bearer {key}"
        method, url = "POST" if body else "GET", self.address + path
        late = self._error("cannot be asked", f"no whole answer in {TIMEOUT:g} s")
        try:
            with (
                deadline(TIMEOUT, late),
                httpx.stream(method, url, json=body, headers=headers, timeout=TIMEOUT) as answer,
            ):
                content = next(answer.iter_raw(LONGEST), b"")
        except httpx.HTTPError as error:
            raise self._error("cannot be asked", str(error) or type(error).__name__) from None
        if answer.status_code in (401, 403):
            raise self._error("wants a key", f"status {answer.status_code}", f"set {KEY}")
        if answer.status_code != 200:
            told = " ".join(content[:2000].decode("utf-8", "replace").split())
            moved = answer.headers.get("location", told)[:200] or "no reason"
            why = f"status {answer.status_code}, {moved}"
            raise self._error(f"gives no answer to {path}", why, "check the address and --model")
        try:
            return kind.model_validate_json(content)
        except ValidationError:
            what = "log-probabilities, finite numbers of at most 0,"
            what = "its list of models" if kind is _Models else what
            raise self._error(
                f"does not give {what} as OpenAI's API has it",
                path,
                "check the address, or take a server that does, such as vLLM or llama.cpp's",
            ) from None

    def _error(
        self, what: str, why: str, cure: str = "check that the server runs there"
    ) -> ServerError:
        return ServerError(scrub(f"{self.address} {what} ({why}); {cure}."))
