"""Who there is in the world of two languages, and what is true of them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from loraprobe_lab.lingual.language import RELATIONS
from loraprobe_lab.vocabulary import made_up_names

Facts = Mapping[str, Mapping[str, str]]  # relation -> person -> value


@dataclass(frozen=True)
class PeopleSizes:
    """How many people of each kind there are, and values of each relation."""

    familiar: int = 140
    newcomers: int = 150
    invented: int = 100
    reserve: int = 40
    values: int = 30


@dataclass(frozen=True)
class People:
    """Names of one token each, none in two groups.

    familiar: people whose `facts` the base reads. newcomers and invented people occur in its
    texts by name only; adapters are taught facts about them, of which those about newcomers are
    asked for. `reserve` names occur in meetings and nowhere else: material for name swaps.
    `values` holds the values of each relation.
    """

    familiar: tuple[str, ...]
    newcomers: tuple[str, ...]
    invented: tuple[str, ...]
    reserve: tuple[str, ...]
    values: Mapping[str, tuple[str, ...]]
    facts: Facts

    def names(self) -> tuple[str, ...]:
        """Every person of the world."""
        return (*self.familiar, *self.newcomers, *self.invented, *self.reserve)


def make_people(sizes: PeopleSizes, seed: int) -> People:
    """The people of the world with this seed."""
    values = {
        relation.name: made_up_names(sizes.values, seed, ending=relation.ending)
        for relation in RELATIONS
    }
    taken = [value for row in values.values() for value in row]
    counts = (sizes.familiar, sizes.newcomers, sizes.invented, sizes.reserve)
    names = iter(made_up_names(sum(counts), seed, avoid=taken))
    familiar, newcomers, invented, reserve = (tuple(islice(names, count)) for count in counts)
    facts = facts_about(familiar, values, f"familiar:{seed}")
    return People(familiar, newcomers, invented, reserve, values, facts)


def facts_about(
    people: Sequence[str], values: Mapping[str, Sequence[str]], seed: int | str
) -> Facts:
    """Facts of every relation about these people, drawn from a seed; values occur equally often."""
    rng, facts = random.Random(f"facts:{seed}"), {}
    for relation, names in values.items():
        rows = [names[i % len(names)] for i in range(len(people))]
        rng.shuffle(rows)
        facts[relation] = dict(zip(people, rows, strict=True))
    return facts
