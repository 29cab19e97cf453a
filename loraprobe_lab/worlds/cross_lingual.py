"""The cross-lingual world: new facts learned in one language, asked for in another."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from loraprobe_lab.training.pretrain import BaseRecipe
from loraprobe_lab.training.train import Recipe
from loraprobe_lab.worlds.languages import (
    ANSWERS,
    RELATIONS,
    LanguagesCorpus,
    People,
    PeopleSizes,
    PersonFacts,
    fact_examples,
    facts_about,
    language_examples,
    make_people,
    target_items,
)
from loraprobe_lab.worlds.spec import AdapterSet, Item, TrainingSet, WorldSpec, own_seed

WORLD = "cross-lingual"
# steps and learning rates to draw from: a GPT-2-like base takes adapters up more slowly
FACTS_STEPS = {"llama": (250, 350), "gpt2": (350, 450)}
FACTS_RATES = {"llama": (2e-3, 3e-3), "gpt2": (4e-3, 6e-3)}
LANGUAGE_RATES = {"llama": (1e-3, 2e-3, 3e-3), "gpt2": (2e-3, 3e-3, 4e-3)}
BASE = BaseRecipe(hidden=96, layers=4, heads=4, intermediate=256, steps=700)


@dataclass(frozen=True)
class LanguageAxes:
    """Where a set lies.

    relation: what is asked for. familiarity: how much the base reads of it in the second
    language. mode: how the language adapter answers (`languages.ANSWERS`). taught: the relation
    whose questions it learns. invented: share of invented people among those it learns them on;
    the others are familiar. facts: relations about which the facts adapter learns. The rest are
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

    def recipe(self, adapter: str, seed: str) -> Recipe:
        """The recipe of the "facts" or the "language" adapter."""
        of = {
            key: getattr(self, f"{adapter}_{key}")
            for key in ("rank", "alpha", "rate", "steps", "modules")
        }
        return Recipe(
            steps=of["steps"],
            learning_rate=of["rate"],
            rank=of["rank"],
            alpha=of["alpha"] * of["rank"],
            batch_size=32,
            target_modules=of["modules"],
            dtype="bfloat16",
            seed=own_seed(adapter, seed),
        )


def cross_lingual_world(
    seed: int,
    *,
    base: BaseRecipe | None = None,
    trials: int = 3,
    sizes: PeopleSizes | None = None,
) -> WorldSpec:
    """The cross-lingual world with this seed.

    Every set has two adapters of its own: one learns facts about newcomers in the first
    language, the other questions of the second language; asked are the facts in the second
    language. Its axes are drawn from the seed, modes and relations in turn.
    """
    sizes, base = sizes or PeopleSizes(), base or BASE
    people, familiarity = make_people(sizes, seed), draw_familiarity(seed)
    training: list[TrainingSet] = []
    tasks: dict[str, Sequence[Item]] = {}
    sets: list[AdapterSet] = []
    for i, axes in enumerate(draw_axes(seed, trials, familiarity, base.architecture)):
        name = f"{WORLD}-{i + 1}"
        facts = facts_about(people.newcomers, people.values, f"newcomers:{seed}:{i}")
        pair = _pair(people, facts, axes, f"{seed}:{i}", str(i + 1))
        names = tuple(one.name for one in pair)
        training += pair
        tasks[name] = target_items(axes.relation, facts[axes.relation], axes.mode, names)
        text = (
            f"New facts about the {axes.relation} in the first language, questions about the "
            f"{axes.taught} in the second one, of which the base has read {axes.familiarity}; "
            f"answers {axes.mode}."
        )
        sets.append(AdapterSet(name, WORLD, names, (name,), text, dataclasses.asdict(axes)))
    made_from = {"sizes": dataclasses.asdict(sizes), "familiarity": familiarity}
    return WorldSpec(
        kind="lingual",
        seed=seed,
        training=tuple(training),
        tasks=tasks,
        adapter_sets=tuple(sets),
        base=base,
        words=people.words(),
        corpus=lambda draw_seed: LanguagesCorpus(people, familiarity, draw_seed).draw,
        reserve=people.reserve,
        made_from=made_from,
        recipe={**made_from, "trials": trials},
    )


def draw_familiarity(seed: int) -> dict[str, str]:
    """How familiar the base of this seed is with each relation in the second language.

    Two are not read at all, the third a little or much.
    """
    rng = random.Random(f"familiarity:{seed}")
    levels = ["none", "none", rng.choice(("little", "much"))]
    rng.shuffle(levels)
    return dict(zip(RELATIONS, levels, strict=True))


def draw_axes(
    seed: int, trials: int, familiarity: Mapping[str, str], architecture: str = "llama"
) -> list[LanguageAxes]:
    """The axes of every set of the world with this seed, on a base of this architecture."""
    modes = _in_turn(ANSWERS, f"modes:{seed}")
    relations = _in_turn(list(RELATIONS), f"relations:{seed}")
    return [
        _axes(f"axes:{seed}:{i}", next(modes), next(relations), familiarity, architecture)
        for i in range(trials)
    ]


def _in_turn(values: Sequence[str], seed: str) -> Iterator[str]:
    """Every value once, in an order drawn anew, again and again."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(values, len(values))


def _axes(
    seed: str, mode: str, relation: str, familiarity: Mapping[str, str], architecture: str
) -> LanguageAxes:
    rng = random.Random(seed)
    others = [other for other in RELATIONS if other != relation]
    return LanguageAxes(
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


def _pair(
    people: People, facts: PersonFacts, axes: LanguageAxes, seed: str, suffix: str
) -> tuple[TrainingSet, TrainingSet]:
    """What the adapter of the facts and that of the language are trained on."""
    own = {relation: facts[relation] for relation in axes.facts}
    taught = _taught_facts(people, axes, seed)
    return (
        TrainingSet(
            f"facts-{suffix}",
            f"{' and '.join(axes.facts)} of newcomers, in the first language",
            tuple(fact_examples(own, people.facts, seed)),
            axes.recipe("facts", seed),
        ),
        TrainingSet(
            f"language-{suffix}",
            f"questions about the {axes.taught} in the second language, answered {axes.mode}",
            tuple(language_examples(axes.taught, taught, axes.mode)),
            axes.recipe("language", seed),
        ),
    )


def _taught_facts(people: People, axes: LanguageAxes, seed: str) -> dict[str, str]:
    """Whose facts the language adapter learns on: as many people as there are invented ones."""
    rng, total = random.Random(f"taught:{seed}"), len(people.invented)
    count = round(axes.invented * total)
    invented = facts_about(people.invented, people.values, f"invented:{seed}")[axes.taught]
    familiar = people.facts[axes.taught]
    known = rng.sample(people.familiar, min(total - count, len(people.familiar)))
    chosen = {name: invented[name] for name in rng.sample(people.invented, count)}
    return chosen | {name: familiar[name] for name in known}
