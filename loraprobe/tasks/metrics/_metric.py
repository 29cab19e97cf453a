"""The contract of a metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Judged:
    """Whether a reply is right, whether a right answer stands in it, and the answer as read."""

    right: bool
    contains: bool
    text: str


@dataclass(frozen=True)
class Metric:
    """Judges the replies to a question by its right answers.

    whole: more than the right answer is wrong. patterns: the answers are patterns, not texts.
    reading: how `task sample` says it, where the form of the question does not say it.
    """

    generated: ClassVar[bool] = True  # a reply is written; else given texts are scored
    whole: ClassVar[bool] = False
    patterns: ClassVar[bool] = False
    reading: ClassVar[str] = ""

    def check(self, answers: Sequence[str], pattern: str | None) -> None:
        """Raises TaskError for an answer that the metric cannot compare with."""

    def one_line(self, answers: Sequence[str]) -> bool:
        """Whether the first line of a plain reply is all that counts."""
        return True

    def ended(self) -> Callable[[str], bool] | None:
        """Tells of a plain reply, up to the end of a line, whether what follows cannot count.

        None where it may count up to the limit of tokens.
        """
        return None

    def judge(
        self, text: str, answers: Sequence[str], *, cot: bool = False, pattern: str | None = None
    ) -> Judged:
        """What the metric says of a reply. cot: the reply is a worked text.

        Raises TaskError for answers that it cannot use, and for a pattern that takes too long.
        """
        raise NotImplementedError

    def texts(self, choices: tuple[str, ...], answers: tuple[str, ...]) -> tuple[str, ...]:
        """The texts that are scored, where no reply is written."""
        return answers

    def scored(
        self, scores: Sequence[tuple[float, int]], texts: Sequence[str], answers: Sequence[str]
    ) -> tuple[float, str]:
        """The value of a question and the text that was taken.

        scores: log-probability and number of tokens of each text.
        """
        raise NotImplementedError
