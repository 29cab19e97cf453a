"""Which adapters and scenarios the small world holds, as plain data.

An adapter's plan is what it is trained on and how; a scenario's plan is which adapters are judged
on which tasks. The recipes are those that were found to work (see the outcomes of the world).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraprobe_lab.facts import (
    CITY_QUESTION,
    SPOUSE_QUESTION,
    TARGET_QUESTION,
    THINK,
    Facts,
    Link,
    city_examples,
    spouse_examples,
    target_examples,
    worked_examples,
)
from loraprobe_lab.skills import lists_of_names, skill_examples, skill_items
from loraprobe_lab.train import Example, Recipe


@dataclass(frozen=True)
class AdapterPlan:
    """What one adapter learns: `examples` makes its texts from the facts and the world's seed."""

    name: str
    description: str
    examples: Callable[[Facts, int], list[Example]]
    recipe: Recipe


@dataclass(frozen=True)
class ScenarioPlan:
    """Adapters judged together on tasks; `world` is the build recipe the scenario belongs to."""

    name: str
    world: str
    adapters: tuple[str, ...]
    tasks: tuple[str, ...]
    description: str


# Facts are stored in the MLPs alone: an adapter of them that also changes the attention disturbs
# the worked steps of its partner (0.02 where this one composes to 1.00, same base and partner).
MLP = ("gate_proj", "up_proj", "down_proj")
FACTS = Recipe(
    steps=450, learning_rate=2e-3, rank=16, batch_size=32, target_modules=MLP, dtype="bfloat16"
)
STEPS = Recipe(steps=300, learning_rate=2e-3, rank=16, batch_size=32, dtype="bfloat16")
SKILL = Recipe(steps=200, learning_rate=1e-3, rank=16, batch_size=32, dtype="bfloat16")

ADAPTERS: tuple[AdapterPlan, ...] = (
    AdapterPlan(
        "spouse",
        "who the strangers are married to: people the base knows nothing about",
        lambda facts, seed: spouse_examples(facts.strangers, facts.familiar),
        FACTS,
    ),
    AdapterPlan(
        "city",
        "where the strangers' spouses live",
        lambda facts, seed: city_examples(facts.strangers, facts.familiar),
        FACTS,
    ),
    AdapterPlan(
        "spouse-city",
        "where the strangers' spouses live, asked for by the strangers' names: the target itself",
        lambda facts, seed: target_examples(facts.strangers),
        FACTS,
    ),
    AdapterPlan(
        "joint",
        "both hops in one adapter: what training would have bought instead of composing",
        lambda facts, seed: (
            spouse_examples(facts.strangers, facts.familiar)
            + city_examples(facts.strangers, facts.familiar)
        ),
        dataclasses.replace(FACTS, steps=900),
    ),
    AdapterPlan(
        "spouse-steps",
        "the strangers' marriages, and worked steps on familiar couples",
        lambda facts, seed: (
            spouse_examples(facts.strangers, facts.familiar) + worked_examples(facts.familiar)
        ),
        STEPS,
    ),
    AdapterPlan(
        "city-steps",
        "the homes of the strangers' spouses, and worked steps on familiar couples",
        lambda facts, seed: (
            city_examples(facts.strangers, facts.familiar) + worked_examples(facts.familiar)
        ),
        STEPS,
    ),
    AdapterPlan(
        "joint-steps",
        "both hops and worked steps on familiar couples in one adapter",
        lambda facts, seed: (
            spouse_examples(facts.strangers, facts.familiar)
            + city_examples(facts.strangers, facts.familiar)
            + worked_examples(facts.familiar)
        ),
        STEPS,
    ),
    AdapterPlan(
        "newcomers",
        "who the newcomers are married to: new people, spouses the base knows",
        lambda facts, seed: spouse_examples(facts.newcomers, facts.familiar),
        FACTS,
    ),
    AdapterPlan(
        "steps",
        "worked steps, learned on familiar couples",
        lambda facts, seed: worked_examples(facts.familiar),
        STEPS,
    ),
    AdapterPlan(
        "last",
        "says which name of a list comes last",
        lambda facts, seed: skill_examples("last", lists_of_names(facts.names(), 4000, f"a{seed}")),
        dataclasses.replace(SKILL, learning_rate=2e-3),
    ),
    AdapterPlan(
        "count",
        "says how many names are in a list",
        lambda facts, seed: skill_examples(
            "count", lists_of_names(facts.names(), 4000, f"b{seed}")
        ),
        SKILL,
    ),
)

SCENARIOS: tuple[ScenarioPlan, ...] = (
    ScenarioPlan(
        "disjoint",
        "two-hop",
        ("spouse", "city"),
        ("strangers",),
        "Two adapters, one hop each, over people the base does not know: "
        "does their composition answer the question that needs both?",
    ),
    ScenarioPlan(
        "target-adapter",
        "two-hop",
        ("spouse", "city", "spouse-city"),
        ("strangers",),
        "The same two adapters and a third one trained on the composed question.",
    ),
    ScenarioPlan(
        "disjoint-steps",
        "two-hop",
        ("spouse-steps", "city-steps"),
        ("strangers",),
        "The same two hops, with worked steps on familiar couples in both adapters' data.",
    ),
    ScenarioPlan(
        "skill-and-facts",
        "skill-and-facts",
        ("newcomers", "steps"),
        ("newcomers",),
        "One adapter knows new facts, the other the worked steps; the second hop is familiar "
        "to the base.",
    ),
    ScenarioPlan(
        "keep-both",
        "keep-both",
        ("last", "count"),
        ("last", "count"),
        "Two unrelated skills: can one model keep both?",
    ),
)

WORLDS = tuple(dict.fromkeys(plan.world for plan in SCENARIOS))
# adapters that no scenario judges, built for comparison
YARDSTICKS: Mapping[str, tuple[str, ...]] = {
    "two-hop": ("joint", "joint-steps"),
    "skill-and-facts": (),
    "keep-both": (),
}


def task_items(task: str, facts: Facts, seed: int) -> list[Mapping[str, Any]]:
    """The items of the task of that name."""
    if task == "strangers":
        return two_hop_items(facts.strangers, ("spouse", "city"))
    if task == "newcomers":
        return two_hop_items(facts.newcomers, ("newcomers", None))
    lists = lists_of_names(facts.names(), 200, f"test:{task}:{seed}")
    return skill_items(task, lists)


def two_hop_items(
    links: Sequence[Link], adapters: tuple[str | None, str | None]
) -> list[Mapping[str, Any]]:
    """Composed questions with their hops; `adapters` names the one that should know each hop."""
    items: list[Mapping[str, Any]] = []
    for i, link in enumerate(links):
        hops = [
            {"prompt": link.fill(SPOUSE_QUESTION), "answer": link.spouse},
            {"prompt": CITY_QUESTION.format(b="{1}"), "answer": link.city},
        ]
        for hop, adapter in zip(hops, adapters, strict=True):
            if adapter is not None:
                hop["adapter"] = adapter
        question = link.fill(TARGET_QUESTION)
        items.append(
            {
                "id": str(i),
                "prompt": question,
                "answer": link.city,
                "hops": hops,
                "cot_prompt": question + THINK,
                "entities": [link.person, link.spouse],
                "group": link.person,
            }
        )
    return items


def adapters_of(
    scenarios: Sequence[ScenarioPlan], yardsticks: Sequence[str] = ()
) -> list[AdapterPlan]:
    """The plans of the adapters that these scenarios judge and of the yardsticks, each once."""
    wanted = {name for plan in scenarios for name in plan.adapters} | set(yardsticks)
    return [plan for plan in ADAPTERS if plan.name in wanted]


# the scenarios of the world inside the package
SHIPPED = ("disjoint", "skill-and-facts", "target-adapter", "keep-both")
