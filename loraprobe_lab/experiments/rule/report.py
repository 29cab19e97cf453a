"""`loraprobe lab rule`: the rule after evaluation as a document, a page and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from loraprobe.records import Progress
from loraprobe_lab.experiments.document_figures import rule_figure
from loraprobe_lab.experiments.pages import Pages, render
from loraprobe_lab.experiments.rule import exact, simulated
from loraprobe_lab.experiments.rule.exact import Rate

LIMIT = 0.03  # how often a decision may be wrong, 0.01 away from the margin at 100 items
SHOWN = (-0.1, 0.0, 0.02, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3)
LEVELS = {"least": 0.0, "half": 0.5, "all": 1.0}  # discordances in the table of abstentions


@dataclass(frozen=True)
class RulePlan:
    """Numbers of items that are enumerated, those that are `simulated`, and with how many runs a
    case (0: none)."""

    items: tuple[int, ...] = (60, 100, 200, 500)
    steps: int = 21
    simulated: tuple[int, ...] = (60, 100, 200, 500)
    repeats: int = 200
    truths: tuple[float, ...] = (0.04, 0.06)
    seed: int = 0


def examine(plan: RulePlan | None = None, progress: Progress | None = None) -> Pages:
    """Every outcome enumerated, every case simulated; the document holds plain numbers."""
    plan = plan or RulePlan()
    at = [] if plan.simulated == RulePlan.simulated else [f"--simulate {n}" for n in plan.simulated]
    options = [*at, f"--repeats {plan.repeats}", f"--seed {plan.seed}"]
    document = {
        "command": " ".join(["loraprobe lab rule", *options]),
        "margin": exact.MARGIN,
        "limit": LIMIT,
        "plan": asdict(plan),
        "exact": [asdict(row) for n in plan.items for row in exact.rates(n, steps=plan.steps)],
        "simulated": _simulated(plan, progress) if plan.repeats else [],
    }
    return rule_pages(document)


def _simulated(plan: RulePlan, progress: Progress | None) -> list[dict[str, Any]]:
    chosen = [case for truth in plan.truths for case in simulated.cases(truth)]
    chosen += simulated.split_cases(max(plan.truths))
    rows, total = [], len(chosen) * sum(plan.simulated) * plan.repeats
    done = 0

    def tick(items: int) -> None:
        nonlocal done
        done += items
        if progress is not None:
            progress("simulated items", done, total)

    for n in plan.simulated:
        for case in chosen:
            found = simulated.simulate(case, n, plan.repeats, plan.seed, partial(tick, n))
            rows.append(found.as_dict())
    return rows


def rule_pages(document: dict[str, Any]) -> Pages:
    """The pages of a document, also of one that was saved."""
    rows = [Rate(**row) for row in document["exact"]]
    items = sorted({row.n for row in rows})
    gains = [gain for gain in SHOWN if gain in {row.gain for row in rows}]
    markdown = render(
        "rule",
        **document,
        repeats=document["plan"]["repeats"],
        worst=[_worst(rows, n, gains, document["limit"]) for n in items],
        worst_head=[
            "n",
            *(f"gain {gain:.2f}" for gain in gains),
            "worst anywhere",
            f"within {document['limit']:.2f}",
        ],
        decided=[_decided(rows, items, gain, name) for gain in gains for name in LEVELS],
        decided_head=["true gain", "discordance", *(f"n = {n}" for n in items)],
        cases=[_case(row) for row in document["simulated"]],
        beyond=_beyond(document),
    )
    return Pages("rule", document, markdown, lambda: rule_figure(document), digits=None)


def _worst(rows: Sequence[Rate], n: int, gains: Sequence[float], limit: float) -> list[str]:
    here = [row for row in rows if row.n == n]
    top, cells = exact.worst(here), [str(n)]
    for gain in gains:
        wrong = max(row.wrong() for row in here if row.gain == gain)
        cells.append("-" if abs(gain - exact.MARGIN) < 1e-9 else f"{wrong:.4f}")
    where = f"{top.wrong():.4f} at gain {top.gain:.2f}, discordance {top.discordance:.2f}"
    return [*cells, where, "yes" if top.wrong() <= limit else "**no**"]


def _decided(rows: Sequence[Rate], items: Sequence[int], gain: float, level: str) -> list[str]:
    """How often it decides at the discordance of this gain that is nearest to the level."""
    cells = [f"{gain:.2f}", level]
    for n in items:
        here = (row for row in rows if row.n == n and row.gain == gain)
        row = min(here, key=lambda row: abs(row.discordance - LEVELS[level]))
        cells.append(f"{row.likely:.3f} / {row.unlikely:.3f}")
    return cells


def _interval(row: Mapping[str, Any]) -> tuple[float, float]:
    """Wilson's interval of a simulated case's share of wrong decisions."""
    from scipy import stats

    wrong = round(row["wrong"] * row["repeats"])
    found = stats.binomtest(wrong, row["repeats"]).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _beyond(document: Mapping[str, Any]) -> dict[str, list[str]]:
    """Which simulated cases are wrong too often, beyond doubt or by their estimate."""
    found: dict[str, list[str]] = {}
    for row in document["simulated"]:
        if row["wrong"] > document["limit"]:
            doubtless = _interval(row)[0] > document["limit"]
            sure = "beyond doubt" if doubtless else "within the error of simulation"
            name = f"{row['case']} at n = {row['n']} ({row['wrong']:.3f})"
            found.setdefault(sure, []).append(name)
    return dict(sorted(found.items()))


def _case(row: Mapping[str, Any]) -> list[str]:
    low, high = _interval(row)
    decided = [f"{row[name]:.3f}" for name in ("likely", "unlikely", "inconclusive")]
    steps = "-" if row["steps_gain"] is None else f"{row['steps_gain']:.2f}"
    wrong = f"{row['wrong']:.3f} ({low:.3f} to {high:.3f})"
    return [str(row["n"]), row["case"], f"{row['gain']:.2f}", steps, *decided, wrong]
