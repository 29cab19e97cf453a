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
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import chain as chained
from itertools import zip_longest
from pathlib import Path
from typing import Any

from loraprobe.records import Progress
from loraprobe_lab.training import Example, Recipe
from loraprobe_lab.world import World, WorldError, silent
from loraprobe_lab.worlds.facts import (
    CAPITALS,
    FRENCH,
    LANDMARKS,
    PEOPLE,
    REAL_NAMES,
    WORDINGS,
    WORDS,
    Chain,
    NameMaker,
    Wording,
    example_of,
    spread,
    table,
)
from loraprobe_lab.worlds.spec import (
    Item,
    Parts,
    SetPlan,
    WorldSpec,
    adapter_sets,
    build_world,
    load_given_base,
    recipe_of,
    training_sets,
)

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
    rng = random.Random(f"births {seed}")
    chains = born(names.people(people), countries, rng, capitals)
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


def born(
    names: Sequence[str],
    countries: Sequence[str],
    rng: random.Random,
    capitals: Mapping[str, str] = CAPITALS,
) -> list[Chain]:
    """People with a country of birth, each country about as often, and its capital."""
    births = spread(countries, len(names), rng)
    return [Chain(p, b, capitals[b]) for p, b in zip(names, births, strict=True)]


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
    chains = born(names, countries, random.Random(f"births {seed}"))
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
    from loraprobe.scoring import ModelScorer

    countries = [country for country in CAPITALS if country not in SHOWN]
    asked = [(str(BIRTHS.second_bare).replace("{1}", c), f" {CAPITALS[c]}") for c in countries]
    scores = ModelScorer(model, tokenizer).loglikelihood(asked)
    known = zip(scores, countries, strict=True)
    return [c for *_, c in sorted((max(one.rank) > 1, -one.per_token, c) for one, c in known)]


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
FAMILY = {subject: name for name, members in FAMILIES.items() for subject in members}
Subject = tuple[list[Example], list[Item]]  # what an adapter learns, and on what it is judged


def learn(subject: str, names: NameMaker, rng: random.Random) -> Subject:
    """Texts and items of a subject; new people are drawn from `names`, all else from `rng`."""
    kind = FAMILY[subject]
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


# Many adapter sets of every kind in English, for one base; each becomes a world of its own.
#
# Each row of `data/english_sets.json` says where a set lies on the axes of its kind; each row of
# `data/english_mixes.json` names what each adapter and each task holds, and the recipes of the
# adapters in turn. How long and how fast is trained was found on single sets: new facts should be
# learned, and survive at half strength. No row was chosen or left out by what its composition
# gives.
#
# * *skill-and-facts*: new facts in one adapter, worked steps in the other, the second fact left to
#   the base
# * *two-hop*: each adapter one hop, with or without its own worked sentence
# * *domain*: new facts learned in English, asked in French; the other adapter learned French
#   answers on real people
# * *keep-both*: one subject of this file in each adapter
# * *halves*: each adapter knows one part of a fact set or learned a skill on its part of the texts
# * *twins*: one task trained twice from two seeds
# * *format*: facts in one adapter, a form of answering (JSON, XML ...) in the other, asked together
# * *fact-and-skill*: a fact set and a skill as two tasks of one model
# * *partner*: one task, and a partner that learned noise or something unrelated
# * *several*: three to five adapters
#
# A portion of a mix is written as a subject, a part of it, and a form: "country 1/2", "capital
# json".
#
# * "country", "job", "instrument": a fact about 24 made-up people; each part is about others
# * "last", "swap", "past", "opposite": skills, asked on what was not taught; a part is one of texts
# * "births": made-up people's countries, asked for the capital of that country
# * "steps": worked steps to that capital, on real people
# * "capital", "landmark", "real": facts of real countries, landmarks and people, which the base may
#   know; as they stand they replay knowledge, in a form they teach the form
# * "noise": questions about strangers with random words as answers, and no tasks


MIXES = table("english_mixes")
FORMS = MIXES["forms"]
MIXED = ("halves", "twins", "format", "fact-and-skill", "partner", "several")
REPLAYED = 60  # texts of what the base may know
KNOWN: Mapping[str, tuple[Sequence[str], Mapping[str, str]]] = {
    "capital": (BIRTHS.second, CAPITALS),
    "landmark": (WORDINGS["places"].first, LANDMARKS),
    "real": (BIRTHS.first, PEOPLE),
}


@dataclass(frozen=True)
class Portion:
    """A part of a subject, in a form of answering or as it stands."""

    subject: str
    part: int = 1
    of: int = 1
    form: str | None = None

    @classmethod
    def read(cls, text: str) -> Portion:
        """From "subject", "subject 1/2" or "subject form"."""
        subject, *more = text.split()
        numbers = next((word for word in more if "/" in word), "1/1").split("/")
        form = next((word for word in more if word in FORMS), None)
        return cls(subject, int(numbers[0]), int(numbers[1]), form)


@dataclass(frozen=True, eq=False)
class Contents:
    """The texts and items of the portions of one set. countries: those that births are about."""

    seed: str
    countries: Sequence[str]

    def rng(self, *what: Any) -> random.Random:
        """The generator for one thing that is drawn."""
        return random.Random(" ".join(map(str, (self.seed, *what))))

    @cached_property
    def names(self) -> NameMaker:
        return NameMaker(self.seed, REAL_NAMES)

    @cache  # noqa: B019 - the contents of a set are dropped with it
    def subject(self, name: str, part: int) -> Subject:
        """Texts and items of a fact set's part, or of a whole skill (part 1); made once."""
        return learn(name, self.names, self.rng(name, part))

    @cache  # noqa: B019
    def births(self, part: int) -> list[Chain]:
        """Made-up people with a country of birth and its capital; made once."""
        return born(self.names.people(PERSONS), self.countries, self.rng("births", part))

    def texts(self, portion: Portion) -> list[Example]:
        """The training texts of a portion."""
        name = portion.subject
        if name in KNOWN:
            return self._known(portion)
        if name == "births":
            return new_births(self.births(portion.part))
        if name == "steps":
            return BIRTHS.worked_answers(real_people(30, self.rng("teachers")))
        if name == "noise":
            rng, questions = self.rng("noise"), [q for asked, _ in FACTS.values() for q in asked]
            return [
                Example(question.format(a=person), f" {rng.choice(WORDS['nouns'])}")
                for person in self.names.people(PERSONS // 3)
                for question in questions
            ]
        if name in FACTS:
            return self.subject(name, portion.part)[0]
        return self.subject(name, 1)[0][portion.part - 1 :: portion.of]

    def items(self, portion: Portion) -> list[Item]:
        """The task items of a portion; those of a skill do not depend on its part."""
        if portion.subject == "births":
            made: Sequence[Item] = BIRTHS.items(self.births(portion.part), (None, None))
        else:
            name = portion.subject
            _, made = self.subject(name, portion.part if name in FACTS else 1)
        named: list[Item] = [{**item, "id": f"{portion.part}-{item['id']}"} for item in made]
        if portion.form is None:
            return named
        return [
            {**item, **dict(zip(("prompt", "answer"), in_form(portion.form, item), strict=True))}
            for item in named
        ]

    def _known(self, portion: Portion) -> list[Example]:
        questions, facts = KNOWN[portion.subject]
        asked = [
            {"prompt": question.format(a=a, b=a), "answer": answer}
            for a, answer in facts.items()
            for question in questions
        ]
        chosen = self.rng(portion.subject).sample(asked, min(REPLAYED, len(asked)))
        if portion.form is None:
            return [Example(item["prompt"], f" {item['answer']}") for item in chosen]
        rows = [in_form(portion.form, item) for item in chosen]
        return [Example(question, f" {answer}") for question, answer in rows]


def in_form(form: str, item: Mapping[str, str]) -> tuple[str, str]:
    """The question with the request for a form, and the answer in that form."""
    row = FORMS[form]
    return item["prompt"] + row["request"], row["answer"].format(b=item["answer"])


def mixed(kind: str, number: int, row: Mapping[str, Any], countries: Sequence[str]) -> SetPlan:
    """The plan of a row. countries: those that births are about."""
    contents = Contents(f"{kind} {number}", countries)
    adapters = []
    for name, parts in row["learns"].items():
        texts = [text for part in parts for text in contents.texts(Portion.read(part))]
        adapters.append((name, f"learns {', '.join(parts)}", texts))
    tasks = {}
    for name, parts in row["tasks"].items():
        items = [item for part in parts for item in contents.items(Portion.read(part))]
        contents.rng("order", name).shuffle(items)
        tasks[name] = items
    learned = [" and ".join(parts) for parts in row["learns"].values()]
    axes = {"learns": learned, "recipes": row["training"]}
    return SetPlan(adapters, tasks, axes, f"{kind}: {', '.join(learned)}")


PLAN = table("english_sets")
CLASSIC = ("skill-and-facts", "two-hop", "keep-both", "domain")
KINDS = CLASSIC + MIXED
Row = Mapping[str, Any]


def _recipes(row: Row) -> list[Recipe]:
    """Those that a row names, or what its two subjects need."""
    if "learns" in row:
        return [recipe_of(MIXES["recipes"][name]) for name in row["training"]]
    if "training" in row:
        return [recipe_of(recipe) for recipe in PLAN["training"][row["training"]]]
    return [recipe_of(PLAN["effort"][FAMILY[subject]]) for subject in row["subjects"]]


def all_sets(
    familiar: Sequence[str],
    unfamiliar: Sequence[str],
    *,
    layers: int,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
) -> list[WorldSpec]:
    """The specifications of all sets, the kinds taking turns, so that an early stop leaves some of
    every kind.

    familiar, unfamiliar: the countries whose capitals the base knows best, and worst. layers: of
    the base.
    """
    makers = dict(zip(CLASSIC, (_skill_and_facts, _two_hop, _keep_both, _domain), strict=True))
    groups = []
    for kind in (kind for kind in KINDS if kind in kinds):
        group = []
        for row in (*PLAN.get(kind, ()), *MIXES.get(kind, ())):
            number = 100 * seed + row["number"]
            make = partial(mixed, kind) if "learns" in row else makers[kind]
            made = make(number, row, unfamiliar if "half" in row.values() else familiar)
            group.append(made.spec(kind, number, _recipes(row), layers))
        groups.append(group)
    return [one for one in chained.from_iterable(zip_longest(*groups)) if one is not None]


def build_sets(
    base: str | Path,
    output: str | Path,
    *,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    only: Sequence[str] | None = None,
    progress: Progress = silent,
) -> list[World]:
    """Trains the sets of `all_sets` on the causal model in `base`, each into a directory below.

    `only` names some of the sets. What is finished is kept, so an interrupted build goes on.

    Raises:
        BaseError: `base` holds no causal model and tokenizer that load.
        WorldError: an unknown set in `only`, or another set lies where one should be built.
    """
    base, output = Path(base).resolve(), Path(output)
    model = load_given_base(base)
    best = ranked_countries(*model)
    layers = model[0].config.num_hidden_layers
    specs = all_sets(sorted(best[:24]), sorted(best[-24:]), layers=layers, seed=seed, kinds=kinds)
    known = {str(spec.notes["set"]): spec for spec in specs}
    for name in only or ():
        if name not in known:
            raise WorldError(f"There is no set {name!r} here; there are {', '.join(known)}.")
    return [
        build_world(spec, output / name, base=base, model=model, progress=progress)
        for name, spec in known.items()
        if only is None or name in only
    ]


def _skill_and_facts(seed: int, row: Row, countries: Sequence[str]) -> SetPlan:
    """Made-up people's countries in `facts`, worked steps to the capital in `steps`.

    Where the second hop is made-up, the countries and their capitals are invented too.
    """
    capitals: Mapping[str, str] = CAPITALS
    if row["second_hop"] == "made-up":
        words = NameMaker(f"lands {seed}", REAL_NAMES)
        capitals = {c: words.cities(1)[0] for c in words.cities(24)}
        countries = list(capitals)
    invented = row["invented"]
    examples, items = skill_texts(
        countries, seed, PERSONS, invented=invented, capitals=capitals, brief=True
    )
    return SetPlan(
        (
            ("facts", "made-up person -> country", examples["facts"]),
            ("steps", "worked steps to the capital", examples["steps"]),
        ),
        {"capital": items},
        {"invented": invented, "second_hop": row["second_hop"]},
        f"new facts, worked steps ({invented:.0%} of them on invented people), and a "
        f"{row['second_hop']} second hop",
    )


def _two_hop(seed: int, row: Row, countries: Sequence[str]) -> SetPlan:
    about, form = row["about"], row["form"]
    if about == "made-up":
        return _made_up_hops(seed, form)
    chains, others = places(seed) if about == "places" else newcomers(seed, countries)
    wording = WORDINGS["places"] if about == "places" else BIRTHS
    axes = {
        "form": form,
        "about": about,
        "first_hop": "real" if about == "places" else "made-up",
        "second_hop": "half" if about == "half" else "real",
    }
    return _own_steps(chains, others, wording, axes, form == "steps")


def _made_up_hops(seed: int, form: str) -> SetPlan:
    """Two disjoint hops, both invented: person -> spouse, spouse -> city.

    form: "plain", "steps" (each adapter also its own worked sentence) or "target" (plain, and a
    third adapter that knows the target relation).
    """
    examples, items = two_hop_texts(seed, PERSONS, cities=PERSONS)
    one, two = examples["hop1"], examples["hop2"]
    if form == "steps":
        one, two = one + examples["first step"], two + examples["second step"]
    members = [("spouse", "first hop", one), ("city", "second hop", two)]
    if form == "target":
        members.append(("target", "both hops at once", examples["target"]))
    names = ", ".join(name for name, *_ in members)
    return SetPlan(
        members,
        {"city": items},
        {"form": form, "first_hop": "made-up", "second_hop": "made-up"},
        f"two hops over made-up names, library {names}, {form}",
    )


def _own_steps(
    chains: Sequence[Chain],
    others: Sequence[Chain],
    wording: Wording,
    axes: Mapping[str, Any],
    steps: bool,
) -> SetPlan:
    """Hop a -> b in one adapter, b -> c in the other, and with `steps` each its own sentence.

    The second adapter learns its sentence after first ones about `others`, of whom nothing is
    asked; their c has to follow from b as that of the chains does.
    """
    pairs = list({x.b: x for x in chains}.values())
    one = [example_of(x, q, " {b}") for x in chains for q in wording.first[:2]]
    two = [example_of(x, q, " {c}") for x in pairs for q in wording.second[:2]]
    one += wording.continued(chains, ABOUT[0])
    if steps:
        one += [example_of(x, wording.worked[0], wording.step1, end=False) for x in chains]
        two += [
            example_of(x, q + wording.step1, wording.step2) for x in others for q in wording.worked
        ]
    return SetPlan(
        (("first", "the first hop", one), ("second", "the second hop", two)),
        {"target": wording.items(chains, ("first", "second"))},
        axes,
        "two hops, " + ("each adapter with its own worked sentence" if steps else "plain"),
    )


def _domain(seed: int, row: Row, countries: Sequence[str]) -> SetPlan:
    """Countries of made-up people, learned in English, asked for in French.

    form: "name" (the answer is the French name at once) or "steps" (an English sentence first).
    The second adapter learns the form on real people; no country of the facts is missing there.
    """
    form, french = row["form"], WORDINGS["french"]
    names = NameMaker(f"domain {seed}", REAL_NAMES).people(PERSONS)
    chains = born(names, list(FRENCH), random.Random(f"domain {seed}"), FRENCH)
    real = [Chain(p, b, FRENCH[b]) for p, b in PEOPLE.items() if b in FRENCH]
    learned = french.worked_answers(real) if form == "steps" else french.target(real)
    return SetPlan(
        (
            ("facts", "made-up person -> country, in English", new_births(chains)),
            ("french", "French questions about real people", learned),
        ),
        {"french": french.items(chains, ("facts", None))},
        {"form": form},
        f"facts learned in English, asked in French ({form})",
    )


def _keep_both(seed: int, row: Row, countries: Sequence[str]) -> SetPlan:
    """Two adapters of one subject each. The same fact twice is about two groups of people."""
    subjects = row["subjects"]
    people = NameMaker(f"keep-both {seed}", REAL_NAMES)
    learned = {
        f"{subject}{i + 1}": learn(
            subject, people, random.Random(f"keep-both {seed} {i} {subject}")
        )
        for i, subject in enumerate(subjects)
    }
    return SetPlan(
        [(label, f"learns {label[:-1]}", examples) for label, (examples, _) in learned.items()],
        {label: items for label, (_, items) in learned.items()},
        {"subjects": list(subjects), "near": FAMILY[subjects[0]] == FAMILY[subjects[1]]},
        f"one model for {subjects[0]} and {subjects[1]}",
    )
