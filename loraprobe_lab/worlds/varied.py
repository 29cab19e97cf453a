"""The `facts` worlds, for calibration: one base and many adapter sets that are trained separately.

Each set has facts of its own (the same unfamiliar names, newly married), and adapters with recipes
of their own, drawn from the seed before anything is trained. Nothing is chosen by how it turns out.
The sets come from two strata, see `Stratum`.

Classes of sets:

- *skill-and-facts*: new facts x worked steps. Axes: `familiar`, the share of second hops that the
  base knows; `invented`, the share of made-up couples in the skill adapter's data; recipes.
- *two-hop*: both hops new. Axis `library`: "plain" (hop1 + hop2), "unrelated" (and a list skill),
  "target" (and the target relation), "both-steps" (worked steps on familiar couples in both
  adapters' data), "one-steps" (in one of them), "own-steps" (each its own step of worked answers),
  "parts" (each adapter knows the target relation itself, for its half of the people).
- *keep-both*: two tasks, an adapter each. Axis `pair`: facts and list skills, near and far.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from loraprobe_lab.training import BaseRecipe, Example, Recipe, bare
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
from loraprobe_lab.worlds.facts import SKILLS, Chain, example_of, lists_of_names, table
from loraprobe_lab.worlds.spec import (
    AdapterSet,
    Item,
    TrainingSet,
    WorldSpec,
    own_seed,
)

SIZES = FactSizes(familiar=200, newcomers=150, strangers=150, cities=40, reserve=60)
ITEMS = 2000  # of a skill that can be asked without end
CLASSES = ("skill-and-facts", "two-hop", "keep-both")


@dataclass(frozen=True)
class Stratum:
    """Kinds of sets to go through by seed, and recipes to draw from; see `data/strata.json`.

    *wide* goes through all kinds of sets and recipes; most of them fail. *favourable* holds what
    the literature and the map of success say should work (familiar second hops, no invented facts,
    adapters trained long enough and gently, facts in the MLPs and skills in the attention), so
    that successes are not rare in the data.

    familiar: shares of second hops that the base knows; invented: shares of made-up couples in the
    skill adapter's data; libraries and pairs: see the module. facts and skill: of the recipes of
    such adapters the ranks, steps, learning rates, alphas as multiples of the rank, and modules.
    """

    familiar: Sequence[float]
    invented: Sequence[float]
    libraries: Sequence[str]
    pairs: Sequence[tuple[str, str]]
    facts: Sequence[Sequence[Any]]
    skill: Sequence[Sequence[Any]]


STRATA = {name: Stratum(**table("strata")[name]) for name in ("wide", "favourable")}


def facts_world(
    seed: int,
    *,
    base: BaseRecipe | None = None,
    wide: int = 2,
    favourable: int = 0,
    worked: float = 0.0,
    classes: Sequence[str] = CLASSES,
    sizes: FactSizes = SIZES,
    items: int = ITEMS,
) -> WorldSpec:
    """A facts world with `wide` wide and `favourable` sets of each class.

    worked: share of worked steps in what the base reads. items: of each list skill.
    """
    facts = make_facts(sizes, seed)
    draft = _Draft(facts, seed, random.Random(f"varied:{seed}"), items)
    for world in classes:
        for i in range(wide):
            draft.add(f"{world}-{i + 1}", "wide", turn=2 * seed + i)
    for world in classes:
        for i in range(favourable):
            draft.add(f"{world}-{wide + i + 1}", "favourable", turn=favourable * seed + i)
    lists = bare((s.question for s in SKILLS.values()), "list")
    return WorldSpec(
        kind="facts",
        seed=seed,
        training=tuple(draft.training),
        tasks=draft.tasks,
        adapter_sets=tuple(draft.sets),
        base=base or BaseRecipe(),
        words=(*facts.words(), *lists),
        corpus=lambda draw_seed: CouplesCorpus(facts, draw_seed, worked=worked).draw,
        reserve=facts.reserve,
        made_from={"sizes": vars(sizes), "worked": worked},
        recipe={"worked": worked, "wide": wide, "favourable": favourable},
    )


@dataclass
class _Draft:
    """A facts world in the making: the sets drawn so far, and what the present one holds.

    stratum: of the present set. turn: which of the stratum's kinds it has. axes: what is recorded
    of it.
    """

    facts: Facts
    seed: int
    rng: random.Random
    items: int
    sets: list[AdapterSet] = field(default_factory=list)
    training: list[TrainingSet] = field(default_factory=list)
    tasks: dict[str, Sequence[Item]] = field(default_factory=dict)
    stratum: Stratum = STRATA["wide"]
    turn: int = 0
    axes: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, stratum: str, turn: int) -> None:
        """Draws a set of the class with which its name begins."""
        world = name.rpartition("-")[0]
        self.stratum, self.turn, self.axes = STRATA[stratum], turn, {"stratum": stratum}
        trained, asked = len(self.training), len(self.tasks)
        draw = {"skill-and-facts": self._skill_and_facts, "two-hop": self._two_hop}
        text = draw.get(world, self._keep_both)(name)
        adapters = tuple(trained_set.name for trained_set in self.training[trained:])
        tasks = tuple(self.tasks)[asked:]
        self.sets.append(AdapterSet(name, world, adapters, tasks, text, self.axes))

    def in_turn(self, values: Sequence[Any]) -> Any:
        """The value whose turn it is for this set."""
        return values[self.turn % len(values)]

    def recipe(self, kind: str) -> dict[str, Any]:
        """A recipe for an adapter of "facts" or of a "skill", drawn from the stratum."""
        ranks, steps, rates, alphas, targets = getattr(self.stratum, kind)
        pick, rank = self.rng.choice, self.rng.choice(ranks)
        recipe = {"steps": pick(steps), "learning_rate": pick(rates), "rank": rank}
        recipe["alpha"] = rank * pick(alphas)
        return {**recipe, "target_modules": targets[0] if len(targets) == 1 else pick(targets)}

    def train(
        self, name: str, text: str, examples: Sequence[Example], recipe: dict[str, Any]
    ) -> str:
        """Adds an adapter, and its recipe to the axes of the set."""
        seed = own_seed(name, self.seed)
        made = Recipe(**recipe, batch_size=32, dtype="bfloat16", seed=seed)
        self.training.append(TrainingSet(name, text, tuple(examples), made))
        self.axes[name.rpartition(".")[2]] = recipe
        return name

    def married(self, familiar: float) -> tuple[Chain, ...]:
        """The newcomers, married anew: this share of them to spouses whose home the base knows."""
        people = [chain.a for chain in self.facts.newcomers]
        known = self.rng.sample(self.facts.familiar, len(people))
        unknown = self.rng.sample(self.facts.strangers, len(people))
        count = round(familiar * len(people))
        homes = [*known[:count], *unknown[count:]]
        self.rng.shuffle(homes)
        return marry(people, homes)

    def strangers(self) -> tuple[Chain, ...]:
        """The strangers, married and settled anew."""
        chains = self.facts.strangers
        spouses, cities = [x.b for x in chains], [x.c for x in chains]
        self.rng.shuffle(spouses)
        self.rng.shuffle(cities)
        return tuple(map(Chain, [x.a for x in chains], spouses, cities))

    def _skill_and_facts(self, name: str) -> str:
        self.axes["familiar"] = self.in_turn(self.stratum.familiar)
        self.axes["invented"] = self.in_turn(self.stratum.invented)
        chains, familiar = self.married(self.axes["familiar"]), self.facts.familiar
        invented = self.strangers()
        count = round(self.axes["invented"] * len(invented))
        shown = [*invented[:count], *familiar[: len(invented) - count]]
        learned = spouse_examples(chains, familiar)
        facts = self.train(
            f"{name}.facts", "who the newcomers are married to", learned, self.recipe("facts")
        )
        worked = COUPLES.worked_answers(shown)
        self.train(f"{name}.steps", "worked steps", worked, self.recipe("skill"))
        self.tasks[name] = COUPLES.items(chains, (facts, None), 1)
        return "New facts in one adapter, worked steps in the other."

    def _two_hop(self, name: str) -> str:
        chains, familiar = self.strangers(), self.facts.familiar
        library = self.axes["library"] = self.in_turn(self.stratum.libraries)
        first, second = spouse_examples(chains, familiar), city_examples(chains, familiar)
        half = len(chains) // 2
        if library in ("both-steps", "one-steps"):
            worked = COUPLES.worked_answers(familiar)
            first = first + worked
            second = second + worked if library == "both-steps" else second
        elif library == "own-steps":
            people = [chain.a for chain in chains]
            self.rng.shuffle(people)
            first += COUPLES.first_steps(chains)
            second += COUPLES.second_steps(chains, people, stride=0)
        elif library == "parts":
            first, second = COUPLES.target(chains[:half]), COUPLES.target(chains[half:])
        recipes = [self.recipe("facts"), self.recipe("facts")]
        if library.endswith("steps"):  # more to learn
            recipes = [recipe | {"steps": 8 * recipe["steps"] // 5} for recipe in recipes]
        spouse = self.train(f"{name}.spouse", "who the strangers are married to", first, recipes[0])
        city = self.train(f"{name}.city", "where their spouses live", second, recipes[1])
        if library == "target":
            target, recipe = COUPLES.target(chains), self.recipe("facts")
            self.train(f"{name}.target", "the target relation", target, recipe)
        if library == "unrelated":
            self._list_skill(name, "last")
        owners = (None, None) if library == "parts" else (spouse, city)
        self.tasks[name] = COUPLES.items(chains, owners, 1)
        return f"Two new hops, library: {library}."

    def _keep_both(self, name: str) -> str:
        pair = self.in_turn(self.stratum.pairs)
        self.axes["pair"] = "+".join(pair)
        for what in pair:
            if what in SKILLS:
                task = f"{name}.{what}"
                lists = lists_of_names(self.facts.names(), self.items, f"test:{task}:{self.seed}")
                self._list_skill(name, what)
                self.tasks[task] = SKILLS[what].items(lists)
            else:
                self._new_facts(name, what)
        return f"One model for both: {pair[0]} and {pair[1]}."

    def _list_skill(self, name: str, skill: str) -> None:
        lists = lists_of_names(self.facts.names(), 3000, f"train:{name}:{skill}:{self.seed}")
        taught, recipe = SKILLS[skill], self.recipe("skill")
        self.train(f"{name}.{skill}", taught.description, taught.examples(lists), recipe)

    def _new_facts(self, name: str, what: str) -> None:
        """New facts of one kind, and the task that asks for them."""
        familiar = self.facts.familiar
        if what == "spouses":
            chains, text = self.married(1.0), "who the newcomers are married to"
            examples = spouse_examples(chains, familiar)
            rows = [(x.a, example_of(x, COUPLES.first[0], " {b}")) for x in chains]
        else:
            chains, text = self.strangers(), "where strangers live"
            examples = city_examples(chains, familiar)
            rows = [(x.b, example_of(x, COUPLES.second[0], " {c}")) for x in chains]
        self.tasks[f"{name}.{what}"] = [
            {
                "id": str(k),
                "prompt": asked.prompt,
                "answer": asked.completion.strip(),
                "group": person,
                "entities": [person],
            }
            for k, (person, asked) in enumerate(rows)
        ]
        self.train(f"{name}.{what}", text, examples, self.recipe("facts"))
