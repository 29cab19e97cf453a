"""Text in lines that break at spaces, and names and paths at their joints."""

from __future__ import annotations

import re
from collections.abc import Iterator

# An option of a command together with its value, or one word.
_WORDS = re.compile(r"(?<!\S)--[a-z][a-z-]* (?!-)\S+|\S+")
JOINTS = re.compile(r"(?<=[./_=:@-])(?=[^./_=:@-])")


def wrapped(text: str, width: int) -> list[str]:
    """Text in lines of at most `width` columns.

    It breaks at spaces, but not between an option and its value; a word that is longer than a line
    breaks at its joints, such as dots, and within a piece only where that alone is longer than a
    line.
    """
    lines = [""]
    for word in _words(text, width):
        for at, piece in enumerate(_pieces(word, width)):
            space = " " if lines[-1] and at == 0 else ""
            if lines[-1] and len(lines[-1]) + len(space) + len(piece) > width:
                lines.append(piece)
            else:
                lines[-1] += space + piece
    return lines


def _words(text: str, width: int) -> Iterator[str]:
    for found in _WORDS.findall(" ".join(text.split())):
        yield from [found] if len(found) <= width else found.split()


def _pieces(word: str, width: int) -> list[str]:
    if len(word) <= width:
        return [word]
    return [
        piece[at : at + width] for piece in JOINTS.split(word) for at in range(0, len(piece), width)
    ]
