"""What a coverage probe is: requests to the base (or to one adapter alone), and rows made of them.

Probes say beforehand which continuations they want scored; `cover` collects the requests of all
probes and tasks, and scores each once, in one pass a model. Probes that read the accuracies of
base and single adapters ask nothing. Those that need texts or hidden states `measure` them with
`Models`, which computes nothing twice.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from loraprobe.coverage._names import MadeUpNames
from loraprobe.records import Coverage, ItemResult
from loraprobe.tasks import Task, normalize_answer

if TYPE_CHECKING:
    from loraprobe.coverage._models import Models

BASE = "base"
MOST_ITEMS = 100  # a probe's figure needs no more; a larger part is sampled


@dataclass(frozen=True)
class Request:
    """How likely is this continuation of this prompt? Asked of the base, or of one adapter alone.

    `raw` asks without the chat template, for texts that are no question.
    """

    prompt: str
    continuation: str
    of: str = BASE
    raw: bool = False


@dataclass(frozen=True)
class Question:
    """One prompt of one part of a task, with the answers that count as right."""

    item: str
    cluster: str
    prompt: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    entities: tuple[str, ...] = ()
    pattern: str | None = None


@dataclass(frozen=True)
class Part:
    """The composed question (hop None) or one hop of a task; `worked` if asked step by step."""

    hop: int | None
    questions: tuple[Question, ...]
    worked: bool = False

    @property
    def name(self) -> str:
        """As parts are named in results."""
        if self.worked:
            return "cot"
        return "target" if self.hop is None else f"hop{self.hop}"

    @cached_property
    def gold(self) -> tuple[str, ...]:
        """The distinct first answers of all questions, in their order."""
        return tuple(
            {normalize_answer(q.answers[0]): q.answers[0] for q in self.questions}.values()
        )

    def guess(self) -> float | None:
        """What always giving the best constant answer scores; chance among choices if there are."""
        if not self.questions:
            return None
        if all(q.choices for q in self.questions):
            return sum(1 / len(q.choices) for q in self.questions) / len(self.questions)
        counts: dict[str, int] = {}
        for question in self.questions:
            for answer in {normalize_answer(answer) for answer in question.answers}:
                counts[answer] = counts.get(answer, 0) + 1
        return max(counts.values()) / len(self.questions)


@dataclass(frozen=True, eq=False)
class Study:
    """One task as probes see it: its parts, who was measured how, and the seed of all choices."""

    task: Task
    adapters: tuple[str, ...]
    results: tuple[ItemResult, ...]
    names: MadeUpNames
    seed: int = 0

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The composed question, then the hops, with gold answers put into later hops."""
        items = self.task.items
        target = [
            Question(i.id, i.cluster, i.prompt, i.answers, i.choices, i.entities) for i in items
        ]
        found = [Part(None, tuple(target))]
        for k in range(max((len(item.hops) for item in items), default=0)):
            asked = [
                Question(i.id, i.cluster, i.hop_prompt(k), i.hops[k].answers, (), i.entities)
                for i in items
                if len(i.hops) > k
            ]
            found.append(Part(k + 1, tuple(asked)))
        return tuple(found)

    @cached_property
    def worked(self) -> Part | None:
        """The composed question asked step by step, of the items that can be asked so."""
        asked = [
            Question(i.id, i.cluster, i.cot_prompt, i.answers, (), i.entities, i.answer_pattern)
            for i in self.task.items
            if i.cot_prompt is not None
        ]
        return Part(None, tuple(asked), worked=True) if asked else None

    @property
    def all_parts(self) -> tuple[Part, ...]:
        """The composed question, the hops, and the worked form where there is one."""
        return (*self.parts, *((self.worked,) if self.worked is not None else ()))

    def sample(self, part: Part, most: int = MOST_ITEMS) -> tuple[Question, ...]:
        """At most so many questions of a part, chosen by the seed, in their order."""
        if len(part.questions) <= most:
            return part.questions
        rng = random.Random(f"{self.seed}:{self.task.name}:{part.name}")
        chosen = sorted(rng.sample(range(len(part.questions)), most))
        return tuple(part.questions[i] for i in chosen)

    @cached_property
    def _right(self) -> dict[tuple[str, str], dict[str, float]]:
        found: dict[tuple[str, str], dict[str, float]] = {}
        for row in self.results:
            if row.task == self.task.name and row.metric != "answer_loss":
                found.setdefault((row.system, row.part), {})[row.item] = row.value
        return found

    def right(self, system: str, part: Part) -> dict[str, float]:
        """Item -> 1.0 or 0.0 of one system; empty where it was not measured (or by losses)."""
        return self._right.get((system, part.name), {})

    def by_choice(self, part: Part) -> frozenset[str]:
        """The items of a part that were judged by the choice taken, and not by a text."""
        return frozenset(
            row.item
            for row in self.results
            if (row.task, row.part, row.metric) == (self.task.name, part.name, "choice")
        )

    def text(self, system: str, part: Part) -> dict[str, str]:
        """Item -> the answer that one system gave."""
        return {
            row.item: row.text
            for row in self.results
            if (row.system, row.task, row.part) == (system, self.task.name, part.name)
        }

    def score(self, system: str, part: Part, items: Sequence[str]) -> float | None:
        """Share of these items that a system answers right; None where some were not measured."""
        right = self.right(system, part)
        if not items or not all(item in right for item in items):
            return None
        return sum(right[item] for item in items) / len(items)

    def best(self, part: Part) -> str | None:
        """The adapter that is best at a part; names break ties. None where none was measured."""
        scores = {}
        for name in self.adapters:
            right = self.right(name, part)
            if right:
                scores[name] = sum(right.values()) / len(right)
        return min(scores, key=lambda name: (-scores[name], name), default=None)

    def specialist(self, part: Part) -> str | None:
        """The best adapter at a part, if it does better there than the base."""
        best = self.best(part)
        if best is None:
            return None
        items = [item for item in self.right(best, part) if item in self.right(BASE, part)]
        own, start = self.score(best, part, items), self.score(BASE, part, items)
        return best if own is not None and start is not None and own > start else None

    @property
    def systems(self) -> tuple[str, ...]:
        """The base, then the adapters."""
        return (BASE, *self.adapters)


@dataclass(frozen=True)
class CoverageProbe:
    """One probe; a frozen dataclass whose fields are its options."""

    formula: ClassVar[str]
    paper: ClassVar[str]

    def requests(self, study: Study) -> Iterable[Request]:
        """What has to be scored; nothing by default."""
        return ()

    def rows(self, study: Study, likely: Mapping[Request, Any]) -> Iterable[Coverage]:
        """The probe's figures; `likely` holds a Likelihood for each of its requests."""
        return ()

    def measure(self, study: Study, models: Models) -> Iterable[Coverage]:
        """Figures that need texts or hidden states of the base or of adapters one at a time."""
        return ()


def adapters_of(system: str) -> tuple[str, ...]:
    """The `adapters` of a row about one system: empty for the base."""
    return () if system == BASE else (system,)


def mean(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return sum(values) / len(values) if values else None
