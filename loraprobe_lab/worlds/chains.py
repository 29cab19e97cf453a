"""Two facts that share their middle, a -> b -> c, as training texts and task items.

The same functions serve the made-up couples of the small worlds and the English worlds, which
differ in the `Wording` (`data/wordings.json`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loraprobe_lab.training.batches import Example
from loraprobe_lab.worlds.known import table

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
