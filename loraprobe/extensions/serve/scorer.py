"""ServedScorer: asks a server the questions of an evaluation, in place of a model in memory.

It sends token ids, so that a server and a model in memory read the same prompts. `Placing` gets
compositions into the server: as files that it loads, by the names of adapters that it has, or
weighed in each request.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from loraprobe.adapters import ModuleInfo, portable, save_adapter
from loraprobe.composition import Composition
from loraprobe.extensions.serve.client import (
    GREEDY,
    LONGEST_TOKEN,
    ScoredPrompt,
    Server,
    ServerError,
    WrittenText,
)
from loraprobe.formatting import listing
from loraprobe.merging import MergeConfig, merge
from loraprobe.merging.linear import TaskArithmetic
from loraprobe.routing.constant import ConstantGates
from loraprobe.scoring import Likelihood, ModelScorer, Scorer
from loraprobe.scoring.generation import Written, first_line
from loraprobe.scoring.scorer import NEW_TOKENS

HELD = 64  # compositions that a server holds for one run; the oldest goes for a further one


class ServedScorer(Scorer):
    """Answers and log-likelihoods of the base and of compositions that a server runs.

    local: a scorer of the base by transformers. Its tokenizer and end tokens count, and it is asked
    the compositions that the server cannot run. accept: gets this scorer while it asks a
    composition for the first time, and the composition (None: the base); it raises ServerError
    where the server computes something else. context: the most tokens of a sequence; None for no
    limit.
    """

    def __init__(
        self,
        server: Server,
        placing: Placing,
        local: ModelScorer,
        *,
        accept: Callable[[ServedScorer, Composition | None], None],
        context: int | None = None,
    ) -> None:
        self.server, self.placing = server, placing
        self.close: Callable[[], None] = lambda: None  # called once nothing is asked any more
        self.local, self.encoder, self.context = local, local.encoder, context
        self.stops, self.vocab_size = local.stops, local.vocab_size
        self._accept = accept
        self._model: Mapping[str, Any] | None = placing.base
        # What it says of compositions, which are held so that no other gets their place.
        self._known: dict[Any, tuple[Mapping[str, Any], Composition | None]] = {}
        self._here: dict[str, None] = {}  # names of the compositions that transformers ran

    @property
    def model(self) -> Mapping[str, Any]:
        """What a request says of the model."""
        assert self._model is not None, "ask the scorer that the context gives"
        return self._model

    @contextlib.contextmanager
    def with_composition(self, composition: Composition | None) -> Iterator[Scorer]:
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
            try:
                self._accept(self, composition)
            except BaseException:
                if composition is not None:
                    self.placing.drop(model)
                raise
            if len(self._known) > HELD:  # the base is the first
                oldest = list(self._known)[1]
                self.placing.drop(self._known.pop(oldest)[0])
            self._known[key] = model, composition
        return self._known[key][0]

    def unload(self) -> None:
        """Takes the compositions out of the server."""
        for model, composition in self._known.values():
            if composition is not None:
                self.placing.drop(model)

    def note(self) -> str:
        """What transformers answered here, and the note of its scorer."""
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
        wanted = {**self.model, **GREEDY, "stop_token_ids": list(self.stops)}
        bodies = {
            prompt: {**wanted, "prompt": ids, "max_tokens": room}
            for prompt, (ids, room) in self.rooms(prompts, max_new_tokens).items()
        }
        if not until_newline:
            found = self._written(bodies)
            ended = {prompt: _until(one, until) for prompt, one in found.items()}
        else:  # a server stops at the first newline, also before the first word
            found = self._written({p: {**body, "stop": ["\n"]} for p, body in bodies.items()})
            blank = {p: bodies[p] for p, one in found.items() if not (one.cut or one.text.strip())}
            ended = found | {p: _first_line(one) for p, one in self._written(blank).items()}
        return [ended[prompt] for prompt in prompts]

    def _written(self, bodies: Mapping[str, dict[str, Any]]) -> dict[str, Written]:
        """The completion of each request."""
        answers = self.server.ask("/v1/completions", list(bodies.values()), WrittenText)
        written = {}
        for (prompt, body), answer in zip(bodies.items(), answers, strict=True):
            if len(answer.text) > LONGEST_TOKEN * body["max_tokens"]:
                raise ServerError(
                    f"{self.server.address} wrote {len(answer.text):,} characters where "
                    f"{body['max_tokens']} tokens were asked for; take a server that heeds "
                    "max_tokens, such as vLLM."
                )
            written[prompt] = Written(answer.text, answer.end == "length")
        return written

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """`Scorer.loglikelihood`: the log-probabilities of the tokens, and no other statistics.

        Raises ServerError where a server gives no `prompt_logprobs`, as vLLM does.
        """
        encoded = dict(zip(pairs, self.encoded(pairs), strict=True))
        body = {**self.model, "max_tokens": 1, **GREEDY, "prompt_logprobs": 0}
        bodies = [{**body, "prompt": ids} for ids, _ in encoded.values()]
        try:
            answers = self.server.ask("/v1/completions", bodies, ScoredPrompt)
        except ServerError as error:
            if error.status != 500:
                raise
            raise ServerError(
                f"{self.server.address} failed to score a prompt, as vLLM does where it "
                "expects an adapter of the head; start it with --lora-target-modules and the "
                "names of your adapters' modules, such as q_proj v_proj."
            ) from None
        found = {}
        for (pair, (ids, start)), answer in zip(encoded.items(), answers, strict=True):
            scores = answer.of(ids, start)
            if scores is None:
                raise ServerError(
                    f"{self.server.address} gives no log-probabilities of prompts, which questions "
                    "with choices and losses need; take vLLM, or --engine=transformers."
                )
            found[pair] = Likelihood(scores, (), (), (), ())
        return [found[pair] for pair in pairs]


def _first_line(written: Written) -> Written:
    """The first line that is not blank."""
    line = first_line(written.text)
    return Written(line, written.cut and written.text.endswith(line))


def _until(written: Written, until: Callable[[str], bool] | None) -> Written:
    """The lines up to the first of which `until` is true, as of all that go on from there."""
    text, lines = written.text, written.text.splitlines(keepends=True)
    ends = [*itertools.accumulate(map(len, lines[:-1]))]
    if until is None:
        return written
    first = bisect.bisect_left(
        ends, True, key=lambda end: bool(text[:end].strip()) and until(text[:end])
    )
    return Written(text[: ends[first]], False) if first < len(ends) else written


class Placing(ABC):
    """How compositions get into a server.

    model: the server's name of the base. why: the reason for which the server cannot run some, for
    the report. apart: how far its log-probabilities of the base are from those of transformers
    here, on average.
    """

    model: str
    why: str
    apart: float = 0.0

    @property
    def base(self) -> dict[str, Any]:
        """What a request says of the base."""
        return {"model": self.model}

    def drop(self, model: Mapping[str, Any]) -> None:
        """Takes what `__call__` gave out of the server, which need not hold more for it."""
        return None

    @abstractmethod
    def __call__(self, composition: Composition) -> Mapping[str, Any] | None:
        """Makes the server ready for a composition; what a request says of it.

        None for one that it cannot run.
        """


Held = TypeVar("Held")


def all_held(server: Server, names: Iterable[str], held: Mapping[str, Held]) -> dict[str, Held]:
    """What a server has of adapters. Raises ServerError where one is missing."""
    for name in names:
        if name not in held:
            raise ServerError(
                f"{server.address} has no adapter named {name} (it has "
                f"{', '.join(held) or 'none'}) and loads no file of this run; name yours as it "
                f"does (NAME=REF), start it with {name}, or start a vLLM that sees TMPDIR with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
            )
    return {name: held[name] for name in names}


def _weights(composition: Composition) -> tuple[float, ...] | None:
    """The weight of each expert; None where it depends on the text."""
    router, n = composition.router, len(composition.experts)
    return router.weights_of(n) if isinstance(router, ConstantGates) else None


@dataclass
class Loading(Placing):
    """Loads each composition with constant weights into a server as one LoRA file.

    prefix: stands before an adapter's name in a request. place: the directory of the files.
    """

    server: Server
    model: str
    prefix: str
    place: Path
    allow: Collection[str]
    why = "no server weighs adapters by the text"

    def __call__(self, composition: Composition) -> dict[str, Any] | None:
        """Loads a composition; what a request says of it."""
        weights, name = _weights(composition), f"loraprobe-{uuid.uuid4().hex[:12]}"
        if weights is None:
            return None
        made = composition.experts[0]
        if weights == (1.0,):
            made = portable(made)
        else:
            config = MergeConfig(TaskArithmetic(), weights, allow=self.allow)
            made = merge(composition.experts, config).written
        save_adapter(made, self.place / name)
        rank = made.rank_range[1]
        try:
            self.server.load(name, self.place / name)
        except ServerError as error:
            if error.status is None:  # the server is gone
                raise
            refused = error.at(f"{composition.name} was not loaded")
            if "rank" in str(error).lower():  # in the words of the server
                refused = ServerError(
                    f"{composition.name} has rank {rank}; start vLLM with --max-lora-rank {rank}."
                )
                refused.beyond_rank = True
            refused.status = error.status
            raise refused from None
        return {"model": self.prefix + name}

    def drop(self, model: Mapping[str, Any]) -> None:
        """Unloads a composition."""
        name = model["model"].removeprefix(self.prefix)
        self.server.unload(name)
        shutil.rmtree(self.place / name, ignore_errors=True)


@dataclass
class Naming(Placing):
    """Asks a server the adapters that it has, each by its name.

    held: what a request calls an adapter, by its name.
    """

    model: str
    held: Mapping[str, str]
    why: str
    apart: float

    def __call__(self, composition: Composition) -> dict[str, Any] | None:
        """What a request says of a single adapter."""
        first = composition.experts[0]
        alone = _weights(composition) == (1.0,) and first.name in self.held
        return {"model": self.held[first.name]} if alone else None


@dataclass
class Weighing(Placing):
    """Has the server of llama.cpp weigh the adapters that it has, in each request.

    held: the server's ids of adapters, by name. layouts: those of the adapters as they are served,
    by name.
    """

    model: str
    held: Mapping[str, int]
    layouts: Mapping[str, Mapping[str, ModuleInfo]]
    why = "the server weighs the adapters that it has and nothing else"

    @property
    def base(self) -> dict[str, Any]:
        return self._request({})

    def __call__(self, composition: Composition) -> dict[str, Any] | None:
        """What a request says of a sum of the adapters with constant weights."""
        weights, experts = _weights(composition), composition.experts
        if weights is None or any(self.layouts.get(one.name) != one.layout for one in experts):
            return None  # scaled adapters have their names too
        return self._request({one.name: w for one, w in zip(experts, weights, strict=True)})

    def _request(self, weights: Mapping[str, float]) -> dict[str, Any]:
        # All adapters are named, also those of weight 0. With cache_prompt the server would take a
        # prompt from its cache that it read with other weights.
        lora = [{"id": i, "scale": weights.get(name, 0.0)} for name, i in self.held.items()]
        return {"model": self.model, "lora": lora, "cache_prompt": False}
