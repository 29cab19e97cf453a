"""The worlds of the success map: a skill in one adapter, new facts in another, one base.

New people are married to spouses whose homes the base has read often (*familiar*), seldom (*rare*)
or never (*made-up*: then an adapter knows them). The skill adapters write worked steps; they
learned them on familiar couples, on made-up ones, or on shares of both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from loraprobe_lab.training.batches import Example
from loraprobe_lab.training.pretrain import BaseRecipe
from loraprobe_lab.worlds.chains import Chain
from loraprobe_lab.worlds.couples import (
    COUPLES,
    CouplesCorpus,
    Facts,
    FactSizes,
    city_examples,
    make_facts,
    marry,
    spouse_examples,
)
from loraprobe_lab.worlds.libraries import Parts, adapter_sets, training_sets
from loraprobe_lab.worlds.spec import WorldSpec, own_seed

LEVELS = ("familiar", "rare", "made-up")
SHARES = (0, 25, 50, 75, 100)  # per cent of made-up couples in the skill adapter's data


@dataclass(frozen=True)
class MapSizes:
    """asked: people of each level. taught: couples on whom a skill adapter learns worked steps.

    rarity: how often the base reads of a rare couple, as a share of how often of a familiar one.
    """

    asked: int = 60
    taught: int = 100
    cities: int = 40
    rarity: float = 0.125


@dataclass(frozen=True)
class MapPeople:
    """The chains that are asked for, by level; the rare ones among what the base reads; and the
    familiar and made-up couples on whom worked steps are taught. All names differ, but new people
    marry familiar and rare spouses."""

    facts: Facts
    asked: Mapping[str, tuple[Chain, ...]]
    rare: tuple[Chain, ...]
    taught: tuple[Chain, ...]
    invented: tuple[Chain, ...]

    @classmethod
    def make(cls, sizes: MapSizes, seed: int) -> MapPeople:
        n = sizes.asked
        counts = FactSizes(2 * n + sizes.taught, 0, 3 * n + sizes.taught, sizes.cities, 0)
        facts = make_facts(counts, seed)
        rare, taught = facts.familiar[n : 2 * n], facts.familiar[2 * n :]
        made_up, invented = facts.strangers[2 * n : 3 * n], facts.strangers[3 * n :]
        new = [chain.a for chain in facts.strangers[: 2 * n]]
        married = marry(new, facts.familiar[: 2 * n])
        asked = {"familiar": married[:n], "rare": married[n:], "made-up": made_up}
        return cls(facts, asked, rare, taught, invented)

    def shown(self, share: int) -> tuple[Chain, ...]:
        """As many couples as are taught, `share` per cent of them made-up."""
        count = round(len(self.taught) * share / 100)
        return (*self.invented[:count], *self.taught[count:])


def map_world(
    seed: int, base: BaseRecipe | None = None, sizes: MapSizes | None = None
) -> WorldSpec:
    """Eight adapters, a task for each level, the sets of the map that are plain compositions."""
    sizes, base = sizes or MapSizes(), base or BaseRecipe()
    people = MapPeople.make(sizes, seed)
    return WorldSpec(
        kind="success-map",
        seed=seed,
        training=training_sets("success map", _parts(people), lambda name: own_seed(name, seed)),
        tasks={level: COUPLES.items(people.asked[level], (None, None), 1) for level in LEVELS},
        adapter_sets=adapter_sets("success map"),
        base=base,
        words=people.facts.words(),
        corpus=lambda draw_seed: (
            CouplesCorpus(people.facts, draw_seed, rare=people.rare, rarity=sizes.rarity).draw
        ),
        made_from={"sizes": dataclasses.asdict(sizes)},
        recipe={"sizes": dataclasses.asdict(sizes), "base": base.as_dict()},
    )


def _parts(people: MapPeople) -> Parts:
    """What the adapters learn; `worked N`: worked steps, N per cent of them on made-up couples."""
    made_up, context = people.asked["made-up"], people.taught
    firsts = [chain for level in LEVELS for chain in people.asked[level]]

    def worked(share: int) -> Callable[[], list[Example]]:
        return lambda: COUPLES.worked_answers(people.shown(share))

    return {
        "spouses": lambda: spouse_examples(firsts, context),
        "made-up spouses": lambda: spouse_examples(made_up, context),
        "made-up cities": lambda: city_examples(made_up, context),
        **{f"worked {share}": worked(share) for share in SHARES},
    }
