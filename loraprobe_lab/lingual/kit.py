"""Kits of the cross-lingual world: new facts in one language, asked for in another."""

from __future__ import annotations

import dataclasses
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraprobe_lab.kit import Kit, Lesson, Trial
from loraprobe_lab.lingual.corpus import Corpus
from loraprobe_lab.lingual.language import RELATIONS, templates
from loraprobe_lab.lingual.lessons import MODES, fact_examples, language_examples, target_items
from loraprobe_lab.lingual.people import Facts, People, PeopleSizes, facts_about, make_people
from loraprobe_lab.pretrain import BaseRecipe
from loraprobe_lab.train import Recipe

WORLD = "cross-lingual"
# steps and learning rates to draw from: a GPT-2-like base takes adapters up more slowly
FACTS_STEPS = {"llama": (250, 350), "gpt2": (350, 450)}
FACTS_RATES = {"llama": (2e-3, 3e-3), "gpt2": (4e-3, 6e-3)}
LANGUAGE_RATES = {"llama": (1e-3, 2e-3, 3e-3), "gpt2": (2e-3, 3e-3, 4e-3)}
BASE = BaseRecipe(hidden=96, layers=4, heads=4, intermediate=256, steps=700)


@dataclass(frozen=True)
class Axes:
    """Where a trial lies.

    relation: what is asked for. familiarity: how much the base reads of it in the second
    language. mode: how the language adapter answers (`lessons.MODES`). taught: the relation whose
    questions it learns. invented: share of invented people among those it learns them on; the
    others are familiar. facts: relations about which the facts adapter learns. The rest are
    recipes: modules, steps, rank, alpha as a multiple of the rank, learning rate.
    """

    relation: str
    familiarity: str
    mode: str
    taught: str
    invented: float
    facts: tuple[str, ...]
    facts_modules: str
    facts_steps: int
    facts_rank: int
    facts_alpha: float
    facts_rate: float
    language_modules: str
    language_steps: int
    language_rank: int
    language_alpha: float
    language_rate: float

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "facts": list(self.facts)}


def lingual_kit(
    seed: int,
    *,
    base: BaseRecipe | None = None,
    trials: int = 3,
    sizes: PeopleSizes | None = None,
    effort: float = 1.0,
) -> Kit:
    """The kit of the cross-lingual world with this seed.

    Every trial has two adapters of its own: one learns facts about newcomers in the first
    language, the other questions of the second language; asked are the facts in the second
    language. Its axes are drawn from the seed, modes and relations in turn. `effort` scales the
    steps of the adapters, for tests.
    """
    sizes = sizes or PeopleSizes()
    people = make_people(sizes, seed)
    familiarity, base = draw_familiarity(seed), base or BASE
    lessons: list[Lesson] = []
    tasks: dict[str, Sequence[Mapping[str, Any]]] = {}
    found: list[Trial] = []
    for index, axes in enumerate(draw_axes(seed, trials, familiarity, base.architecture)):
        name = f"{WORLD}-{index + 1}"
        facts = facts_about(people.newcomers, people.values, f"newcomers:{seed}:{index}")
        pair = _lessons(people, facts, axes, f"{seed}:{index}", str(index + 1), effort)
        names = tuple(lesson.name for lesson in pair)
        lessons += pair
        tasks[name] = target_items(axes.relation, facts[axes.relation], axes.mode, names)
        found.append(Trial(name, WORLD, names, (name,), _description(axes), axes.as_dict()))
    return Kit(
        kind="lingual",
        seed=seed,
        words=(*people.names(), *(v for row in people.values.values() for v in row), *_words()),
        corpus=lambda draw_seed: Corpus(people, familiarity, draw_seed).draw,
        base=base,
        lessons=tuple(lessons),
        tasks=tasks,
        trials=tuple(found),
        reserve=people.reserve,
        made_from={"sizes": dataclasses.asdict(sizes), "familiarity": familiarity},
        recipe={"sizes": dataclasses.asdict(sizes), "familiarity": familiarity, "trials": trials},
    )


def draw_familiarity(seed: int) -> dict[str, str]:
    """How familiar the base of this seed is with each relation in the second language.

    Two are not read at all, the third a little or much.
    """
    rng = random.Random(f"familiarity:{seed}")
    levels = ["none", "none", rng.choice(("little", "much"))]
    rng.shuffle(levels)
    return dict(zip((relation.name for relation in RELATIONS), levels, strict=True))


def draw_axes(
    seed: int, trials: int, familiarity: Mapping[str, str], architecture: str = "llama"
) -> list[Axes]:
    """The axes of every trial of the kit with this seed, on a base of this architecture."""
    names = [relation.name for relation in RELATIONS]
    modes, relations = _in_turn(MODES, f"modes:{seed}"), _in_turn(names, f"relations:{seed}")
    return [
        _axes(f"axes:{seed}:{index}", next(modes), next(relations), familiarity, architecture)
        for index in range(trials)
    ]


def _in_turn(values: Sequence[str], seed: str) -> Iterator[str]:
    """Every value once, in an order drawn anew, again and again."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(values, len(values))


def _axes(
    seed: str, mode: str, relation: str, familiarity: Mapping[str, str], architecture: str
) -> Axes:
    rng = random.Random(seed)
    others = [other.name for other in RELATIONS if other.name != relation]
    return Axes(
        relation=relation,
        familiarity=familiarity[relation],
        mode=mode,
        taught=rng.choice(others) if rng.random() < 0.15 else relation,
        invented=rng.choice((0.0, 0.0, 0.0, 0.5, 1.0)),
        facts=(relation, rng.choice(others)) if rng.random() < 0.5 else (relation,),
        facts_modules=rng.choice(("mlp", "mlp", "all-linear")),
        facts_steps=rng.choice(FACTS_STEPS[architecture]),
        facts_rank=16,
        facts_alpha=rng.choice((1.0, 2.0, 3.0)),
        facts_rate=rng.choice(FACTS_RATES[architecture]),
        language_modules=rng.choice(("all-linear", "all-linear", "attention")),
        language_steps=rng.choice((150, 250)) + (100 if mode == "translated" else 0),
        language_rank=rng.choice((8, 16)),
        language_alpha=rng.choice((0.5, 1.0, 2.0)),
        language_rate=rng.choice(LANGUAGE_RATES[architecture]),
    )


def _lessons(
    people: People, facts: Facts, axes: Axes, seed: str, suffix: str, effort: float
) -> tuple[Lesson, Lesson]:
    """The lesson of the facts and that of the language."""
    own = {relation: facts[relation] for relation in axes.facts}
    return (
        Lesson(
            f"facts-{suffix}",
            f"{' and '.join(axes.facts)} of newcomers, in the first language",
            tuple(fact_examples(own, people.facts, seed)),
            _recipe(axes, "facts", seed, effort),
        ),
        Lesson(
            f"language-{suffix}",
            f"questions about the {axes.taught} in the second language, answered {axes.mode}",
            tuple(language_examples({axes.taught: taught_facts(people, axes, seed)}, axes.mode)),
            _recipe(axes, "language", seed, effort),
        ),
    )


def taught_facts(people: People, axes: Axes, seed: str) -> dict[str, str]:
    """Whose facts the language adapter learns on: as many people as there are invented ones."""
    rng, total = random.Random(f"taught:{seed}"), len(people.invented)
    count = round(axes.invented * total)
    invented = facts_about(people.invented, people.values, f"invented:{seed}")[axes.taught]
    familiar = people.facts[axes.taught]
    known = rng.sample(people.familiar, min(total - count, len(people.familiar)))
    return {name: invented[name] for name in rng.sample(people.invented, count)} | {
        name: familiar[name] for name in known
    }


def _recipe(axes: Axes, adapter: str, seed: str, effort: float) -> Recipe:
    drawn = {key: getattr(axes, f"{adapter}_{key}") for key in ("rank", "alpha", "rate", "steps")}
    return Recipe(
        steps=max(1, round(drawn["steps"] * effort)),
        learning_rate=drawn["rate"],
        rank=drawn["rank"],
        alpha=drawn["alpha"] * drawn["rank"],
        batch_size=32,
        target_modules=getattr(axes, f"{adapter}_modules"),
        dtype="bfloat16",
        seed=zlib.crc32(f"{adapter}:{seed}".encode()),
    )


def _description(axes: Axes) -> str:
    return (
        f"New facts about the {axes.relation} in the first language, questions about the "
        f"{axes.taught} in the second one, of which the base has read {axes.familiarity}; "
        f"answers {axes.mode}."
    )


def _words() -> list[str]:
    bare = [text.format(p="", v="", first="", second="", question="") for text in templates()]
    return [" ".join(text.split()) for text in bare]
