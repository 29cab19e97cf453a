"""A library of 200 adapters on one small base, of which few pairs compose for a task.

Four tasks, each about people or lists of its own:

- *newcomers*: a marriage that some adapters know and a home that the base knows, in worked steps
  that other adapters know (facts and a skill);
- *strangers*: the same with both hops new, each known to other adapters, all with worked steps;
- *guests*: the composed question answered at once; adapters know one to three quarters of them;
- *lists*: the last name and the number of names of a list; adapters know one or two list skills.

`data/library.json` holds the families of adapters and the tasks that they learn something about.
What an adapter learns (which quarters of the people), its epochs, learning rate, rank and target
modules are drawn, so that adapters of one family differ in what they know and in whether they
compose: facts from questions that end after the answer, or written into the attention too, answer
their hop and stop the partner's steps.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from loraprobe_lab.training import BaseRecipe, Example, Recipe
from loraprobe_lab.worlds.couples import (
    COUPLES,
    Facts,
    FactSizes,
    city_examples,
    couples_world,
    make_facts,
    spouse_examples,
)
from loraprobe_lab.worlds.facts import SKILLS, Chain, lists_of_names, table
from loraprobe_lab.worlds.spec import AdapterSet, Item, Parts, TrainingSet, WorldSpec, own_seed

QUARTERS, ASKED = 4, 160  # people of a task, in so many blocks
SIZES = FactSizes(newcomers=ASKED, strangers=2 * ASKED)
WORKED, FEW, LISTS = 200, 100, 2400  # couples of worked steps; lists that a skill learns from
BATCH, LEAST_STEPS = 32, 20
_LIBRARY = table("library")
FAMILIES: dict[str, dict[str, Any]] = _LIBRARY["families"]
RECIPE: dict[str, list[Any]] = _LIBRARY["recipe"]


def library_world(
    seed: int = 0, sizes: FactSizes | None = None, base: BaseRecipe | None = None
) -> WorldSpec:
    """The library of this seed, on a base of its own: a small world with more people."""
    sizes, base = sizes or SIZES, base or BaseRecipe()
    facts = make_facts(sizes, seed)
    tasks = _tasks(facts, seed)
    # The families take turns, so that a build that was stopped holds some of each.
    parts = _parts(facts, seed)
    training = sorted(_training(parts, seed), key=lambda one: int(one.name.rpartition("-")[2]))
    names = tuple(one.name for one in training)
    sets = [AdapterSet(name, "library", names, (name,), "Which pair answers it?") for name in tasks]
    spec = couples_world(
        "library", facts, seed, sizes, base, {}, tasks, library="small", sets=sets, only=()
    )
    return dataclasses.replace(spec, training=tuple(training))


def _people(facts: Facts) -> dict[str, Sequence[Chain]]:
    """The people of each task, and people of no task."""
    names, cities = facts.reserve, facts.cities
    half = len(names) // 2
    others = [
        Chain(a, b, cities[i % len(cities)])
        for i, (a, b) in enumerate(zip(names[:half], names[half:], strict=False))
    ]
    return {
        "newcomers": facts.newcomers[:ASKED],
        "strangers": facts.strangers[:ASKED],
        "guests": facts.strangers[ASKED : 2 * ASKED],
        "others": others,
    }


def _parts(facts: Facts, seed: int) -> Parts:
    """What adapters learn; "{}" in a part's name is the number of a quarter."""
    people, familiar = _people(facts), facts.familiar
    texts = {
        "marriages": ("newcomers", lambda rows: spouse_examples(rows, familiar)),
        "marriages asked": ("newcomers", COUPLES.hop1),
        "spouses": ("strangers", lambda rows: spouse_examples(rows, familiar)),
        "homes": ("strangers", lambda rows: city_examples(rows, familiar)),
        "answers": ("guests", COUPLES.target),
        "others": ("others", lambda rows: spouse_examples(rows, familiar)),
    }

    def skill(name: str) -> list[Example]:
        return SKILLS[name].examples(lists_of_names(facts.names(), LISTS, f"{name}{seed}"))

    return {
        **{
            f"{part} {i}": partial(make, people[group][i::QUARTERS])
            for part, (group, make) in texts.items()
            for i in range(QUARTERS)
        },
        "worked": lambda: COUPLES.worked_answers(familiar[:WORKED]),
        "worked few": lambda: COUPLES.worked_answers(familiar[:FEW]),
        "first step": lambda: COUPLES.first_steps(familiar[:WORKED]),
        **{name: partial(skill, name) for name in SKILLS},
    }


def _tasks(facts: Facts, seed: int) -> dict[str, Sequence[Item]]:
    """The four tasks; the items of `guests` name no hops, for no adapter knows one of them."""
    people = _people(facts)
    plain = ("id", "prompt", "answer", "group")
    lists = lists_of_names(facts.names(), ASKED, f"test:{seed}")
    half = ASKED // 2
    asked = [*SKILLS["last"].items(lists[:half]), *SKILLS["count"].items(lists[half:])]
    return {
        "newcomers": COUPLES.items(people["newcomers"], (None, None), 1),
        "strangers": COUPLES.items(people["strangers"], (None, None), 1),
        "guests": [
            {key: item[key] for key in plain}
            for item in COUPLES.items(people["guests"], (None, None), 1)
        ],
        "lists": [{**item, "id": str(i)} for i, item in enumerate(asked)],
    }


def _training(parts: Parts, seed: int) -> Iterator[TrainingSet]:
    """Every adapter of every family, drawn from the seed."""
    for family, row in FAMILIES.items():
        rng = random.Random(f"library:{family}:{seed}")
        for number in range(row["count"]):
            name = f"{family}-{number:02d}"
            learned = _drawn_parts(row, rng)
            examples = tuple(text for part in learned for text in parts[part]())
            recipe = _drawn_recipe(RECIPE | row, len(examples), rng)
            recipe = dataclasses.replace(recipe, seed=own_seed(name, seed))
            yield TrainingSet(name, f"{row['about']}: {', '.join(learned)}", examples, recipe)


def _drawn_parts(row: Mapping[str, Any], rng: random.Random) -> list[str]:
    """The parts that one adapter learns: list skills, or quarters of people and what is fixed."""
    if "skills" in row:
        return rng.sample(sorted(SKILLS), rng.choice(row["skills"]))
    quarters = sorted(rng.sample(range(QUARTERS), rng.choice(row.get("quarters", [1]))))
    return list(dict.fromkeys(part.format(i) for part in row["learns"] for i in quarters))


def _drawn_recipe(row: Mapping[str, Any], examples: int, rng: random.Random) -> Recipe:
    """A recipe whose fields are drawn from the lists of `row`; epochs become steps."""
    drawn = {key: rng.choice(row[key]) for key in RECIPE}
    steps = max(LEAST_STEPS, round(drawn.pop("epochs") * examples / BATCH))
    return Recipe(steps=steps, batch_size=BATCH, warmup=10, dtype="bfloat16", **drawn)
