"""The figure of `loraprobe lab rule`: how often it is wrong, and how often it decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loraprobe_lab.reproduce.figure import as_svg, drawing
from loraprobe_lab.rule.exact import Rate

COLOURS = ("#c7a26b", "#b3452c", "#2f6f9f", "#333333")


def figure(document: Mapping[str, Any]) -> str:
    """SVG with two panels. Raises UsageError if matplotlib is not installed."""
    with drawing() as Figure:
        drawn = Figure(figsize=(10, 3.8), layout="constrained")
        left, right = drawn.subplots(1, 2)
        _panels(left, right, document)
        return as_svg(drawn)


def _panels(left: Any, right: Any, document: Mapping[str, Any]) -> None:
    rows = [Rate(**row) for row in document["exact"]]
    for n, colour in zip(sorted({row.n for row in rows}), COLOURS, strict=False):
        here = [row for row in rows if row.n == n]
        _wrong(left, here, colour)
        _abstains(right, here, colour)
    margin, limit = document["margin"], document["limit"]
    left.axhline(limit, color="#9a9a9a", lw=0.8, ls="--")
    left.set_ylim(0, 0.05)
    left.set_ylabel("probability of a wrong decision")
    left.set_title("Wrong, at the worst discordance", loc="left")
    right.set_ylim(0, 1)
    right.set_ylabel("probability of no decision")
    right.set_title("Abstains (least to greatest over discordance)", loc="left")
    for ax in (left, right):
        ax.axvline(margin, color="#9a9a9a", lw=0.8)
        ax.set_xlim(-0.2, 0.4)
        ax.set_xlabel("true gain (line: the margin)")
    left.legend(frameon=False, fontsize=8)


def _gains(rows: list[Rate]) -> list[float]:
    return sorted({row.gain for row in rows})


def _wrong(ax: Any, rows: list[Rate], colour: str) -> None:
    far = [row for row in rows if abs(row.gain - 0.05) > 1e-9]
    for below in (True, False):
        gains = [gain for gain in _gains(far) if (gain < 0.05) == below]
        worst = [max(row.wrong() for row in far if row.gain == gain) for gain in gains]
        label = f"n = {rows[0].n}" if below else None
        ax.plot(gains, worst, "o-", ms=3, color=colour, label=label)


def _abstains(ax: Any, rows: list[Rate], colour: str) -> None:
    gains = _gains(rows)
    least, most = ([pick(row.abstains for row in rows if row.gain == gain) for gain in gains]
                   for pick in (min, max))  # fmt: skip
    ax.fill_between(gains, least, most, color=colour, alpha=0.15, lw=0)
    ax.plot(gains, most, color=colour)
    ax.plot(gains, least, color=colour, lw=0.8)
