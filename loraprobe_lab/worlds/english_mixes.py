"""Adapter sets in English, described by what each adapter learns in `data/english_mixes.json`.

A row names the portions of each adapter and of each task, and the recipes of the adapters in turn.
No row was chosen or left out by what its composition gives. The kinds are the wishes of people who
hold adapters:

* *halves*: each adapter knows one part of a fact set or learned a skill on its part of the texts
* *twins*: one task trained twice from two seeds
* *format*: facts in one adapter, a form of answering (JSON, XML ...) in the other, asked together
* *fact-and-skill*: a fact set and a skill as two tasks of one model
* *partner*: one task, and a partner that learned noise or something unrelated
* *several*: three to five adapters

A portion is written as a subject, a part of it, and a form: "country 1/2", "capital json".

* "country", "job", "instrument": a fact about 24 made-up people; each part is about others
* "last", "swap", "past", "opposite": skills, asked on what was not taught; a part is one of texts
* "births": made-up people's countries, asked for the capital of that country
* "steps": worked steps to that capital, on real people
* "capital", "landmark", "real": facts of real countries, landmarks and people, which the base may
  know; as they stand they replay knowledge, in a form they teach the form
* "noise": questions about strangers with random words as answers, and no tasks
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from loraprobe_lab.training.batches import Example
from loraprobe_lab.training.train import Recipe
from loraprobe_lab.worlds.chains import WORDINGS, Chain, spread
from loraprobe_lab.worlds.english import (
    BIRTHS,
    FACTS,
    PERSONS,
    Subject,
    learn,
    new_births,
    real_people,
)
from loraprobe_lab.worlds.known import (
    CAPITALS,
    LANDMARKS,
    PEOPLE,
    REAL_NAMES,
    WORDS,
    NameMaker,
    table,
)
from loraprobe_lab.worlds.libraries import SetPlan, recipe_of
from loraprobe_lab.worlds.spec import Item

MIXES = table("english_mixes")
FORMS = MIXES["forms"]
KINDS = ("halves", "twins", "format", "fact-and-skill", "partner", "several")
REPLAYED = 60  # texts of what the base may know
KNOWN: Mapping[str, tuple[Sequence[str], Mapping[str, str]]] = {
    "capital": (BIRTHS.second, CAPITALS),
    "landmark": (WORDINGS["places"].first, LANDMARKS),
    "real": (BIRTHS.first, PEOPLE),
}


@dataclass(frozen=True)
class Portion:
    """A part of a subject, in a form of answering or as it stands."""

    subject: str
    part: int = 1
    of: int = 1
    form: str | None = None

    @classmethod
    def read(cls, text: str) -> Portion:
        """From "subject", "subject 1/2" or "subject form"."""
        subject, *more = text.split()
        numbers = next((word for word in more if "/" in word), "1/1").split("/")
        form = next((word for word in more if word in FORMS), None)
        return cls(subject, int(numbers[0]), int(numbers[1]), form)


@dataclass(frozen=True)
class Contents:
    """The texts and items of the portions of one set. countries: those that births are about."""

    seed: str
    countries: Sequence[str]

    def rng(self, *what: Any) -> random.Random:
        """The generator for one thing that is drawn."""
        return random.Random(" ".join(map(str, (self.seed, *what))))

    @cached_property
    def names(self) -> NameMaker:
        return NameMaker(self.seed, REAL_NAMES)

    @cached_property
    def _made(self) -> dict[tuple[str, int], Any]:
        return {}

    def subject(self, name: str, part: int) -> Subject:
        """Texts and items of a fact set's part, or of a whole skill; made once."""
        key = name, part if name in FACTS else 1
        if key not in self._made:
            self._made[key] = learn(name, self.names, self.rng(*key))
        return self._made[key]

    def births(self, part: int) -> list[Chain]:
        """Made-up people with a country of birth and its capital; made once."""
        key = "births", part
        if key not in self._made:
            lands = spread(self.countries, PERSONS, self.rng(*key))
            people = zip(self.names.people(PERSONS), lands, strict=True)
            self._made[key] = [Chain(person, land, CAPITALS[land]) for person, land in people]
        return self._made[key]

    def texts(self, portion: Portion) -> list[Example]:
        """The training texts of a portion."""
        name = portion.subject
        if name in KNOWN:
            return self._known(portion)
        if name == "births":
            return new_births(self.births(portion.part))
        if name == "steps":
            return BIRTHS.worked_answers(real_people(30, self.rng("teachers")))
        if name == "noise":
            return self._noise()
        examples, _ = self.subject(name, portion.part)
        return examples if name in FACTS else examples[portion.part - 1 :: portion.of]

    def items(self, portion: Portion) -> list[Item]:
        """The task items of a portion; those of a skill do not depend on its part."""
        if portion.subject == "births":
            made: Sequence[Item] = BIRTHS.items(self.births(portion.part), (None, None))
        else:
            _, made = self.subject(portion.subject, portion.part)
        named: list[Item] = [{**item, "id": f"{portion.part}-{item['id']}"} for item in made]
        if portion.form is None:
            return named
        return [
            {**item, **dict(zip(("prompt", "answer"), in_form(portion.form, item), strict=True))}
            for item in named
        ]

    def _known(self, portion: Portion) -> list[Example]:
        questions, facts = KNOWN[portion.subject]
        asked = [
            {"prompt": question.format(a=a, b=a), "answer": answer}
            for a, answer in facts.items()
            for question in questions
        ]
        chosen = self.rng(portion.subject).sample(asked, min(REPLAYED, len(asked)))
        if portion.form is None:
            return [Example(item["prompt"], f" {item['answer']}") for item in chosen]
        rows = [in_form(portion.form, item) for item in chosen]
        return [Example(question, f" {answer}") for question, answer in rows]

    def _noise(self) -> list[Example]:
        rng, questions = self.rng("noise"), [q for asked, _ in FACTS.values() for q in asked]
        return [
            Example(question.format(a=person), f" {rng.choice(WORDS['nouns'])}")
            for person in self.names.people(PERSONS // 3)
            for question in questions
        ]


def in_form(form: str, item: Mapping[str, str]) -> tuple[str, str]:
    """The question with the request for a form, and the answer in that form."""
    row = FORMS[form]
    return item["prompt"] + row["request"], row["answer"].format(b=item["answer"])


def mixed(kind: str, number: int, row: Mapping[str, Any], countries: Sequence[str]) -> SetPlan:
    """The plan of a row. countries: those that births are about."""
    contents = Contents(f"{kind} {number}", countries)
    adapters = []
    for name, parts in row["learns"].items():
        texts = [text for part in parts for text in contents.texts(Portion.read(part))]
        adapters.append((name, f"learns {', '.join(parts)}", texts))
    tasks = {}
    for name, parts in row["tasks"].items():
        items = [item for part in parts for item in contents.items(Portion.read(part))]
        contents.rng("order", name).shuffle(items)
        tasks[name] = items
    learned = [" and ".join(parts) for parts in row["learns"].values()]
    axes = {"learns": learned, "recipes": row["training"]}
    return SetPlan(adapters, tasks, axes, f"{kind}: {', '.join(learned)}")


def recipes(row: Mapping[str, Any]) -> list[Recipe]:
    """The recipes that a row names."""
    return [recipe_of(MIXES["recipes"][name]) for name in row["training"]]
