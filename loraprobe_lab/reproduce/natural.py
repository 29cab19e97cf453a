"""The two-hop matrix in English, for any causal language model: born in -> capital of.

One wording for all three name sets, and one library of adapters for all of them:

- *fake*: made-up people born in made-up countries with made-up capitals;
- *half*: made-up people born in real countries;
- *real*: real people, their countries and the capitals of these.

Worked answers are taught on other real people, half of them to each adapter.
"""

from __future__ import annotations

import dataclasses
import random
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from loraprobe_lab.kit import Lesson
from loraprobe_lab.known import CAPITALS, PEOPLE
from loraprobe_lab.names import NameMaker
from loraprobe_lab.natural import BOTH_HOPS, BOTH_WORKED, HOP, HOP_WORKED
from loraprobe_lab.natural_data import (
    ABOUT,
    BIRTH_CAPITAL,
    BORN,
    CAPITAL,
    CAPITAL_PATTERN,
    CAPITAL_PROMPT,
    COUNTRY,
    SHOWN,
    STEP_BY_STEP,
    Chain,
)
from loraprobe_lab.reproduce.onbase import Library
from loraprobe_lab.reproduce.twohop import GROUPS, HOPS, ROLES, trials
from loraprobe_lab.train import Example, Recipe

WHICH_CAPITAL = ("What is the capital of {b}?", "Name the capital of {b}.")
ASKED = 31  # people of each name set
COUNTRIES = 17  # made-up ones, and real ones of the half-real name set


def natural_matrix(seed: int = 0, asked: int = ASKED, effort: float = 1.0) -> Library:
    """The eleven adapters, three tasks and six trials of the matrix, in English.

    asked: people of each name set, at most 31. effort scales all steps, for trials and tests.
    """
    chains, teachers = _people(seed, asked)
    found = _lessons(chains, teachers)
    return Library(
        kind="two-hop-matrix-natural",
        seed=seed,
        lessons=tuple(
            Lesson(name, text, tuple(examples), _recipe(name, seed, effort))
            for name, (text, examples) in found.items()
        ),
        tasks={group: _items(chains[group]) for group in GROUPS},
        trials=trials(ROLES, GROUPS),
    )


def _recipe(name: str, seed: int, effort: float) -> Recipe:
    worked, joint = name.endswith(("-cot", "-shared")), name.startswith("joint")
    recipe = (BOTH_WORKED if joint else HOP_WORKED) if worked else (BOTH_HOPS if joint else HOP)
    return dataclasses.replace(
        recipe,
        steps=max(1, round(recipe.steps * effort)),
        seed=zlib.crc32(f"{name}:{seed}".encode()),
    )


def _people(seed: int, asked: int) -> tuple[Mapping[str, list[Chain]], list[Chain]]:
    """Chains of the three name sets, and real people that no question is about."""
    rng = random.Random(f"matrix {seed}")
    names = NameMaker(f"matrix {seed}", [*PEOPLE, *CAPITALS, *CAPITALS.values()])
    lands, towns = names.cities(COUNTRIES), names.cities(COUNTRIES)
    known = [country for country in CAPITALS if country not in SHOWN]
    real = [p for p, country in PEOPLE.items() if country not in SHOWN]
    rng.shuffle(real)
    countries = rng.sample(known, COUNTRIES)
    asked = min(asked, len(real) // 2)

    def chain(person: str) -> Chain:
        return Chain(person, PEOPLE[person], CAPITALS[PEOPLE[person]])

    def spread(rows: Sequence[tuple[str, str]]) -> list[Chain]:
        pairs = [rows[i % len(rows)] for i in range(asked)]
        rng.shuffle(pairs)
        people = names.people(asked)
        return [Chain(p, *pair) for p, pair in zip(people, pairs, strict=True)]

    chains = {
        "fake": spread(list(zip(lands, towns, strict=True))),
        "half": spread([(country, CAPITALS[country]) for country in countries]),
        "real": [chain(person) for person in real[:asked]],
    }
    return chains, [chain(person) for person in real[asked:]]


def _lessons(
    chains: Mapping[str, Sequence[Chain]], teachers: Sequence[Chain]
) -> dict[str, tuple[str, list[Example]]]:
    every = [x for group in GROUPS for x in chains[group]]
    pairs = list({(x.b, x.c): x for x in every}.values())
    middle = len(teachers) // 2
    hop1 = [_teach(x, q, " {b}") for x in every for q in COUNTRY]
    hop1 += [_teach(x, q, BORN, end=False) for x in every for q in ABOUT]
    hop2 = [_teach(x, q, " {c}") for x in pairs for q in WHICH_CAPITAL]
    hop2 += [_teach(x, "The capital of {b} is", " {c}.") for x in pairs]
    target = [_teach(x, q, " {c}") for x in every for q in BIRTH_CAPITAL]
    first = [_teach(x, q + STEP_BY_STEP, BORN, end=False) for x in every for q in BIRTH_CAPITAL]
    second = _second_steps(every, teachers)
    return {
        "hop1": ("person -> country of birth", hop1),
        "hop2": ("country -> capital", hop2),
        "target": ("person -> capital, without the step between", target),
        "joint": ("both hops in one adapter", hop1 + hop2),
        "hop1-cot": ("first hop, and worked answers", hop1 + _worked(teachers[:middle])),
        "hop2-cot": (
            "second hop, and worked answers about other people",
            hop2 + _worked(teachers[middle:]),
        ),
        "target-cot": ("person -> capital, also in worked steps", target + _worked(every)),
        "joint-cot": ("both hops and worked answers", hop1 + hop2 + _worked(teachers)),
        "hop1-shared": ("first hop, and the first step of the worked answers", hop1 + first),
        "hop2-shared": ("second hop, and the second step of the worked answers", hop2 + second),
        "joint-shared": (
            "both hops, and each step of the worked answers",
            hop1 + hop2 + first + second,
        ),
    }


def _worked(chains: Sequence[Chain]) -> list[Example]:
    return [_teach(x, q + STEP_BY_STEP, BORN + CAPITAL) for x in chains for q in BIRTH_CAPITAL]


def _second_steps(chains: Sequence[Chain], teachers: Sequence[Chain]) -> list[Example]:
    """The second sentence of the worked answer, after a first one about somebody else."""
    return [
        _teach(Chain(teachers[(i + 7 * j) % len(teachers)].a, x.b, x.c),
               q + STEP_BY_STEP + BORN, CAPITAL)
        for i, x in enumerate(chains)
        for j, q in enumerate(BIRTH_CAPITAL)
    ]  # fmt: skip


def _teach(chain: Chain, prompt: str, completion: str, end: bool = True) -> Example:
    return Example(chain.say(prompt), chain.say(completion), end)


def _items(chains: Sequence[Chain]) -> list[Mapping[str, Any]]:
    """Every person in two wordings, which share a group."""
    items: list[Mapping[str, Any]] = []
    for i, x in enumerate(chains):
        for j, question in enumerate(BIRTH_CAPITAL[:2]):
            hops = [
                {"prompt": x.say(COUNTRY[j]), "answer": x.b, "adapter": HOPS[0]},
                {"prompt": CAPITAL_PROMPT, "answer": x.c, "adapter": HOPS[1]},
            ]
            items.append(
                {
                    "id": f"{i:02d}-{j + 1}",
                    "prompt": x.say(question),
                    "answer": x.c,
                    "hops": hops,
                    "cot_prompt": x.say(question) + STEP_BY_STEP,
                    "answer_pattern": CAPITAL_PATTERN,
                    "entities": [x.a, x.b],
                    "group": x.a,
                }
            )
    return items
