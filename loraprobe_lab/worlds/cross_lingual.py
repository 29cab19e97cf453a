"""The cross-lingual world: new facts learned in one language, asked for in another."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loraprobe_lab.training.pretrain import BaseRecipe
from loraprobe_lab.training.train import Recipe
from loraprobe_lab.worlds.known import table
from loraprobe_lab.worlds.languages import (
    ANSWERS,
    RELATIONS,
    LanguagesCorpus,
    People,
    PeopleSizes,
    fact_examples,
    facts_about,
    language_examples,
    make_people,
    target_items,
)
from loraprobe_lab.worlds.libraries import TrainedSet, contents_of
from loraprobe_lab.worlds.spec import TrainingSet, WorldSpec, own_seed

WORLD = "cross-lingual"
BASE = BaseRecipe(hidden=96, layers=4, heads=4, intermediate=256, steps=700)
# What the axes of a set are drawn from, by architecture where it matters: a GPT-2-like base takes
# adapters up more slowly.
CHOICES: Mapping[str, Any] = table("strata")[WORLD]
Axes = Mapping[str, Any]  # of one set, see `draw_axes`


def cross_lingual_world(
    seed: int, *, base: BaseRecipe | None = None, count: int = 3, sizes: PeopleSizes | None = None
) -> WorldSpec:
    """The cross-lingual world with this seed.

    Every set has two adapters of its own: one learns facts about newcomers in the first
    language, the other questions of the second language; asked are the facts in the second
    language. Its axes are drawn from the seed, modes and relations in turn.
    """
    sizes, base = sizes or PeopleSizes(), base or BASE
    people, familiarity = make_people(sizes, seed), draw_familiarity(seed)
    axes = draw_axes(seed, count, familiarity, base.architecture)
    made_from = {"sizes": dataclasses.asdict(sizes), "familiarity": familiarity}
    return WorldSpec(
        kind="lingual",
        seed=seed,
        **contents_of([_set(people, seed, i, own) for i, own in enumerate(axes)]),
        base=base,
        words=people.words(),
        corpus=lambda draw_seed: LanguagesCorpus(people, familiarity, draw_seed).draw,
        reserve=people.reserve,
        made_from=made_from,
        recipe={**made_from, "adapter_sets": count},
    )


def draw_familiarity(seed: int) -> dict[str, str]:
    """How familiar the base of this seed is with each relation in the second language.

    Two are not read at all, the third a little or much.
    """
    rng = random.Random(f"familiarity:{seed}")
    levels = ["none", "none", rng.choice(("little", "much"))]
    rng.shuffle(levels)
    return dict(zip(RELATIONS, levels, strict=True))


def draw_axes(
    seed: int, count: int, familiarity: Mapping[str, str], architecture: str = "llama"
) -> list[Axes]:
    """The axes of every set of the world with this seed, on a base of this architecture.

    relation: what is asked for. familiarity: how much the base reads of it in the second
    language. mode: how the language adapter answers (`languages.ANSWERS`). taught: the relation
    whose questions it learns. invented: share of invented people among those it learns them on;
    the others are familiar. facts: relations about which the facts adapter learns. The rest are
    recipes: modules, steps, rank, alpha as a multiple of the rank, learning rate.
    """
    modes = _in_turn(ANSWERS, f"modes:{seed}")
    relations = _in_turn(list(RELATIONS), f"relations:{seed}")
    return [
        _axes(f"axes:{seed}:{i}", next(modes), next(relations), familiarity, architecture)
        for i in range(count)
    ]


def _in_turn(values: Sequence[str], seed: str) -> Iterator[str]:
    """Every value once, in an order drawn anew, again and again."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(values, len(values))


def _axes(
    seed: str, mode: str, relation: str, familiarity: Mapping[str, str], architecture: str
) -> Axes:
    rng = random.Random(seed)
    others = [other for other in RELATIONS if other != relation]
    axes: dict[str, Any] = {"relation": relation, "familiarity": familiarity[relation]}
    axes["mode"] = mode
    axes["taught"] = rng.choice(others) if rng.random() < 0.15 else relation
    axes["invented"] = rng.choice((0.0, 0.0, 0.0, 0.5, 1.0))
    axes["facts"] = (relation, rng.choice(others)) if rng.random() < 0.5 else (relation,)
    axes["facts_rank"] = 16
    for name, choices in CHOICES.items():
        if isinstance(choices, dict):  # by architecture; others take what Llama-like bases take
            choices = choices.get(architecture, choices["llama"])
        axes[name] = rng.choice(choices)
    axes["language_steps"] += 100 if mode == "translated" else 0
    return axes


def _set(people: People, seed: int, number: int, axes: Axes) -> TrainedSet:
    """The set of these axes, with its own facts about newcomers."""
    own, name = f"{seed}:{number}", f"{WORLD}-{number + 1}"
    facts = facts_about(people.newcomers, people.values, f"newcomers:{own}")
    told = {relation: facts[relation] for relation in axes["facts"]}
    taught = _taught_facts(people, axes, own)
    adapters = {
        "facts": (
            f"{' and '.join(told)} of newcomers, in the first language",
            fact_examples(told, people.facts, own),
        ),
        "language": (
            "questions about the {taught} in the second language, answered {mode}".format(**axes),
            language_examples(axes["taught"], taught, axes["mode"]),
        ),
    }
    training = [
        TrainingSet(f"{adapter}-{number + 1}", text, tuple(texts), _recipe(axes, adapter, own))
        for adapter, (text, texts) in adapters.items()
    ]
    asked, names = axes["relation"], [one.name for one in training]
    text = (
        "New facts about the {relation} in the first language, questions about the {taught} in the "
        "second one, of which the base has read {familiarity}; answers {mode}."
    )
    tasks = {name: target_items(asked, facts[asked], axes["mode"], names)}
    return TrainedSet(name, WORLD, training, tasks, text.format(**axes), axes)


def _recipe(axes: Axes, adapter: str, seed: str) -> Recipe:
    """The recipe of the "facts" or the "language" adapter."""
    rank = axes[f"{adapter}_rank"]
    return Recipe(
        steps=axes[f"{adapter}_steps"],
        learning_rate=axes[f"{adapter}_rate"],
        rank=rank,
        alpha=axes[f"{adapter}_alpha"] * rank,
        batch_size=32,
        target_modules=axes[f"{adapter}_modules"],
        dtype="bfloat16",
        seed=own_seed(adapter, seed),
    )


def _taught_facts(people: People, axes: Axes, seed: str) -> dict[str, str]:
    """Whose facts the language adapter learns on: as many people as there are invented ones."""
    rng, total = random.Random(f"taught:{seed}"), len(people.invented)
    count = round(axes["invented"] * total)
    invented = facts_about(people.invented, people.values, f"invented:{seed}")[axes["taught"]]
    familiar = people.facts[axes["taught"]]
    known = rng.sample(people.familiar, min(total - count, len(people.familiar)))
    chosen = {name: invented[name] for name in rng.sample(people.invented, count)}
    return chosen | {name: familiar[name] for name in known}
