"""How a generated text is judged: the metrics, and whether an answer stands in a text at all.

Every metric reads the first line of a plain reply (`json` and answers of several lines read more),
and of a worked text the answer that `answers` finds. `judge` also tells whether a right answer
stands in that reading in other words, which no metric but `contains` counts as right.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import regex

from loraprobe.errors import TaskError
from loraprobe.tasks.answers import (
    ARTICLES,
    answered,
    matches,
    normalize_answer,
    possible_answers,
    read_answer,
)

Metric = Literal[
    "exact_match", "strict", "contains", "json", "numeric", "regex", "choice", "answer_loss"
]
GENERATED: tuple[Metric, ...] = ("exact_match", "strict", "contains", "json", "numeric", "regex")
METRICS: tuple[Metric, ...] = (*GENERATED, "choice", "answer_loss")

# Of numbers that are not both whole. Single precision has 24 bits, so a result is off by 6e-8 and a
# sum of a few by some 1e-7; numbers of up to six digits, which people write, still differ.
TOLERANCE = 1e-6

_NUMBER = regex.compile(
    r"(?:(?<![\w)\]])[-+\u2212]\p{Sc}?)?(?:(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"
    r"(?:[eE][-+]?\d+(?!\w)|/\d+(?![\d.]))?"
)
# A number alone, with a sign of currency or percent. "007" is the name of something, no number.
_AMOUNT = regex.compile(
    rf"(?![-+\u2212\p{{Sc}}\s]*0\d)\p{{Sc}}?\s?{_NUMBER.pattern}\s?[%\p{{Sc}}]?\.?"
)
_WORD = regex.compile(r"\w+")
_BETWEEN_LETTERS = regex.compile(r"(?<=\p{L})\p{P}+(?=\p{L})")
# Letters of scripts that are written without spaces count as words of their own.
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")


@dataclass(frozen=True)
class Judged:
    """Whether a reply is right, whether a right answer stands in it, and the answer as read."""

    right: bool
    contains: bool
    text: str


def judge(
    metric: str,
    text: str,
    answers: Sequence[str],
    *,
    cot: bool = False,
    pattern: str | None = None,
) -> Judged:
    """What a metric of `GENERATED` says of a reply. cot: the reply is a worked text.

    Raises TaskError for answers that the metric cannot use, and for a pattern that takes too long.
    """
    if metric == "exact_match":
        right = answered(text, answers, cot=cot, pattern=pattern)
        stands = right or any(
            contains(one, answers) for one in possible_answers(text, cot=cot, pattern=pattern)
        )
        return Judged(right, stands, read_answer(text, cot=cot, pattern=pattern))
    if metric == "regex":
        return _by_pattern(possible_answers(text, cot=cot), [pattern] if pattern else answers)
    found = possible_answers(text, cot=cot, pattern=pattern)
    if metric == "numeric":
        return _by_number(found, text if cot else found[0], answers)
    if metric == "json":
        return _by_value(found if cot else [text], answers)
    if metric == "strict":
        found = found if cot else [_lines(text, answer) for answer in answers]
        right = any(one.strip() == answer.strip() for one in found for answer in answers)
    else:
        right = False
    stands = right or any(contains(one, answers) for one in found)
    return Judged(stands if metric == "contains" else right, stands, found[0].strip())


def check_answers(metric: str, answers: Sequence[str], pattern: str | None) -> None:
    """Raises TaskError for an answer that `metric` cannot compare with."""
    reading: dict[str, Callable[[str], Any]] = {
        "json": _gold_value,
        "numeric": _gold_number,
        "regex": lambda gold: matches(gold, "") if pattern is None else None,
    }
    for answer in answers:
        reading.get(metric, str)(answer)


def contains(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in the text as whole words, after `normalize_answer`.

    Letters joined by punctuation are read joined and apart: "Thai/Lao" contains "Lao". A letter of
    a script without spaces is a word. An answer of which nothing but articles is left (the choice
    "A") has to stand there with its case, one of symbols only as it is.
    """
    return any(_holds(text, answer) for answer in answers)


def _holds(text: str, answer: str) -> bool:
    gold = normalize_answer(answer)
    if ARTICLES.issuperset(gold.split()):
        return _stands(_WORD.findall(text), _WORD.findall(answer))
    if not any(map(str.isalnum, gold)):
        return answer.strip() in text
    if _stands(normalize_answer(text).split(), gold.split()):
        return True
    apart, gold_apart = _apart(text), _apart(answer)
    if (apart, gold_apart) == (text, answer):
        return False
    return _stands(normalize_answer(apart).split(), normalize_answer(gold_apart).split())


def _apart(text: str) -> str:
    """The text with spaces for punctuation between letters, and around unspaced letters."""
    return _UNSPACED.sub(r" \g<0> ", _BETWEEN_LETTERS.sub(" ", text))


def _stands(words: Sequence[str], gold: Sequence[str]) -> bool:
    most = len(words) - len(gold)
    return bool(gold) and any(words[k : k + len(gold)] == gold for k in range(most + 1))


def _lines(text: str, answer: str) -> str:
    """As many lines of the text as the answer has, from the first that is not blank."""
    lines = text.strip("\r\n").split("\n")
    first = next((k for k, line in enumerate(lines) if line.strip()), 0)
    return "\n".join(lines[first : first + answer.strip().count("\n") + 1])


def _by_pattern(found: Sequence[str], patterns: Sequence[str]) -> Judged:
    found = [one.strip() for one in found]
    right = any(matches(pattern, one) for pattern in patterns for one in found)
    stands = right or any(matches(p, one, whole=False) for p in patterns for one in found)
    return Judged(right, stands, found[0])


def _by_number(found: Sequence[str], otherwise: str, answers: Sequence[str]) -> Judged:
    """By the last number of the first reading that has one, else of the whole text."""
    golds = [_gold_number(answer) for answer in answers]
    numbers = next((own for own in map(_numbers, [*found, otherwise]) if own), [])
    right = bool(numbers) and any(_equal(numbers[-1][1], gold) for gold in golds)
    stands = any(_equal(value, gold) for _, value in numbers for gold in golds)
    return Judged(right, stands, numbers[-1][0] if numbers else found[0].strip())


def _by_value(found: Sequence[str], answers: Sequence[str]) -> Judged:
    golds = [_gold_value(answer) for answer in answers]
    for text in found:
        own = json_at_start(text)
        if own is not None and any(_same(own[0], gold) for gold in golds):
            return Judged(True, True, own[1])
    first = json_at_start(found[0])
    text = _lines(found[0], "") if first is None else first[1]
    return Judged(False, contains(text, answers), text.strip())


def _numbers(text: str) -> list[tuple[str, Fraction]]:
    """The numbers of a text as they stand in it, and their values."""
    read = ((found[0], _number(found[0])) for found in _NUMBER.finditer(text))
    return [(text, value) for text, value in read if value is not None]


def _number(text: str) -> Fraction | None:
    """None for a number that is too long or too large to compute with, and for x/0."""
    plain = regex.sub(r"[,\p{Sc}]", "", text).replace("\u2212", "-")
    exponent = regex.search(r"[eE][-+]?(\d+)$", plain)
    if len(plain) > 400 or (exponent and (len(exponent[1]) > 3 or int(exponent[1]) > 400)):
        return None
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None


def is_amount(answer: str) -> bool:
    """Whether an answer is one number and nothing else but a sign of currency or percent."""
    return _AMOUNT.fullmatch(answer.strip()) is not None and len(_numbers(answer)) == 1


def is_structure(answer: str) -> bool:
    """Whether an answer is a JSON object or list."""
    found = json_at_start(answer)
    return found is not None and isinstance(found[0], dict | list) and found[1] == answer.strip()


def _equal(one: Fraction, other: Fraction) -> bool:
    """Whole numbers must be equal, others up to TOLERANCE of the larger."""
    if one.denominator == other.denominator == 1:
        return one == other
    return abs(one - other) <= Fraction(TOLERANCE) * max(abs(one), abs(other))


def _gold_number(answer: str) -> Fraction:
    found = _numbers(answer)
    if len(found) != 1:
        raise TaskError(
            f"metric numeric needs one number in each answer, and {answer[:60]!r} has "
            f"{len(found)}: write the number alone, or choose another metric."
        )
    return found[0][1]


def json_at_start(text: str) -> tuple[Any, str] | None:
    """The JSON value with which a text starts, and its text; None where there is none.

    A fence (```json) before it is skipped. The rest of the value's last line must be blank.
    """
    text = regex.sub(r"^\s*```\w*[^\S\n]*\n", "", text).lstrip()
    try:
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    rest = text[end:].partition("\n")[0].strip().removeprefix("```")
    return None if rest else (value, text[:end])


def json_ended(text: str) -> bool:
    """Whether a text, up to the end of a line, has begun with a whole JSON value or with none."""
    begun = text.lstrip()
    return bool(begun) and (
        not begun.startswith(("{", "[", "```")) or json_at_start(text) is not None
    )


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _gold_value(answer: str) -> Any:
    found = json_at_start(answer)
    if found is None or found[1].strip() != answer.strip():
        raise TaskError(
            f"metric json needs JSON in each answer, and {answer[:60]!r} is none: write it as "
            "JSON, or choose another metric."
        )
    return found[0]


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; true is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other) and not (isinstance(one, float) and math.isnan(one))
