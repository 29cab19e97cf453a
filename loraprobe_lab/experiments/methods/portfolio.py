"""Chooses from the table of methods what merge-and-eval evaluates beside its fixed systems.

merge-and-eval evaluates several compositions and reports the best of them. So a system is worth its
cost if the best of all gets better with it, on worlds on which it was not chosen. In every world
the figure of a set is that of its best system: the gain, or the retention of the worse skill. Half
of the worlds, drawn again and again, choose the system that adds most to the mean figure; the other
half says what it adds there. A system joins if that is at least `LEAST` on average, up to `MOST`
for each kind of question. Only systems that a spec alone describes can join.

A maximum over equally good systems also grows by chance, a little; `LEAST` lies above that.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraprobe.errors import UsageError
from loraprobe.merging import METHODS
from loraprobe.options import Options
from loraprobe.pipeline.portfolio import Kind
from loraprobe.routing import ROUTERS
from loraprobe_lab.experiments.pages import as_json, render

Figures = Mapping[str, Sequence[float]]  # label -> the figure of each world
LEAST, MOST = 0.02, 2
FEWEST = 4  # worlds that can be halved
SPLITS, SEED = 500, 0
SHOWN = 3  # candidates that the page lists
COLUMNS: Mapping[Kind, tuple[str, str, str]] = {
    "one task": ("two_hop", "gain", "gain over the best of base and single adapters"),
    "one task, worked steps": (
        "step_by_step",
        "gain",
        "gain over the best of base and single adapters",
    ),
    "several tasks": ("keep_both", "worse", "retention of the worse skill"),
}


@dataclass(frozen=True)
class PortfolioChoice:
    """One step of the choice for a kind of question.

    `beside` is the mean figure of the best of the systems before it, `figure` that of the system.
    `chosen` is the share of the halves that chose it, `added` what the halves' own choices added on
    the other halves (mean, and 95 % of the halves).
    """

    kind: Kind
    label: str
    spec: str | None
    figure: float
    ci95: tuple[float, float]
    beside: float
    chosen: float
    added: tuple[float, float, float]
    others: tuple[tuple[str, float], ...]
    worlds: int

    @property
    def joins(self) -> bool:
        return self.spec is not None and self.added[0] >= LEAST


def choices(document: Mapping[str, Any]) -> list[PortfolioChoice]:
    """The steps for every kind of question, from the document of `lab methods`.

    The last step of a kind is the one that was refused, unless `MOST` systems joined.
    """
    cells = {cell["label"]: cell for cell in document["cells"] if cell["family"] != "chain"}
    fixed = [label for label, cell in cells.items() if _spec(cell) in _fixed()]
    found = []
    for kind, (column, key, _) in COLUMNS.items():
        taking_part = {label: cell for label, cell in cells.items() if cell.get(column)}
        figures = {label: cell[column][key]["each"] for label, cell in taking_part.items()}
        chosen = [label for label in fixed if label in figures]
        while chosen and len(chosen) < min(len(figures), len(fixed) + MOST):
            if len(figures[chosen[0]]) < FEWEST:
                break
            step = _choice(kind, figures, chosen, taking_part)
            found.append(step)
            if not step.joins:
                break
            chosen.append(step.label)
    return found


def portfolio_files(document: Mapping[str, Any]) -> dict[str, str]:
    """portfolio.json, which the package reads from `loraprobe/pipeline`, and its page.

    document: as it is saved in methods.json.
    """
    found = choices(document)
    page = render("portfolio", choices=found, fixed=_fixed(), least=LEAST, splits=SPLITS)
    return {"portfolio.json": as_json(_portfolio(found)), "portfolio.md": page}


def _portfolio(found: Sequence[PortfolioChoice]) -> dict[str, Any]:
    return {
        "made_by": "loraprobe lab methods",
        "source": "examples/reproduction/portfolio.md",
        "fixed": list(_fixed()),
        "kinds": [
            {
                "kind": kind,
                "figure": figure,
                "worlds": max((one.worlds for one in found if one.kind == kind), default=0),
                "systems": [_row(one) for one in found if one.kind == kind and one.joins],
            }
            for kind, (_, _, figure) in COLUMNS.items()
        ],
    }


def _fixed() -> tuple[str, ...]:
    """The systems that every evaluation has."""
    return (*Options().methods, *Options().routers)


def _spec(cell: Mapping[str, Any]) -> str | None:
    """The spec that describes a system, None where that takes weights, a space or --balance."""
    spec, registry = cell["spec"], ROUTERS if cell["family"] == "router" else METHODS
    if cell["balanced"] or cell["strength"] is not None:
        return None
    try:
        made: Any = registry.make(spec)
    except UsageError:  # an option that was measured and has left the package since
        return None
    default = None if cell["space"] is None else made.default_space()
    return spec if cell["space"] == default else None


def _choice(
    kind: Kind, figures: Figures, chosen: Sequence[str], cells: Mapping[str, Any]
) -> PortfolioChoice:
    """The system that adds most to those chosen, and what halves of the worlds say of it."""
    worlds = range(len(figures[chosen[0]]))
    best = [max(figures[label][w] for label in chosen) for w in worlds]
    over = {
        label: [max(0.0, each[w] - best[w]) for w in worlds]
        for label, each in figures.items()
        if label not in chosen
    }

    def most(among: Sequence[int]) -> str:
        """What adds most on these worlds; "" where nothing adds anything."""
        top = max(over, key=lambda label: statistics.mean(over[label][w] for w in among))
        return top if any(over[top][w] for w in among) else ""

    draw, picked, added = random.Random(SEED), [], []
    for _ in range(SPLITS):
        drawn = draw.sample(worlds, len(worlds))
        half = len(worlds) // 2
        picked.append(most(drawn[:half]))
        gained = over.get(picked[-1], [0.0] * len(worlds))
        added.append(statistics.mean(gained[w] for w in drawn[half:]))
    ranked = sorted(over, key=lambda label: -statistics.mean(over[label]))
    top, cuts = ranked[0], statistics.quantiles(added, n=40, method="inclusive")
    column, key, _ = COLUMNS[kind]
    pooled = cells[top][column][key]
    return PortfolioChoice(
        kind=kind,
        label=top,
        spec=_spec(cells[top]),
        figure=pooled["value"],
        ci95=tuple(pooled["ci95"]),
        beside=statistics.mean(best),
        chosen=picked.count(top) / SPLITS,
        added=(statistics.mean(added), cuts[0], cuts[-1]),
        others=tuple((label, statistics.mean(over[label])) for label in ranked[1 : 1 + SHOWN]),
        worlds=len(worlds),
    )


def _row(one: PortfolioChoice) -> dict[str, Any]:
    return {
        "spec": one.spec,
        "value": round(one.figure, 2),
        "ci95": [round(end, 2) for end in one.ci95],
        "beside": round(one.beside, 2),
        "added_on_left_out_worlds": round(one.added[0], 2),
    }
