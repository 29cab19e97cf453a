"""The two-hop matrix on a small base: three name sets, two libraries, three ways of answering.

One library of adapters serves all three name sets, so that familiarity is the only difference
between them: the same adapter knows all of them, trained in the same run.

- *fake*: strangers married to strangers, met by the base in lists only;
- *half*: strangers married to spouses whose homes the base has read;
- *real*: couples whose marriage and home the base has read, but never the composed question.

Templates: *plain* (facts alone; asked at once), *cot* (each adapter also learns whole worked
answers, on couples of its own that no question is about: the bridge entities are disjoint) and
*shared* (each adapter learns its own step of the same worked form, on its own data).
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraprobe_lab.facts import (
    SPOUSE_SENTENCE,
    TARGET_QUESTIONS,
    THINK,
    Facts,
    FactSizes,
    Link,
    city_examples,
    make_facts,
    spouse_examples,
    target_examples,
    worked_examples,
)
from loraprobe_lab.kit import Kit, Lesson, Trial
from loraprobe_lab.plans import two_hop_items
from loraprobe_lab.pretrain import BaseRecipe, Corpus
from loraprobe_lab.small import world_texts
from loraprobe_lab.train import Example, Recipe

GROUPS = ("fake", "half", "real")
TEMPLATES = ("plain", "cot", "shared")
HOPS = ("hop1", "hop2")
# which adapters a library holds: role -> the lesson of that role in each template
ROLES: Mapping[str, Mapping[str, str]] = {
    "plain": {"hop1": "hop1", "hop2": "hop2", "target": "target", "joint": "joint"},
    "cot": {"hop1": "hop1-cot", "hop2": "hop2-cot", "target": "target-cot", "joint": "joint-cot"},
    "shared": {
        "hop1": "hop1-shared",
        "hop2": "hop2-shared",
        "target": "target-cot",
        "joint": "joint-shared",
    },
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
class People:
    """Who the matrix is about. `links` by name set; `one`, `two`: couples of worked answers."""

    facts: Facts
    links: Mapping[str, tuple[Link, ...]]
    one: tuple[Link, ...]
    two: tuple[Link, ...]
    others: tuple[str, ...]

    @property
    def asked(self) -> tuple[Link, ...]:
        return tuple(link for group in GROUPS for link in self.links[group])

    @property
    def context(self) -> tuple[Link, ...]:
        """Familiar couples that no question is about."""
        return (*self.one, *self.two)


@dataclass(frozen=True)
class MatrixPlan:
    """How long each kind of adapter is trained; `effort` scales all steps, for trials and tests."""

    sizes: MatrixSizes = dataclasses.field(default_factory=MatrixSizes)
    facts: Recipe = FACTS
    worked: Recipe = WORKED
    effort: float = 1.0

    def recipe(self, name: str, seed: int) -> Recipe:
        """The recipe of a lesson, with a seed of its own; the joint adapters get half as much
        again, since they learn twice as much."""
        recipe = self.worked if name.rpartition("-")[2] in ("cot", "shared") else self.facts
        steps = recipe.steps * self.effort * (1.5 if name.startswith("joint") else 1.0)
        return dataclasses.replace(
            recipe, steps=max(1, round(steps)), seed=zlib.crc32(f"{name}:{seed}".encode())
        )


def two_hop_matrix_kit(
    seed: int, base: BaseRecipe | None = None, plan: MatrixPlan | None = None
) -> Kit:
    """The kit of the two-hop matrix: eleven adapters, three tasks, six trials."""
    plan = plan or MatrixPlan()
    people = make_people(plan.sizes, seed)
    held = people.links["real"]
    return Kit(
        kind="two-hop-matrix",
        seed=seed,
        words=tuple(world_texts(people.facts)),
        corpus=lambda draw_seed: Corpus(people.facts, draw_seed, held=held).draw,
        base=base or BaseRecipe(),
        lessons=tuple(
            Lesson(name, text, tuple(examples), plan.recipe(name, seed))
            for name, (text, examples) in lessons(people).items()
        ),
        tasks={group: two_hop_items(people.links[group], HOPS) for group in GROUPS},
        trials=trials(ROLES, GROUPS),
        made_from={"sizes": dataclasses.asdict(plan.sizes)},
        recipe={**dataclasses.asdict(plan), "base": (base or BaseRecipe()).as_dict()},
    )


def make_people(sizes: MatrixSizes, seed: int) -> People:
    """The three name sets of a seed, disjoint in every name, and the couples of worked answers."""
    facts = make_facts(
        FactSizes(
            familiar=2 * sizes.asked + sizes.worked,
            newcomers=0,
            strangers=2 * sizes.asked + sizes.others,
            cities=sizes.cities,
            reserve=0,
        ),
        seed,
    )
    count = sizes.asked
    real, known, rest = (
        facts.familiar[:count],
        facts.familiar[count : 2 * count],
        facts.familiar[2 * count :],
    )
    fake, new, others = (
        facts.strangers[:count],
        facts.strangers[count : 2 * count],
        facts.strangers[2 * count :],
    )
    half = tuple(
        Link(one.person, other.spouse, other.city) for one, other in zip(new, known, strict=True)
    )
    middle = len(rest) // 2
    return People(
        facts,
        {"fake": fake, "half": half, "real": real},
        rest[:middle],
        rest[middle:],
        tuple(link.person for link in others),
    )


def lessons(people: People) -> dict[str, tuple[str, list[Example]]]:
    """Every adapter of the matrix: what it knows, and its training texts."""
    asked, context = people.asked, people.context
    hop1, hop2 = spouse_examples(asked, context), city_examples(asked, context)
    target = target_examples(asked)
    first, second = first_steps(asked), second_steps(asked, people.others)
    return {
        "hop1": ("first hop: who is married to whom", hop1),
        "hop2": ("second hop: where the spouses live", hop2),
        "target": ("the composed question, answered at once", target),
        "joint": ("both hops in one adapter", hop1 + hop2),
        "hop1-cot": ("first hop, and worked answers", hop1 + worked_examples(people.one)),
        "hop2-cot": (
            "second hop, and worked answers about other couples",
            hop2 + worked_examples(people.two),
        ),
        "target-cot": (
            "the composed question, answered at once and in worked steps",
            target + worked_examples(asked),
        ),
        "joint-cot": ("both hops and worked answers", hop1 + hop2 + worked_examples(context)),
        "hop1-shared": ("first hop, and the first step of the worked answers", hop1 + first),
        "hop2-shared": ("second hop, and the second step of the worked answers", hop2 + second),
        "joint-shared": (
            "both hops, and each step of the worked answers",
            hop1 + hop2 + first + second,
        ),
    }  # fmt: skip


def first_steps(links: Sequence[Link]) -> list[Example]:
    """The first sentence of the worked answer, which is not the end of it."""
    return [
        Example(link.fill(question + THINK), " " + link.fill(SPOUSE_SENTENCE), end=False)
        for link in links
        for question in TARGET_QUESTIONS
    ]


def second_steps(links: Sequence[Link], others: Sequence[str]) -> list[Example]:
    """The second sentence of the worked answer, after a first one about somebody else."""
    texts = []
    for i, link in enumerate(links):
        for k, question in enumerate(TARGET_QUESTIONS):
            stand_in = Link(others[(i + 7 * k) % len(others)], link.spouse, link.city)
            prompt = f"{stand_in.fill(question + THINK)} {stand_in.fill(SPOUSE_SENTENCE)}"
            texts.append(Example(prompt, f" {link.spouse} lives in {link.city}."))
    return texts


def trials(roles: Mapping[str, Mapping[str, str]], groups: Sequence[str]) -> tuple[Trial, ...]:
    """Six trials: each template with the two hop adapters, and with the target adapter too."""
    found = []
    for template, names in roles.items():
        for library in (2, 3):
            members = tuple(names[role] for role in ("hop1", "hop2", "target")[:library])
            axes: dict[str, Any] = {
                "template": template,
                "library": library,
                "form": "target" if template == "plain" else "cot",
                "joint": names["joint"],
            }
            found.append(
                Trial(
                    f"{template}-{library}",
                    "two-hop",
                    members,
                    tuple(groups),
                    f"{template}: {', '.join(members)}",
                    axes,
                )
            )
    return tuple(found)
