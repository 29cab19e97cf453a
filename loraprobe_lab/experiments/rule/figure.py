"""The figure of the rule: how often it is wrong, and how often it abstains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loraprobe_lab.experiments.drawing import BLUE, DARK, GREY, RED, as_svg, drawing
from loraprobe_lab.experiments.rule.exact import MARGIN, Rate


def rule_figure(document: Mapping[str, Any]) -> str:
    """SVG with two panels: how often the rule is wrong, and how often it abstains."""
    with drawing() as Figure:
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        rows = [Rate(**row) for row in document["exact"]]
        for n, colour in zip(
            sorted({r.n for r in rows}), ("#c7a26b", RED, BLUE, DARK), strict=False
        ):
            here: dict[float, list[Rate]] = {}
            for row in rows:
                if row.n == n:
                    here.setdefault(row.gain, []).append(row)
            for below in (True, False):  # at the margin itself no decision is wrong
                gains = [g for g in here if abs(g - MARGIN) > 1e-9 and (g < MARGIN) == below]
                worst = [max(row.wrong() for row in here[gain]) for gain in gains]
                label = f"n = {n}" if below else None
                left.plot(gains, worst, "o-", ms=3, color=colour, label=label)
            least, most = (
                [pick(row.abstains for row in here[gain]) for gain in here] for pick in (min, max)
            )
            right.fill_between(list(here), least, most, color=colour, alpha=0.15, lw=0)
            right.plot(list(here), most, color=colour)
            right.plot(list(here), least, color=colour, lw=0.8)
        left.axhline(document["limit"], color=GREY, lw=0.8, ls="--")
        left.set(ylim=(0, 0.05), ylabel="probability of a wrong decision")
        left.set_title("Wrong, at the worst discordance", loc="left")
        right.set(ylim=(0, 1), ylabel="probability of no decision")
        right.set_title("Abstains (least to greatest over discordance)", loc="left")
        for ax in (left, right):
            ax.axvline(document["margin"], color=GREY, lw=0.8)
            ax.set(xlim=(-0.2, 0.4), xlabel="true gain (line: the margin)")
        left.legend(frameon=False, fontsize=8)
        return as_svg(figure)
