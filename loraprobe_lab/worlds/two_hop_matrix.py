"""The two-hop matrix: three name sets, two libraries, three ways of answering.

One library of adapters serves all three name sets, so that familiarity is the only difference
between them: the same adapter knows all of them, trained in the same run. On a small base:

- *fake*: strangers married to strangers, met by the base in lists only;
- *half*: strangers married to spouses whose homes the base has read;
- *real*: couples whose marriage and home the base has read, but never the composed question.

Templates: *plain* (facts alone; asked at once), *cot* (each adapter also learns whole worked
answers, on couples of its own that no question is about: the bridge entities are disjoint) and
*shared* (each adapter learns its own step of the same worked form, on its own data).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from loraprobe_lab.training.batches import Example
from loraprobe_lab.training.pretrain import BaseRecipe
from loraprobe_lab.worlds.chains import Chain, Wording
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
from loraprobe_lab.worlds.libraries import adapter_sets, training_sets
from loraprobe_lab.worlds.spec import WorldSpec, own_seed

GROUPS = ("fake", "half", "real")
HOPS = ("hop1", "hop2")


@dataclass(frozen=True)
class MatrixSizes:
    """How many couples of each name set are asked about, and how many more the base reads.

    `worked`: familiar couples that no question is about, half of them for the worked answers of
    each adapter. `others`: strangers in whose names the second step is taught.
    """

    asked: int = 60
    worked: int = 140
    others: int = 60
    cities: int = 40


@dataclass(frozen=True)
class MatrixPeople:
    """Who the matrix is about. `chains` by name set, disjoint in every name; `one`, `two`: couples
    of the worked answers of each adapter, about whom no question is."""

    facts: Facts
    chains: Mapping[str, tuple[Chain, ...]]
    one: tuple[Chain, ...]
    two: tuple[Chain, ...]
    others: tuple[str, ...]

    @classmethod
    def make(cls, sizes: MatrixSizes, seed: int) -> MatrixPeople:
        n = sizes.asked
        counts = FactSizes(2 * n + sizes.worked, 0, 2 * n + sizes.others, sizes.cities, 0)
        facts = make_facts(counts, seed)
        rest, others = facts.familiar[2 * n :], facts.strangers[2 * n :]
        new = [chain.a for chain in facts.strangers[n : 2 * n]]
        chains = {
            "fake": facts.strangers[:n],
            "half": marry(new, facts.familiar[n : 2 * n]),
            "real": facts.familiar[:n],
        }
        middle = len(rest) // 2
        return cls(facts, chains, rest[:middle], rest[middle:], tuple(x.a for x in others))


def two_hop_matrix(
    seed: int, base: BaseRecipe | None = None, sizes: MatrixSizes | None = None
) -> WorldSpec:
    """The two-hop matrix on a small base: eleven adapters, three tasks, six sets."""
    sizes, base = sizes or MatrixSizes(), base or BaseRecipe()
    people = MatrixPeople.make(sizes, seed)
    asked = [chain for group in GROUPS for chain in people.chains[group]]
    context = [*people.one, *people.two]
    parts = matrix_parts(COUPLES, asked, (people.one, people.two), people.others)
    parts["hop1"] = lambda: spouse_examples(asked, context)
    parts["hop2"] = lambda: city_examples(asked, context)
    return WorldSpec(
        kind="two-hop-matrix",
        seed=seed,
        training=training_sets("matrix", parts, lambda name: own_seed(name, seed)),
        tasks={group: COUPLES.items(people.chains[group], HOPS, 1) for group in GROUPS},
        adapter_sets=adapter_sets("matrix"),
        base=base,
        words=people.facts.words(),
        corpus=lambda draw_seed: (
            CouplesCorpus(people.facts, draw_seed, held=people.chains["real"]).draw
        ),
        made_from={"sizes": dataclasses.asdict(sizes)},
        recipe={"sizes": dataclasses.asdict(sizes), "base": base.as_dict()},
    )


def matrix_parts(
    wording: Wording,
    asked: Sequence[Chain],
    teachers: tuple[Sequence[Chain], Sequence[Chain]],
    others: Sequence[str],
) -> dict[str, Callable[[], Sequence[Example]]]:
    """What the adapters of the matrix learn besides the hops themselves.

    teachers: chains on which each hop's adapter learns worked answers. others: people in whose
    names the second step is taught.
    """
    return {
        "target": lambda: wording.target(asked),
        "worked": lambda: wording.worked_answers(asked),
        "worked 1": lambda: wording.worked_answers(teachers[0]),
        "worked 2": lambda: wording.worked_answers(teachers[1]),
        "first step": lambda: wording.first_steps(asked),
        "second step": lambda: wording.second_steps(asked, others),
    }
