"""The facts of the small worlds: marriages and homes, as training texts and task items.

Three groups of people, all with made-up names of one token; a chain is person -> spouse -> city:

- *familiar*: couples whose marriage and whose spouse's home the base learns in pretraining;
- *newcomers*: people the base has met in lists only, married to a familiar spouse
  (new first hop, familiar second hop);
- *strangers*: newcomers married to newcomers, who live in familiar cities (both hops new).

`reserve` names occur only in pretraining lists; they serve name swaps.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraprobe_lab.training import BaseRecipe, Example, bare
from loraprobe_lab.world import WorldError
from loraprobe_lab.worlds.facts import (
    NUMBERS,
    SKILLS,
    WORDINGS,
    Chain,
    example_of,
    lists_of_names,
    made_up_names,
    sentence_after,
    sentence_then,
    spread,
)
from loraprobe_lab.worlds.spec import (
    AdapterSet,
    Item,
    Parts,
    WorldSpec,
    adapter_sets,
    own_seed,
    training_sets,
)

COUPLES = WORDINGS["small"]
SPOUSE_SENTENCES = (COUPLES.step1.strip(), "{a} is married to {b}.")
CITY_SENTENCES = (COUPLES.step2.strip(), "The home of {b} is {c}.")
MEETING = "{first} met {second}."


@dataclass(frozen=True)
class Facts:
    """All facts of one world; names do not repeat between or inside the groups, except that
    the spouses of newcomers are spouses of familiar couples."""

    familiar: tuple[Chain, ...]
    newcomers: tuple[Chain, ...]
    strangers: tuple[Chain, ...]
    cities: tuple[str, ...]
    reserve: tuple[str, ...]

    def names(self) -> tuple[str, ...]:
        """Every personal name of the world, each once, in a fixed order."""
        chains = (*self.familiar, *self.newcomers, *self.strangers)
        found = [name for chain in chains for name in (chain.a, chain.b)]
        return tuple(dict.fromkeys([*found, *self.reserve]))

    def words(self) -> tuple[str, ...]:
        """Texts that hold every word of a small world."""
        lists = [SKILLS[name].question for name in ("last", "count")]
        templates = [COUPLES.steps, MEETING, *lists, "Count:", *SPOUSE_SENTENCES, *COUPLES.first]
        templates += [*CITY_SENTENCES, *COUPLES.second, *COUPLES.both]
        texts = bare(templates, "a", "b", "c", "list", "first", "second")
        return (*self.names(), *self.cities, *NUMBERS, *texts)


@dataclass(frozen=True)
class FactSizes:
    """How many facts of each kind a world holds."""

    familiar: int = 300
    newcomers: int = 150
    strangers: int = 200
    cities: int = 40
    reserve: int = 80


def make_facts(sizes: FactSizes, seed: int) -> Facts:
    """The facts of the world with this seed. Cities are shared out evenly in each group."""
    rng = random.Random(f"facts:{seed}")
    cities = made_up_names(sizes.cities, seed, ending="burg")
    total = 2 * sizes.familiar + sizes.newcomers + 2 * sizes.strangers + sizes.reserve
    people = iter(made_up_names(total, seed, avoid=cities))

    def take(count: int) -> list[str]:
        return [next(people) for _ in range(count)]

    def chains(count: int) -> tuple[Chain, ...]:
        return tuple(map(Chain, take(count), take(count), spread(cities, count, rng)))

    familiar = chains(sizes.familiar)
    homes = rng.sample(familiar, sizes.newcomers)
    newcomers = marry(take(sizes.newcomers), homes)
    strangers = chains(sizes.strangers)
    return Facts(familiar, newcomers, strangers, cities, tuple(take(sizes.reserve)))


def marry(people: Sequence[str], homes: Sequence[Chain]) -> tuple[Chain, ...]:
    """New people married to the spouses of other chains, whose homes are known."""
    return tuple(Chain(p, home.b, home.c) for p, home in zip(people, homes, strict=True))


def spouse_examples(chains: Sequence[Chain], context: Sequence[Chain]) -> list[Example]:
    """First hop: the texts of each marriage, see `_texts`."""
    return _texts(chains, "{b}", COUPLES.first, SPOUSE_SENTENCES, context)


def city_examples(chains: Sequence[Chain], context: Sequence[Chain]) -> list[Example]:
    """Second hop: the texts of each home, see `_texts`."""
    return _texts(chains, "{c}", COUPLES.second, CITY_SENTENCES, context)


def _texts(
    chains: Sequence[Chain],
    answer: str,
    questions: Sequence[str],
    sentences: tuple[str, str],
    context: Sequence[Chain],
) -> list[Example]:
    """Each fact in eight texts: two questions, and each of two sentences three times.

    A sentence is followed by the other one once, and twice it follows a text about somebody of
    `context`. A fact that always ends its text teaches the adapter to stop after it, which ends any
    worked answer: such adapters composed to 0.00 where these compose to 0.9.
    """
    rng, texts = random.Random(f"texts:{len(chains)}:{answer}"), list[Example]()
    for chain in chains:
        texts += [example_of(chain, question, f" {answer}") for question in questions]
        for sentence, other in zip(sentences, reversed(sentences), strict=True):
            texts.append(sentence_then(sentence, chain, other))
            for _ in range(2):
                before = rng.choice(context).fill(rng.choice(SPOUSE_SENTENCES + CITY_SENTENCES))
                texts.append(sentence_after(sentence, chain, before))
    return texts


class CouplesCorpus:
    """An endless stream of pretraining texts.

    Sentences about familiar people in pairs (one fact in two wordings, or two unrelated facts),
    questions with one hop, composed questions answered at once, and meetings, in which every
    name of the world occurs. The loss is taken where a text can be foreseen, not on the names that
    it opens with.

    held: familiar couples of whom no composed question is asked, only both its hops. rare:
    familiar couples of whom everything is told and asked a share `rarity` as often as of others.
    worked: share of worked steps among the texts; there are none unless it is given.
    """

    def __init__(
        self,
        facts: Facts,
        seed: int,
        *,
        held: Collection[Chain] = (),
        rare: Collection[Chain] = (),
        rarity: float = 0.125,
        worked: float = 0.0,
    ) -> None:
        self._facts, self._rng = facts, random.Random(f"corpus:{seed}")
        self._names, self._rare, self._rarity = facts.names(), frozenset(rare), rarity
        without = frozenset(held)
        self._composed = tuple(chain for chain in facts.familiar if chain not in without)
        self._worked = worked

    def draw(self) -> Example:
        rng = self._rng
        if self._worked and rng.random() < self._worked:
            return rng.choice(COUPLES.worked_answers([rng.choice(self._facts.familiar)]))
        kind = rng.random()
        if kind < 0.40:  # a fact and the same fact in its other wording, or after an unrelated one
            chain, wording = self._couple(self._facts.familiar), self._wording()
            one, other = rng.sample(wording, 2)
            if rng.random() < 0.5:
                return sentence_then(one, chain, other)
            before = self._other(chain).fill(rng.choice(self._wording()))
            return sentence_after(one, chain, before)
        if kind < 0.72:
            chain = self._couple(self._facts.familiar)
            if rng.random() < 0.5:
                return example_of(chain, rng.choice(COUPLES.first), " {b}")
            return example_of(chain, rng.choice(COUPLES.second), " {c}")
        if kind < 0.82:
            chain = self._couple(self._composed)
            return example_of(chain, rng.choice(COUPLES.both), " {c}")
        if kind < 0.98:
            first, second = rng.sample(self._names, 2)
            again = MEETING.format(first=second, second=first)
            return Example(MEETING.format(first=first, second=second), f" {again}")
        return Example("Count:", " " + " ".join(NUMBERS) + ".")

    def _other(self, chain: Chain) -> Chain:
        """Another chain, so that no text contains both hops of one chain."""
        while (other := self._couple(self._facts.familiar)) is chain:
            pass
        return other

    def _couple(self, chains: Sequence[Chain]) -> Chain:
        """One of these couples; a rare one only in a share `rarity` of the draws that hit it."""
        while True:
            chain = self._rng.choice(chains)
            if chain not in self._rare or self._rng.random() < self._rarity:
                return chain

    def _wording(self) -> tuple[str, str]:
        return SPOUSE_SENTENCES if self._rng.random() < 0.5 else CITY_SENTENCES


def couples_world(
    kind: str,
    facts: Facts,
    seed: int,
    sizes: Any,
    base: BaseRecipe,
    parts: Parts,
    tasks: Mapping[str, Sequence[Item]],
    *,
    library: str | None = None,
    sets: Sequence[AdapterSet] | None = None,
    only: Sequence[str] | None = None,
    recipe: Mapping[str, Any] | None = None,
    **corpus: Any,
) -> WorldSpec:
    """A world of this kind about couples, on a base of its own.

    sizes: the dataclass that decides the facts. Adapters are those of a library of this name, the
    kind's unless given, or some of them (`only`); `sets` are the library's unless given. corpus:
    options of `CouplesCorpus`.
    """
    library, plain = library or kind, dataclasses.asdict(sizes)
    return WorldSpec(
        kind=kind,
        seed=seed,
        training=training_sets(library, parts, lambda name: own_seed(name, seed), only=only),
        tasks=tasks,
        adapter_sets=adapter_sets(library) if sets is None else tuple(sets),
        base=base,
        words=facts.words(),
        corpus=lambda draw_seed: CouplesCorpus(facts, draw_seed, **corpus).draw,
        reserve=facts.reserve,
        made_from={"sizes": plain},
        recipe={"sizes": plain, "base": dataclasses.asdict(base), **(recipe or {})},
    )


# The small world: adapters of single hops, of worked steps and of list skills, on one base.
#
# The world that ships with the package is made of it, and so are the worlds on which methods are
# compared. Its recipes are those that were found to work (see the outcomes of the shipped world).
# Facts are stored in the MLPs alone: an adapter of them that also changes the attention disturbs
# the worked steps of its partner (0.02 where this one composes to 1.00, same base and partner).


TRAINED_LISTS, ASKED_LISTS = 4000, 200
ASKED_FAMILIAR = 150  # couples of whom a guard asks
METHODS_SIZES = FactSizes(familiar=200, newcomers=100, strangers=100, cities=40, reserve=20)
SCENARIOS = adapter_sets("small")
WORLDS = tuple(dict.fromkeys(one.world for one in SCENARIOS))
REFERENCES = {"two-hop": ("joint", "joint-steps")}  # trained for comparison; in no scenario
SHIPPED = ("disjoint", "skill-and-facts", "target-adapter", "keep-both")  # inside the package


def small_world(
    worlds: Sequence[str] = WORLDS,
    seed: int = 0,
    *,
    sizes: FactSizes | None = None,
    base: BaseRecipe | None = None,
    only: Sequence[str] | None = None,
) -> WorldSpec:
    """The small world with the scenarios of these worlds, or those named in `only`.

    Raises WorldError for a scenario that there is not.
    """
    sizes, base = sizes or FactSizes(), base or BaseRecipe()
    offered = {one.name: one for one in SCENARIOS if one.world in worlds}
    for name in only or ():
        if name not in offered:
            raise WorldError(f"There is no scenario {name!r} here; there are {', '.join(offered)}.")
    scenarios = [one for one in offered.values() if only is None or one.name in only]
    facts = make_facts(sizes, seed)
    wanted = [name for one in scenarios for name in one.adapters]
    if only is None:
        wanted += [name for world in worlds for name in REFERENCES.get(world, ())]
    tasks = dict.fromkeys(task for one in scenarios for task in (*one.tasks, *one.guards))
    return couples_world(
        "small",
        facts,
        seed,
        sizes,
        base,
        _parts(facts, seed),
        {task: _items(task, facts, seed) for task in tasks},
        sets=scenarios,
        only=wanted,
        recipe={"base_dtype": "bfloat16", "effort": 1.0},  # as in the shipped world's manifest
    )


def methods_world(seed: int, base: BaseRecipe, sizes: FactSizes = METHODS_SIZES) -> WorldSpec:
    """Six adapters on one small base, and three questions on which methods are compared.

    The facts go into the MLPs of either architecture. No adapter here was chosen by how any
    method fares on it.
    """
    chosen = ("disjoint", "skill-and-facts", "keep-both")
    spec = small_world(WORLDS, seed, sizes=sizes, base=base, only=chosen)
    training = tuple(
        dataclasses.replace(one, recipe=dataclasses.replace(one.recipe, target_modules="mlp"))
        if isinstance(one.recipe.target_modules, tuple)
        else one
        for one in spec.training
    )
    return dataclasses.replace(spec, kind="methods", training=training)


def _parts(facts: Facts, seed: int) -> Parts:
    """What the adapters learn."""

    def lists(skill: str, tag: str) -> Callable[[], list[Example]]:
        rows = (facts.names(), TRAINED_LISTS, f"{tag}{seed}")
        return lambda: SKILLS[skill].examples(lists_of_names(*rows))

    return {
        "spouses": lambda: spouse_examples(facts.strangers, facts.familiar),
        "cities": lambda: city_examples(facts.strangers, facts.familiar),
        "target": lambda: COUPLES.target(facts.strangers),
        "worked": lambda: COUPLES.worked_answers(facts.familiar),
        "new spouses": lambda: spouse_examples(facts.newcomers, facts.familiar),
        "last": lists("last", "a"),
        "count": lists("count", "b"),
    }


def _items(task: str, facts: Facts, seed: int) -> Sequence[Item]:
    if task == "strangers":
        return COUPLES.items(facts.strangers, ("spouse", "city"), 1)
    if task == "newcomers":
        return COUPLES.items(facts.newcomers, ("newcomers", None), 1)
    if task == "familiar":  # what the base learned in pretraining
        asked = facts.familiar[:ASKED_FAMILIAR]
        return [
            {"id": str(i), "prompt": chain.fill(COUPLES.first[0]), "answer": chain.b}
            for i, chain in enumerate(asked)
        ]
    lists = lists_of_names(facts.names(), ASKED_LISTS, f"test:{task}:{seed}")
    return SKILLS[task].items(lists)
