"""Worlds in English for any causal language model: `two-hop`, `skill-and-facts`, and subjects.

*Two-hop*: made-up people, their made-up spouses, the made-up cities these live in; every fact is
new to any base model. The adapters are those of arXiv 2506.13479's two-hop setting. *Skill and
facts*: made-up people and the real country each was born in, and worked steps that are learned on
real people; the second hop, country to capital, is left to what the base model read in pretraining.
It is the setting in which composition was seen to succeed.

*Subjects* of the `keep-both` sets: what one adapter learns, new facts about made-up people (birth
country, job, instrument) or a skill on everyday words (the last of a list, two words swapped, past
tense, opposites). Two subjects of one family are near, a fact and a skill are far.

Each fact is asked in several wordings; the items of one person form one group, so that wordings are
never counted as independent evidence.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from loraprobe_lab.training import Example
from loraprobe_lab.worlds.facts import (
    CAPITALS,
    LANDMARKS,
    PEOPLE,
    REAL_NAMES,
    WORDINGS,
    WORDS,
    Chain,
    NameMaker,
    example_of,
    spread,
    table,
)
from loraprobe_lab.worlds.spec import Item, Parts, WorldSpec, adapter_sets, training_sets

SPOUSES, BIRTHS = WORDINGS["spouses"], WORDINGS["births"]
ABOUT = ("Tell me about {a}.", "Who is {a}?")
PERSONS = 24  # made-up people that one of many sets is about
SHOWN = ("France", "Japan")  # stand in the prompt of the second hop, so no item asks for them
Texts = tuple[dict[str, list[Example]], Sequence[Item]]  # examples by part; task items


def two_hop_world(seed: int = 0) -> WorldSpec:
    """The eight adapters of the two-hop setting, one task, and the sets that are judged on it."""
    return _spec("english two-hop", seed, two_hop_texts(seed))


def skill_world(countries: Sequence[str], seed: int = 0) -> WorldSpec:
    """`facts` about people born in these countries, whose capitals the base knows, and `steps`."""
    texts = skill_texts(countries, seed)
    return _spec("english skill", seed, texts, countries=list(countries))


def _spec(library: str, seed: int, texts: Texts, **notes: Any) -> WorldSpec:
    examples, items = texts
    parts: Parts = {part: partial(list, made) for part, made in examples.items()}
    sets = adapter_sets(library)
    return WorldSpec(
        kind=sets[0].world,
        seed=seed,
        training=training_sets(library, parts, lambda _: seed),
        tasks={sets[0].world: items},
        adapter_sets=sets,
        notes=notes,
    )


def two_hop_texts(seed: int = 0, people: int = 40, cities: int = 12) -> Texts:
    """Each hop, the target, worked answers and their two steps, over made-up names alone."""
    names = NameMaker(f"two-hop {seed}", REAL_NAMES)
    left, right = names.people(people), names.people(people)
    strangers, towns = names.people(people), names.cities(cities)
    homes = spread(towns, people, random.Random(f"homes {seed}"))
    chains = [Chain(*row) for row in zip(left, right, homes, strict=True)]
    parts = {
        "hop1": SPOUSES.hop1(chains),
        "hop2": SPOUSES.hop2(chains),
        "target": SPOUSES.target(chains),
        "worked": SPOUSES.worked_answers(chains),
        "first step": SPOUSES.first_steps(chains),
        "second step": SPOUSES.second_steps(chains, strangers),
    }
    return parts, SPOUSES.items(chains, ("spouse", "city"))


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
        facts += [example_of(x, q, BIRTHS.step1, end=False) for x in chains for q in ABOUT]
    items = BIRTHS.items(chains, ("facts", None))
    return {"facts": facts, "steps": BIRTHS.worked_answers(known)}, items


def new_births(chains: Sequence[Chain]) -> list[Example]:
    """Each country of birth asked in two questions, and told in two texts that go on after it."""
    asked = [example_of(x, q, " {b}") for x in chains for q in BIRTHS.first[:2]]
    return asked + [text for question in ABOUT for text in BIRTHS.continued(chains, question)]


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


def newcomers(seed: int, countries: Sequence[str]) -> tuple[list[Chain], list[Chain]]:
    """Made-up people with real countries, and real people on whom steps are learned."""
    names = NameMaker(f"newcomers {seed}", REAL_NAMES).people(PERSONS)
    births = spread(countries, PERSONS, random.Random(f"births {seed}"))
    chains = [Chain(p, b, CAPITALS[b]) for p, b in zip(names, births, strict=True)]
    return chains, real_people(30, random.Random(f"teachers {seed}"))


def places(seed: int, most: int = 30) -> tuple[list[Chain], list[Chain]]:
    """Landmarks asked for, at most one of a country, and as many others to learn steps on."""
    rows = [Chain(a, b, CAPITALS[b]) for a, b in LANDMARKS.items() if b not in SHOWN]
    random.Random(f"places {seed}").shuffle(rows)
    seen: set[str] = set()
    asked, others = list[Chain](), list[Chain]()
    for row in rows:
        (others if row.b in seen or len(asked) == most else asked).append(row)
        seen.add(row.b)
    return asked, others[:most]


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


PEOPLE_TAUGHT, WORDS_ASKED, LISTS_TAUGHT = 24, 60, 120
QUESTIONS = table("subjects")
# a fact about a person: questions with {a}, and the values it may take
FACTS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "country": (BIRTHS.first, list(CAPITALS)[:24]),
    "job": (QUESTIONS["facts"]["job"], WORDS["jobs"]),
    "instrument": (QUESTIONS["facts"]["instrument"], WORDS["instruments"]),
}
# a skill on single words: a question with {a}, and the answers; some are taught, others asked
WORD_SKILLS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "past": (QUESTIONS["words"]["past"], WORDS["past"]),
    "opposite": (QUESTIONS["words"]["opposite"], WORDS["opposites"]),
}
FAMILIES = {"facts": list(FACTS), "lists": ["last", "swap"], "words": list(WORD_SKILLS)}
Subject = tuple[list[Example], list[Item]]  # what an adapter learns, and on what it is judged


def family(subject: str) -> str:
    """The family that a subject belongs to. Raises ValueError naming those there are."""
    for name, members in FAMILIES.items():
        if subject in members:
            return name
    known = ", ".join(member for members in FAMILIES.values() for member in members)
    raise ValueError(f"there is no subject {subject!r}; there are {known}")


def learn(subject: str, names: NameMaker, rng: random.Random) -> Subject:
    """Texts and items of a subject; new people are drawn from `names`, all else from `rng`."""
    kind = family(subject)
    if kind == "facts":  # every wording of a fact is taught, and asked, in one group
        questions, values = FACTS[subject]
        drawn = spread(values, PEOPLE_TAUGHT, rng)
        people = list(zip(names.people(PEOPLE_TAUGHT), drawn, strict=True))
        asked = [(q.format(a=person), value, person) for person, value in people for q in questions]
        return _subject(subject, asked, asked)
    if kind == "words":
        form, pairs = WORD_SKILLS[subject]
        rows = [(form.format(a=word), answer) for word, answer in pairs.items()]
        rng.shuffle(rows)
        taught = len(rows) - WORDS_ASKED
    else:  # no list is both taught and asked
        made: dict[str, str] = {}
        while len(made) < LISTS_TAUGHT + 2 * WORDS_ASKED:
            prompt, answer = _list(subject, rng)
            made.setdefault(prompt, answer)
        rows, taught = list(made.items()), LISTS_TAUGHT
    whole = [(question, answer, question) for question, answer in rows]
    return _subject(subject, whole[:taught], whole[taught:])


def _list(skill: str, rng: random.Random) -> tuple[str, str]:
    if skill == "last":
        words = rng.sample(WORDS["nouns"], rng.randint(3, 5))
        return f"Last word of the list: {', '.join(words)}.", words[-1]
    one, two = rng.sample(WORDS["nouns"], 2)
    return f"Swap the words: {one} {two}.", f"{two} {one}"


def _subject(
    name: str, taught: Sequence[tuple[str, str, str]], asked: Sequence[tuple[str, str, str]]
) -> Subject:
    """From rows of question, answer and group."""
    items: list[Item] = [
        {"id": f"{name}-{i:03d}", "prompt": question, "answer": answer, "group": group}
        for i, (question, answer, group) in enumerate(asked)
    ]
    return [Example(question, f" {answer}") for question, answer, _ in taught], items
