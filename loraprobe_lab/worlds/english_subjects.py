"""What the adapters of `keep-both` learn in English: two tasks, and one model that should do both.

A subject is what one adapter learns: new facts about made-up people (birth country, job,
instrument), or a skill on everyday words (the last of a list, two words swapped, past tense,
opposites). Two subjects of one family are near, a fact and a skill are far.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from loraprobe_lab.training.batches import Example
from loraprobe_lab.worlds.chains import spread
from loraprobe_lab.worlds.english import BIRTHS
from loraprobe_lab.worlds.known import CAPITALS, WORDS
from loraprobe_lab.worlds.names import NameMaker
from loraprobe_lab.worlds.spec import Item

PEOPLE_TAUGHT, WORDS_ASKED, LISTS_TAUGHT = 24, 60, 120
# a fact about a person: questions with {a}, and the values it may take
FACTS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "country": (BIRTHS.first, list(CAPITALS)[:24]),
    "job": (
        ("What is the profession of {a}?", "What does {a} do for a living?", "What is {a}'s job?"),
        WORDS["jobs"],
    ),
    "instrument": (
        (
            "Which instrument does {a} play?",
            "What is the favourite instrument of {a}?",
            "What instrument did {a} learn?",
        ),
        WORDS["instruments"],
    ),
}
# a skill on single words: a question with {a}, and the answers; some are taught, others asked
WORD_SKILLS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "past": ("What is the past tense of {a}?", WORDS["past"]),
    "opposite": ("What is the opposite of {a}?", WORDS["opposites"]),
}
FAMILIES: Mapping[str, Sequence[str]] = {
    "facts": list(FACTS),
    "lists": ["last", "swap"],
    "words": list(WORD_SKILLS),
}
Subject = tuple[list[Example], list[Item]]  # what an adapter learns, and on what it is judged


def family(subject: str) -> str:
    """The family that a subject belongs to. Raises ValueError naming those there are."""
    for name, members in FAMILIES.items():
        if subject in members:
            return name
    known = ", ".join(member for members in FAMILIES.values() for member in members)
    raise ValueError(f"there is no subject {subject!r}; there are {known}")


def learn(subject: str, names: NameMaker, rng: random.Random) -> Subject:
    """Texts and items of a subject; new people are drawn from `names`, all else from `rng`."""
    kind = family(subject)
    if kind == "facts":  # every wording of a fact is taught, and asked, in one group
        questions, values = FACTS[subject]
        drawn = spread(values, PEOPLE_TAUGHT, rng)
        people = list(zip(names.people(PEOPLE_TAUGHT), drawn, strict=True))
        asked = [(q.format(a=person), value, person) for person, value in people for q in questions]
        return _subject(subject, asked, asked)
    if kind == "words":
        form, pairs = WORD_SKILLS[subject]
        rows = [(form.format(a=word), answer) for word, answer in pairs.items()]
        rng.shuffle(rows)
        taught = len(rows) - WORDS_ASKED
    else:  # no list is both taught and asked
        made: dict[str, str] = {}
        while len(made) < LISTS_TAUGHT + 2 * WORDS_ASKED:
            prompt, answer = _list(subject, rng)
            made.setdefault(prompt, answer)
        rows, taught = list(made.items()), LISTS_TAUGHT
    whole = [(question, answer, question) for question, answer in rows]
    return _subject(subject, whole[:taught], whole[taught:])


def _list(skill: str, rng: random.Random) -> tuple[str, str]:
    if skill == "last":
        words = rng.sample(WORDS["nouns"], rng.randint(3, 5))
        return f"Last word of the list: {', '.join(words)}.", words[-1]
    one, two = rng.sample(WORDS["nouns"], 2)
    return f"Swap the words: {one} {two}.", f"{two} {one}"


def _subject(
    name: str, taught: Sequence[tuple[str, str, str]], asked: Sequence[tuple[str, str, str]]
) -> Subject:
    """From rows of question, answer and group."""
    items: list[Item] = [
        {"id": f"{name}-{i:03d}", "prompt": question, "answer": answer, "group": group}
        for i, (question, answer, group) in enumerate(asked)
    ]
    return [Example(question, f" {answer}") for question, answer, _ in taught], items
