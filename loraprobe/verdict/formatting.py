"""Numbers and names as a verdict quotes them."""

from __future__ import annotations

from collections.abc import Iterable

PART = {"question": "on the question", "steps": "step by step"}


def number(value: float, digits: int = 2) -> str:
    """Two decimals, unless said otherwise, which is what a hundred items can support."""
    return f"{value:z.{digits}f}"  # without the sign of -0.00


def who(system: str) -> str:
    """A baseline in words at the start of a sentence."""
    return "The base alone" if system == "base" else f"{system} alone"


def interval(low: float, high: float, digits: int = 2) -> str:
    return f"[{number(low, digits)}, {number(high, digits)}]"


def sentence(text: str, names: Iterable[str] = ()) -> str:
    """Text with a capital at its start, unless it starts with one of the names."""
    return text if text.startswith(tuple(names)) else text[:1].upper() + text[1:]


def signed(difference: float, digits: int = 2) -> str:
    """A difference with its sign: +0.12."""
    return ("+" if difference > 0 else "") + number(difference, digits)


def gain(difference: float, low: float, high: float, digits: int = 2) -> str:
    """A difference with its interval: +0.12 [0.03, 0.21]."""
    return f"{signed(difference, digits)} {interval(low, high, digits)}"


def probability(value: float) -> str:
    """A probability with two decimals, which are never those of certainty."""
    if value >= 0.995:
        return "above 0.99"
    return "below 0.01" if value < 0.005 else number(value)
