"""The answer of an audit in at most twelve lines, which every report shows.

The terminal prints it last, a page and a pull request first, Python as the audit's repr. It is a
pure function of the audit, so that all of them use the same words. `report.phrases` words the
lines, `Answer.laid_out` makes them fit a width.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from loraprobe.records import Audit
from loraprobe.report.formatting import clean
from loraprobe.report.joints import wrapped
from loraprobe.report.phrases import Line, headline, labelled

MOST_LINES = 12
INDENT = 2
LABEL = 10  # the width of the column of labels
COMMANDS = ("next", "questions")  # labels whose text is a command
# Lines that leave first where the answer would be too long: of a label all, or all but the first.
LEAVE_FIRST = (
    ("known", 0),
    ("sure", 0),
    ("watch", 1),
    ("forecast", 0),
    ("why", 1),
    ("questions", 0),
    ("fix", 1),
    ("lacks", 0),
    ("better", 0),
    ("made", 0),
)
# Lines that leave where that is not enough; the first warning stays, as short as it can be said.
LEAVE_LAST = (("why", 0), ("decide", 0))
_CLAUSE = re.compile(r"(, (so|which)\b|: ).*", re.DOTALL)  # what follows from a warning


@dataclass(frozen=True)
class Answer:
    """The decision, a headline, and labelled lines in the order in which they are read.

    `decision` is the verdict's, "" where there is none. Labels are made, use, gain, better, decide,
    why, fix, watch, lacks, known, sure, forecast, next and questions; why, fix, watch and lacks may
    repeat. The text of next and questions is a command.
    """

    decision: str
    headline: str
    lines: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return "\n".join(self.laid_out(80))

    def typed(self, references: Mapping[str, str]) -> Answer:
        """The same with the references in its commands as somebody typed them.

        references: a published name -> what was typed, such as a directory.
        """
        lines = tuple(
            (label, _typed(text, references) if label in COMMANDS else text)
            for label, text in self.lines
        )
        return replace(self, lines=lines)

    def laid_out(self, width: int) -> list[str]:
        """The answer as plain text in at most twelve lines of at most `width` columns.

        The lines that change least leave where there are too many. A command is never shortened: it
        goes on in the next line after a backslash, and only a longer word of it exceeds the width.
        """
        laid: list[str] = []
        for kept in _fewer(self.lines):
            laid = [*wrapped(self.headline, width), *_rows(kept, width)]
            if len(laid) <= MOST_LINES:
                break
        return laid


def answer(audit: Audit) -> Answer:
    """What an audit says to somebody who reads nothing else."""
    verdict = audit.verdict
    lines = ((label, clean(text)) for label, text in labelled(audit) if text)
    return Answer(verdict.decision if verdict else "", clean(headline(audit)), tuple(lines))


def command_lines(command: str, width: int) -> list[str]:
    """A command in lines that a shell reads as one."""
    lines = [""]
    for word in _words(command):
        if lines[-1] and len(lines[-1]) + len(word) + 3 > width:
            lines[-1] += " \\"
            lines.append("  " + word)
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return lines


def _words(command: str) -> list[str]:
    """The words of a shell command as they stand, an option together with its value."""
    try:
        words = [shlex.quote(word) for word in shlex.split(command)]
    except ValueError:
        return [command]
    if not command.startswith("loraprobe"):
        return [command]  # a line of Python
    joined: list[str] = []
    for word in words:
        if joined and joined[-1].startswith("-") and " " not in joined[-1] and word[0] != "-":
            joined[-1] += f" {word}"
        else:
            joined.append(word)
    return joined


def _fewer(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """All lines, then one less each time, those first that change least."""
    kept = list(lines)
    yield list(kept)
    for label, stay in LEAVE_FIRST:
        yield from _without(kept, label, stay)
    kept = [(label, _clause(text) if label == "watch" else text) for label, text in kept]
    yield list(kept)
    for label, stay in LEAVE_LAST:
        yield from _without(kept, label, stay)


def _without(kept: list[Line], label: str, stay: int) -> Iterator[list[Line]]:
    """Takes lines of a label out of `kept`, the last first, until `stay` are left."""
    found = [row for row in kept if row[0] == label]
    for row in reversed(found[stay:]):
        kept.remove(row)
        yield list(kept)


def _clause(text: str) -> str:
    """A warning without what follows from it."""
    return _CLAUSE.sub(".", text)


def _rows(lines: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    previous = ""
    for label, text in lines:
        head = " " * INDENT + ("" if label == previous else label).ljust(LABEL)
        room = width - len(head)
        for line in command_lines(text, room) if label in COMMANDS else wrapped(text, room):
            yield head + line
            head = " " * len(head)
        previous = label


def _typed(command: str, references: Mapping[str, str]) -> str:
    if not command.startswith("loraprobe"):
        for public, typed in references.items():
            command = command.replace(repr(public), repr(typed.partition("=")[2] or typed))
        return command
    return shlex.join(references.get(word, word) for word in shlex.split(command))


NOTHING_TYPED: Mapping[str, str] = MappingProxyType({})
