"""The worlds of the border map: a skill in one adapter, new facts in another, one base.

New people are married to spouses whose homes the base has read often (*familiar*), seldom (*rare*)
or never (*made-up*: then an adapter knows them). The skill adapters write worked steps; they
learned them on familiar couples, on made-up ones, or on shares of both.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loraprobe_lab.facts import (
    Facts,
    FactSizes,
    Link,
    city_examples,
    make_facts,
    spouse_examples,
    worked_examples,
)
from loraprobe_lab.kit import Kit, Lesson, Trial
from loraprobe_lab.plans import two_hop_items
from loraprobe_lab.pretrain import BaseRecipe, Corpus
from loraprobe_lab.small import world_texts
from loraprobe_lab.train import Example, Recipe

LEVELS = ("familiar", "rare", "made-up")
SHARES = (0, 25, 50, 75, 100)  # per cent of made-up couples in the skill adapter's data
FACTS = Recipe(steps=240, learning_rate=3e-3, batch_size=32, target_modules="mlp", dtype="bfloat16")
STEPS = Recipe(steps=240, learning_rate=2e-3, batch_size=32, dtype="bfloat16")


@dataclass(frozen=True)
class BorderSizes:
    """asked: people of each level. taught: couples on whom a skill adapter learns worked steps.

    rarity: how often the base reads of a rare couple, as a share of how often of a familiar one.
    """

    asked: int = 60
    taught: int = 100
    cities: int = 40
    rarity: float = 0.125


@dataclass(frozen=True)
class BorderPlan:
    """How big, and how long each adapter is trained; `effort` scales steps, for trials."""

    sizes: BorderSizes = field(default_factory=BorderSizes)
    facts: Recipe = FACTS
    steps: Recipe = STEPS
    effort: float = 1.0

    def recipe(self, name: str, seed: int) -> Recipe:
        """The recipe of a lesson, with a seed of its own."""
        recipe = self.steps if name.startswith("steps") else self.facts
        return dataclasses.replace(
            recipe,
            steps=max(1, round(recipe.steps * self.effort)),
            seed=zlib.crc32(f"{name}:{seed}".encode()),
        )


@dataclass(frozen=True)
class Cast:
    """Who plays: the links that are asked for, and the couples on whom steps are taught."""

    facts: Facts
    links: Mapping[str, tuple[Link, ...]]
    rare: tuple[Link, ...]
    taught: tuple[Link, ...]
    invented: tuple[Link, ...]


def border_kit(seed: int, base: BaseRecipe | None = None, plan: BorderPlan | None = None) -> Kit:
    """Eight adapters, a task for each level, the trials of the map that are plain compositions."""
    plan = plan or BorderPlan()
    cast = make_cast(plan.sizes, seed)
    rarity = plan.sizes.rarity
    return Kit(
        kind="border",
        seed=seed,
        words=tuple(world_texts(cast.facts)),
        corpus=lambda draw_seed: Corpus(cast.facts, draw_seed, rare=cast.rare, rarity=rarity).draw,
        base=base or BaseRecipe(),
        lessons=tuple(
            Lesson(name, text, tuple(examples), plan.recipe(name, seed))
            for name, (text, examples) in lessons(cast).items()
        ),
        tasks={level: two_hop_items(cast.links[level], (None, None)) for level in LEVELS},
        trials=_trials(),
        made_from={"sizes": dataclasses.asdict(plan.sizes)},
        recipe={**dataclasses.asdict(plan), "base": (base or BaseRecipe()).as_dict()},
    )


def make_cast(sizes: BorderSizes, seed: int) -> Cast:
    """The people of a seed. All names differ, but new people marry familiar and rare spouses."""
    n = sizes.asked
    facts = make_facts(
        FactSizes(
            familiar=2 * n + sizes.taught,
            newcomers=0,
            strangers=3 * n + sizes.taught,
            cities=sizes.cities,
            reserve=0,
        ),
        seed,
    )
    known, rare, taught = facts.familiar[:n], facts.familiar[n : 2 * n], facts.familiar[2 * n :]
    new, made_up, invented = facts.strangers[: 2 * n], facts.strangers[2 * n : 3 * n], (
        facts.strangers[3 * n :]
    )  # fmt: skip
    married = [
        Link(one.person, other.spouse, other.city)
        for one, other in zip(new, (*known, *rare), strict=True)
    ]
    links = {"familiar": tuple(married[:n]), "rare": tuple(married[n:]), "made-up": made_up}
    return Cast(facts, links, rare, taught, invented)


def lessons(cast: Cast) -> dict[str, tuple[str, list[Example]]]:
    """`facts`: every first hop; `homes`: the made-up second hops; `both`: both made-up hops in
    one adapter; `steps-N`: worked steps, N per cent of them on made-up couples."""
    made_up, context = cast.links["made-up"], cast.taught
    firsts = tuple(link for level in LEVELS for link in cast.links[level])
    homes = city_examples(made_up, context)
    found = {
        "facts": ("who all new people are married to", spouse_examples(firsts, context)),
        "homes": ("where the made-up spouses live", homes),
        "both": ("both made-up hops", spouse_examples(made_up, context) + homes),
    }
    for share in SHARES:
        found[f"steps-{share}"] = (
            f"worked steps, {share} % of them on made-up couples",
            worked_examples(shared_out(cast, share)),
        )
    return found


def shared_out(cast: Cast, share: int) -> tuple[Link, ...]:
    """As many couples as are taught, `share` per cent of them made-up."""
    count = round(len(cast.taught) * share / 100)
    return (*cast.invented[:count], *cast.taught[count:])


def _trials() -> tuple[Trial, ...]:
    """The compositions of the map that `merge-and-eval` can repeat."""
    rows: list[tuple[str, tuple[str, ...], str, int]] = [
        ("familiar", ("facts", f"steps-{share}"), "new facts x worked steps", share)
        for share in SHARES
    ]
    rows += [
        ("rare", ("facts", "steps-0"), "the base has seldom read the second hop", 0),
        ("made-up", ("both", "steps-0"), "both hops in one adapter", 0),
        ("made-up", ("facts", "homes", "steps-0"), "every hop in an adapter of its own", 0),
    ]
    made = []
    for level, adapters, text, share in rows:
        axes: dict[str, Any] = {"level": level, "invented": share}
        name = "-".join((level, *adapters))
        made.append(Trial(name, "skill-and-facts", adapters, (level,), text, axes))
    return tuple(made)
