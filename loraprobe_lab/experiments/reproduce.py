"""`loraprobe lab reproduce`: the paper's matrix, a figure, and whether each claim held.

Two experiments, on small bases that are trained from scratch or on a causal model of the user's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from loraprobe.errors import UsageError
from loraprobe_lab.experiments.claims import Claim, Subject, claims
from loraprobe_lab.experiments.matrix import METHODS, Matrix, MatrixCell, evaluate_world
from loraprobe_lab.experiments.pages import (
    BLUE,
    DARK,
    GREY,
    RED,
    Pages,
    as_svg,
    drawing,
    grid_lines,
    legend,
    render,
)
from loraprobe_lab.experiments.runner import (
    BaseInfo,
    Bases,
    ExperimentRun,
    Shape,
    WorldResults,
    small_base,
)
from loraprobe_lab.training.pretrain import BaseRecipe
from loraprobe_lab.worlds.known import table
from loraprobe_lab.worlds.spec import WorldSpec

# of the page's table: which system, None for the best of all, in which role
COLUMNS = {
    "best single": (None, "baseline"),
    **{method: (method, "composition") for method in (*METHODS, "chain")},
    "joint": (None, "reference"),
}
TWO_HOP, MATH = (Subject(**table("claims")["subjects"][kind]) for kind in ("two-hop", "math"))


@dataclass(frozen=True)
class Experiment:
    """One of the paper's experiments: its claims, its world on a small base, and on a given one.

    `shape` makes the recipe of a small base from its architecture and width.
    """

    subject: Subject
    small: Callable[[int, BaseRecipe], WorldSpec]
    given: Callable[[int], WorldSpec]
    shape: Shape = small_base


def experiment(kind: str) -> Experiment:
    """The experiment of that name. Raises UsageError with the known names."""
    if kind == "two-hop":
        from loraprobe_lab.worlds.name_sets import english_matrix, two_hop_matrix

        return Experiment(TWO_HOP, two_hop_matrix, english_matrix)
    if kind == "math":
        from loraprobe_lab.worlds.math.world import BASE, math_matrix

        def shape(architecture: str, hidden: int) -> BaseRecipe:
            width = {"hidden": hidden, "intermediate": 5 * hidden // 2}
            return dataclasses.replace(BASE, architecture=architecture, **width)

        return Experiment(MATH, math_matrix, math_matrix, shape)
    raise UsageError(f"There is no experiment {kind!r}; there are two-hop and math.")


@dataclass(frozen=True)
class ReproducePlan:
    """An experiment on small bases, or on the causal model in the directory `base`."""

    kind: str
    base: Path | None = None
    bases: Bases = field(default_factory=Bases)

    def __post_init__(self) -> None:
        if self.base is not None and not self.base.is_dir():
            raise UsageError(f"--base {self.base} is no directory; give a downloaded model.")


def reproduce(plan: ReproducePlan, run: ExperimentRun, made: Experiment | None = None) -> Pages:
    """Runs the matrix of an experiment: KIND.md, KIND.json, KIND.svg.

    Raises UsageError for an unknown experiment or a missing matplotlib, before anything is trained.
    """
    chosen, given = made or experiment(plan.kind), plan.base
    if given is None:
        worlds = run.small_worlds(plan.bases, chosen.small, chosen.shape)
    else:  # the given base once for each seed
        name, seeds = given.resolve().name, dict.fromkeys(plan.bases.seeds)
        bases = [BaseInfo(f"{name}-seed{seed}", name, seed) for seed in seeds]
        options = {"base": given, "device": run.device}
        worlds = [
            (base, partial(run.build, base, partial(chosen.given, base.seed), **options))
            for base in bases
        ]
    pages = partial(
        matrix_pages, plan, chosen.subject, run.command(f"reproduce({plan!r}, limit={run.limit})")
    )
    return run.run_worlds(worlds, evaluate_world, pages)


def matrix_pages(
    plan: ReproducePlan,
    subject: Subject,
    command: str,
    worlds: Sequence[WorldResults],
    missing: Sequence[str] = (),
) -> Pages:
    """The pages of these worlds."""
    matrix = Matrix(tuple(worlds))
    cells, findings = matrix.cells(), claims(matrix, subject)
    rows: dict[str, dict[tuple[str, str, int], list[MatrixCell]]] = {g: {} for g in matrix.groups}
    for cell in cells:
        rows[cell.group].setdefault((cell.size, cell.template, cell.library), []).append(cell)
    markdown = render(
        "matrix",
        subject=subject,
        matrix=matrix,
        command=command,
        missing=missing,
        figure=f"{plan.kind}.svg",
        findings=findings,
        columns=COLUMNS,
        groups={subject.names.get(group, group): found for group, found in rows.items()},
    )
    document = {"format": 1, "experiment": plan.kind, "command": command, "missing": list(missing)}
    document |= _numbers(matrix, cells, findings)
    return Pages(plan.kind, document, markdown, lambda: matrix_figure(matrix, cells, subject.title))


def _numbers(
    matrix: Matrix, cells: Sequence[MatrixCell], findings: Sequence[Claim]
) -> dict[str, Any]:
    """The worlds, cells and claims as plain data."""
    return {
        "margin": matrix.margin,
        "worlds": [dataclasses.asdict(world.base) for world in matrix.worlds],
        "cells": [dataclasses.asdict(cell) for cell in cells],
        "claims": [
            {
                **dataclasses.asdict(f),
                "standing": f.standing,
                "counts": dict(f.counts),
                "tests": [{**dataclasses.asdict(t), "outcome": t.outcome} for t in f.tests],
            }
            for f in findings
        ],
    }


SYSTEMS = ("uniform", "sum", "arrow", "chain")
LIBRARIES = {2: (RED, "library of the two hops"), 3: (BLUE, "and the target adapter")}


def matrix_figure(matrix: Matrix, cells: Sequence[MatrixCell], title: str) -> str:
    """SVG: exact match of uniform, sum, arrow and chain in every panel of the matrix.

    Dots of one method stand in the order of the sizes; the grey bar is the span, over the sizes,
    of the best of base and the two hop adapters, the dashed line the joint adapter's mean.
    """
    with drawing() as Figure:
        groups, templates = matrix.groups, matrix.templates
        figure = Figure(figsize=(4.1 * len(templates), 2.3 * len(groups) + 0.9))
        axes = figure.subplots(len(groups), len(templates), sharex=True, sharey=True, squeeze=False)
        for (row, group), (column, template) in product(enumerate(groups), enumerate(templates)):
            panel = axes[row][column]
            here = [c for c in cells if (c.group, c.template) == (group, template)]
            _matrix_panel(panel, here, matrix.sizes, matrix.margin)
            if row == 0:
                asked = "step by step" if here and here[0].form == "steps" else "asked at once"
                panel.set_title(f"{template} ({asked})", fontsize=10)
            if column == 0:
                panel.set_ylabel(f"{group}\nexact match")
        dot = {"marker": "o", "color": DARK}
        rows: list[dict[str, Any]] = [
            {**dot, "linestyle": "-", "color": colour, "markerfacecolor": "white", "label": label}
            for colour, label in LIBRARIES.values()
        ]
        rows += [
            {**dot, "linestyle": "", "label": "filled: gains on base and singles"},
            {
                "patch": True,
                "color": GREY,
                "alpha": 0.35,
                "label": "best of base and hop adapters, over the sizes",
            },
            {"linestyle": "--", "color": DARK, "label": "joint adapter, mean"},
        ]
        legend(figure, rows, 5)
        order = f"dots of one system from left to right: {', '.join(matrix.sizes)}"
        figure.text(0.5, 0.045, order, ha="center", fontsize=8, color="#555555")
        figure.suptitle(title, y=1.0, fontsize=11)
        figure.tight_layout(rect=(0, 0.06, 1, 1))
        return as_svg(figure)


def _matrix_panel(
    panel: Any, cells: Sequence[MatrixCell], sizes: Sequence[str], margin: float
) -> None:
    panel.set(xlim=(-0.5, len(SYSTEMS) - 0.5), ylim=(-0.03, 1.03))
    panel.set_xticks(range(len(SYSTEMS)), SYSTEMS)
    grid_lines(panel)
    singles = [c for c in cells if c.role == "baseline" and c.library == 2]
    best = [max((c.score for c in singles if c.size == s), default=0.0) for s in sizes]
    panel.axhspan(min(best), max(best) + 0.004, color=GREY, alpha=0.35, linewidth=0)
    joint = [c.score for c in cells if c.role == "reference"]
    if joint:
        panel.axhline(sum(joint) / len(joint), color=DARK, linestyle="--", linewidth=0.9)
    slots = 2 * len(sizes) + 1
    for cell in (c for c in cells if c.role == "composition"):
        slot = sizes.index(cell.size) + (0 if cell.library == 2 else len(sizes) + 1)
        x = SYSTEMS.index(cell.system) + 0.8 * ((slot + 0.5) / slots - 0.5)
        colour = LIBRARIES[cell.library][0]
        panel.plot([x, x], cell.score_ci95, color=colour, linewidth=1.1, alpha=0.6)
        face = colour if cell.gains(margin) else "white"
        panel.plot(x, cell.score, "o", markersize=4.2, color=colour, markerfacecolor=face)
