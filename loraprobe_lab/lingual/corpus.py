"""What the base of the world of two languages reads."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loraprobe_lab.lingual.language import ECHO, MEETING, RELATION, RELATIONS, Wording, ask, tell
from loraprobe_lab.lingual.people import People
from loraprobe_lab.train import Example


@dataclass(frozen=True)
class Familiarity:
    """How much a base reads of one relation in the second language.

    people: share of the familiar people about whom it does. texts: share of the texts about this
    relation. asked: whether it reads questions, or sentences alone.
    """

    people: float
    texts: float
    asked: bool


FAMILIARITY: Mapping[str, Familiarity] = {
    "none": Familiarity(0.0, 0.0, False),
    "little": Familiarity(0.15, 0.1, False),
    "much": Familiarity(0.6, 0.3, True),
}


class Corpus:
    """An endless stream of pretraining texts.

    Facts about familiar people, told and asked for, in the first language and as far as
    `familiarity` (relation -> "none", "little", "much") goes in the second one; meetings and
    repetitions, in which every person of the world occurs. No text holds both languages. The loss
    is taken where a text can be foreseen.
    """

    def __init__(self, people: People, familiarity: Mapping[str, str], seed: int) -> None:
        self._people, self._names = people, people.names()
        self._familiarity = {name: FAMILIARITY[level] for name, level in familiarity.items()}
        self._rng = random.Random(f"corpus:{seed}")

    def draw(self) -> Example:
        kind = self._rng.random()
        if kind < 0.25:
            return self._repetition(MEETING if kind < 0.12 else ECHO)
        relation = self._rng.choice(RELATIONS).name
        level, everybody = self._familiarity[relation], self._people.familiar
        if self._rng.random() < level.texts:
            known = everybody[: max(2, round(level.people * len(everybody)))]
            return self._text(relation, known, RELATION[relation].second, level.asked)
        return self._text(relation, everybody, RELATION[relation].first, asked=True)

    def _repetition(self, templates: tuple[str, str]) -> Example:
        """Two people whose names are said again: what copying a name is learned from."""
        first, second = self._rng.sample(self._names, 2)
        one, other = (text.format(first=first, second=second) for text in templates)
        return Example(one, f" {other}")

    def _text(self, relation: str, people: Sequence[str], wording: Wording, asked: bool) -> Example:
        """A question, or a sentence followed by the other wording or led by somebody else's."""
        facts, rng = self._people.facts[relation], self._rng
        (person, somebody), kind = rng.sample(people, 2), rng.random()
        if asked and kind < 0.5:
            return ask(rng.choice(wording.questions), person, facts[person])
        one, other = rng.sample(wording.sentences, 2)
        told = tell(one, person, facts[person])
        if rng.random() < 0.5:
            again = other.format(p=person, v=facts[person])
            return Example(told.prompt, f"{told.completion} {again}")
        before = other.format(p=somebody, v=facts[somebody])
        return Example(f"{before} {told.prompt}", told.completion)
