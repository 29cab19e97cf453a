"""Numbers, names and lines of text as people read them, in messages and in every report."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TypeGuard

from loraprobe.secrets import scrub

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
# An option of a command together with its value, or one word.
_WORDS = re.compile(r"(?<!\S)--[a-z][a-z-]* (?!-)\S+|\S+")
# Where a long word may break: behind a sign, but not within a number such as 1.0.
JOINTS = re.compile(r"(?<=[,./_=:@-])(?<!\d\.)(?=[^,./_=:@-])")
LISTED = 12  # names that a message lists
NOISE = 1e-12  # smaller figures are what rounding leaves of zero


def listing(names: Iterable[str]) -> str:
    """a, b and c."""
    names = list(names)
    if len(names) < 2:
        return "".join(names)
    return ", ".join(names[:-1]) + " and " + names[-1]


def flowing(docstring: str | None) -> str:
    """A docstring whose paragraphs fill whatever width there is."""
    paragraphs = inspect.cleandoc(docstring or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def shortly(names: Iterable[str], most: int = 6) -> str:
    """'a', 'b' and 7 more: quoted names, as a repr has them, the long ones cut."""
    return first_names([repr(n if len(n) <= 60 else n[:59] + "…") for n in names], most)


def first_names(names: Sequence[str], most: int) -> str:
    """a, b and 7 more: the first names, and how many there are beside them."""
    more = len(names) - most
    return listing([*names[:most], *([f"{more} more"] if more > 0 else [])])


def count(number: int, noun: str) -> str:
    """1 module, 2 modules."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def nearest(name: str, known: Collection[str], otherwise: str = "") -> str:
    """The end of a message about an unknown name: the nearest known one, else `otherwise`.

    Without `otherwise` all known names are listed, or of many the three nearest.
    """
    close = difflib.get_close_matches(name, known, 1)
    if close:
        return f"did you mean {close[0]!r}?"
    if otherwise or len(known) <= LISTED:
        return otherwise or f"there are {', '.join(known)}."
    three = difflib.get_close_matches(name, known, 3, cutoff=0.0)
    return f"there are {len(known)}, such as {listing(three)}."


def clean(text: object) -> str:
    """A stranger's text without control characters that could drive a terminal, and no secrets."""
    return scrub(_CONTROL.sub("�", str(text)))


def measured(value: float | None) -> TypeGuard[float]:
    """Whether there is a figure: neither None nor what is not finite, which JSON has as null."""
    return value is not None and math.isfinite(value)


def number(value: float | None, digits: int = 2) -> str:
    """A figure with few digits; very small and very large ones in powers of ten."""
    if not measured(value):
        return "-"
    if abs(value) > NOISE and (abs(value) < 10**-digits / 2 or abs(value) >= 1e6):
        return f"{value:.1e}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def decimals(value: float | None, digits: int = 2) -> str:
    """A score, a share or a loss with as many digits as the others of its table, never -0.00."""
    return f"{value:z,.{digits}f}" if measured(value) else "-"


def signed(difference: float | None, digits: int = 2) -> str:
    """A difference with its sign, +0.12, and never -0.00."""
    if not measured(difference):
        return "-"
    return ("+" if difference > 0 else "") + f"{difference:z.{digits}f}"


def bounds(
    ci95: tuple[float, float] | None, digits: int = 2, threshold: float | None = None
) -> str:
    """The interval of a difference: [0.03, 0.21].

    threshold: what it is compared with, see `digits_beside`.
    """
    if ci95 is None or not all(map(measured, ci95)):
        return "-"
    digits = max(digits, digits_beside(threshold, *ci95))
    return f"[{ci95[0]:z.{digits}f}, {ci95[1]:z.{digits}f}]"


def gained(
    difference: float, ci95: tuple[float, float], digits: int = 2, threshold: float | None = None
) -> str:
    """A difference with its interval: +0.12 [0.03, 0.21].

    threshold: what they are compared with, see `digits_beside`.
    """
    digits = max(digits, digits_beside(threshold, difference, *ci95))
    return f"{signed(difference, digits)} {bounds(ci95, digits)}"


def digits_beside(threshold: float | None, *figures: float) -> int:
    """Two digits; three where with two a figure would read as the threshold that it is not."""
    if threshold is None:
        return 2
    close = [one for one in figures if f"{one:z.2f}" == f"{threshold:z.2f}"]
    return 3 if any(f"{one:z.3f}" != f"{threshold:z.3f}" for one in close) else 2


def probability(value: float) -> str:
    """A probability with two decimals, which are never those of certainty."""
    if value >= 0.995:
        return "above 0.99"
    return "below 0.01" if value < 0.005 else f"{value:.2f}"


def rounded(value: int | None) -> str:
    """12,345,678 as 12.3M, as parameter counts are spoken of."""
    if value is None:
        return "-"
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return str(value)


def size(byte_count: float) -> str:
    """Bytes in the largest unit of which there is one."""
    for unit, letters in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if byte_count >= unit:
            return f"{byte_count / unit:.1f} {letters}"
    return f"{byte_count:.0f} B"


def spread(values: Iterable[float | int]) -> str:
    """One value if all agree, else the range."""
    numbers = list(values)
    if not numbers:
        return "-"
    low, high = min(numbers), max(numbers)
    if isinstance(low, int) and isinstance(high, int):
        return str(low) if low == high else f"{low}–{high}"
    return number(low) if number(low) == number(high) else f"{number(low)}–{number(high)}"


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
    for word in _WORDS.findall(" ".join(text.split())):
        yield from [word] if len(word) <= width else word.split()


def _pieces(word: str, width: int) -> list[str]:
    if len(word) <= width:
        return [word]
    return [
        piece[at : at + width] for piece in JOINTS.split(word) for at in range(0, len(piece), width)
    ]
