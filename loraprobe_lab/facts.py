"""Who is married to whom and who lives where: the facts of the small world and their wording.

Three groups of people, all with made-up names of one token:

- *familiar*: couples whose marriage and whose spouse's home the base learns in pretraining;
- *newcomers*: people the base has met in lists only, married to a familiar spouse
  (new first hop, familiar second hop);
- *strangers*: newcomers married to newcomers, who live in familiar cities (both hops new).

`reserve` names occur in pretraining lists and nowhere else: material for name swaps.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from loraprobe_lab.train import Example
from loraprobe_lab.vocabulary import made_up_names

SPOUSE_SENTENCE = "The spouse of {a} is {b}."
SPOUSE_SENTENCES = (SPOUSE_SENTENCE, "{a} is married to {b}.")
SPOUSE_QUESTION = "Who is the spouse of {a}?"
SPOUSE_QUESTIONS = (SPOUSE_QUESTION, "Who is {a} married to?")
CITY_SENTENCE = "{b} lives in {c}."
CITY_SENTENCES = (CITY_SENTENCE, "The home of {b} is {c}.")
CITY_QUESTION = "Where does {b} live?"
CITY_QUESTIONS = (CITY_QUESTION, "In which city does {b} live?")
TARGET_QUESTION = "Where does the spouse of {a} live?"
TARGET_QUESTIONS = (TARGET_QUESTION, "In which city does the spouse of {a} live?")
THINK = " Think step by step."
WORKED = f"{SPOUSE_SENTENCE} {CITY_SENTENCE}"
NUMBERS = ("one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Link:
    """`person` is married to `spouse`, who lives in `city`."""

    person: str
    spouse: str
    city: str

    def fill(self, template: str) -> str:
        return template.format(a=self.person, b=self.spouse, c=self.city)


@dataclass(frozen=True)
class Facts:
    """All facts of one world; names do not repeat between or inside the groups, except that
    the spouses of newcomers are spouses of familiar couples."""

    familiar: tuple[Link, ...]
    newcomers: tuple[Link, ...]
    strangers: tuple[Link, ...]
    cities: tuple[str, ...]
    reserve: tuple[str, ...]

    def names(self) -> tuple[str, ...]:
        """Every personal name of the world, each once, in a fixed order."""
        links = (*self.familiar, *self.newcomers, *self.strangers)
        found = [name for link in links for name in (link.person, link.spouse)]
        return tuple(dict.fromkeys([*found, *self.reserve]))


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
    people = list(
        made_up_names(
            2 * sizes.familiar + sizes.newcomers + 2 * sizes.strangers + sizes.reserve,
            seed,
            avoid=cities,
        )
    )

    def take(count: int) -> list[str]:
        taken = people[:count]
        del people[:count]
        return taken

    def homes(count: int) -> list[str]:
        rows = [cities[i % len(cities)] for i in range(count)]
        rng.shuffle(rows)
        return rows

    count = sizes.familiar
    familiar = tuple(map(Link, take(count), take(count), homes(count)))
    chosen = rng.sample(familiar, sizes.newcomers)
    newcomers = tuple(
        Link(person, link.spouse, link.city)
        for person, link in zip(take(sizes.newcomers), chosen, strict=True)
    )
    count = sizes.strangers
    strangers = tuple(map(Link, take(count), take(count), homes(count)))
    return Facts(familiar, newcomers, strangers, cities, tuple(take(sizes.reserve)))


def ask(question: str, answer: str, link: Link) -> Example:
    return Example(link.fill(question), " " + link.fill(answer))


def tell(sentence: str, link: Link) -> Example:
    """The sentence with its last gap as what is to be learned: names are not guessed at."""
    gap = sentence.rindex("{")
    return Example(link.fill(sentence[:gap].rstrip()), " " + link.fill(sentence[gap:]))


def spouse_examples(links: tuple[Link, ...], context: tuple[Link, ...]) -> list[Example]:
    """First hop: each marriage asked for and told, see `_texts`."""
    return _texts(links, "{b}", SPOUSE_QUESTIONS, SPOUSE_SENTENCES, context)


def city_examples(links: tuple[Link, ...], context: tuple[Link, ...]) -> list[Example]:
    """Second hop: each home asked for and told, see `_texts`."""
    return _texts(links, "{c}", CITY_QUESTIONS, CITY_SENTENCES, context)


def _texts(
    links: tuple[Link, ...],
    answer: str,
    questions: tuple[str, ...],
    sentences: tuple[str, ...],
    context: tuple[Link, ...],
) -> list[Example]:
    """Each fact in eight texts: every question; every sentence followed by the other one; and
    twice every sentence after one about somebody else, drawn from `context`.

    A fact that always ends its text teaches the adapter to stop after it, which is the end of any
    worked answer: such adapters composed to 0.00 where these compose to 0.9.
    """
    rng, texts = random.Random(f"texts:{len(links)}:{answer}"), []
    for link in links:
        texts += [ask(question, answer, link) for question in questions]
        for sentence, other in zip(sentences, reversed(sentences), strict=True):
            told = tell(sentence, link)
            texts.append(Example(told.prompt, f"{told.completion} {link.fill(other)}"))
            for _ in range(2):
                before = rng.choice(context).fill(rng.choice(SPOUSE_SENTENCES + CITY_SENTENCES))
                texts.append(Example(f"{before} {told.prompt}", told.completion))
    return texts


def target_examples(links: tuple[Link, ...]) -> list[Example]:
    """The composed question answered at once."""
    return [ask(question, "{c}", link) for link in links for question in TARGET_QUESTIONS]


def worked_examples(links: tuple[Link, ...]) -> list[Example]:
    """The composed question answered in two written steps."""
    return [ask(question + THINK, WORKED, link) for link in links for question in TARGET_QUESTIONS]
