"""Asks a running OpenAI-compatible server, such as vLLM, in place of a model in memory.

`Server` sends requests, many at once. `ServedScorer` has the part of `Scorer` that asks questions:
it sends token ids, so that a server and a model in memory read the same prompts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypeVar

import httpx
import torch
from pydantic import AliasChoices, AliasPath, BaseModel, Field, RootModel, ValidationError

from loraprobe.composition import Composition
from loraprobe.errors import ServerError, UsageError
from loraprobe.formatting import listing
from loraprobe.scoring.encoding import PromptedScorer
from loraprobe.scoring.generation import LOOP, REPEATED, Written, filled_up, first_line
from loraprobe.scoring.likelihood import TOP, Likelihood, NextTokens
from loraprobe.scoring.scorer import NEW_TOKENS, Scorer
from loraprobe.secrets import scrub

KEY = "OPENAI_API_KEY"
IN_FLIGHT = 64  # requests that are open at once
CONNECT = 10.0  # seconds until a connection stands
PATIENCE = 600.0  # seconds for one request, with its repetitions and its whole answer
BUSY = (429, 503)  # a server that answers so is asked again
HEALTH = 10.0  # seconds until a server that still owes answers is asked whether it lives
LONGEST = 1 << 26  # bytes of an answer that are read
HELD = 64  # compositions that a server holds for one run; the oldest goes for a further one
LEAST_LOG = -1e6  # of a log-probability; that of the likeliest token is far above
# A server takes values that are not given from the base's generation_config.json.
GREEDY = {"temperature": 0, "seed": 0, "presence_penalty": 0, "frequency_penalty": 0}
GREEDY |= {"top_p": 1, "repetition_penalty": 1}
# vLLM ends a text that repeats itself: what `period` finds, up to patterns of so many tokens.
LONGEST_PATTERN = 128
REPETITION = {"min_pattern_size": LOOP // REPEATED, "max_pattern_size": LONGEST_PATTERN}
ENDS_REPETITION = {
    "repetition_detection": {**REPETITION, "min_count": REPEATED},
    "return_token_ids": True,
}


class _Version(BaseModel):
    """a version"""

    version: str


class _Properties(BaseModel):
    """the properties of llama.cpp"""

    build_info: str


class ServedModel(BaseModel):
    """A model of a server.

    parent: of an adapter, its base. max_model_len: how long a text is. owned_by: what the server
    is, such as "vllm" or "sglang".
    """

    id: str
    parent: str | None = None
    max_model_len: int | None = None
    owned_by: str = ""


class _Models(BaseModel):
    """a list of models"""

    data: list[ServedModel]


_LOGPROBS = "choices", 0, "logprobs"
_FIRST = AliasChoices(
    AliasPath(*_LOGPROBS, "content", 0, "logprob"), AliasPath(*_LOGPROBS, "token_logprobs", 0)
)


class _FirstToken(BaseModel):
    """log-probabilities, finite numbers of at most 0,"""

    logprob: Annotated[float, Field(validation_alias=_FIRST, strict=True, ge=LEAST_LOG, le=0)]


class _Text(BaseModel):
    """a completion"""

    text: Annotated[str, Field(validation_alias=AliasPath("choices", 0, "text"))]
    end: Annotated[str | None, Field(validation_alias=AliasPath("choices", 0, "finish_reason"))]
    ids: Annotated[
        list[int] | None, Field(validation_alias=AliasPath("choices", 0, "token_ids"))
    ] = None


class _Loaded(BaseModel):
    """An adapter that a server of llama.cpp has."""

    id: int
    path: str


class _AllLoaded(RootModel[list[_Loaded]]):
    """a list of adapters"""


class _TokenLog(BaseModel):
    logprob: float


class _Scored(BaseModel):
    """log-probabilities of prompts

    by_id: of each position, by token id, as vLLM's `prompt_logprobs`. echoed: as OpenAI's `echo`.
    """

    by_id: Annotated[
        list[dict[int, _TokenLog] | None] | None,
        Field(validation_alias=AliasPath("choices", 0, "prompt_logprobs")),
    ] = None
    echoed: Annotated[
        list[float | None] | None, Field(validation_alias=AliasPath(*_LOGPROBS, "token_logprobs"))
    ] = None

    def of(self, ids: Sequence[int], start: int) -> Likelihood | None:
        """The likelihood of ids[start:] after ids[:start]; None where the answer lacks it."""
        found: list[float | None] = []
        if self.by_id is not None:
            for i, held in list(zip(ids, self.by_id, strict=False))[start:]:
                found.append(held[i].logprob if held and i in held else None)
        elif self.echoed is not None:
            found = self.echoed[start : len(ids)]
        scores = tuple(one for one in found if one is not None)
        return Likelihood(scores, (), (), (), ()) if len(scores) == len(ids) - start else None


Document = TypeVar("Document", bound=BaseModel)


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
        except httpx.InvalidURL:  # a bracket that is not closed, a port that is no number
            parsed = httpx.URL()
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
            raise UsageError(
                f"{flag} takes the address of a server, such as http://localhost:8000, not "
                f"{scrub(url)!r}; a key comes from {KEY}."
            )
        address = str(parsed.copy_with(query=None, fragment=None)).rstrip("/")
        self.address = address.removesuffix("/v1")

    def models(self) -> list[ServedModel]:
        """The models that the server has, adapters among them."""
        return self.ask("/v1/models", [None], _Models)[0].data

    def version(self) -> str:
        """The server's name and version, as far as it tells them."""
        for path, name in (("/version", "vllm"), ("/server_info", "sglang")):
            with contextlib.suppress(ServerError):
                return f"{name} {self.ask(path, [None], _Version)[0].version}"
        with contextlib.suppress(ServerError):
            return f"llama.cpp {self.ask('/props', [None], _Properties)[0].build_info}"
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
        self._contents(f"{self.loading}/load_lora_adapter", [body])

    def unload(self, name: str) -> None:
        """Takes a loaded adapter out again; an error is of no interest."""
        with contextlib.suppress(ServerError):
            self._contents(f"{self.loading}/unload_lora_adapter", [{"lora_name": name}])

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
            return [kind.model_validate_json(one) for one in self._contents(path, bodies)]
        except ValidationError:
            what = (kind.__doc__ or "").splitlines()[0]
            raise self._error(
                f"does not give {what} as OpenAI's API has it",
                path,
                "check the address, or take a server that does, such as vLLM or llama.cpp's",
            ) from None

    def _contents(self, path: str, bodies: Sequence[dict[str, Any] | None]) -> list[bytes]:
        work = self._all(path, bodies)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(work)
        with ThreadPoolExecutor(1) as thread:  # a notebook's own loop runs already
            return thread.submit(asyncio.run, work).result()

    async def _all(self, path: str, bodies: Sequence[dict[str, Any] | None]) -> list[bytes]:
        if not bodies:
            return []
        headers, room = {"Accept-Encoding": "identity"}, asyncio.Semaphore(IN_FLIGHT)
        if key := os.environ.get(KEY, "").strip():
            headers["Authorization"] = f"Bearer {key}"
        # A server that has much to do answers late, and then at once.
        waits = httpx.Timeout(self.patience, connect=CONNECT)
        async with httpx.AsyncClient(headers=headers, timeout=waits) as client:

            async def one(body: dict[str, Any] | None) -> bytes:
                async with room:
                    return await self._patiently(client, path, body)

            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(one(body)) for body in bodies]
                    watch = group.create_task(self._watch(client))
                    await asyncio.wait(tasks)
                    watch.cancel()
            except ExceptionGroup as several:
                raise several.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _watch(self, client: httpx.AsyncClient) -> None:
        """Raises ServerError once the server says twice in a row that it is dead, or is gone.

        Requests to a vLLM whose engine has died are never answered.
        """
        failed = 0
        while failed < 2:
            await asyncio.sleep(HEALTH)
            try:
                answer = await client.get(f"{self.address}/health")
                failed = failed + 1 if answer.status_code == 503 else 0
            except httpx.ConnectError:
                failed += 1
            except httpx.HTTPError:
                failed = 0  # it is busy
        raise self._error("died while it answered", "so its /health says", "start it again")

    async def _patiently(
        self, client: httpx.AsyncClient, path: str, body: dict[str, Any] | None
    ) -> bytes:
        """The answer to one request, which is sent again while the server is busy."""
        method, wait = "POST" if body else "GET", 0.5
        try:
            async with asyncio.timeout(self.patience):
                while True:
                    sent = client.stream(method, self.address + path, json=body)
                    async with sent as answer:
                        content = b""
                        async for part in answer.aiter_raw():
                            content += part
                            if len(content) > LONGEST:
                                break
                    if answer.status_code not in BUSY:
                        break
                    told = answer.headers.get("retry-after", "")
                    await asyncio.sleep(float(told) if told.isdecimal() else wait)
                    wait = min(2 * wait, 30.0)
        except (httpx.HTTPError, TimeoutError) as error:
            late = isinstance(error, (TimeoutError, httpx.ReadTimeout))
            told = f"no whole answer in {self.patience:g} s" if late else str(error)
            raise self._error("cannot be asked", told or type(error).__name__) from None
        if answer.status_code in (401, 403):
            raise self._error("wants a key", f"status {answer.status_code}", f"set {KEY}")
        if answer.status_code != 200:
            told = " ".join(content[:2000].decode("utf-8", "replace").split())
            moved = answer.headers.get("location", told)[:300] or "no reason"
            why = f"status {answer.status_code}, {moved}"
            cure = "check the address and the name of the model"
            raise self._error(f"gives no answer to {path}", why, cure, answer.status_code)
        return content

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


class Placing(ABC):
    """How compositions get into a server.

    base: what a request says of the base, {"model": its name} at least. why: the reason for which
    the server cannot run some, for the report. apart: how far its log-probabilities of the base are
    from those of transformers here, on average.
    """

    base: Mapping[str, Any]
    why: str
    apart: float = 0.0

    def drop(self, model: Mapping[str, Any]) -> None:
        """Takes what `__call__` gave out of the server, which need not hold more for it."""
        return None

    def unload(self) -> None:
        """Takes everything that this run loaded out of the server."""
        return None

    @abstractmethod
    def __call__(self, composition: Composition) -> Mapping[str, Any] | None:
        """Makes the server ready for a composition; what a request says of it.

        None for one that it cannot run.
        """


class ServedScorer(PromptedScorer):
    """Answers and log-likelihoods of the base and of compositions that a server runs.

    local: a scorer of the base by transformers. Its tokenizer and end tokens count, and it is asked
    the compositions that the server cannot run. accept: gets this scorer while it asks a
    composition for the first time, and the composition (None: the base); it raises ServerError
    where the server computes something else. context: the most tokens of a sequence; None for no
    limit.
    """

    recorder = None  # logits of a server are not kept

    def __init__(
        self,
        server: Server,
        placing: Placing,
        local: Scorer,
        *,
        accept: Callable[[ServedScorer, Composition | None], None],
        context: int | None = None,
    ) -> None:
        self.server, self.placing = server, placing
        self.close: Callable[[], None] = lambda: None  # called once nothing is asked any more
        self.local, self.encoder, self.context = local, local.encoder, context
        self.decode, self.stops, self.vocab_size = local.decode, local.stops, local.vocab_size
        self._accept = accept
        self._model: Mapping[str, Any] | None = placing.base
        # What it says of compositions, which are held so that no other gets their place.
        self._known: dict[Any, tuple[Mapping[str, Any], Composition | None]] = {}
        self._here: dict[str, None] = {}  # names of the compositions that transformers ran
        self._echo: list[bool] = []  # not empty: the server scores prompts by echo alone

    @property
    def model(self) -> Mapping[str, Any]:
        """What a request says of the model."""
        assert self._model is not None, "ask the scorer that the context gives"
        return self._model

    @contextlib.contextmanager
    def with_composition(self, composition: Composition | None) -> Iterator[ServedScorer | Scorer]:
        """The scorer to ask about the composition while the context lasts; None: the base.

        This one, or, where the server cannot run it, that by transformers here. A composition is
        placed and accepted once. Raises ServerError.
        """
        before = self._model
        try:
            for one in dict.fromkeys((None, composition)):  # others are compared with the base
                self._model = self._placed(one)
            if self._model is not None or composition is None:
                yield self
                return
            self._here[composition.name] = None
            local = self.local.with_template(self.chat_template)
            with local.with_composition(composition) as scorer:
                yield scorer
        finally:
            self._model = before

    def _placed(self, composition: Composition | None) -> Mapping[str, Any] | None:
        """What a request says of a composition that the server was shown to run; else None."""
        key = composition and (composition.router, *map(id, composition.experts))
        if key not in self._known:
            model = self.placing.base if composition is None else self.placing(composition)
            if model is None:
                return None
            self._model = model
            self._accept(self, composition)
            if len(self._known) > HELD:  # the base is the first
                oldest = list(self._known)[1]
                self.placing.drop(self._known.pop(oldest)[0])
            self._known[key] = model, composition
        return self._known[key][0]

    def note(self) -> str:
        """A note for the report: what transformers answered here, and that of `Scorer.note`."""
        told = self.local.note()
        if self._here:
            where = f"{listing(self._here)} {'were' if len(self._here) > 1 else 'was'}"
            told = (
                f"{where} asked by transformers here: {self.placing.why}. The server's "
                f"log-probabilities of the base differ from those here by "
                f"{self.placing.apart:.3f} on average. {told}"
            ).rstrip()
        return told

    def write_all(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = NEW_TOKENS,
        until_newline: bool = False,
        until: Callable[[str], bool] | None = None,
    ) -> list[Written]:
        """The greedy continuation of each prompt, as `Scorer.write_all` defines it."""
        wanted = {**self.model, **GREEDY, "stop_token_ids": list(self.stops)}
        bodies = {
            prompt: {**wanted, "prompt": ids, "max_tokens": room}
            for prompt, (ids, room) in self.rooms(prompts, max_new_tokens).items()
        }
        if not until_newline:
            found = self._written({p: {**body, **ENDS_REPETITION} for p, body in bodies.items()})
            ended = {prompt: _until(one, until) for prompt, one in found.items()}
        else:  # a server stops at the first newline, also before the first word
            found = self._written({p: {**body, "stop": ["\n"]} for p, body in bodies.items()})
            blank = {p: bodies[p] for p, one in found.items() if not (one.cut or one.text.strip())}
            ended = found | {p: _first_line(one) for p, one in self._written(blank).items()}
        return [ended[prompt] for prompt in prompts]

    def _written(self, bodies: Mapping[str, dict[str, Any]]) -> dict[str, Written]:
        """The completion of each request."""
        found = dict[str, Written]()
        answers = self.server.ask("/v1/completions", list(bodies.values()), _Text)
        for (prompt, body), answer in zip(bodies.items(), answers, strict=True):
            text, cut = answer.text, answer.end in ("length", "repetition")
            if answer.end == "repetition" and answer.ids:
                text = self.decode(filled_up(answer.ids, body["max_tokens"]))
            found[prompt] = Written(text, cut)
        return found

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """The log-probabilities of the tokens of each (prompt, continuation); no other statistics.

        vLLM gives them by `prompt_logprobs`, other servers by `echo`. Raises ServerError where a
        server gives neither.
        """
        unique = list(dict.fromkeys(pairs))
        encoded = self.encoded(unique)
        ways = [{"echo": True, "logprobs": 1}, {"prompt_logprobs": 0}][: 1 if self._echo else 2]
        body = {**self.model, "max_tokens": 1, **GREEDY}
        scores: list[Likelihood | None] = [None] * len(unique)
        for way in reversed(ways):
            bodies = [{**body, **way, "prompt": ids} for ids, _ in encoded]
            try:
                answers = self.server.ask("/v1/completions", bodies, _Scored)
            except ServerError as error:
                if "echo" in way and error.status is not None:
                    break  # as llama.cpp's server says that it knows none
                if error.status != 500:
                    raise
                raise ServerError(
                    f"{self.server.address} failed to score a prompt, as vLLM does where it "
                    "expects an adapter of the head; start it with --lora-target-modules and the "
                    "names of your adapters' modules, such as q_proj v_proj."
                ) from None
            scores = [one.of(ids, at) for one, (ids, at) in zip(answers, encoded, strict=True)]
            if None not in scores:
                break
            self._echo.append(True)
        found = {pair: one for pair, one in zip(unique, scores, strict=True) if one is not None}
        if len(found) < len(unique):
            raise ServerError(
                f"{self.server.address} gives no log-probabilities of prompts, which questions "
                "with choices and losses need; take vLLM, or --engine transformers."
            )
        return [found[pair] for pair in pairs]

    def next_tokens(
        self,
        rows: Sequence[tuple[Sequence[int], int]],
        wanted: Sequence[tuple[int, int, int]],
    ) -> NextTokens:
        """What the model gives as next tokens, as `Scorer.next_tokens` defines it.

        A server scores the tokens of prompts, so a token that is wanted behind a row is sent with
        it. Raises ServerError where a server does not give TOP tokens of each position.
        """
        lengths = [len(ids) - start for ids, start in rows]
        ends = [(row, token) for row, place, token in wanted if place == lengths[row]]
        others = set(range(len(rows))) - {row for row, _ in ends}
        sent = list(dict.fromkeys([*ends, *((row, rows[row][0][0]) for row in sorted(others))]))
        body = {**self.model, "max_tokens": 1, **GREEDY, "prompt_logprobs": TOP}
        bodies = [{**body, "prompt": [*rows[row][0], token]} for row, token in sent]
        found = [one.by_id or [] for one in self.server.ask("/v1/completions", bodies, _Scored)]
        answers = dict(zip(sent, found, strict=True))
        of_row = {row: positions for (row, _), positions in answers.items()}
        most, tops = min(TOP, self.vocab_size), list[list[tuple[int, float]]]()
        for row, (_, start) in enumerate(rows):
            positions = of_row[row][start:] or [{}]
            given = [{t: log.logprob for t, log in (one or {}).items()} for one in positions]
            tops += [sorted(one.items(), key=lambda log: -log[1])[:most] for one in given]
            if len(given) != lengths[row] + 1 or any(len(one) < most for one in given):
                raise ServerError(
                    f"{self.server.address} does not give the {most} likeliest tokens of prompts, "
                    "from which sets of adapters are forecast; take vLLM, or --engine transformers."
                )
        values = []
        for row, place, token in wanted:
            positions = answers.get((row, token), of_row[row])
            values.append((positions[rows[row][1] + place] or {})[token].logprob)
        both = torch.tensor(tops, dtype=torch.float64)
        return NextTokens(both[..., 0].to(torch.int32), both[..., 1].float(), torch.tensor(values))


def _first_line(written: Written) -> Written:
    """The first line that is not blank."""
    line = first_line(written.text)
    return Written(line, written.cut and written.text.endswith(line))


def _until(written: Written, until: Callable[[str], bool] | None) -> Written:
    """The lines up to the first of which `until` is true."""
    lines = written.text.splitlines(keepends=True) if until is not None else []
    for n in range(1, len(lines)):
        text = "".join(lines[:n])
        if text.strip() and until is not None and until(text):
            return Written(text, False)
    return written
