"""Text in lines that break at spaces, and names and paths at their joints."""

from __future__ import annotations

import re

JOINTS = re.compile(r"(?<=[./_=:@-])(?=[^./_=:@-])")


def wrapped(text: str, width: int) -> list[str]:
    """Text in lines of at most `width` columns.

    It breaks at spaces; a word that is longer than a line breaks at its joints, such as dots, and
    within a piece only where that alone is longer than a line.
    """
    lines = [""]
    for word in text.split():
        for at, piece in enumerate(_pieces(word, width)):
            space = " " if lines[-1] and at == 0 else ""
            if lines[-1] and len(lines[-1]) + len(space) + len(piece) > width:
                lines.append(piece)
            else:
                lines[-1] += space + piece
    return lines


def _pieces(word: str, width: int) -> list[str]:
    if len(word) <= width:
        return [word]
    return [
        piece[at : at + width] for piece in JOINTS.split(word) for at in range(0, len(piece), width)
    ]
