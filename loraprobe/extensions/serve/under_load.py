"""Whether each answer of a server under load is by the adapter that was asked (`verify --load`).

Every name is asked alone first: what it writes after a few prompts, token by token with
log-probabilities, is its `Known` answer (`known_answers`). Then requests of all names and prompts
go to the server in a random order, many at once (`send`), and each answer is `attributed` to the
name whose known answer it is. What a quiet server serves is no question here: `recognising` tells.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import httpx
import numpy as np
from pydantic import ValidationError
from scipy import special

from loraprobe.errors import UsageError
from loraprobe.extensions.serve.client import BUSY, GREEDY, Server, ServerError, WrittenTokens
from loraprobe.formatting import count, listing

PATH = "/v1/completions"
TOKENS = 8  # that are written after a prompt
PER_SECOND = 500.0  # requests, at most
GRACE = 30.0  # seconds after the last request for answers that are still to come
GONE = 20  # requests in a row that find no server, after which it is looked for
ROUNDING = 0.01  # scale of the differences of log-probabilities that every server may make
CROWDED = 0.05  # or a crowded one, whose kernels depend on the batch; else a multiple of the
MORE = 3.0  # scale that it shows alone
# Distances are sums over tokens of differences in units of that scale. Each counts at most
# FURTHEST; a token that is another one without need counts as much, with all behind it.
FURTHEST = 8.0
TIE = 10.0  # up to which two tokens may be taken for each other
UNKNOWN = 2.0  # what each token counts behind another token that was as likely
FITS = 4.0  # a token, up to which an answer is a known one
APART = 14.0  # one known answer is this much closer than another: exp(-14) is one in a million
TELLING = 2 * APART  # between the known answers of all names after a prompt that is used
LEVEL = 0.95  # of the bound
OPEN = 0.05  # share of answers that cannot be attributed, or bound, above which nothing is told

LATE = "no answer in time"
BUSY_TOLD = {f"status {status}" for status in BUSY}

Steps = tuple[tuple[str, float], ...]  # tokens with their log-probabilities
Known = Mapping[str, Mapping[str, Steps]]  # prompt -> name -> answer


@dataclass(frozen=True)
class OfName:
    """The requests of one name.

    right: answers that are its own. mixed: name -> answers that are that one's. strange: answers
    that are nobody's. undecided: those that may be of several. median, p95, longest: seconds until
    the whole answer was there; None without answers.
    """

    name: str
    requests: int
    right: int
    mixed: Mapping[str, int]
    strange: int
    undecided: int
    median: float | None
    p95: float | None
    longest: float | None


@dataclass(frozen=True)
class UnderLoad:
    """What a server did under load.

    serves: right; mixed (some answers are another's or nobody's); or unclear. load: requests that
    were open at once. seconds: that requests were sent. prompts: how many were used. errors: what
    happened -> requests without an answer. at_most: the bound at LEVEL of the share of answers that
    are not of the name that was asked. noise: the scale of differences from what the same name
    answers alone, in nats.
    """

    serves: str
    load: int
    seconds: float
    prompts: int
    requests: int
    errors: Mapping[str, int]
    mixed: int
    strange: int
    undecided: int
    at_most: float
    noise: float
    names: Sequence[OfName]


@dataclass
class Answers:
    """What was sent and what came back: (name, prompt, tokens, seconds), and errors by name."""

    seconds: float = 0.0
    came: list[tuple[str, str, Steps, float]] = field(default_factory=list)
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)


def check_host(address: str, load: int, seconds: float, yes: bool) -> None:
    """Raises UsageError for another machine than this, unless the user said yes."""
    host = httpx.URL(address).host
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost" or host.endswith(".localhost")
    if not (here or yes):
        raise UsageError(
            f"--load sends up to {load} requests at once to {host} for {seconds:g} seconds, which "
            "is not this machine; add --yes if that server is yours to load."
        )


def distance(answer: Steps, known: Steps, scale: float) -> float:
    """How far an answer is from a known one, in units of `scale`, summed over tokens.

    Of two tokens that are as likely a server may write either, and goes on differently. Where one
    was much likelier than every other, or is much likelier than the other was, no rounding did it.
    """
    total, n = 0.0, max(len(answer), len(known))
    for i in range(n):
        if i >= min(len(answer), len(known)):  # one of them ended
            return total + FURTHEST * (n - i)
        (token, theirs), (other, own) = answer[i], known[i]
        apart = abs(theirs - own) / scale
        total += min(apart, FURTHEST)
        if token != other:
            likely, rest = math.exp(max(theirs, own)), n - i - 1
            gap = math.log(likely / max(1 - likely, 1e-12)) / scale  # to the next token, at least
            return total + (FURTHEST * (1 + rest) if max(gap, apart) > TIE else 1 + UNKNOWN * rest)
    return total


def attributed(asked: str, answer: Steps, known: Mapping[str, Steps], scale: float) -> str | None:
    """The name whose known answer this is; "" for nobody's, None where it may be of several."""
    far = {name: distance(answer, one, scale) for name, one in known.items()}
    first, second = sorted(far, key=lambda name: (far[name], name != asked))[:2]
    if far[first] > FITS * max(len(answer), len(known[first]), 1):
        return ""
    return first if far[second] - far[first] >= APART else None


def scale_of(answers: Sequence[tuple[str, Steps]], known: Known, alone: float) -> float:
    """The scale of the differences between answers, each after its prompt, and the closest known.

    alone: that of a server that is asked one thing at a time. A few answers of others do not
    change it, and many not beyond what batches of other sizes may do.
    """
    found = list[float]()
    for (prompt, answer), times in Counter(answers).items():
        near = min(
            (_differences(answer, one) for one in known[prompt].values()),
            key=lambda row: (-len(row), sum(row)),
        )
        found += near * times
    most = max(CROWDED, MORE * alone)
    return min(max(_scale(found), alone, ROUNDING), most)


def _differences(answer: Steps, known: Steps) -> list[float]:
    """Of log-probabilities, up to the first token that differs."""
    found = list[float]()
    for (token, theirs), (other, own) in zip(answer, known, strict=False):
        found.append(abs(theirs - own))
        if token != other:
            break
    return found


def _scale(differences: Sequence[float]) -> float:
    """Of exponential differences that have the same 95 % quantile."""
    return float(np.quantile(differences, 0.95)) / math.log(20) if differences else 0.0


def telling(known: Known, scale: float) -> list[str]:
    """The prompts after which all names answer differently enough."""
    return [
        prompt
        for prompt, answers in known.items()
        if all(
            distance(one, other, scale) >= TELLING
            for name, one in answers.items()
            for another, other in answers.items()
            if name != another
        )
    ]


def alike(known: Known, scale: float) -> tuple[str, str] | None:
    """Two names that answer alike after every prompt; None where there are none."""
    names = list(next(iter(known.values())))
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            pairs = ((answers[one], answers[other]) for answers in known.values())
            if all(distance(a, b, scale) < APART for a, b in pairs):
                return one, other
    return None


def body(name: str, prompt: str) -> dict[str, object]:
    """A request that has a known answer."""
    return {"model": name, "prompt": prompt, "max_tokens": TOKENS, **GREEDY, "logprobs": 1}


def known_answers(
    server: Server,
    names: Sequence[str],
    prompts: Sequence[str],
    tell: Callable[[str, int, int], None],
) -> tuple[Known, float]:
    """What every name answers alone after each prompt, and the scale of its differences.

    Each is asked twice, one request at a time. Raises ServerError.
    """
    order = [(name, prompt) for _ in range(2) for prompt in prompts for name in names]
    found: dict[tuple[str, str], Steps] = {}
    differences = list[float]()
    for done, (name, prompt) in enumerate(order):
        tell("ask each name alone", done, len(order))
        (answer,) = server.ask(PATH, [body(name, prompt)], WrittenTokens)
        first = found.setdefault((name, prompt), answer.steps)
        if done >= len(order) // 2:
            differences += _differences(answer.steps, first)
    known = {prompt: {name: found[name, prompt] for name in names} for prompt in prompts}
    return known, max(_scale(differences), ROUNDING)


def send(
    server: Server,
    names: Sequence[str],
    prompts: Sequence[str],
    load: int,
    seconds: float,
    tell: Callable[[str, int, int], None],
) -> Answers:
    """Sends requests of all names and prompts in a random order, `load` at once, for so long.

    A request is sent when an answer came, at most PER_SECOND of them. Nothing is repeated; a busy
    server (BUSY) is left alone for a moment by the one that it turned away. Raises ServerError
    where the server wants a key or is gone.
    """
    answers = Answers()
    asyncio.run(_Sender(server, names, prompts, answers, tell).send(load, seconds))
    return answers


@dataclass
class _Sender:
    server: Server
    names: Sequence[str]
    prompts: Sequence[str]
    answers: Answers
    tell: Callable[[str, int, int], None]
    lost: int = 0  # requests in a row that found no server
    turn: float = 0.0  # when the next request may be sent

    async def send(self, load: int, seconds: float) -> None:
        begun, drawn = time.monotonic(), random.Random(0)
        self.turn, end = begun, begun + seconds
        async with self.server.opened(load) as client:
            tasks = [asyncio.create_task(self.one_by_one(client, drawn, end)) for _ in range(load)]
            try:
                while True:
                    done, open_ = await asyncio.wait(
                        tasks, timeout=0.5, return_when=asyncio.FIRST_EXCEPTION
                    )
                    for task in done:
                        task.result()  # raises what ended it
                    now = time.monotonic()
                    came, failed = len(self.answers.came), self.answers.errors.total()
                    told = f"ask under load, {count(came, 'answer')}, {count(failed, 'error')}"
                    self.tell(told, min(int(now - begun), int(seconds)), int(seconds))
                    if not open_ or now > end + GRACE:
                        break
                    if self.lost >= max(GONE, load // 2):
                        await self.look(client, now - begun)
            finally:
                self.answers.seconds = min(time.monotonic() - begun, seconds)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def one_by_one(self, client: httpx.AsyncClient, drawn: random.Random, end: float) -> None:
        """Sends one request after the other until the end."""
        while True:
            self.turn = max(self.turn + 1 / PER_SECOND, time.monotonic())
            if self.turn >= end:
                return
            await asyncio.sleep(max(0.0, self.turn - time.monotonic()))
            name, prompt = drawn.choice(self.names), drawn.choice(self.prompts)
            if error := await self.one(client, name, prompt):
                self.answers.errors[name, error] += 1
                await asyncio.sleep(1.0 if error in BUSY_TOLD else min(0.05 * self.lost, 1.0))

    async def one(self, client: httpx.AsyncClient, name: str, prompt: str) -> str:
        """Sends one request; what happened in place of an answer, "" for an answer.

        Raises ServerError where the server wants a key.
        """
        sent = time.monotonic()
        try:
            async with asyncio.timeout(self.server.patience):
                asked = self.server.once(client, PATH, body(name, prompt))
                status, content, headers = await asked
        except asyncio.CancelledError:  # the time for answers is over
            self.answers.errors[name, LATE] += 1
            raise
        except (ServerError, TimeoutError) as error:
            self.lost += 1
            return LATE if isinstance(error, TimeoutError) else "no whole answer"
        self.lost = 0
        if status in (401, 403):
            raise self.server.refusal(PATH, status, content, headers)
        if status != 200:
            return f"status {status}"
        try:
            steps = WrittenTokens.model_validate_json(content).steps
        except ValidationError:
            return "no log-probabilities"
        self.answers.came.append((name, prompt, steps, time.monotonic() - sent))
        return ""

    async def look(self, client: httpx.AsyncClient, passed: float) -> None:
        """Raises ServerError if the server is gone."""
        try:
            async with asyncio.timeout(10.0):
                await self.server.once(client, "/v1/models", None)
            self.lost = 0
        except (ServerError, TimeoutError):
            came = count(len(self.answers.came), "answer")
            raise ServerError(
                f"{self.server.address} answered {came} and is gone after {passed:.0f} s of load; "
                "look at its log, and start it again."
            ) from None


def judged(answers: Answers, known: Known, alone: float, load: int) -> UnderLoad:
    """Every answer attributed to a name.

    known: of the prompts that were sent. alone: as `scale_of` takes it.
    """
    scale = scale_of([(prompt, steps) for _, prompt, steps, _ in answers.came], known, alone)

    @functools.cache
    def by(name: str, prompt: str, steps: Steps) -> str | None:
        return attributed(name, steps, known[prompt], scale)

    names = list(next(iter(known.values())))
    found: dict[str, Counter[str | None]] = {name: Counter() for name in names}
    waited: dict[str, list[float]] = {name: [] for name in names}
    for name, prompt, steps, seconds in answers.came:
        found[name][by(name, prompt, steps)] += 1
        waited[name].append(seconds)
    rows, errors = list[OfName](), Counter[str]()
    for (_, what), n in answers.errors.items():
        errors[what] += n
    for name, counts in found.items():
        failed = sum(n for (one, _), n in answers.errors.items() if one == name)
        others = {one: n for one, n in counts.items() if one and one != name}
        own, strange, undecided = counts[name], counts[""], counts[None]
        times = np.quantile(waited[name], [0.5, 0.95, 1.0]) if waited[name] else [None] * 3
        latency = [None if t is None else float(t) for t in times]
        sent = counts.total() + failed
        rows.append(OfName(name, sent, own, others, strange, undecided, *latency))
    mixed, strange = sum(sum(one.mixed.values()) for one in rows), sum(one.strange for one in rows)
    undecided, wrong = sum(one.undecided for one in rows), mixed + strange
    told = len(answers.came) - undecided
    at_most = float(special.betaincinv(wrong + 1, told - wrong, LEVEL)) if told > wrong else 1.0
    serves = "mixed" if wrong else "right"
    silent = any(not one.right for one in rows)  # of a name without answers nothing is known
    if not wrong and (silent or at_most > OPEN or undecided > OPEN * len(answers.came)):
        serves = "unclear"
    return UnderLoad(
        serves,
        load,
        answers.seconds,
        prompts=len(known),
        requests=sum(one.requests for one in rows),
        errors=dict(errors.most_common()),
        mixed=mixed,
        strange=strange,
        undecided=undecided,
        at_most=at_most,
        noise=scale,
        names=rows,
    )


def ask_under_load(
    server: Server,
    names: Sequence[str],
    prompts: Sequence[str],
    load: int,
    seconds: float,
    tell: Callable[[str, int, int], None],
) -> UnderLoad | tuple[str, str]:
    """What a server does under load; two names that it answers alike, if there are such.

    Raises UsageError where no prompt tells the names apart, ServerError where the server does not
    answer, or ends.
    """
    known, alone = known_answers(server, names, prompts, tell)
    if (pair := alike(known, alone)) is not None:
        return pair
    used = telling(known, alone)
    if not used:
        raise UsageError(
            f"No prompt of {len(prompts)} tells {listing(names)} apart in {TOKENS} tokens, of "
            f"which log-probabilities differ by {alone:.2g} from one time to the next; give "
            "prompts of what they were trained on: --probe=FILE, one a line."
        )
    answers = send(server, names, used, load, seconds, tell)
    if not answers.came:
        why = listing(sorted({what for _, what in answers.errors})) or "no time was left"
        raise ServerError(
            f"{server.address} gave no answer under load: {why}; look at its log, or take a "
            "smaller --load."
        )
    return judged(answers, {prompt: known[prompt] for prompt in used}, alone, load)
