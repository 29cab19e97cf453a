"""Worlds that ask one question about several sets of names, for the map of success and the matrix.

*Success map*: new people are married to spouses whose homes the base has read often (*familiar*),
seldom (*rare*) or never (*made-up*: then an adapter knows them). The skill adapters write worked
steps, learned on familiar couples, on made-up ones, or on shares of both.

*Two-hop matrix*: one library of adapters serves all name sets, so that familiarity is the only
difference between them. On a small base: *fake* (strangers married to strangers, met by the base in
lists only), *half* (strangers married to spouses whose homes the base has read) and *real* (couples
whose marriage and home the base has read, but never the composed question). In English, for any
causal model: the same of people, countries of birth and their capitals, made-up or real.

Templates of the matrix: *plain* (facts alone; asked at once), *cot* (each adapter also learns whole
worked answers, on couples of its own that no question is about: the bridge entities are disjoint)
and *shared* (each adapter learns its own step of the same worked form, on its own data).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from loraprobe_lab.training import BaseRecipe, Example
from loraprobe_lab.worlds.couples import (
    COUPLES,
    Facts,
    FactSizes,
    city_examples,
    couples_world,
    make_facts,
    marry,
    spouse_examples,
)
from loraprobe_lab.worlds.english import ABOUT, BIRTHS, SHOWN
from loraprobe_lab.worlds.facts import (
    CAPITALS,
    PEOPLE,
    REAL_NAMES,
    Chain,
    NameMaker,
    Wording,
    example_of,
    spread,
)
from loraprobe_lab.worlds.spec import WorldSpec, adapter_sets, own_seed, training_sets

LEVELS = ("familiar", "rare", "made-up")
SHARES = (0, 25, 50, 75, 100)  # per cent of made-up couples in the skill adapter's data
GROUPS = ("fake", "half", "real")
ASKED = 200  # people of each name set of the English matrix, as far as there are real ones
Chains = Sequence[Chain]


@dataclass(frozen=True)
class NameSets:
    """Chains that are asked for, by name set, and two groups of couples on whom worked steps are
    taught, of whom nothing is asked. All names differ, but new people marry familiar spouses.

    others: people in whose names a second step is taught.
    """

    facts: Facts
    asked: Mapping[str, Chains]
    teachers: tuple[Chains, Chains]
    others: Sequence[str] = ()


@dataclass(frozen=True)
class MapSizes:
    """asked: people of each level. taught: couples on whom a skill adapter learns worked steps.

    rarity: how often the base reads of a rare couple, as a share of how often of a familiar one.
    """

    asked: int = 60
    taught: int = 100
    cities: int = 40
    rarity: float = 0.125

    def people(self, seed: int) -> NameSets:
        """The teachers are familiar couples, and made-up ones."""
        n = self.asked
        counts = FactSizes(2 * n + self.taught, 0, 3 * n + self.taught, self.cities, 0)
        facts = make_facts(counts, seed)
        new = [chain.a for chain in facts.strangers[: 2 * n]]
        married = marry(new, facts.familiar[: 2 * n])
        made_up = facts.strangers[2 * n : 3 * n]
        asked = dict(zip(LEVELS, (married[:n], married[n:], made_up), strict=True))
        return NameSets(facts, asked, (facts.familiar[2 * n :], facts.strangers[3 * n :]))


@dataclass(frozen=True)
class MatrixSizes:
    """How many couples of each name set are asked about, and how many more the base reads.

    `worked`: familiar couples that no question is about, half of them for the worked answers of
    each adapter. `others`: strangers in whose names the second step is taught. With many cities a
    guess is seldom right, so that fewer people show that a composition gains nothing.
    """

    asked: int = 100
    worked: int = 140
    others: int = 60
    cities: int = 100

    def people(self, seed: int) -> NameSets:
        """The teachers are familiar couples, half of them for each adapter."""
        n = self.asked
        counts = FactSizes(2 * n + self.worked, 0, 2 * n + self.others, self.cities, 0)
        facts = make_facts(counts, seed)
        rest, others = facts.familiar[2 * n :], facts.strangers[2 * n :]
        new = [chain.a for chain in facts.strangers[n : 2 * n]]
        half = marry(new, facts.familiar[n : 2 * n])
        asked = dict(zip(GROUPS, (facts.strangers[:n], half, facts.familiar[:n]), strict=True))
        return NameSets(facts, asked, _halves(rest), [chain.a for chain in others])


def map_world(
    seed: int, base: BaseRecipe | None = None, sizes: MapSizes | None = None
) -> WorldSpec:
    """Eight adapters, a task for each level, the sets of the map that are plain compositions."""
    sizes = sizes or MapSizes()
    people = sizes.people(seed)
    made_up, (familiar, _) = people.asked["made-up"], people.teachers
    firsts = [chain for level in LEVELS for chain in people.asked[level]]
    parts = {
        "spouses": lambda: spouse_examples(firsts, familiar),
        "made-up spouses": lambda: spouse_examples(made_up, familiar),
        "made-up cities": lambda: city_examples(made_up, familiar),
    }
    for share in SHARES:
        parts[f"worked {share}"] = partial(COUPLES.worked_answers, shown(people, share))
    return couples_world(
        "success-map",
        people.facts,
        seed,
        sizes,
        base or BaseRecipe(),
        parts,
        {level: COUPLES.items(people.asked[level], (None, None), 1) for level in LEVELS},
        rare=people.facts.familiar[sizes.asked : 2 * sizes.asked],
        rarity=sizes.rarity,
    )


def shown(people: NameSets, share: int) -> list[Chain]:
    """Couples for a skill adapter of the map, `share` per cent of them made-up."""
    familiar, invented = people.teachers
    count = round(len(familiar) * share / 100)
    return [*invented[:count], *familiar[count:]]


def two_hop_matrix(
    seed: int, base: BaseRecipe | None = None, sizes: MatrixSizes | None = None
) -> WorldSpec:
    """The two-hop matrix on a small base: eight adapters, three tasks, four sets."""
    sizes = sizes or MatrixSizes()
    people = sizes.people(seed)
    asked = [chain for group in GROUPS for chain in people.asked[group]]
    context = [*people.teachers[0], *people.teachers[1]]
    parts = _matrix_parts(COUPLES, asked, people.teachers, people.others)
    parts["hop1"] = lambda: spouse_examples(asked, context)
    parts["hop2"] = lambda: city_examples(asked, context)
    return couples_world(
        "two-hop-matrix",
        people.facts,
        seed,
        sizes,
        base or BaseRecipe(),
        parts,
        {group: COUPLES.items(people.asked[group], ("hop1", "hop2"), 1) for group in GROUPS},
        library="matrix",
        held=people.asked["real"],
    )


def english_matrix(seed: int = 0, asked: int = ASKED) -> WorldSpec:
    """The eight adapters, three tasks and four sets of the matrix, in English.

    asked: people of each name set; at most half of the real people, on whom worked answers are
    taught. All known countries occur, and as many made-up ones, so that a guess is seldom right.
    """
    chains, teachers = _english_people(seed, asked)
    every = [x for group in GROUPS for x in chains[group]]
    pairs = list({(x.b, x.c): x for x in every}.values())
    hop1 = BIRTHS.hop1(every)
    hop1 += [example_of(x, q, BIRTHS.step1, end=False) for x in every for q in ABOUT]
    hop2 = [example_of(x, q, " {c}") for x in pairs for q in (BIRTHS.second[0], BIRTHS.second[2])]
    hop2 += [example_of(x, "The capital of {b} is", " {c}.") for x in pairs]
    names = [teacher.a for teacher in teachers]
    parts = _matrix_parts(BIRTHS, every, _halves(teachers), names)
    parts |= {"hop1": lambda: hop1, "hop2": lambda: hop2}
    return WorldSpec(
        kind="two-hop-matrix-natural",
        seed=seed,
        training=training_sets(
            "matrix", parts, lambda name: own_seed(name, seed), recipes="english matrix"
        ),
        tasks={group: BIRTHS.items(chains[group], ("hop1", "hop2"), 1) for group in GROUPS},
        adapter_sets=adapter_sets("matrix"),
    )


def _english_people(seed: int, asked: int) -> tuple[Mapping[str, Chains], Chains]:
    """Chains of the three name sets, and real people that no question is about."""
    rng = random.Random(f"matrix {seed}")
    names = NameMaker(f"matrix {seed}", REAL_NAMES)
    countries = [(b, c) for b, c in CAPITALS.items() if b not in SHOWN]
    count = len(countries)
    made_up = list(zip(names.cities(count), names.cities(count), strict=True))
    real = [Chain(p, b, CAPITALS[b]) for p, b in PEOPLE.items() if b not in SHOWN]
    rng.shuffle(real)
    teachers = real[asked:] if asked < len(real) // 2 else real[len(real) // 2 :]
    chains = {"real": real[: len(real) - len(teachers)]}
    for group, pairs in (("fake", made_up), ("half", countries)):
        homes = spread(pairs, asked, rng)
        named = zip(names.people(asked), homes, strict=True)
        chains[group] = [Chain(person, *home) for person, home in named]
    return chains, teachers


def _halves(chains: Chains) -> tuple[Chains, Chains]:
    middle = len(chains) // 2
    return chains[:middle], chains[middle:]


def _matrix_parts(
    wording: Wording, asked: Chains, teachers: tuple[Chains, Chains], others: Sequence[str]
) -> dict[str, Callable[[], Sequence[Example]]]:
    """What the adapters of the matrix learn besides the hops themselves.

    teachers: chains on which each hop's adapter learns worked answers. others: people in whose
    names the second step is taught.
    """
    return {
        "target": lambda: wording.target(asked),
        "worked 1": lambda: wording.worked_answers(teachers[0]),
        "worked 2": lambda: wording.worked_answers(teachers[1]),
        "first step": lambda: wording.first_steps(asked),
        "second step": lambda: wording.second_steps(asked, others),
    }
