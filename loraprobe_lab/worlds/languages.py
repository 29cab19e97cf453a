"""Two languages for the same facts about people: wordings, people, and the pretraining corpus.

The first language reads like English. The second one has other words for everything but names,
and other orders: its sentences open with the verb, its questions end or open with another word.
Relations and their wordings stand in `data/languages.json`: in every template ``{a}`` is a person
and ``{b}`` the value of the relation, and the questions of both languages stand in the order in
which they translate each other.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, starmap
from typing import Any

from loraprobe_lab.training.batches import Example
from loraprobe_lab.worlds.chains import (
    Chain,
    example_of,
    fact_texts,
    sentence_after,
    sentence_then,
    spread,
)
from loraprobe_lab.worlds.known import made_up_names, table
from loraprobe_lab.worlds.tokenizer import bare

# a text and what follows it
MEETING = ("{first} met {second}.", "{second} met {first}.")
ECHO = ("Say {first} and {second} again.", "{first} and {second}.")
TRANSLATE = "{question} Traduku."
TRANSLATE_AND_ANSWER = "{question} Traduku kaj respondu."
IN_FULL = "{question} Tuta frazo."
ANSWERS = ("at-once", "translated", "in-full")  # how the language adapter answers

PersonFacts = Mapping[str, Mapping[str, str]]  # relation -> person -> value


LanguageWording = Mapping[str, Sequence[str]]  # the sentences and questions of a relation
# relation -> its wordings in the first and the second language, and the ending of its values' names
RELATIONS: Mapping[str, Any] = table("languages")


def templates() -> list[str]:
    """Every template of both languages, for the vocabulary."""
    found = [*MEETING, *ECHO, TRANSLATE, TRANSLATE_AND_ANSWER, IN_FULL]
    for relation in RELATIONS.values():
        for wording in (relation["first"], relation["second"]):
            found += [*wording["sentences"], *wording["questions"]]
    return found


@dataclass(frozen=True)
class PeopleSizes:
    """How many people of each kind there are, and values of each relation."""

    familiar: int = 140
    newcomers: int = 150
    invented: int = 100
    reserve: int = 40
    values: int = 30


@dataclass(frozen=True)
class People:
    """Names of one token each, none in two groups.

    familiar: people whose `facts` the base reads. newcomers and invented people occur in its
    texts by name only; adapters are taught facts about them, of which those about newcomers are
    asked for. `reserve` names occur in meetings and nowhere else: material for name swaps.
    `values` holds the values of each relation.
    """

    familiar: tuple[str, ...]
    newcomers: tuple[str, ...]
    invented: tuple[str, ...]
    reserve: tuple[str, ...]
    values: Mapping[str, tuple[str, ...]]
    facts: PersonFacts

    def names(self) -> tuple[str, ...]:
        """Every person of the world."""
        return (*self.familiar, *self.newcomers, *self.invented, *self.reserve)

    def words(self) -> tuple[str, ...]:
        """Texts that hold every word of the world."""
        values = (value for row in self.values.values() for value in row)
        gaps = ("a", "b", "first", "second", "question")
        return (*self.names(), *values, *bare(templates(), *gaps))


def make_people(sizes: PeopleSizes, seed: int) -> People:
    """The people of the world with this seed."""
    values = {
        name: made_up_names(sizes.values, seed, ending=relation["ending"])
        for name, relation in RELATIONS.items()
    }
    taken = [value for row in values.values() for value in row]
    counts = (sizes.familiar, sizes.newcomers, sizes.invented, sizes.reserve)
    names = iter(made_up_names(sum(counts), seed, avoid=taken))
    familiar, newcomers, invented, reserve = (tuple(islice(names, count)) for count in counts)
    facts = facts_about(familiar, values, f"familiar:{seed}")
    return People(familiar, newcomers, invented, reserve, values, facts)


def facts_about(
    people: Sequence[str], values: Mapping[str, Sequence[str]], seed: int | str
) -> PersonFacts:
    """Facts of every relation about these people, drawn from a seed; values occur equally often."""
    rng = random.Random(f"facts:{seed}")
    return {
        relation: dict(zip(people, spread(names, len(people), rng), strict=True))
        for relation, names in values.items()
    }


@dataclass(frozen=True)
class Familiarity:
    """How much a base reads of one relation in the second language.

    people: share of the familiar people about whom it does. texts: share of the texts about this
    relation. asked: whether it reads questions, or sentences alone.
    """

    people: float
    texts: float
    asked: bool


FAMILIARITY: Mapping[str, Familiarity] = {
    "none": Familiarity(0.0, 0.0, False),
    "little": Familiarity(0.15, 0.1, False),
    "much": Familiarity(0.6, 0.3, True),
}


class LanguagesCorpus:
    """An endless stream of pretraining texts.

    Facts about familiar people, told and asked for, in the first language and as far as
    `familiarity` (relation -> "none", "little", "much") goes in the second one; meetings and
    repetitions, in which every person of the world occurs. No text holds both languages. The loss
    is taken where a text can be foreseen.
    """

    def __init__(self, people: People, familiarity: Mapping[str, str], seed: int) -> None:
        self._people, self._names = people, people.names()
        self._familiarity = {name: FAMILIARITY[level] for name, level in familiarity.items()}
        self._rng = random.Random(f"corpus:{seed}")

    def draw(self) -> Example:
        kind = self._rng.random()
        if kind < 0.25:
            return self._repetition(MEETING if kind < 0.12 else ECHO)
        relation = self._rng.choice(list(RELATIONS))
        level, everybody = self._familiarity[relation], self._people.familiar
        if self._rng.random() < level.texts:
            known = everybody[: max(2, round(level.people * len(everybody)))]
            return self._text(relation, known, RELATIONS[relation]["second"], level.asked)
        return self._text(relation, everybody, RELATIONS[relation]["first"], asked=True)

    def _repetition(self, texts: tuple[str, str]) -> Example:
        """A text that repeats two names, from which the base learns to copy names."""
        first, second = self._rng.sample(self._names, 2)
        one, other = (text.format(first=first, second=second) for text in texts)
        return Example(one, f" {other}")

    def _text(
        self, relation: str, people: Sequence[str], wording: LanguageWording, asked: bool
    ) -> Example:
        """A question, or a sentence followed by the other wording or led by somebody else's."""
        facts, rng = self._people.facts[relation], self._rng
        (person, somebody), kind = rng.sample(people, 2), rng.random()
        fact, theirs = _fact(person, facts[person]), _fact(somebody, facts[somebody])
        if asked and kind < 0.5:
            return example_of(fact, rng.choice(wording["questions"]), " {b}")
        one, other = rng.sample(wording["sentences"], 2)
        if rng.random() < 0.5:
            return sentence_then(one, fact, other)
        return sentence_after(one, fact, theirs.fill(other))


def _fact(person: str, value: str) -> Chain:
    return Chain(person, value, "")


def fact_examples(facts: PersonFacts, context: PersonFacts, seed: int | str) -> list[Example]:
    """Facts in the first language, each in six texts, see `fact_texts`; those before it are about
    somebody in `context`."""
    rng, texts = random.Random(f"lesson:{seed}"), list[Example]()
    for relation, rows in facts.items():
        wording = RELATIONS[relation]["first"]
        others, told = list(starmap(_fact, context[relation].items())), wording["sentences"]

        def before(others: Sequence[Chain] = others, sentences: Sequence[str] = told) -> str:
            return rng.choice(others).fill(rng.choice(sentences))

        for fact in starmap(_fact, rows.items()):
            texts += fact_texts(fact, "{b}", wording["questions"], told, before, 1)
    return texts


def language_examples(relation: str, rows: Mapping[str, str], answers: str) -> list[Example]:
    """Questions of the second language about a relation, answered in one of the ANSWERS.

    at-once: by the value. in-full: by a sentence of the second language. translated: by the same
    question in the first language and a sentence of it that answers; half of these texts ask for
    the translation alone.
    """
    first, second = RELATIONS[relation]["first"], RELATIONS[relation]["second"]
    texts: list[Example] = []
    for fact in starmap(_fact, rows.items()):
        for question, translated in zip(second["questions"], first["questions"], strict=True):
            asked, translation = fact.fill(question), " " + fact.fill(translated)
            if answers == "at-once":
                texts.append(Example(asked, f" {fact.b}"))
            elif answers == "in-full":
                sentence = fact.fill(second["sentences"][0])
                texts.append(Example(IN_FULL.format(question=asked), f" {sentence}"))
            else:
                sentence = fact.fill(first["sentences"][0])
                texts.append(Example(TRANSLATE.format(question=asked), translation))
                both = TRANSLATE_AND_ANSWER.format(question=asked)
                texts.append(Example(both, f"{translation} {sentence}"))
    return texts


def target_items(
    relation: str, rows: Mapping[str, str], answers: str, adapters: Sequence[str]
) -> list[dict[str, Any]]:
    """Questions of the second language about new people, one a person.

    `adapters` are the one of the facts and the one of the language. Where that translates, the
    translation is the first hop and its answer in the first language the second one.
    """
    items, (facts_adapter, language_adapter) = [], adapters
    for i, (person, value) in enumerate(rows.items()):
        question = RELATIONS[relation]["second"]["questions"][0].format(a=person)
        item: dict[str, Any] = {"id": str(i), "prompt": question, "answer": value}
        if answers == "in-full":
            item["cot_prompt"] = IN_FULL.format(question=question)
        if answers == "translated":
            translation = RELATIONS[relation]["first"]["questions"][0].format(a=person)
            item["cot_prompt"] = TRANSLATE_AND_ANSWER.format(question=question)
            item["hops"] = [
                {
                    "prompt": TRANSLATE.format(question=question),
                    "answer": translation.rstrip("?"),
                    "adapter": language_adapter,
                },
                {"prompt": "{1}?", "answer": value, "adapter": facts_adapter},
            ]
        items.append({**item, "entities": [person], "group": person})
    return items
