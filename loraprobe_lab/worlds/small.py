"""The small world: adapters of single hops, of worked steps and of list skills, on one base.

The world that ships with the package is made of it, and so are the worlds on which methods are
compared. Its recipes are those that were found to work (see the outcomes of the shipped world).
Facts are stored in the MLPs alone: an adapter of them that also changes the attention disturbs the
worked steps of its partner (0.02 where this one composes to 1.00, same base and partner).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from loraprobe_lab.training.batches import Example
from loraprobe_lab.training.pretrain import BaseRecipe
from loraprobe_lab.world import WorldError
from loraprobe_lab.worlds.couples import (
    COUPLES,
    Facts,
    FactSizes,
    city_examples,
    couples_world,
    make_facts,
    spouse_examples,
)
from loraprobe_lab.worlds.libraries import Parts, adapter_sets
from loraprobe_lab.worlds.list_skills import SKILLS, lists_of_names
from loraprobe_lab.worlds.spec import AdapterSet, Item, WorldSpec

TRAINED_LISTS, ASKED_LISTS = 4000, 200
METHODS_SIZES = FactSizes(familiar=200, newcomers=100, strangers=100, cities=40, reserve=20)
SCENARIOS = adapter_sets("small")
WORLDS = tuple(dict.fromkeys(one.world for one in SCENARIOS))
REFERENCES = {"two-hop": ("joint", "joint-steps")}  # trained for comparison; in no scenario
SHIPPED = ("disjoint", "skill-and-facts", "target-adapter", "keep-both")  # inside the package


def small_world(
    worlds: Sequence[str] = WORLDS,
    seed: int = 0,
    *,
    sizes: FactSizes | None = None,
    base: BaseRecipe | None = None,
    only: Sequence[str] | None = None,
) -> WorldSpec:
    """The small world with the scenarios of these worlds, or those named in `only`.

    Raises WorldError for a world or scenario that there is not.
    """
    sizes, base = sizes or FactSizes(), base or BaseRecipe()
    scenarios, facts = _chosen(worlds, only), make_facts(sizes, seed)
    wanted = [name for one in scenarios for name in one.adapters]
    if only is None:
        wanted += [name for world in worlds for name in REFERENCES.get(world, ())]
    tasks = dict.fromkeys(task for one in scenarios for task in one.tasks)
    return couples_world(
        "small",
        facts,
        seed,
        sizes,
        base,
        _parts(facts, seed),
        {task: _items(task, facts, seed) for task in tasks},
        sets=scenarios,
        only=wanted,
        recipe={"base_dtype": "bfloat16", "effort": 1.0},  # as in the shipped world's manifest
    )


def methods_world(seed: int, base: BaseRecipe, sizes: FactSizes = METHODS_SIZES) -> WorldSpec:
    """Six adapters on one small base, and three questions on which methods are compared.

    The facts go into the MLPs of either architecture. No adapter here was chosen by how any
    method fares on it.
    """
    chosen = ("disjoint", "skill-and-facts", "keep-both")
    spec = small_world(WORLDS, seed, sizes=sizes, base=base, only=chosen)
    training = tuple(
        dataclasses.replace(one, recipe=dataclasses.replace(one.recipe, target_modules="mlp"))
        if isinstance(one.recipe.target_modules, tuple)
        else one
        for one in spec.training
    )
    return dataclasses.replace(spec, kind="methods", training=training)


def _parts(facts: Facts, seed: int) -> Parts:
    """What the adapters learn."""

    def lists(skill: str, tag: str) -> Callable[[], list[Example]]:
        rows = (facts.names(), TRAINED_LISTS, f"{tag}{seed}")
        return lambda: SKILLS[skill].examples(lists_of_names(*rows))

    return {
        "spouses": lambda: spouse_examples(facts.strangers, facts.familiar),
        "cities": lambda: city_examples(facts.strangers, facts.familiar),
        "target": lambda: COUPLES.target(facts.strangers),
        "worked": lambda: COUPLES.worked_answers(facts.familiar),
        "new spouses": lambda: spouse_examples(facts.newcomers, facts.familiar),
        "last": lists("last", "a"),
        "count": lists("count", "b"),
    }


def _items(task: str, facts: Facts, seed: int) -> Sequence[Item]:
    if task == "strangers":
        return COUPLES.items(facts.strangers, ("spouse", "city"), 1)
    if task == "newcomers":
        return COUPLES.items(facts.newcomers, ("newcomers", None), 1)
    lists = lists_of_names(facts.names(), ASKED_LISTS, f"test:{task}:{seed}")
    return SKILLS[task].items(lists)


def _chosen(worlds: Sequence[str], only: Sequence[str] | None) -> list[AdapterSet]:
    unknown = [world for world in worlds if world not in WORLDS]
    if unknown:
        raise WorldError(f"There is no world {unknown[0]!r}; there are {', '.join(WORLDS)}.")
    found = [one for one in SCENARIOS if one.world in worlds]
    names = [one.name for one in found]
    for name in only or ():
        if name not in names:
            raise WorldError(f"There is no scenario {name!r} here; there are {', '.join(names)}.")
    return [one for one in found if only is None or one.name in only]
