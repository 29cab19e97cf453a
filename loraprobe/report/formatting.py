"""Numbers and names as people read them; shared by the terminal and the model card."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TypeGuard

from loraprobe.records import Interval
from loraprobe.secrets import scrub

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


NOISE = 1e-12  # smaller figures are what rounding leaves of zero


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


def interval(ci95: Interval | None) -> str:
    """A 95 % interval, short enough to stand in every cell of a table."""
    if not ci95:
        return ""
    low, high = (number(round(bound, 2)) if abs(bound) < 100 else number(bound) for bound in ci95)
    return f"({low}–{high})"


def rounded(value: int) -> str:
    """12,345,678 as 12.3M, as parameter counts are spoken of."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return str(value)


def size(byte_count: int) -> str:
    """Bytes in the largest unit of which there is one."""
    for unit, letters in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if byte_count >= unit:
            return f"{byte_count / unit:.1f} {letters}"
    return f"{byte_count} B"


def spread(values: Sequence[float | int]) -> str:
    """One value if all agree, else the range."""
    if not values:
        return "-"
    low, high = min(values), max(values)
    if isinstance(low, int) and isinstance(high, int):
        return str(low) if low == high else f"{low}–{high}"
    return number(low) if number(low) == number(high) else f"{number(low)}–{number(high)}"
