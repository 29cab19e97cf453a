"""`loraprobe lab rule`: how often the decision after evaluation is wrong, exactly.

It is the decision between one composition and one baseline.

An item is gained (right with the composition only), lost (right with the baseline only) or the same
for both. The counts follow the trinomial of the two shares, and a decision depends on the counts
alone, so its probability is a finite sum: no simulation. The interval is the one that evaluation
uses, called and not copied.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from loraprobe.defaults import ALPHA, MARGIN
from loraprobe.evaluation.statistics import likelihood_interval
from loraprobe_lab.experiments.pages import BLUE, DARK, GREY, RED, Pages, as_svg, drawing, render

Array = NDArray[np.float64]
NEAR = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05)  # discordance beyond |gain|, looked at closely
GAINS = tuple(
    float(gain)
    for gain in (
        "-1 -.5 -.3 -.2 -.15 -.1 -.05 0 .01 .02 .03 .04 .05 .06 .07 .08 .09 .1 .12 .15 .2 .25 "
        ".3 .4 .5 1"
    ).split()
)
LIMIT = 0.03  # how often a decision may be wrong, 0.01 away from the margin at 100 items
SHOWN = (-0.1, 0.0, 0.02, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3)
GUARDED = (30, 60, 100, 150, 200, 400)  # items of a guard
DIFFER = (0.02, 0.05, 0.1, 0.2, 0.3)  # shares of items on which a safe composition and base differ
LEVELS = {"least": 0.0, "half": 0.5, "all": 1.0}  # discordances in the table of abstentions


def decide(
    n: int, gain: float, discordance: float, alpha: float = ALPHA, threshold: float = MARGIN
) -> tuple[float, float]:
    """Probabilities of `likely` and `unlikely` after n items."""
    gained, lost, possible = _counts(n)
    counts = np.stack([gained, lost, n - gained - lost], axis=-1)[possible]
    up, down = (discordance + gain) / 2, (discordance - gain) / 2
    shares = np.clip([up, down, 1 - up - down], 0, None)
    found = np.zeros(possible.shape)
    found[possible] = stats.multinomial.pmf(counts, n, shares / shares.sum())
    likely, unlikely = decided(n, alpha, threshold)
    return float(found[likely].sum()), float(found[unlikely].sum())


def _counts(n: int) -> tuple[Array, Array, Any]:
    gained, lost = np.meshgrid(np.arange(n + 1.0), np.arange(n + 1.0), indexing="ij")
    return gained, lost, gained + lost <= n


@functools.cache
def decided(n: int, alpha: float, threshold: float = MARGIN) -> tuple[Any, Any]:
    """Where the rule says `likely` and `unlikely`, on each (gained, lost)."""
    gained, lost, possible = _counts(n)
    items = np.full(int(possible.sum()), float(n))
    critical = -float(special.ndtri(alpha / 2))
    ends = likelihood_interval(gained[possible], lost[possible], items, critical)
    yes, no = np.zeros_like(possible), np.zeros_like(possible)
    yes[possible], no[possible] = ends[0] > threshold, ends[1] < threshold
    return yes, no


@dataclass(frozen=True)
class Rate:
    """The rule's decisions at a true `gain` = gained - lost, `discordance` = gained + lost.

    `likely`, `unlikely`, `abstains` are exact probabilities that sum to 1.
    """

    n: int
    gain: float
    discordance: float
    likely: float
    unlikely: float
    abstains: float

    def wrong(self) -> float:
        """The probability of a wrong decision; 0 at the margin itself, where none is wrong."""
        if abs(self.gain - MARGIN) < 1e-9:
            return 0.0
        return self.likely if self.gain < MARGIN else self.unlikely


def discordances(gain: float, steps: int = 21) -> Array:
    """Discordances that a gain allows, from the least |gain| to 1, closer together at the least."""
    least = abs(gain)
    every = np.concatenate([np.linspace(least, 1, steps), least + np.array(NEAR)])
    return np.unique(every[every <= 1].round(12))


def rates_of(n: int, gains: Sequence[float] = GAINS, steps: int = 21) -> list[Rate]:
    """The decisions on n items, for each true gain and each discordance that the gain allows."""
    rows = []
    for gain in gains:
        for level in map(float, discordances(gain, steps)):
            yes, no = decide(n, gain, level)
            rows.append(Rate(n, gain, level, yes, no, max(0.0, 1 - yes - no)))
    return rows


def guard_rates(n: int) -> dict[str, Any]:
    """How often a guard of n items passes: at worst a composition that loses the margin, and those
    that lose nothing, by the share of items on which they differ from the base."""
    passes = [decide(n, -MARGIN, float(d), threshold=-MARGIN)[0] for d in discordances(MARGIN)]
    safe = [decide(n, 0.0, differ, threshold=-MARGIN)[0] for differ in DIFFER]
    return {"n": n, "wrong": max(passes), "safe": safe}


def worst(rows: Sequence[Rate]) -> Rate:
    """The row with the most wrong decisions among gains at least 0.01 from the margin."""
    far = [row for row in rows if abs(row.gain - MARGIN) > 0.01 - 1e-9]
    return max(far, key=lambda row: row.wrong())


def examine(items: Sequence[int] = (60, 100, 200), steps: int = 21) -> Pages:
    """Every outcome enumerated for these numbers of items, with so many steps between
    discordances; the document holds plain numbers."""
    return rule_pages(
        {
            "command": "loraprobe lab rule",
            "margin": MARGIN,
            "limit": LIMIT,
            "plan": {"items": items, "steps": steps},
            "exact": [asdict(row) for n in items for row in rates_of(n, steps=steps)],
            "differ": DIFFER,
            "guards": [guard_rates(n) for n in GUARDED],
        }
    )


def rule_pages(document: dict[str, Any]) -> Pages:
    """The pages of a document, also of one that was saved."""
    rates = by_gain(document["exact"])
    markdown = render(
        "rule",
        document=document,
        rates=rates,
        gains=[gain for gain in SHOWN if any(gain in found for found in rates.values())],
        worst={n: worst(list(chain(*found.values()))) for n, found in rates.items()},
        levels=LEVELS,
        nearest=lambda rows, level: min(rows, key=lambda row: abs(row.discordance - level)),
        wrong=lambda rows: max(row.wrong() for row in rows),
    )
    return Pages("rule", document, markdown, lambda: rule_figure(document), digits=None)


def by_gain(rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[float, list[Rate]]]:
    """Items, the fewest first -> true gain -> the rows of `Rate`."""
    rates: dict[int, dict[float, list[Rate]]] = {}
    for row in sorted(rows, key=lambda row: row["n"]):
        rates.setdefault(row["n"], {}).setdefault(row["gain"], []).append(Rate(**row))
    return rates


def rule_figure(document: Mapping[str, Any]) -> str:
    """SVG with two panels: how often the rule is wrong, and how often it abstains."""
    with drawing() as Figure:
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        rates = by_gain(document["exact"])
        for (n, here), colour in zip(rates.items(), ("#c7a26b", RED, BLUE, DARK), strict=False):
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
