"""The acceptance test of --engine: whether a server computes what transformers compute here.

Both give log-probabilities of a few prompts. `Acceptance` ends a run whose server runs another base
or misreads an adapter. `recognising` tells which adapter a server serves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from loraprobe.composition import Composition
from loraprobe.errors import BaseError
from loraprobe.evaluation.questions import questions
from loraprobe.extensions.serve.client import ServerError
from loraprobe.extensions.serve.scorer import ServedScorer
from loraprobe.scoring import ModelScorer
from loraprobe.scoring.forward import inference_mode
from loraprobe.tasks import Task

PROMPTS = 12  # of the acceptance test
# A server's figures are those of one side where they are this many times closer to it than the two
# sides are to each other. They cannot be close to both.
CLOSER = 4.0
ANOTHER_BASE = 0.25  # mean difference of log-probabilities; rounding to bfloat16 makes some 0.02


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
        elif not apart <= max(between / CLOSER, 2 * self.rounding[what] + 0.005):
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
    return [likeliest(scorer, ids, 1)[0] for ids in rows]


def likeliest(scorer: ModelScorer, ids: Sequence[int], last: int) -> list[float]:
    """The largest log-probability of a next token after each of the last tokens of a text.

    last: how many of them. Raises BaseError where the model gives none.
    """
    with inference_mode(scorer.model), torch.no_grad():
        logits = scorer.model(input_ids=torch.tensor([ids], device=scorer.model.device)).logits
        found = logits[0, -last:].double().log_softmax(-1).amax(-1).tolist()
    if not all(map(math.isfinite, found)):
        raise BaseError(
            "The model gives a log-probability here that is no number; take --dtype float32."
        )
    return list(found)


def apart_by(one: Sequence[float], other: Sequence[float]) -> float:
    """The mean absolute difference."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)
