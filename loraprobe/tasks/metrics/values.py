"""Metrics of values: a number, a JSON value."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import regex

from loraprobe.errors import TaskError
from loraprobe.tasks.answers import contains, first_lines, possible_answers
from loraprobe.tasks.metrics._metric import Judged, Metric

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


@dataclass(frozen=True)
class Numeric(Metric):
    """The last number of the first reading that has one, else of the whole text."""

    def check(self, answers: Sequence[str], pattern: str | None) -> None:
        for answer in answers:
            _gold_number(answer)

    def judge(
        self, text: str, answers: Sequence[str], *, cot: bool = False, pattern: str | None = None
    ) -> Judged:
        readings = possible_answers(text, cot=cot, pattern=pattern)
        golds = [_gold_number(answer) for answer in answers]
        places = [*readings, text if cot else readings[0]]
        numbers = next((numbers for numbers in map(_numbers, places) if numbers), [])
        right = bool(numbers) and any(_equal(numbers[-1][1], gold) for gold in golds)
        stands = any(_equal(value, gold) for _, value in numbers for gold in golds)
        return Judged(right, stands, numbers[-1][0] if numbers else readings[0].strip())


@dataclass(frozen=True)
class Json(Metric):
    """The JSON value with which the reply begins."""

    reading = "the JSON value with which the reply begins is compared with it."

    def check(self, answers: Sequence[str], pattern: str | None) -> None:
        for answer in answers:
            _gold_value(answer)

    def one_line(self, answers: Sequence[str]) -> bool:
        return False

    def ended(self) -> Callable[[str], bool]:
        return json_ended

    def judge(
        self, text: str, answers: Sequence[str], *, cot: bool = False, pattern: str | None = None
    ) -> Judged:
        readings = possible_answers(text, cot=cot, pattern=pattern) if cot else [text]
        golds = [_gold_value(answer) for answer in answers]
        for reading in readings:
            value = json_at_start(reading)
            if value is not None and any(_same(value[0], gold) for gold in golds):
                return Judged(True, True, value[1])
        first = json_at_start(readings[0])
        read = first_lines(readings[0], "") if first is None else first[1]
        return Judged(False, contains(read, answers), read.strip())


def _numbers(text: str) -> list[tuple[str, Fraction]]:
    """The numbers of a text as they stand in it, and their values."""
    read = ((match[0], _number(match[0])) for match in _NUMBER.finditer(text))
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
    value = json_at_start(answer)
    return value is not None and isinstance(value[0], dict | list) and value[1] == answer.strip()


def _equal(one: Fraction, other: Fraction) -> bool:
    """Whole numbers must be equal, others up to TOLERANCE of the larger."""
    if one.denominator == other.denominator == 1:
        return one == other
    return abs(one - other) <= Fraction(TOLERANCE) * max(abs(one), abs(other))


def _gold_number(answer: str) -> Fraction:
    numbers = _numbers(answer)
    if len(numbers) != 1:
        raise TaskError(
            f"metric numeric needs one number in each answer, and {answer[:60]!r} has "
            f"{len(numbers)}: write the number alone, or choose another metric."
        )
    return numbers[0][1]


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
    value = json_at_start(answer)
    if value is None or value[1].strip() != answer.strip():
        raise TaskError(
            f"metric json needs JSON in each answer, and {answer[:60]!r} is none: write it as "
            "JSON, or choose another metric."
        )
    return value[0]


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; true is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other) and not (isinstance(one, float) and math.isnan(one))
