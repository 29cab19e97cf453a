"""Worlds in English for any causal language model: `two-hop` and `skill-and-facts`.

*Two-hop*: made-up people, their made-up spouses, the made-up cities these live in; every fact is
new to any base model. The adapters are those of arXiv 2506.13479's two-hop setting. *Skill and
facts*: made-up people and the real country each was born in, and worked steps that are learned on
real people; the second hop, country to capital, is left to what the base model read in pretraining.
It is the setting in which composition was seen to succeed.

Each fact is asked in several wordings; the items of one person form one group, so that wordings are
never counted as independent evidence.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

from loraprobe_lab.training.batches import Example
from loraprobe_lab.training.train import Recipe
from loraprobe_lab.worlds.chains import WORDINGS, Chain, spread, teach
from loraprobe_lab.worlds.known import CAPITALS, PEOPLE, REAL_NAMES
from loraprobe_lab.worlds.names import NameMaker
from loraprobe_lab.worlds.spec import AdapterSet, Item, TrainingSet, WorldSpec

SPOUSES, BIRTHS = WORDINGS["spouses"], WORDINGS["births"]
ABOUT = ("Tell me about {a}.", "Who is {a}?")
SHOWN = ("France", "Japan")  # stand in the prompt of the second hop, so no item asks for them
COMMON: dict[str, Any] = {"batch_size": 32, "warmup": 10}
HOP = Recipe(steps=110, learning_rate=2e-3, **COMMON)
BOTH_HOPS = Recipe(steps=180, learning_rate=2e-3, **COMMON)
HOP_WORKED = Recipe(steps=160, learning_rate=1e-3, **COMMON)
BOTH_WORKED = Recipe(steps=260, learning_rate=1e-3, **COMMON)
FACTS = Recipe(steps=150, learning_rate=1e-3, batch_size=20, warmup=10)
STEPS = Recipe(steps=60, learning_rate=1e-3, batch_size=20, warmup=10)
# adapter -> what it knows, and its recipe; the most wanted first
TWO_HOP_ADAPTERS: Mapping[str, tuple[str, Recipe]] = {
    "spouse": ("made-up person -> made-up spouse", HOP),
    "city": ("that spouse -> made-up city", HOP),
    "target": ("person -> city of the spouse, without the step between", HOP),
    "joint": ("both hops in one adapter", BOTH_HOPS),
    "spouse-cot": ("first hop, and the first sentence of the worked answer", HOP_WORKED),
    "city-cot": ("second hop, and the second sentence of the worked answer", HOP_WORKED),
    "target-cot": ("person -> city, also with both worked sentences", HOP_WORKED),
    "joint-cot": ("what spouse-cot and city-cot learn, in one adapter", BOTH_WORKED),
}
TWO_HOP_SETS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "two-hop": (("spouse", "city"), "two disjoint hops over made-up names"),
    "two-hop-target": (("spouse", "city", "target"), "the target relation is in the library"),
    "two-hop-joint": (("spouse", "city", "joint"), "one adapter was trained on both hops"),
    "two-hop-cot": (("spouse-cot", "city-cot"), "each adapter knows its own worked step"),
}
Texts = tuple[dict[str, list[Example]], Sequence[Item]]  # examples by adapter, task items


def two_hop_world(seed: int = 0) -> WorldSpec:
    """The eight adapters of the two-hop setting, one task, and the sets that are judged on it."""
    examples, items = two_hop_texts(seed)
    return WorldSpec(
        kind="two-hop",
        seed=seed,
        training=tuple(
            TrainingSet(name, text, tuple(examples[name]), dataclasses.replace(recipe, seed=seed))
            for name, (text, recipe) in TWO_HOP_ADAPTERS.items()
        ),
        tasks={"two-hop": items},
        adapter_sets=tuple(
            AdapterSet(name, "two-hop", members, ("two-hop",), text)
            for name, (members, text) in TWO_HOP_SETS.items()
        ),
    )


def skill_world(countries: Sequence[str], seed: int = 0) -> WorldSpec:
    """`facts` about people born in these countries, whose capitals the base knows, and `steps`."""
    examples, items = skill_texts(countries, seed)
    rows = {
        "facts": ("made-up person -> real country of birth", FACTS),
        "steps": ("worked steps to the capital, learned on real people", STEPS),
    }
    text = "one adapter knows new facts, the other the worked steps; the base the second hop"
    name = "skill-and-facts"
    return WorldSpec(
        kind=name,
        seed=seed,
        training=tuple(
            TrainingSet(one, about, tuple(examples[one]), dataclasses.replace(recipe, seed=seed))
            for one, (about, recipe) in rows.items()
        ),
        tasks={name: items},
        adapter_sets=(AdapterSet(name, name, tuple(rows), (name,), text),),
        notes={"countries": list(countries)},
    )


def two_hop_texts(seed: int = 0, people: int = 40, cities: int = 12) -> Texts:
    """Two one-hop adapters, the target, the joint one, and all four with worked steps.

    Adapters: `spouse` (a -> b), `city` (b -> c), `target` (a -> c), `joint` (both hops); with
    `-cot` each also learns its share of the worked answer: `spouse-cot` the first sentence,
    `city-cot` the second after any made-up first one, `target-cot` and `joint-cot` both.
    """
    names = NameMaker(f"two-hop {seed}", REAL_NAMES)
    left, right = names.people(people), names.people(people)
    strangers, towns = names.people(people), names.cities(cities)
    homes = spread(towns, people, random.Random(f"homes {seed}"))
    chains = [Chain(*row) for row in zip(left, right, homes, strict=True)]
    spouse, city, target = SPOUSES.hop1(chains), SPOUSES.hop2(chains), SPOUSES.target(chains)
    first, second = SPOUSES.first_steps(chains), SPOUSES.second_steps(chains, strangers)
    examples = {
        "spouse": spouse,
        "city": city,
        "target": target,
        "joint": spouse + city,
        "spouse-cot": spouse + first,
        "city-cot": city + second,
        "target-cot": target + SPOUSES.worked_answers(chains),
        "joint-cot": spouse + city + first + second,
    }
    return examples, SPOUSES.items(chains, ("spouse", "city"))


def skill_texts(
    countries: Sequence[str],
    seed: int = 0,
    people: int = 48,
    teachers: int = 30,
    *,
    invented: float = 0.0,
    capitals: Mapping[str, str] = CAPITALS,
    brief: bool = False,
) -> Texts:
    """Adapter `facts` (made-up person -> country) and adapter `steps` (worked answers).

    A fact is taught as an answer and as the sentence that worked answers use. Taught as the
    beginning of a text instead of that sentence, it survived averaging with `steps` less well.

    `countries` are those the facts are about: names from `capitals`, which says what is right.
    `steps` sees `teachers` people, at most two of a country, and none of those in the facts; a
    share of `invented` among them are made up, with a country drawn at random. `brief` teaches a
    fact in two questions and in two texts that go on after it.
    """
    names = NameMaker(f"skill-and-facts {seed}", REAL_NAMES)
    births = spread(countries, people, random.Random(f"births {seed}"))
    named = zip(names.people(people), births, strict=True)
    chains = [Chain(person, country, capitals[country]) for person, country in named]
    known = real_people(teachers, random.Random(f"teachers {seed}"))
    count, rng = round(invented * len(known)), random.Random(f"invented {seed}")
    lands = [rng.choice(list(CAPITALS)) for _ in range(count)]
    made_up = zip(names.people(count), lands, strict=True)
    known = [*(Chain(p, land, CAPITALS[land]) for p, land in made_up), *known[count:]]
    if brief:
        facts = new_births(chains)
    else:
        facts = BIRTHS.hop1(chains)
        facts += [teach(x, q, BIRTHS.said, end=False) for x in chains for q in ABOUT]
    items = BIRTHS.items(chains, ("facts", None))
    return {"facts": facts, "steps": BIRTHS.worked_answers(known)}, items


def new_births(chains: Sequence[Chain]) -> list[Example]:
    """Each country of birth asked in two questions, and told in two texts that go on after it."""
    asked = [teach(x, q, " {b}") for x in chains for q in BIRTHS.first[:2]]
    return asked + [text for question in ABOUT for text in BIRTHS.told(chains, question)]


def real_people(count: int, rng: random.Random) -> list[Chain]:
    """Real people with country and capital, at most two of a country while there are enough."""
    people = list(PEOPLE.items())
    rng.shuffle(people)
    seen: dict[str, int] = {}
    ranked = []
    for name, country in people:
        seen[country] = seen.get(country, 0) + 1
        ranked.append((seen[country] > 2, Chain(name, country, CAPITALS[country])))
    return [chain for _, chain in sorted(ranked, key=lambda row: row[0])[:count]]


def familiar_countries(model: Any, tokenizer: Any, count: int = 24) -> list[str]:
    """The `count` countries whose capitals the model knows best, in the order of CAPITALS."""
    chosen = set(ranked_countries(model, tokenizer)[:count])
    return [country for country in CAPITALS if country in chosen]


def ranked_countries(model: Any, tokenizer: Any) -> list[str]:
    """The countries of CAPITALS, without those SHOWN in the prompt; best-known capital first.

    First those whose capital is the model's own greedy continuation, then by the mean
    log-likelihood of the capital's tokens.
    """
    import torch

    ranked = []
    for country in (c for c in CAPITALS if c not in SHOWN):
        head = tokenizer(str(BIRTHS.second_bare).replace("{1}", country))["input_ids"]
        tail = tokenizer(f" {CAPITALS[country]}", add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*head, *tail]], device=model.device)
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(head) - 1 : -1].float()
        gold = torch.tensor(tail, device=model.device)
        likelihood = logits.log_softmax(-1).gather(-1, gold[:, None]).mean()
        greedy = bool((logits.argmax(-1) == gold).all())
        ranked.append((not greedy, -float(likelihood), country))
    return [country for _, _, country in sorted(ranked)]
