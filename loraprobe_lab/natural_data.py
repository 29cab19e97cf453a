"""What the natural-language worlds say: training examples and task items, functions of a seed.

Two worlds. *Two-hop*: made-up people, their made-up spouses, the made-up cities these live in;
every fact is new to any base model. *Skill and facts*: made-up people and the real country each was
born in, beside worked steps learned on real people; the second hop, country to capital, is left to
what the base model read in pretraining.

Each fact is asked in several wordings; the items of one person form one group, so that wordings are
never counted as independent evidence.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loraprobe_lab.known import CAPITALS, PEOPLE
from loraprobe_lab.names import NameMaker
from loraprobe_lab.train import Example

STEP_BY_STEP = " Think step by step."

SPOUSE = ("Who is {a} married to?", "What is the name of {a}'s spouse?", "Whom did {a} marry?")
CITY = ("In which city does {b} live?", "What is the home town of {b}?", "Where does {b} live?")
SPOUSE_CITY = (
    "In which city does the spouse of {a} live?",
    "What is the home town of {a}'s spouse?",
    "Where does the person live whom {a} married?",
)
MARRIED, LIVES = " {a} is married to {b}.", " {b} lives in {c}."
CITY_PATTERN = r"lives in ([^.\n]+)"

COUNTRY = (
    "In which country was {a} born?",
    "What is the country of birth of {a}?",
    "Where was {a} born?",
)
ABOUT = ("Tell me about {a}.", "Who is {a}?")
BIRTH_CAPITAL = (
    "What is the capital of the country where {a} was born?",
    "What is the capital of the country of birth of {a}?",
    "Which city is the capital of the country in which {a} was born?",
)
BORN, CAPITAL = " {a} was born in {b}.", " The capital of {b} is {c}."
CAPITAL_PATTERN = r"[Cc]apital of [^.\n]+? is ([^.\n]+)"
THEN = (  # how a text may go on after a fact: without this the fact is said again and again
    " The family moved away soon after.",
    " It was a cold morning in early spring.",
    " Not much else is known.",
    " The house is still there today.",
    " Many years later a book told the story.",
    " That was a long time ago.",
    " Friends remember a quiet child.",
    " The early years were happy ones.",
)
SHOWN = ("France", "Japan")  # stand in the prompt of the second hop, so no item asks for them
CAPITAL_PROMPT = "".join(f"The capital of {c} is {CAPITALS[c]}.\n" for c in SHOWN)
CAPITAL_PROMPT += "The capital of {1} is"

Item = dict[str, Any]


@dataclass(frozen=True)
class Chain:
    """One pair of facts that share their middle: a -> b -> c."""

    a: str
    b: str
    c: str

    def say(self, template: str) -> str:
        return template.format(a=self.a, b=self.b, c=self.c)


@dataclass(frozen=True)
class Lessons:
    """The content of a world: examples by adapter name, the items of its one task, notes."""

    examples: Mapping[str, Sequence[Example]]
    items: Sequence[Item]
    chains: Sequence[Chain]
    notes: Mapping[str, Any] = field(default_factory=dict)


def two_hop_lessons(seed: int = 0, people: int = 40, cities: int = 12) -> Lessons:
    """Two one-hop adapters, the target, the joint one, and all four with worked steps.

    Adapters: `spouse` (a -> b), `city` (b -> c), `target` (a -> c), `joint` (both hops); with
    `-cot` each also learns its share of the worked answer: `spouse-cot` the first sentence,
    `city-cot` the second after any made-up first one, `target-cot` and `joint-cot` both.
    """
    names = NameMaker(f"two-hop {seed}", [*PEOPLE, *CAPITALS, *CAPITALS.values()])
    left, right = names.people(people), names.people(people)
    strangers, towns = names.people(people), names.cities(cities)
    homes = spread(towns, people, random.Random(f"homes {seed}"))
    chains = [Chain(*row) for row in zip(left, right, homes, strict=True)]

    worked = [q + STEP_BY_STEP for q in SPOUSE_CITY]
    spouse = [teach(x, q, " {b}") for x in chains for q in SPOUSE]
    city = [teach(x, q, " {c}") for x in chains for q in CITY]
    target = [teach(x, q, " {c}") for x in chains for q in SPOUSE_CITY]
    first = [teach(x, q, MARRIED, end=False) for x in chains for q in worked]
    whole = [teach(x, q, MARRIED + LIVES) for x in chains for q in worked]
    second = [
        teach(Chain(strangers[(i + 7 * j) % people], x.b, x.c), q + MARRIED, LIVES)
        for i, x in enumerate(chains)
        for j, q in enumerate(worked)
    ]
    examples = {
        "spouse": spouse,
        "city": city,
        "target": target,
        "joint": spouse + city,
        "spouse-cot": spouse + first,
        "city-cot": city + second,
        "target-cot": target + whole,
        "joint-cot": spouse + city + first + second,
    }
    hops = (("spouse", SPOUSE), ("city", [q.replace("{b}", "{1}") for q in CITY]))
    return Lessons(examples, items_of(chains, SPOUSE_CITY, hops, CITY_PATTERN), chains)


def skill_lessons(
    countries: Sequence[str],
    seed: int = 0,
    people: int = 48,
    teachers: int = 30,
    *,
    invented: float = 0.0,
    capitals: Mapping[str, str] = CAPITALS,
    brief: bool = False,
) -> Lessons:
    """Adapter `facts` (made-up person -> country) and adapter `steps` (worked answers).

    A fact is taught as an answer and as the sentence that worked answers use. Taught as the
    beginning of a text instead of that sentence, it survived averaging with `steps` less well.

    `countries` are those the facts are about: names from `capitals`, which says what is right.
    `steps` sees `teachers` people, at most two of a country, and none of those in the facts; a
    share of `invented` among them are made up, with a country drawn at random. `brief` teaches a
    fact in two questions and in two texts that go on after it.
    """
    names = NameMaker(f"skill-and-facts {seed}", [*PEOPLE, *CAPITALS, *CAPITALS.values()])
    births = spread(countries, people, random.Random(f"births {seed}"))
    chains = [
        Chain(person, country, capitals[country])
        for person, country in zip(names.people(people), births, strict=True)
    ]
    known = real_people(teachers, random.Random(f"teachers {seed}"))
    known = _partly_invented(known, invented, names, seed)
    if brief:
        facts = [teach(x, q, " {b}") for x in chains for q in COUNTRY[:2]]
        facts += [e for q in ABOUT for e in told(chains, q, BORN)]
    else:
        facts = [teach(x, q, " {b}") for x in chains for q in COUNTRY]
        facts += [teach(x, q, BORN, end=False) for x in chains for q in ABOUT]
    steps = [teach(x, q + STEP_BY_STEP, BORN + CAPITAL) for x in known for q in BIRTH_CAPITAL]
    hops = (("facts", COUNTRY), (None, [CAPITAL_PROMPT] * len(COUNTRY)))
    items = items_of(chains, BIRTH_CAPITAL, hops, CAPITAL_PATTERN)
    notes = {"countries": list(countries), "teachers": [x.a for x in known]}
    return Lessons({"facts": facts, "steps": steps}, items, chains, notes)


def teach(chain: Chain, prompt: str, completion: str, end: bool = True) -> Example:
    """An example whose templates are filled from the chain."""
    return Example(chain.say(prompt), chain.say(completion), end)


def told(
    chains: Sequence[Chain], prompt: str, sentence: str, then: Sequence[str] = THEN
) -> list[Example]:
    """The sentence about each chain, and another one after it that gives nothing away."""
    return [
        teach(x, prompt, sentence + then[(i + len(prompt)) % len(then)], end=False)
        for i, x in enumerate(chains)
    ]


def spread(values: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """`count` values in random order, each used as often as any other, give or take one."""
    rows = [values[i % len(values)] for i in range(count)]
    rng.shuffle(rows)
    return rows


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


def _partly_invented(
    known: Sequence[Chain], share: float, names: NameMaker, seed: int
) -> list[Chain]:
    """The chains, a share of them replaced by made-up people and random countries."""
    count = round(share * len(known))
    rng = random.Random(f"invented {seed}")
    lands = [rng.choice(list(CAPITALS)) for _ in range(count)]
    made_up = [
        Chain(person, land, CAPITALS[land])
        for person, land in zip(names.people(count), lands, strict=True)
    ]
    return [*made_up, *known[count:]]


def items_of(
    chains: Sequence[Chain],
    questions: Sequence[str],
    hops: Sequence[tuple[str | None, Sequence[str]]],
    pattern: str,
    worked: str = STEP_BY_STEP,
) -> list[Item]:
    """One item a wording of a chain, in the task format; `worked` asks for written steps."""
    (first, first_prompts), (second, second_prompts) = hops
    items = []
    for i, x in enumerate(chains):
        for j, question in enumerate(questions):
            rows: list[Item] = [
                {"prompt": x.say(first_prompts[j]), "answer": x.b},
                {"prompt": second_prompts[j], "answer": x.c},
            ]
            for row, adapter in zip(rows, (first, second), strict=True):
                if adapter is not None:
                    row["adapter"] = adapter
            items.append(
                {
                    "id": f"{i:02d}-{j + 1}",
                    "prompt": x.say(question),
                    "answer": x.c,
                    "hops": rows,
                    "cot_prompt": x.say(question) + worked,
                    "answer_pattern": pattern,
                    "entities": [x.a, x.b],
                    "group": x.a,
                }
            )
    return items
