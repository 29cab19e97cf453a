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
    pages = partial(matrix_pages, plan, chosen.subject, run.command)
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
    return Pages(
        plan.kind, document, markdown, partial(matrix_figure, cells, subject.title, matrix.margin)
    )


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


AXES = ("group", "template")
LIBRARIES = {2: (RED, "library of the two hops"), 3: (BLUE, "and the target adapter")}


def matrix_figure(cells: Sequence[MatrixCell], title: str, margin: float) -> str:
    """SVG: exact match of every composition in every panel of the matrix."""
    with drawing() as Figure:
        groups, templates = (list(dict.fromkeys(getattr(c, k) for c in cells)) for k in AXES)
        size = (4.1 * len(templates), 2.3 * len(groups) + 0.9)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(groups), len(templates), sharex=True, sharey=True, squeeze=False)
        for (row, group), (column, template) in product(enumerate(groups), enumerate(templates)):
            panel = axes[row][column]
            here = [c for c in cells if (c.group, c.template) == (group, template)]
            panel.set(title=f"{group}, {template}", ylim=(-0.03, 1.03))
            _matrix_panel(panel, here, margin)
        axes[0][0].set_ylabel("exact match")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        figure.suptitle(title)
        return as_svg(figure)


def _matrix_panel(panel: Any, cells: Sequence[MatrixCell], margin: float) -> None:
    """A line for each size and library; filled dots gain on base and singles.

    The grey line is the best of base and the two hop adapters at any size.
    """
    grid_lines(panel)
    sizes = list(dict.fromkeys(c.size for c in cells))
    alone = [c.score for c in cells if c.role == "baseline" and c.library == 2]
    panel.axhline(max(alone, default=0.0), color=GREY, label="best of base and hop adapters")
    if joint := [c.score for c in cells if c.role == "reference"]:
        mean = sum(joint) / len(joint)
        panel.axhline(mean, color=DARK, linestyle="--", label="joint adapter, mean")
    for (library, (colour, name)), size in product(LIBRARIES.items(), sizes):
        own = [c for c in cells if (c.role, c.library, c.size) == ("composition", library, size)]
        for rows, style in ((own, "o-"), ([c for c in own if c.gains(margin)], "o")):
            face = "white" if style == "o-" else colour
            label = name if size == sizes[0] and style == "o-" else None
            x, y = [c.system for c in rows], [c.score for c in rows]
            panel.plot(x, y, style, color=colour, linewidth=0.8, mfc=face, label=label)
