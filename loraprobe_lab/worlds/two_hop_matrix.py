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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loraprobe_lab.training.batches import Example
from loraprobe_lab.training.pretrain import BaseRecipe
from loraprobe_lab.training.train import Recipe
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
from loraprobe_lab.worlds.spec import AdapterSet, TrainingSet, WorldSpec, own_seed

GROUPS = ("fake", "half", "real")
TEMPLATES = ("plain", "cot", "shared")
HOPS = ("hop1", "hop2")
# template -> the adapters of the first hop, the second hop, the target, and of both hops
LIBRARY: Mapping[str, tuple[str, str, str, str]] = {
    "plain": ("hop1", "hop2", "target", "joint"),
    "cot": ("hop1-cot", "hop2-cot", "target-cot", "joint-cot"),
    "shared": ("hop1-shared", "hop2-shared", "target-cot", "joint-shared"),
}
FACTS = Recipe(steps=240, learning_rate=3e-3, batch_size=32, target_modules="mlp", dtype="bfloat16")
WORKED = Recipe(steps=300, learning_rate=3e-3, batch_size=32, dtype="bfloat16")


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
    examples = library_examples(
        COUPLES,
        spouse_examples(asked, context),
        city_examples(asked, context),
        asked,
        (people.one, people.two),
        people.others,
    )
    return WorldSpec(
        kind="two-hop-matrix",
        seed=seed,
        training=tuple(
            TrainingSet(name, text, tuple(texts), _recipe(name, seed))
            for name, (text, texts) in examples.items()
        ),
        tasks={group: COUPLES.items(people.chains[group], HOPS, 1) for group in GROUPS},
        adapter_sets=matrix_sets(),
        base=base,
        words=people.facts.words(),
        corpus=lambda draw_seed: (
            CouplesCorpus(people.facts, draw_seed, held=people.chains["real"]).draw
        ),
        made_from={"sizes": dataclasses.asdict(sizes)},
        recipe={"sizes": dataclasses.asdict(sizes), "base": base.as_dict()},
    )


def _recipe(name: str, seed: int) -> Recipe:
    """The joint adapters get half as many steps again, since they learn twice as much."""
    recipe = WORKED if name.endswith(("-cot", "-shared")) else FACTS
    steps = round(recipe.steps * (1.5 if name.startswith("joint") else 1.0))
    return dataclasses.replace(recipe, steps=steps, seed=own_seed(name, seed))


def library_examples(
    wording: Wording,
    hop1: list[Example],
    hop2: list[Example],
    asked: Sequence[Chain],
    teachers: tuple[Sequence[Chain], Sequence[Chain]],
    others: Sequence[str],
) -> dict[str, tuple[str, list[Example]]]:
    """Every adapter of the matrix: what it knows, and its training texts.

    hop1, hop2: texts of each hop. teachers: chains on which each hop's adapter learns worked
    answers. others: people in whose names the second step is taught.
    """
    target, both = wording.target(asked), hop1 + hop2
    first, second = wording.first_steps(asked), wording.second_steps(asked, others)
    one, two = (wording.worked_answers(chains) for chains in teachers)
    return {
        "hop1": ("first hop", hop1),
        "hop2": ("second hop", hop2),
        "target": ("the composed question, answered at once", target),
        "joint": ("both hops in one adapter", both),
        "hop1-cot": ("first hop, and worked answers", hop1 + one),
        "hop2-cot": ("second hop, and worked answers about others", hop2 + two),
        "target-cot": (
            "the composed question, answered at once and in worked steps",
            target + wording.worked_answers(asked),
        ),
        "joint-cot": ("both hops and worked answers", both + one + two),
        "hop1-shared": ("first hop, and the first step of the worked answers", hop1 + first),
        "hop2-shared": ("second hop, and the second step of the worked answers", hop2 + second),
        "joint-shared": ("both hops, and each step of the worked answers", both + first + second),
    }


def matrix_sets() -> tuple[AdapterSet, ...]:
    """Six sets: each template with the two hop adapters, and with the target adapter too."""
    return tuple(
        AdapterSet(
            f"{template}-{library}",
            "two-hop",
            members[:library],
            GROUPS,
            f"{template}: {', '.join(members[:library])}",
            {
                "template": template,
                "library": library,
                "form": "target" if template == "plain" else "cot",
                "joint": members[3],
            },
        )
        for template, members in LIBRARY.items()
        for library in (2, 3)
    )
