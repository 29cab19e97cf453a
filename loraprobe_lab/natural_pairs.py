"""`keep-both` in natural language: two adapters, two tasks, and one model that should do both.

A subject is what one adapter learns: new facts about made-up people (birth country, job,
instrument), or a skill on everyday words (the last of a list, two words swapped, past tense,
opposites). Two subjects of one family are near, a fact and a skill are far.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from loraprobe_lab.common_words import INSTRUMENTS, JOBS, NOUNS, OPPOSITES, PAST
from loraprobe_lab.kit import Trial
from loraprobe_lab.known import CAPITALS
from loraprobe_lab.names import NameMaker
from loraprobe_lab.natural_data import COUNTRY, Item, spread
from loraprobe_lab.natural_kit import NaturalSet, lesson
from loraprobe_lab.natural_steps import TAKEN, Taught
from loraprobe_lab.train import Example

PEOPLE_TAUGHT, WORDS_ASKED, LISTS_TAUGHT = 24, 60, 120


@dataclass(frozen=True)
class Subject:
    """What an adapter learns, and the items on which it is judged."""

    examples: tuple[Example, ...]
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Relation:
    """A fact about a person: questions with {a}, and the values it may take."""

    questions: tuple[str, ...]
    values: tuple[str, ...]


RELATIONS: dict[str, Relation] = {
    "country": Relation(COUNTRY, tuple(CAPITALS)[:24]),
    "job": Relation(
        ("What is the profession of {a}?", "What does {a} do for a living?", "What is {a}'s job?"),
        JOBS,
    ),
    "instrument": Relation(
        (
            "Which instrument does {a} play?",
            "What is the favourite instrument of {a}?",
            "What instrument did {a} learn?",
        ),
        INSTRUMENTS,
    ),
}


def facts(relation: str, names: NameMaker, rng: random.Random) -> Subject:
    """New facts: every wording of a fact is taught, and asked, in one group."""
    what = RELATIONS[relation]
    values = spread(what.values, PEOPLE_TAUGHT, rng)
    rows = list(zip(names.people(PEOPLE_TAUGHT), values, strict=True))
    asked = [(a, q.format(a=a), value) for a, value in rows for q in what.questions]
    return Subject(
        tuple(Example(q, f" {value}") for _, q, value in asked),
        tuple(_item(relation, i, q, value, a) for i, (a, q, value) in enumerate(asked)),
    )


def _last(rng: random.Random) -> tuple[str, str]:
    words = rng.sample(NOUNS, rng.randint(3, 5))
    return f"Last word of the list: {', '.join(words)}.", words[-1]


def _swap(rng: random.Random) -> tuple[str, str]:
    one, two = rng.sample(NOUNS, 2)
    return f"Swap the words: {one} {two}.", f"{two} {one}"


def lists(skill: str, rng: random.Random) -> Subject:
    """A skill on random lists: "last" or "swap"; no list is both taught and asked."""
    draw: Callable[[random.Random], tuple[str, str]] = {"last": _last, "swap": _swap}[skill]
    made: dict[str, str] = {}
    while len(made) < LISTS_TAUGHT + 2 * WORDS_ASKED:
        prompt, answer = draw(rng)
        made.setdefault(prompt, answer)
    rows = list(made.items())
    return _split(skill, rows, LISTS_TAUGHT)


def words(skill: str, rng: random.Random) -> Subject:
    """A skill on single words, "past" or "opposite": some words are taught, the others asked."""
    pairs, form = {
        "past": (PAST, "What is the past tense of {a}?"),
        "opposite": (OPPOSITES, "What is the opposite of {a}?"),
    }[skill]
    rows = [(form.format(a=word), answer) for word, answer in pairs.items()]
    rng.shuffle(rows)
    return _split(skill, rows, len(rows) - WORDS_ASKED)


def _split(skill: str, rows: Sequence[tuple[str, str]], taught: int) -> Subject:
    return Subject(
        tuple(Example(q, f" {answer}") for q, answer in rows[:taught]),
        tuple(_item(skill, i, q, answer, q) for i, (q, answer) in enumerate(rows[taught:])),
    )


def _item(subject: str, number: int, prompt: str, answer: str, group: str) -> Item:
    return {
        "id": f"{subject}-{number:03d}",
        "prompt": prompt,
        "answer": answer,
        "group": group,
    }


FAMILIES: Mapping[str, tuple[str, ...]] = {
    "facts": tuple(RELATIONS),
    "lists": ("last", "swap"),
    "words": ("past", "opposite"),
}


EFFORTS: Mapping[str, tuple[int, float]] = {  # steps and learning rate
    "facts": (48, 2e-3),
    "lists": (28, 2e-3),
    "words": (28, 2e-3),
}


def family(subject: str) -> str:
    """The family that a subject belongs to. Raises ValueError naming those there are."""
    for name, members in FAMILIES.items():
        if subject in members:
            return name
    known = ", ".join(member for members in FAMILIES.values() for member in members)
    raise ValueError(f"there is no subject {subject!r}; there are {known}")


def keep_both_set(
    seed: int, subjects: tuple[str, str], *, layers: int, taught: Taught | None = None
) -> NaturalSet:
    """Two adapters of one subject each. The same fact twice is about two groups of people."""
    one, two = (EFFORTS[family(subject)] for subject in subjects)
    taught = taught or Taught(one, two, (20, 20))
    name = f"keep-both-{seed:02d}"
    people = NameMaker(f"keep-both {seed}", TAKEN)
    learned: list[Subject] = []
    for i, subject in enumerate(subjects):
        rng = random.Random(f"keep-both {seed} {i} {subject}")
        make = {"lists": lists, "words": words}.get(family(subject))
        learned.append(make(subject, rng) if make else facts(subject, people, rng))
    labels = [f"{subject}{i}" for i, subject in enumerate(subjects, 1)]
    near = family(subjects[0]) == family(subjects[1])
    return NaturalSet(
        seed,
        tuple(
            lesson(name, label, f"learns {subject}", what.examples, recipe)
            for label, subject, what, recipe in zip(
                labels, subjects, learned, taught.recipes(layers), strict=True
            )
        ),
        {label: what.items for label, what in zip(labels, learned, strict=True)},
        Trial(
            name,
            "keep-both",
            (labels[0], labels[1]),
            (labels[0], labels[1]),
            f"one model for {subjects[0]} and {subjects[1]}",
            {"subjects": list(subjects), "near": near, **taught.axes()},
        ),
    )
