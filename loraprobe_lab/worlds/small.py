"""The small world: adapters of single hops, of worked steps and of list skills, on one base.

The world that ships with the package is made of it, and so are the worlds on which methods are
compared. The recipes are those that were found to work (see the outcomes of the shipped world).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loraprobe_lab.training.batches import Example
from loraprobe_lab.training.pretrain import BaseRecipe
from loraprobe_lab.training.train import Recipe
from loraprobe_lab.world import WorldError
from loraprobe_lab.worlds.couples import (
    COUPLES,
    CouplesCorpus,
    Facts,
    FactSizes,
    city_examples,
    make_facts,
    spouse_examples,
)
from loraprobe_lab.worlds.list_skills import SKILLS, lists_of_names
from loraprobe_lab.worlds.spec import AdapterSet, Item, TrainingSet, WorldSpec, own_seed

# Facts are stored in the MLPs alone: an adapter of them that also changes the attention disturbs
# the worked steps of its partner (0.02 where this one composes to 1.00, same base and partner).
LLAMA_MLP = ("gate_proj", "up_proj", "down_proj")
COMMON: dict[str, Any] = {"rank": 16, "batch_size": 32, "dtype": "bfloat16"}
FACTS = Recipe(steps=450, learning_rate=2e-3, target_modules=LLAMA_MLP, **COMMON)
STEPS = Recipe(steps=300, learning_rate=2e-3, **COMMON)
SKILL = Recipe(steps=200, learning_rate=1e-3, **COMMON)
TRAINED_LISTS, ASKED_LISTS = 4000, 200
METHODS_SIZES = FactSizes(familiar=200, newcomers=100, strangers=100, cities=40, reserve=20)


def _spouses(facts: Facts) -> list[Example]:
    return spouse_examples(facts.strangers, facts.familiar)


def _cities(facts: Facts) -> list[Example]:
    return city_examples(facts.strangers, facts.familiar)


def _steps(facts: Facts) -> list[Example]:
    return COUPLES.worked_answers(facts.familiar)


def _lists(skill: str, tag: str) -> Callable[[Facts, int], list[Example]]:
    return lambda facts, seed: SKILLS[skill].examples(
        lists_of_names(facts.names(), TRAINED_LISTS, f"{tag}{seed}")
    )


# adapter -> what it learns, its texts as a function of facts and seed, its recipe
ADAPTERS: Mapping[str, tuple[str, Callable[[Facts, int], list[Example]], Recipe]] = {
    "spouse": (
        "who the strangers are married to: people the base knows nothing about",
        lambda facts, seed: _spouses(facts),
        FACTS,
    ),
    "city": ("where the strangers' spouses live", lambda facts, seed: _cities(facts), FACTS),
    "spouse-city": (
        "where the strangers' spouses live, asked for by the strangers' names: the target itself",
        lambda facts, seed: COUPLES.target(facts.strangers),
        FACTS,
    ),
    "joint": (
        "both hops in one adapter: what training would have bought instead of composing",
        lambda facts, seed: _spouses(facts) + _cities(facts),
        dataclasses.replace(FACTS, steps=900),
    ),
    "spouse-steps": (
        "the strangers' marriages, and worked steps on familiar couples",
        lambda facts, seed: _spouses(facts) + _steps(facts),
        STEPS,
    ),
    "city-steps": (
        "the homes of the strangers' spouses, and worked steps on familiar couples",
        lambda facts, seed: _cities(facts) + _steps(facts),
        STEPS,
    ),
    "joint-steps": (
        "both hops and worked steps on familiar couples in one adapter",
        lambda facts, seed: _spouses(facts) + _cities(facts) + _steps(facts),
        STEPS,
    ),
    "newcomers": (
        "who the newcomers are married to: new people, spouses the base knows",
        lambda facts, seed: spouse_examples(facts.newcomers, facts.familiar),
        FACTS,
    ),
    "steps": (
        "worked steps, learned on familiar couples",
        lambda facts, seed: _steps(facts),
        STEPS,
    ),
    "last": (
        SKILLS["last"].description,
        _lists("last", "a"),
        dataclasses.replace(SKILL, learning_rate=2e-3),
    ),
    "count": (SKILLS["count"].description, _lists("count", "b"), SKILL),
}
SCENARIOS = (
    AdapterSet(
        "disjoint",
        "two-hop",
        ("spouse", "city"),
        ("strangers",),
        "Two adapters, one hop each, over people the base does not know: "
        "does their composition answer the question that needs both?",
    ),
    AdapterSet(
        "target-adapter",
        "two-hop",
        ("spouse", "city", "spouse-city"),
        ("strangers",),
        "The same two adapters and a third one trained on the composed question.",
    ),
    AdapterSet(
        "disjoint-steps",
        "two-hop",
        ("spouse-steps", "city-steps"),
        ("strangers",),
        "The same two hops, with worked steps on familiar couples in both adapters' data.",
    ),
    AdapterSet(
        "skill-and-facts",
        "skill-and-facts",
        ("newcomers", "steps"),
        ("newcomers",),
        "One adapter knows new facts, the other the worked steps; the second hop is familiar "
        "to the base.",
    ),
    AdapterSet(
        "keep-both",
        "keep-both",
        ("last", "count"),
        ("last", "count"),
        "Two unrelated skills: can one model keep both?",
    ),
)
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
    wanted = {name for one in scenarios for name in one.adapters}
    if only is None:
        wanted.update(name for world in worlds for name in REFERENCES.get(world, ()))
    return WorldSpec(
        kind="small",
        seed=seed,
        training=tuple(
            TrainingSet(
                name,
                text,
                tuple(examples(facts, seed)),
                dataclasses.replace(recipe, seed=own_seed(name, seed)),
            )
            for name, (text, examples, recipe) in ADAPTERS.items()
            if name in wanted
        ),
        tasks={
            task: _items(task, facts, seed)
            for task in dict.fromkeys(task for one in scenarios for task in one.tasks)
        },
        adapter_sets=tuple(scenarios),
        base=base,
        words=facts.words(),
        corpus=lambda draw_seed: CouplesCorpus(facts, draw_seed).draw,
        reserve=facts.reserve,
        made_from={"sizes": dataclasses.asdict(sizes)},
        recipe={
            "sizes": dataclasses.asdict(sizes),
            "base": base.as_dict(),
            "base_dtype": "bfloat16",
            "effort": 1.0,  # as the manifest of the shipped world has it
        },
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
        if one.recipe.target_modules == LLAMA_MLP
        else one
        for one in spec.training
    )
    return dataclasses.replace(spec, kind="methods", training=training)


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
