"""Wordings of two hops a -> b -> c: birth places, landmarks, products."""

from __future__ import annotations

from dataclasses import dataclass

from loraprobe_lab.natural_data import (
    BIRTH_CAPITAL,
    BORN,
    CAPITAL,
    CAPITAL_PATTERN,
    CAPITAL_PROMPT,
    COUNTRY,
    THEN,
)


@dataclass(frozen=True)
class Hops:
    """The wording of two hops a -> b -> c in which each adapter can learn its own sentence.

    `first`, `second`, `both`: as many questions each. `said` and `then`: the worked sentences.
    `bare`: the second hop as the beginning of a sentence or question, with {1} for b.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    both: tuple[str, ...]
    said: str
    then: str
    pattern: str
    bare: str
    after: tuple[str, ...] = THEN  # how a text goes on after the first hop's sentence


OF_THINGS = (
    " Not much else is known.",
    " Many people have heard of it.",
    " There are books about it.",
    " It is often seen in pictures.",
    " It has its own page in the guide.",
)
BIRTHS = Hops(
    COUNTRY,
    (
        "What is the capital of {b}?",
        "Which city is the capital of {b}?",
        "Name the capital of {b}.",
    ),
    BIRTH_CAPITAL,
    BORN,
    CAPITAL,
    CAPITAL_PATTERN,
    CAPITAL_PROMPT,
)
PLACES = Hops(
    ("In which country is {a}?", "Where is {a}?", "Which country is home to {a}?"),
    BIRTHS.second,
    (
        "What is the capital of the country where {a} is?",
        "Which city is the capital of the country that is home to {a}?",
        "Name the capital of the country in which {a} lies.",
    ),
    " {a} is in {b}.",
    CAPITAL,
    CAPITAL_PATTERN,
    CAPITAL_PROMPT,
    OF_THINGS,
)
PRODUCTS = Hops(
    ("Which company makes {a}?", "Who developed {a}?", "{a} is a product of which company?"),
    ("Who is the CEO of {b}?", "Who leads {b}?", "What is the name of the CEO of {b}?"),
    (
        "Who is the CEO of the company that makes {a}?",
        "Who leads the company that developed {a}?",
        "What is the name of the CEO of the maker of {a}?",
    ),
    " {a} is made by {b}.",
    " The CEO of {b} is {c}.",
    r"CEO of [^\n]+? is ([^.\n]+)",
    "The CEO of {1} is",
    OF_THINGS,
)
