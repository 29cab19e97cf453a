"""The answer of an audit in at most twelve lines, which every report shows.

The terminal prints it last, a page and a pull request first, Python as the audit's repr. It is a
pure function of the audit, so that all of them use the same words. `report.phrases` words the
lines, `Answer.laid_out` makes them fit a width.
"""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from loraprobe.formatting import clean, count, ended, wrapped
from loraprobe.records import Audit
from loraprobe.report.phrases import FILL_IN, Line, headline, labelled
from loraprobe.verdict.next_command import NEW, words_of

MOST_LINES = 12
HEADLINE = ""  # the label of the headline
INDENT = 2
LABEL = 10  # the width of the column of labels
COMMANDS = ("next", "questions", "serve", "in Python")  # labels whose text is a command
REFERENCES = "ADAPTERS"  # stands in a command for references that are too long to show
LONG = 60  # characters of references that may be left out
# Lines that leave first where the answer would be too long: of a label all but so many.
LEAVE_FIRST = (
    ("serve", 1),
    ("sure", 0),
    ("also", 0),
    ("watch", 2),
    (FILL_IN, 0),
    ("lacks", 0),
    ("known", 0),
    ("how sure", 0),
    ("forecast", 0),
    ("licence", 1),
    ("watch", 1),
    ("why", 1),
    ("questions", 0),
    ("licence", 0),
    ("fix", 1),
    ("close", 0),
    ("better", 0),
    ("stopped", 0),
    ("made", 0),
)
# What is said in fewer lines where that is not enough, those first that a reader misses least.
# After a label stands the most rows of each of its lines; without rows they leave.
SHORTEN = (
    *(("broken", 2), ("unfit", 2), ("copies", 2), ("outliers", 1), ("copies", 1), ("unfit", 1)),
    *(("broken", 1), ("families", 1)),
    *(("watch", 2), ("why", 2), ("fix", 2), ("use", 2), ("watch", 1), ("use", 1), ("gain", 2)),
    *(("decide", 0), ("why", 1), ("fix", 1), ("gain", 1), (HEADLINE, 1)),
)
_CLAUSE = re.compile(r"(, (so|which)\b|: ).*", re.DOTALL)  # what follows from a warning


@dataclass(frozen=True)
class Answer:
    """The decision, a headline, and labelled lines in the order in which they are read.

    `decision` is the verdict's, "" where there is none. Labels are made, use, gain, stopped, close,
    better, decide, why, fix, watch, lacks, also, known, sure, forecast, how sure, licence, next or
    in Python, questions and fill in, and of a library broken, unfit, copies, families and outliers;
    why, fix, watch, lacks, licence and fill in may repeat. The text of a label in COMMANDS is a
    command.
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

        The lines that change least leave where there are too many. A command goes on in the next
        line after a backslash, and only a longer word of it exceeds the width. Where references
        leave no room for the rest, ADAPTERS stands for them and a line says so.
        """
        return self._fitted(width)[1]

    def kept(self, width: int) -> list[Line]:
        """The lines that `laid_out` shows, with their labels."""
        return self._fitted(width)[0]

    def in_full(self, width: int) -> list[str]:
        """The commands that `laid_out` abridges or leaves out beside others of their label.

        They are whole, in lines of a shell.
        """
        kept = self.kept(width)
        shown = {label for label, _ in kept if label in COMMANDS}
        return [
            line
            for label, text in self.lines
            if label in shown and (label, text) not in kept
            for line in command_lines(text, width)
        ]

    def _fitted(self, width: int) -> tuple[list[Line], list[str]]:
        """The first version of the answer that fits, and what it looks like."""
        for kept, most in _versions(self.lines):
            head = _cut(wrapped(self.headline, width), most.get(HEADLINE), width)
            laid = [*head, *_rows(kept, width, most)]
            # A longer line goes on in the next row of a terminal.
            if sum(max(1, math.ceil(len(line) / width)) for line in laid) <= MOST_LINES:
                break
        return kept, laid


def answer(audit: Audit) -> Answer:
    """What an audit says to somebody who reads nothing else."""
    verdict = audit.verdict
    lines = ((label, clean(text)) for label, text in labelled(audit) if text)
    return Answer(verdict.decision if verdict else "", clean(headline(audit)), tuple(lines))


def unplaced(audit: Audit) -> str:
    """That a saved result has no places of local files; "" where its next command needs none."""
    command = audit.verdict.next if audit.verdict is not None else ""
    local = [row.reference for row in audit.adapters if row.commit is None]
    if not any(reference in command for reference in local):
        return ""
    return "A saved result names local files by their last part: put their places into the command."


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
    if re.match(r"[\w.]+\(", command) or "&&" in command:
        return [command]  # a line of Python, or several commands
    joined: list[str] = []
    for word in words:
        if joined and joined[-1].startswith("-") and " " not in joined[-1] and word[0] != "-":
            joined[-1] += f" {word}"
        else:
            joined.append(word)
    return joined


def _versions(lines: Sequence[Line]) -> Iterator[tuple[list[Line], dict[str, int]]]:
    """The lines in ever shorter versions: (lines, label -> the most rows of each of its lines).

    First those lines leave that change least, then references, then the ends of sentences.
    """
    kept, most = list(lines), dict[str, int]()
    yield kept, most
    for label, stay in LEAVE_FIRST:
        for fewer in _without(kept, label, stay):
            kept = fewer
            yield kept, most
    kept = [(label, _CLAUSE.sub(".", text) if label == "watch" else text) for label, text in kept]
    yield kept, most
    kept = _abridged(kept)
    yield kept, most
    for label, rows in SHORTEN:
        if rows:
            most = {**most, label: rows}
        else:
            kept = [row for row in kept if row[0] != label]
        yield kept, most


def _without(kept: list[Line], label: str, stay: int) -> Iterator[list[Line]]:
    """The lines with one less of a label each time, the last first, until `stay` are left.

    A conflict leaves together with its cure, which follows it.
    """
    at = [place for place, row in enumerate(kept) if row[0] == label]
    for place in reversed(at[stay:]):
        cure = label == "why" and kept[place + 1 : place + 2] and kept[place + 1][0] == "fix"
        kept = [*kept[:place], *kept[place + (2 if cure else 1) :]]
        yield kept


def _abridged(lines: Sequence[Line]) -> list[Line]:
    """The lines with ADAPTERS for long references in commands, and a line that says so."""
    kept, most = list[Line](), 0
    for label, text in lines:
        words = words_of(text)
        given = list(takewhile(lambda word: word[:1] != "-" and word != NEW, words[2:]))
        if label in COMMANDS and len(" ".join(given)) > LONG:
            text = shlex.join([*words[:2], REFERENCES, *words[2 + len(given) :]])
            most = max(most, len(given))
        kept.append((label, text))
    if most:
        kept.append((FILL_IN, f"{REFERENCES}: the {count(most, 'reference')} that you gave"))
    return kept


def _rows(lines: Sequence[Line], width: int, most: Mapping[str, int]) -> Iterator[str]:
    """The lines below their labels, of each at most the rows of its label in `most`."""
    previous = HEADLINE
    for label, text in lines:
        head = " " * INDENT + ("" if label == previous else label).ljust(LABEL)
        room = width - len(head)
        laid = command_lines(text, room) if label in COMMANDS else wrapped(text, room)
        for line in _cut(laid, most.get(label), room):
            yield head + line
            head = " " * len(head)
        previous = label


def _cut(lines: list[str], most: int | None, width: int) -> list[str]:
    """At most so many lines, the last of which shows that more followed."""
    if most is None or len(lines) <= most:
        return lines
    return [*lines[: most - 1], ended(lines[most - 1], width)]


def _typed(command: str, references: Mapping[str, str]) -> str:
    words = words_of(command)
    if not words:
        for public, typed in references.items():
            command = command.replace(repr(public), repr(typed.partition("=")[2] or typed))
        return command
    return shlex.join(_typed_words(words, references))


def _typed_words(words: Iterable[str], references: Mapping[str, str]) -> Iterator[str]:
    seen = Counter[str]()
    for word in words:
        seen[word] += 1
        name, _, public = word.partition("=")
        later = references.get(f"{word}-{seen[word]}={word}")
        if later is not None:  # the second file of this name
            yield later.partition("=")[2]
        elif word not in references and public in references:
            yield f"{name}={references[public]}"
        else:
            yield references.get(word, word)
