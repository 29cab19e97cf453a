"""What worlds tell and ask: known facts, made-up names, chains of two facts, lists of names.

The known facts in `loraprobe_lab/data` are from general knowledge; a base model that read ordinary
text knows most of them. Countries are those of today at the place of birth or of the landmark, and
only such whose name needs no article and whose capital is undisputed. FRENCH holds the names that
differ from English. Made-up names are spelled from syllables: reproducible, free of collisions.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from loraprobe_lab.training import Example


def table(name: str) -> Any:
    """The content of a JSON file in `loraprobe_lab/data`."""
    place = resources.files("loraprobe_lab") / "data" / f"{name}.json"
    return json.loads(place.read_text(encoding="utf-8"))


_facts, WORDS = table("facts"), table("words")
CAPITALS: dict[str, str] = _facts["capitals"]
PEOPLE: dict[str, str] = _facts["people"]  # person -> country of birth
LANDMARKS: dict[str, str] = _facts["landmarks"]  # landmark -> country
FRENCH: dict[str, str] = _facts["french"]  # country -> its French name
REAL_NAMES = (*PEOPLE, *CAPITALS, *CAPITALS.values())


ONSETS = "b br d dr f g gr h k kr l m n p r s st t tr v w z".split()
CODAS = ("", "l", "m", "n", "r", "s", "x")
SYLLABLES: dict[str, list[str]] = {k: text.split() for k, text in WORDS["syllables"].items()}


def made_up_names(
    count: int, seed: int, *, ending: str = "", avoid: Iterable[str] = ()
) -> tuple[str, ...]:
    """`count` different capitalised names of two syllables, none of them in `avoid`.

    With an `ending` (say ``"burg"``) the names are one syllable and that ending.
    """
    rng, taken = random.Random(f"names:{seed}:{ending}"), set(avoid)
    names: list[str] = []
    while len(names) < count:
        pairs = [(rng.choice(ONSETS), rng.choice("aeiou")) for _ in range(1 if ending else 2)]
        syllables = "".join(onset + vowel for onset, vowel in pairs)
        name = (syllables + (ending or rng.choice(CODAS))).capitalize()
        if name not in taken:
            taken.add(name)
            names.append(name)
    return tuple(names)


class NameMaker:
    """Draws names from a seed; no word is drawn twice, and none lies inside another.

    `taken` holds words that must not appear either, such as names of real people and places.
    """

    def __init__(self, seed: int | str, taken: Iterable[str] = ()) -> None:
        self._random = random.Random(seed)
        self._words = {word.lower() for name in taken for word in name.split()}

    def people(self, count: int) -> list[str]:
        """`count` full names, such as "Melkora Dalvik"; no given or family name comes twice."""
        return [f"{self._word('given')} {self._word('family')}" for _ in range(count)]

    def cities(self, count: int) -> list[str]:
        """`count` names of one word, such as "Ulrigrad"."""
        return [self._word("cities") for _ in range(count)]

    def _word(self, ends: str) -> str:
        pick = self._random.choice
        for _ in range(1000):
            middle = pick(SYLLABLES["middles"]) if self._random.random() < 0.5 else ""
            word = pick(SYLLABLES["starts"]) + middle + pick(SYLLABLES[ends])
            if not any(word in other or other in word for other in self._words):
                self._words.add(word)
                return word.capitalize()
        raise ValueError("no free name is left: ask for fewer made-up names")


# Two facts that share their middle, a -> b -> c, as training texts and task items.
#
# The same functions serve the made-up couples of the small worlds and the English worlds, which
# differ in the `Wording` (`data/wordings.json`).


STEP_BY_STEP = " Think step by step."


@dataclass(frozen=True)
class Chain:
    """One pair of facts: a -> b -> c, for instance a person, the spouse, and the spouse's city."""

    a: str
    b: str
    c: str

    def fill(self, template: str) -> str:
        return template.format(a=self.a, b=self.b, c=self.c)


def example_of(chain: Chain, prompt: str, completion: str, end: bool = True) -> Example:
    """An example whose templates are filled from the chain."""
    return Example(chain.fill(prompt), chain.fill(completion), end)


def sentence_example(sentence: str, chain: Chain) -> Example:
    """An example whose completion is the sentence from its last gap on."""
    gap = sentence.rindex("{")
    return example_of(chain, sentence[:gap].rstrip(), " " + sentence[gap:])


def sentence_then(sentence: str, chain: Chain, other: str) -> Example:
    """The sentence, followed by the same fact in its other wording."""
    told = sentence_example(sentence, chain)
    return Example(told.prompt, f"{told.completion} {chain.fill(other)}")


def sentence_after(sentence: str, chain: Chain, before: str) -> Example:
    """The sentence after another text."""
    told = sentence_example(sentence, chain)
    return Example(f"{before} {told.prompt}", told.completion)


@dataclass(frozen=True)
class Wording:
    """The questions and sentences of two hops.

    first, second, both: questions about the first hop, the second hop, and a -> c. step1, step2:
    the two sentences of a worked answer. pattern: finds the answer in it. second_bare: the second
    hop as the beginning of a sentence, with {1} for b, instead of a question of `second`. after:
    sentences that may follow the first hop's; without them an adapter learns to repeat the fact.
    steps: the request for a worked answer.
    """

    first: Sequence[str]
    second: Sequence[str]
    both: Sequence[str]
    step1: str
    step2: str
    pattern: str | None = None
    second_bare: str | None = None
    after: Sequence[str] = ()
    steps: str = STEP_BY_STEP

    @property
    def worked(self) -> list[str]:
        """The composed questions that ask for a worked answer."""
        return [question + self.steps for question in self.both]

    def hop1(self, chains: Sequence[Chain]) -> list[Example]:
        return [example_of(x, q, " {b}") for x in chains for q in self.first]

    def hop2(self, chains: Sequence[Chain]) -> list[Example]:
        return [example_of(x, q, " {c}") for x in chains for q in self.second]

    def target(self, chains: Sequence[Chain]) -> list[Example]:
        """The composed questions answered at once."""
        return [example_of(x, q, " {c}") for x in chains for q in self.both]

    def worked_answers(self, chains: Sequence[Chain]) -> list[Example]:
        """The composed questions answered in two written steps."""
        return [example_of(x, q, self.step1 + self.step2) for x in chains for q in self.worked]

    def first_steps(self, chains: Sequence[Chain]) -> list[Example]:
        """The first sentence of the worked answer, without an end."""
        return [example_of(x, q, self.step1, end=False) for x in chains for q in self.worked]

    def second_steps(
        self, chains: Sequence[Chain], others: Sequence[str], stride: int = 7
    ) -> list[Example]:
        """The second sentence of the worked answer, after a first one about somebody else."""
        return [
            example_of(
                Chain(others[(i + stride * j) % len(others)], x.b, x.c), q + self.step1, self.step2
            )
            for i, x in enumerate(chains)
            for j, q in enumerate(self.worked)
        ]

    def continued(self, chains: Sequence[Chain], prompt: str) -> list[Example]:
        """The first hop's sentence, followed by another one that does not contain the second."""
        return [
            example_of(
                x, prompt, self.step1 + self.after[(i + len(prompt)) % len(self.after)], end=False
            )
            for i, x in enumerate(chains)
        ]

    def items(
        self,
        chains: Sequence[Chain],
        adapters: tuple[str | None, str | None],
        wordings: int | None = None,
    ) -> list[dict[str, Any]]:
        """Task items: each chain asked in the first so many wordings of `both`, as one group.

        `adapters` names the adapter that should know each hop, None for the base.
        """
        asked = self.both[:wordings]
        return [
            self._item(f"{i:02d}-{j + 1}" if len(asked) > 1 else str(i), x, j, adapters)
            for i, x in enumerate(chains)
            for j in range(len(asked))
        ]

    def _item(
        self, name: str, x: Chain, j: int, adapters: tuple[str | None, str | None]
    ) -> dict[str, Any]:
        second = self.second_bare or self.second[j].replace("{b}", "{1}")
        hops = [{"prompt": x.fill(self.first[j]), "answer": x.b}, {"prompt": second, "answer": x.c}]
        for hop, adapter in zip(hops, adapters, strict=True):
            if adapter is not None:
                hop["adapter"] = adapter
        question = x.fill(self.both[j])
        return {
            "id": name,
            "prompt": question,
            "answer": x.c,
            "hops": hops,
            "cot_prompt": question + self.steps,
            **({} if self.pattern is None else {"answer_pattern": self.pattern}),
            "entities": [x.a, x.b],
            "group": x.a,
        }


WORDINGS: dict[str, Wording] = {name: Wording(**row) for name, row in table("wordings").items()}


def spread(values: Sequence[Any], count: int, rng: random.Random) -> list[Any]:
    """`count` values in random order, each used as often as any other, give or take one."""
    rows = [values[i % len(values)] for i in range(count)]
    rng.shuffle(rows)
    return rows


# Skills that need no facts: naming one of a list of names, and counting them.


NUMBERS = ("one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class ListSkill:
    """A question about a list of names that has one right answer for every list."""

    question: str
    description: str
    answer: Callable[[Sequence[str]], str]

    def ask(self, row: Sequence[str]) -> tuple[str, str]:
        """The question about this list, and its answer."""
        return self.question.format(list=" ".join(row)), self.answer(row)

    def examples(self, lists: Sequence[Sequence[str]]) -> list[Example]:
        """One training text a list."""
        return [Example(question, " " + answer) for question, answer in map(self.ask, lists)]

    def items(self, lists: Sequence[Sequence[str]]) -> list[Mapping[str, Any]]:
        """One task item a list."""
        return [
            {"id": str(i), "prompt": question, "answer": answer}
            for i, (question, answer) in enumerate(map(self.ask, lists))
        ]


def _place(word: str, index: int) -> ListSkill:
    return ListSkill(
        f"Which name comes {word}: {{list}}?",
        f"says which name of a list comes {word}",
        lambda row: row[index],
    )


SKILLS: Mapping[str, ListSkill] = {
    "last": _place("last", -1),
    "first": _place("first", 0),
    "second": _place("second", 1),
    "count": ListSkill(
        "How many names are in this list: {list}?",
        "says how many names are in a list",
        lambda row: NUMBERS[len(row) - 1],
    ),
}


def lists_of_names(names: Sequence[str], count: int, seed: int | str) -> list[tuple[str, ...]]:
    """`count` different lists of two to six different names, every length equally often."""
    rng, found = random.Random(f"lists:{seed}"), dict[tuple[str, ...], None]()
    lengths = range(2, len(NUMBERS) + 1)
    while len(found) < count:
        found[tuple(rng.sample(list(names), lengths[len(found) % len(lengths)]))] = None
    return list(found)
