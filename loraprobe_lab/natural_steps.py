"""Sets whose target takes two steps: `skill-and-facts`, `two-hop` and `domain`.

*Skill and facts*: new facts in one adapter, worked steps in the other, the second fact left to the
base. *Two-hop*: each adapter one hop, with or without its own worked sentence. *Domain*: new facts
learned in English, asked in French; the other adapter learned French answers on real people.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraprobe_lab.kit import Trial
from loraprobe_lab.known import CAPITALS, PEOPLE
from loraprobe_lab.known_places import FRENCH
from loraprobe_lab.names import NameMaker
from loraprobe_lab.natural_data import (
    ABOUT,
    BORN,
    COUNTRY,
    STEP_BY_STEP,
    Chain,
    items_of,
    real_people,
    skill_lessons,
    spread,
    teach,
    told,
    two_hop_lessons,
)
from loraprobe_lab.natural_hops import Hops
from loraprobe_lab.natural_kit import NaturalSet, lesson, thrifty
from loraprobe_lab.train import Recipe

TAKEN = (*PEOPLE, *CAPITALS, *CAPITALS.values())


@dataclass(frozen=True)
class Taught:
    """How a set's two adapters are trained: steps and learning rate of each, and its batch size.

    targets: what the adapters lie on, as in `Recipe.target_modules`.
    """

    first: tuple[int, float] = (64, 1.5e-3)
    second: tuple[int, float] = (36, 2e-3)
    batches: tuple[int, int] = (24, 12)
    targets: tuple[str, str] = ("all-linear", "all-linear")

    def recipes(self, layers: int) -> tuple[Recipe, Recipe]:
        one, two = zip((self.first, self.second), self.batches, self.targets, strict=True)
        return _recipe(layers, *one), _recipe(layers, *two)

    def axes(self) -> dict[str, Any]:
        """The same as plain values, for tables."""
        (n1, r1), (n2, r2) = self.first, self.second
        return {"steps": [n1, n2], "learning_rates": [r1, r2], "targets": list(self.targets)}


def _recipe(layers: int, effort: tuple[int, float], batch_size: int, targets: str) -> Recipe:
    return thrifty(layers, *effort, batch_size, target_modules=targets)


def skill_set(
    seed: int,
    countries: Sequence[str],
    familiarity: str,
    *,
    layers: int,
    invented: float = 0.0,
    taught: Taught | None = None,
    people: int = 24,
) -> NaturalSet:
    """Made-up people's countries in `facts`, worked steps to the capital in `steps`.

    `familiarity` says how well the base knows the capitals of `countries`: "familiar", "half" or
    "made-up"; in the last case `countries` is not read and the countries are invented too.
    """
    taught = taught or Taught()
    name = f"skill-and-facts-{seed:02d}"
    capitals: Mapping[str, str] = CAPITALS
    if familiarity == "made-up":
        words = NameMaker(f"lands {seed}", TAKEN)
        capitals = {c: words.cities(1)[0] for c in words.cities(24)}
        countries = list(capitals)
    said = skill_lessons(countries, seed, people, invented=invented, capitals=capitals, brief=True)
    first, second = taught.recipes(layers)
    return NaturalSet(
        seed,
        (
            lesson(name, "facts", "made-up person -> country", said.examples["facts"], first),
            lesson(name, "steps", "worked steps to the capital", said.examples["steps"], second),
        ),
        {"capital": said.items},
        Trial(
            name,
            "skill-and-facts",
            ("facts", "steps"),
            ("capital",),
            f"new facts, worked steps ({invented:.0%} of them on invented people), and a "
            f"{familiarity} second hop",
            {"invented": invented, "second_hop": familiarity, **taught.axes()},
        ),
    )


def made_up_hops(
    seed: int, form: str, *, layers: int, taught: Taught | None = None, people: int = 24
) -> NaturalSet:
    """Two disjoint hops, both invented: person -> spouse, spouse -> city.

    form: "plain", "steps" (each adapter also its own worked sentence) or "target" (plain, and a
    third adapter that knows the target relation).
    """
    taught = taught or Taught((48, 2e-3), (48, 2e-3), (20, 20))
    name = f"two-hop-{seed:02d}"
    said = two_hop_lessons(seed, people, cities=people)
    suffix = "-cot" if form == "steps" else ""
    members = [("spouse", "first hop"), ("city", "second hop")]
    members += [("target", "both hops at once")] if form == "target" else []
    recipes = [*taught.recipes(layers), taught.recipes(layers)[0]]
    lessons = [
        lesson(name, member, about, said.examples[member + suffix], recipe)
        for (member, about), recipe in zip(members, recipes, strict=False)
    ]
    names = tuple(member for member, _ in members)
    axes = {"form": form, "first_hop": "made-up", "second_hop": "made-up", **taught.axes()}
    text = f"two hops over made-up names, library {', '.join(names)}, {form}"
    return NaturalSet(
        seed,
        tuple(lessons),
        {"city": said.items},
        Trial(name, "two-hop", names, ("city",), text, axes),
    )


def own_steps(
    seed: int,
    chains: Sequence[Chain],
    others: Sequence[Chain],
    wording: Hops,
    axes: Mapping[str, Any],
    *,
    layers: int,
    steps: bool = True,
    taught: Taught | None = None,
) -> NaturalSet:
    """Hop a -> b in one adapter, b -> c in the other, and with `steps` each its own sentence.

    The second adapter learns its sentence after first ones about `others`, of whom nothing is
    asked; their c has to follow from b as that of the chains does.
    """
    taught = taught or Taught()
    name = f"two-hop-{seed:02d}"
    worked = [q + STEP_BY_STEP for q in wording.both]
    pairs = list({x.b: x for x in chains}.values())
    one = [teach(x, q, " {b}") for x in chains for q in wording.first[:2]]
    two = [teach(x, q, " {c}") for x in pairs for q in wording.second[:2]]
    one += told(chains, ABOUT[0], wording.said, wording.after)
    if steps:
        one += [teach(x, q, wording.said, end=False) for x in chains for q in worked[:1]]
        two += [teach(x, q + wording.said, wording.then) for x in others for q in worked]
    first, second = taught.recipes(layers)
    hops = (
        ("first", wording.first),
        ("second", [wording.bare] * len(wording.first)),
    )
    return NaturalSet(
        seed,
        (
            lesson(name, "first", "the first hop", one, first),
            lesson(name, "second", "the second hop", two, second),
        ),
        {"target": items_of(chains, wording.both, hops, wording.pattern)},
        Trial(
            name,
            "two-hop",
            ("first", "second"),
            ("target",),
            "two hops, " + ("each adapter with its own worked sentence" if steps else "plain"),
            {"form": "steps" if steps else "plain", **axes, **taught.axes()},
        ),
    )


def newcomers(
    seed: int, countries: Sequence[str], people: int = 24
) -> tuple[list[Chain], list[Chain]]:
    """Made-up people with real countries, and real people beside them, for `own_steps`."""
    names = NameMaker(f"newcomers {seed}", TAKEN)
    births = spread(countries, people, random.Random(f"births {seed}"))
    chains = [Chain(p, b, CAPITALS[b]) for p, b in zip(names.people(people), births, strict=True)]
    return chains, real_people(30, random.Random(f"teachers {seed}"))


FRENCH_QUESTIONS = (
    "Quel est le pays de naissance de {a} ?",
    "Dans quel pays est né(e) {a} ?",
    "D'où vient {a} ?",
)
IN_FRENCH = " En français : {c}."
ETAPES = " Réponds étape par étape."


def domain_set(
    seed: int, form: str, *, layers: int, taught: Taught | None = None, people: int = 24
) -> NaturalSet:
    """Countries of made-up people, learned in English, asked for in French.

    form: "name" (the answer is the French name at once) or "steps" (an English sentence first).
    The second adapter learns the form on real people; no country of the facts is missing there.
    """
    taught = taught or Taught()
    name = f"domain-{seed:02d}"
    rng = random.Random(f"domain {seed}")
    births = spread(list(FRENCH), people, rng)
    named = NameMaker(f"domain {seed}", TAKEN).people(people)
    chains = [Chain(p, b, FRENCH[b]) for p, b in zip(named, births, strict=True)]
    real = [Chain(p, b, FRENCH[b]) for p, b in PEOPLE.items() if b in FRENCH]
    one = [teach(x, q, " {b}") for x in chains for q in COUNTRY[:2]]
    one += [e for q in ABOUT for e in told(chains, q, BORN)]
    asked = [q + ETAPES if form == "steps" else q for q in FRENCH_QUESTIONS]
    answer = BORN + IN_FRENCH if form == "steps" else " {c}"
    two = [teach(x, q, answer) for x in real for q in asked]
    hops = (("facts", COUNTRY), (None, ["The French name of {1} is"] * len(COUNTRY)))
    items = items_of(chains, FRENCH_QUESTIONS, hops, r"[Ff]rançais : ([^.\n]+)", ETAPES)
    first, second = taught.recipes(layers)
    return NaturalSet(
        seed,
        (
            lesson(name, "facts", "made-up person -> country, in English", one, first),
            lesson(name, "french", "French questions about real people", two, second),
        ),
        {"french": items},
        Trial(name, "domain", ("facts", "french"), ("french",),
              f"facts learned in English, asked in French ({form})",
              {"form": form, **taught.axes()}),
    )  # fmt: skip
