"""Whether a server computes what transformers compute here.

Both give log-probabilities of a few prompts. `Acceptance` ends a run whose server runs another base
or misreads an adapter; `compare_served` tells `verify --served` what a server serves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from loraprobe.adapters import Adapter
from loraprobe.composition import Composition
from loraprobe.errors import BaseError
from loraprobe.evaluation.questions import questions
from loraprobe.extensions.serve.client import Server, ServerError
from loraprobe.extensions.serve.scorer import ServedScorer
from loraprobe.routing.constant import single
from loraprobe.scoring import ModelScorer
from loraprobe.scoring.forward import inference_mode
from loraprobe.tasks import Task

PROMPTS = 12  # of the acceptance test
# A server's figures are those of one side where they are this many times closer to it than the two
# sides are to each other. They cannot be close to both.
SERVED_CLOSER = 4.0
SERVED_TELLS = 0.01  # mean difference of base and adapter from which a server's rounding is less
ANOTHER_BASE = 0.25  # mean difference of log-probabilities; rounding to bfloat16 makes some 0.02
TIMEOUT = 60.0  # seconds for one request of `verify --served` and its whole answer
PLAIN = (  # prompts for any adapter
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


@dataclass(frozen=True)
class Served:
    """What a server serves under a name (`loraprobe verify --served`).

    `serves` is adapter, base, another (neither) or unclear (the prompts do not tell them apart).
    The figures are mean absolute differences of log-probabilities over the prompts: from the server
    to the adapter and to the base as they run here, and `between` these two.
    """

    adapter: str
    model: str
    serves: str
    prompts: int
    to_adapter: float
    to_base: float
    between: float


@dataclass
class Acceptance:
    """Ends the run where a server computes something else than transformers.

    prompts: of which the log-probability of the likeliest next word is compared. pairs: of which
    the log-probability of the continuation is, for a token; none where nothing is judged by it.
    """

    local: ModelScorer
    prompts: Sequence[str]
    pairs: Sequence[tuple[str, str]]
    base: str
    of_base: dict[str, list[float]] = field(default_factory=dict)
    rounding: dict[str, float] = field(default_factory=dict)

    @classmethod
    def on(cls, tasks: Sequence[Task], local: ModelScorer, base: str) -> Acceptance:
        """On a few questions of the tasks."""
        asked = questions(tasks)
        prompts = list(dict.fromkeys(item.prompt for task in tasks for item in task.items))
        pairs = [(one.prompt, one.continuations[0]) for one in asked if not one.generated]
        return cls(local, _few(prompts), _few(pairs), base)

    def __call__(self, served: ServedScorer, composition: Composition | None) -> None:
        """Raises ServerError unless the server runs the composition; None: the base."""
        ids = self.local.encoder.prompts(self.prompts)
        theirs = {"of the next word": served.server.first_tokens(served.model, ids)}
        with self.local.with_composition(composition):
            own = {"of the next word": first_tokens(self.local, ids)}
            if self.pairs:
                alike = served.with_template(self.local.chat_template)
                for scorer, found in ((alike, theirs), (self.local, own)):
                    scores = scorer.loglikelihood(self.pairs)
                    found["of an answer"] = [one.per_token for one in scores]
        if composition is None:
            self.of_base = own
        for what, figures in own.items():
            self._compare(what, served.server.address, theirs[what], figures, composition)
        served.placing.apart = max(self.rounding.values())

    def _compare(
        self,
        what: str,
        where: str,
        theirs: Sequence[float],
        own: Sequence[float],
        composition: Composition | None,
    ) -> None:
        apart, between = apart_by(theirs, own), apart_by(own, self.of_base[what])
        told = f"the log-probability {what} differs by {apart:.2f} on average"
        if composition is None:
            self.rounding[what] = apart
            if not apart <= ANOTHER_BASE:
                raise ServerError(
                    f"{where} runs another base than {self.base}: {told}; serve that base, or give "
                    "the served one by --base."
                )
        elif not apart <= max(between / SERVED_CLOSER, 2 * self.rounding[what] + 0.005):
            raise ServerError(
                f"{where} does not compute {composition.name}: {told} from that of transformers, "
                f"where adapter and base are {between:.2f} apart; loraprobe inspect ADAPTER "
                "--serve=all tells what servers misread, and --engine=transformers needs none."
            )


def _few(every: Sequence[Any]) -> list[Any]:
    """At most PROMPTS of them, evenly distributed."""
    n = min(PROMPTS, len(every))
    return [every[i * len(every) // n] for i in range(n)]


def first_tokens(scorer: ModelScorer, rows: Sequence[Sequence[int]]) -> list[float]:
    """The largest log-probability of a next token after each row of token ids.

    Raises BaseError where the model gives none.
    """
    found = []
    with inference_mode(scorer.model), torch.no_grad():
        for ids in rows:
            logits = scorer.model(input_ids=torch.tensor([ids], device=scorer.model.device)).logits
            found.append(float(logits[0, -1].double().log_softmax(-1).max()))
    if not all(map(math.isfinite, found)):
        raise BaseError(
            "The model gives a log-probability here that is no number; take --dtype float32."
        )
    return found


def apart_by(one: Sequence[float], other: Sequence[float]) -> float:
    """The mean absolute difference."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def compare_served(
    server: Server,
    model: str,
    adapter: Adapter,
    scorer: ModelScorer,
    prompts: Sequence[str],
) -> Served:
    """What a server serves under the name `model`: the adapter, the base of the scorer, another.

    The server's figures are close to those of the base here, or to those with the adapter.
    """
    theirs = server.first_tokens({"model": model}, prompts)
    ids = scorer.encoder.prompts(prompts)
    base_own = first_tokens(scorer, ids)
    with scorer.with_composition(single(adapter)):
        own = first_tokens(scorer, ids)
    between = apart_by(own, base_own)
    to_adapter, to_base = apart_by(theirs, own), apart_by(theirs, base_own)
    if between < SERVED_TELLS:
        serves = "unclear"
    elif to_adapter * SERVED_CLOSER <= between:
        serves = "adapter"
    else:
        serves = "base" if to_base * SERVED_CLOSER <= between else "another"
    return Served(adapter.name, model, serves, len(prompts), to_adapter, to_base, between)
