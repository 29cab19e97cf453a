"""`loraprobe lab rule`: the rule after evaluation as a document, a page and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from loraprobe.records import Progress
from loraprobe_lab.experiments.pages import BLUE, DARK, GREY, RED, Pages, as_svg, drawing, render
from loraprobe_lab.experiments.rule import exact
from loraprobe_lab.experiments.rule.exact import MARGIN, Rate
from loraprobe_lab.experiments.rule.simulated import simulate

LIMIT = 0.03  # how often a decision may be wrong, 0.01 away from the margin at 100 items
SHOWN = (-0.1, 0.0, 0.02, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3)
LEVELS = {"least": 0.0, "half": 0.5, "all": 1.0}  # discordances in the table of abstentions


@dataclass(frozen=True)
class RulePlan:
    """Numbers of items that are enumerated, with one look (`items`) and with one or two (`few`),
    and those that are `simulated`, with `repeats` runs a case (0: none)."""

    items: tuple[int, ...] = (60, 100, 200)
    steps: int = 21
    few: tuple[int, ...] = (40, 48, 59)
    simulated: tuple[int, ...] = (40, 48, 59, 100, 300)
    repeats: int = 400
    seed: int = 0


def examine(plan: RulePlan | None = None, progress: Progress | None = None) -> Pages:
    """Every outcome enumerated, every case simulated; the document holds plain numbers."""
    plan = plan or RulePlan()
    simulated = plan.simulated if plan.repeats else ()
    return rule_pages(
        {
            "command": f"loraprobe lab rule --repeats {plan.repeats} --seed {plan.seed}",
            "margin": MARGIN,
            "limit": LIMIT,
            "plan": asdict(plan),
            "exact": [asdict(row) for n in plan.items for row in exact.rates(n, steps=plan.steps)],
            "few": exact.compare_looks(plan.few),
            "simulated": [
                row for n in simulated for row in simulate(n, plan.repeats, plan.seed, progress)
            ],
        }
    )


def rule_pages(document: dict[str, Any]) -> Pages:
    """The pages of a document, also of one that was saved."""
    rates: dict[int, dict[float, list[Rate]]] = {}
    for values in document["exact"]:
        rate = Rate(**values)
        rates.setdefault(rate.n, {}).setdefault(rate.gain, []).append(rate)
    markdown = render(
        "rule",
        document=document,
        rates=dict(sorted(rates.items())),
        gains=[gain for gain in SHOWN if any(gain in found for found in rates.values())],
        worst={n: exact.worst(list(chain(*found.values()))) for n, found in rates.items()},
        levels=LEVELS,
        nearest=_nearest,
        wrong=lambda rows: max(row.wrong() for row in rows),
    )
    return Pages("rule", document, markdown, lambda: rule_figure(document), digits=None)


def _nearest(rows: Sequence[Rate], discordance: float) -> Rate:
    """The row whose discordance is the nearest to this one."""
    return min(rows, key=lambda row: abs(row.discordance - discordance))


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
