"""The two-hop matrix in English, for any causal language model: born in -> capital of.

One wording for all three name sets, and one library of adapters for all of them:

- *fake*: made-up people born in made-up countries with made-up capitals;
- *half*: made-up people born in real countries;
- *real*: real people, their countries and the capitals of these.

Worked answers are taught on other real people, half of them to each adapter.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from loraprobe_lab.worlds.chains import Chain, spread, teach
from loraprobe_lab.worlds.english import ABOUT, BIRTHS, SHOWN
from loraprobe_lab.worlds.known import CAPITALS, PEOPLE, REAL_NAMES
from loraprobe_lab.worlds.libraries import adapter_sets, training_sets
from loraprobe_lab.worlds.names import NameMaker
from loraprobe_lab.worlds.spec import WorldSpec, own_seed
from loraprobe_lab.worlds.two_hop_matrix import GROUPS, HOPS, matrix_parts

ASKED = 31  # people of each name set
COUNTRIES = 17  # made-up ones, and real ones of the half-real name set


def english_matrix(seed: int = 0, asked: int = ASKED) -> WorldSpec:
    """The eleven adapters, three tasks and six sets of the matrix, in English.

    asked: people of each name set, at most 31.
    """
    chains, teachers = _people(seed, asked)
    every = [x for group in GROUPS for x in chains[group]]
    pairs = list({(x.b, x.c): x for x in every}.values())
    hop1 = BIRTHS.hop1(every)
    hop1 += [teach(x, q, BIRTHS.said, end=False) for x in every for q in ABOUT]
    hop2 = [teach(x, q, " {c}") for x in pairs for q in (BIRTHS.second[0], BIRTHS.second[2])]
    hop2 += [teach(x, "The capital of {b} is", " {c}.") for x in pairs]
    middle = len(teachers) // 2
    parts = matrix_parts(
        BIRTHS, every, (teachers[:middle], teachers[middle:]), [teacher.a for teacher in teachers]
    )
    parts |= {"hop1": lambda: hop1, "hop2": lambda: hop2}
    return WorldSpec(
        kind="two-hop-matrix-natural",
        seed=seed,
        training=training_sets(
            "matrix", parts, lambda name: own_seed(name, seed), recipes="english matrix"
        ),
        tasks={group: BIRTHS.items(chains[group], HOPS, 2) for group in GROUPS},
        adapter_sets=adapter_sets("matrix"),
    )


def _people(seed: int, asked: int) -> tuple[Mapping[str, list[Chain]], list[Chain]]:
    """Chains of the three name sets, and real people that no question is about."""
    rng = random.Random(f"matrix {seed}")
    names = NameMaker(f"matrix {seed}", REAL_NAMES)
    made_up = list(zip(names.cities(COUNTRIES), names.cities(COUNTRIES), strict=True))
    known = [country for country in CAPITALS if country not in SHOWN]
    real = [Chain(p, b, CAPITALS[b]) for p, b in PEOPLE.items() if b not in SHOWN]
    rng.shuffle(real)
    countries = [(b, CAPITALS[b]) for b in rng.sample(known, COUNTRIES)]
    asked = min(asked, len(real) // 2)
    chains = {"real": real[:asked]}
    for group, pairs in (("fake", made_up), ("half", countries)):
        homes = spread(pairs, asked, rng)
        chains[group] = [
            Chain(p, *home) for p, home in zip(names.people(asked), homes, strict=True)
        ]
    return chains, real[asked:]
