"""Metrics of texts: the same words, the same signs, words that stand in a reply, a pattern."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loraprobe.tasks.answers import (
    answered,
    compile_pattern,
    contains,
    first_lines,
    matches,
    possible_answers,
)
from loraprobe.tasks.metrics._metric import Judged, Metric


@dataclass(frozen=True)
class ExactMatch(Metric):
    """The same words after `normalize_answer`."""

    whole = True

    def judge(
        self, text: str, answers: Sequence[str], *, cot: bool = False, pattern: str | None = None
    ) -> Judged:
        right = answered(text, answers, cot=cot, pattern=pattern)
        readings = possible_answers(text, cot=cot, pattern=pattern)
        stands = right or any(contains(reading, answers) for reading in readings)
        # without punctuation at its end a plain answer fits into the next hop's prompt
        likeliest = readings[0] if cot else readings[0].rstrip(" .!?,;") or readings[0]
        return Judged(right, stands, likeliest)


@dataclass(frozen=True)
class Strict(Metric):
    """The same text but for blanks around it, of as many lines as the answer has."""

    whole = True

    def one_line(self, answers: Sequence[str]) -> bool:
        return not any("\n" in answer.strip() for answer in answers)

    def judge(
        self, text: str, answers: Sequence[str], *, cot: bool = False, pattern: str | None = None
    ) -> Judged:
        readings = [first_lines(text, answer) for answer in answers]
        if cot:
            readings = possible_answers(text, cot=True, pattern=pattern)
        right = any(reading.strip() == answer.strip() for reading in readings for answer in answers)
        stands = right or any(contains(reading, answers) for reading in readings)
        return Judged(right, stands, readings[0].strip())


@dataclass(frozen=True)
class Contains(Metric):
    """A right answer stands in the reading as whole words."""

    def judge(
        self, text: str, answers: Sequence[str], *, cot: bool = False, pattern: str | None = None
    ) -> Judged:
        readings = possible_answers(text, cot=cot, pattern=pattern)
        stands = any(contains(reading, answers) for reading in readings)
        return Judged(stands, stands, readings[0].strip())


@dataclass(frozen=True)
class Regex(Metric):
    """The item's pattern, or an answer as a pattern, matches the whole reading."""

    patterns = True

    def check(self, answers: Sequence[str], pattern: str | None) -> None:
        for answer in answers if pattern is None else ():
            compile_pattern(answer)

    def judge(
        self, text: str, answers: Sequence[str], *, cot: bool = False, pattern: str | None = None
    ) -> Judged:
        patterns = [pattern] if pattern else answers
        readings = [reading.strip() for reading in possible_answers(text, cot=cot)]
        right = any(matches(p, reading) for p in patterns for reading in readings)
        stands = right or any(matches(p, r, whole=False) for p in patterns for r in readings)
        return Judged(right, stands, readings[0])
