"""The answer of an audit in at most twelve lines, which every report shows.

The terminal prints it last, a page and a pull request first, Python as the audit's repr. It is a
pure function of the audit: the same words everywhere.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loraprobe.records import Audit

MOST_LINES = 12
MOST_REASONS = 3
INDENT = 2
LABEL = 10  # the width of the column of labels


@dataclass(frozen=True)
class Answer:
    """The decision, a headline, and labelled lines in the order in which they are read.

    `decision` is the verdict's, "" where one adapter was inspected. Labels are use, gain, better,
    why, watch, decide, known, forecast and next; `why`, `watch` and `next` may repeat. The text of
    `next` is a command, after a remark and two spaces where there is more than one.
    """

    decision: str
    headline: str
    lines: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return "\n".join(self.laid_out(80))

    def laid_out(self, width: int) -> list[str]:
        """The answer as plain text in at most twelve lines of at most `width` columns.

        Lines that change least leave first. A command is never shortened: it goes on in the next
        line after a backslash.
        """
        kept = list(self.lines)
        while True:
            laid = [*textwrap.wrap(self.headline, width), *_rows(kept, width)]
            spare = [row for label in LEAVE_FIRST for row in reversed(kept) if row[0] == label]
            if len(laid) <= MOST_LINES or not spare:
                return laid
            kept.remove(spare[0])


LEAVE_FIRST = ("known", "forecast", "watch", "decide", "why", "better")


def _rows(lines: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    previous = ""
    for label, text in lines:
        head = " " * INDENT + ("" if label == previous else label).ljust(LABEL)
        room = width - len(head)
        wrapped = command_lines(text, room) if label == "next" else _wrapped(text, room)
        for line in wrapped:
            yield head + line
            head = " " * len(head)
        previous = label


def _wrapped(text: str, room: int) -> list[str]:
    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)


def command_lines(command: str, room: int) -> list[str]:
    """A command in lines of at most `room` columns that a shell reads as one."""
    lines = textwrap.wrap(command, room - 2, break_long_words=False, break_on_hyphens=False)
    return [line + " \\" for line in lines[:-1]] + ["  " * (len(lines) > 1) + lines[-1]]


def answer(audit: Audit) -> Answer:
    """What an audit says to somebody who reads nothing else."""
    verdict = audit.verdict
    if verdict is None:
        return Answer("", "", ())
    return Answer(verdict.decision, verdict.decision.upper(), (("next", verdict.next),))
