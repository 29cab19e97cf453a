"""`loraprobe lab reproduce`: the paper's matrix, a figure, and whether each claim held.

Two experiments, on small bases that are trained from scratch or on a causal model of the user's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from loraprobe.errors import UsageError
from loraprobe_lab.experiments.claims import Claim, Subject, claims
from loraprobe_lab.experiments.matrix import ALL, METHODS, Matrix, MatrixCell, evaluate_world
from loraprobe_lab.experiments.pages import DARK, GREEN, GREY, RED, Pages, as_svg, drawing, render
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

        def longer(architecture: str, hidden: int) -> BaseRecipe:  # these bases read more couples
            return dataclasses.replace(small_base(architecture, hidden), steps=800)

        return Experiment(TWO_HOP, two_hop_matrix, english_matrix, longer)
    if kind == "math":
        from loraprobe_lab.worlds.math.world import BASE, math_matrix

        def shape(architecture: str, hidden: int) -> BaseRecipe:
            width = {"hidden": hidden, "intermediate": 5 * hidden // 2}
            return dataclasses.replace(BASE, architecture=architecture, **width)

        return Experiment(MATH, math_matrix, math_matrix, shape)
    raise UsageError(f"There is no experiment {kind!r}; there are two-hop and math.")


@dataclass(frozen=True)
class ReproducePlan:
    """An experiment on small bases, or on the causal model in the directory `base`.

    templates: if any is named, only these are trained and asked.
    """

    kind: str
    base: Path | None = None
    bases: Bases = field(default_factory=Bases)
    templates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.base is not None and not self.base.is_dir():
            raise UsageError(f"--base {self.base} is no directory; give a downloaded model.")


def reproduce(plan: ReproducePlan, run: ExperimentRun, made: Experiment | None = None) -> Pages:
    """Runs the matrix of an experiment: KIND.md, KIND.json, KIND.svg.

    Raises UsageError for an unknown experiment or a missing matplotlib, before anything is trained.
    """
    chosen, given = made or experiment(plan.kind), plan.base
    if given is None:
        small = partial(_of_templates, plan.templates, chosen.small)
        worlds = run.small_worlds(plan.bases, small, chosen.shape)
    else:  # the given base once for each seed
        name, seeds = given.resolve().name, dict.fromkeys(plan.bases.seeds)
        bases = [BaseInfo(f"{name}-seed{seed}", name, seed) for seed in seeds]
        options, make = {"base": given, "device": run.device}, (plan.templates, chosen.given)
        worlds = [
            (base, partial(run.build, base, partial(_of_templates, *make, base.seed), **options))
            for base in bases
        ]
    pages = partial(matrix_pages, plan, chosen.subject, run.command)
    return run.run_worlds(worlds, evaluate_world, pages)


def _of_templates(
    templates: Sequence[str], make: Callable[..., WorldSpec], *args: Any
) -> WorldSpec:
    """The world, or with these templates alone: without the others' sets, adapters, joint ones."""
    spec = make(*args)
    if not templates:
        return spec
    sets = tuple(one for one in spec.adapter_sets if one.axes["template"] in templates)
    names = {name for one in sets for name in one.adapters}
    training = tuple(one for one in spec.training if one.name in names)
    return dataclasses.replace(spec, training=training, adapter_sets=sets)


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
        plan.kind,
        document,
        markdown,
        partial(claims_figure, findings, subject.title, matrix.margin),
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


COLOURS = {"holds": GREEN, "does not hold": RED, "not decided": GREY}


def claims_figure(findings: Sequence[Claim], title: str, margin: float) -> str:
    """SVG: the differences of every claim over all sizes, with their intervals."""
    rows = [(f, test) for f in reversed(findings) for test in f.overall]
    with drawing() as Figure:
        figure = Figure(figsize=(10, 0.28 * len(rows) + 1.4), layout="constrained")
        panel = figure.subplots()
        for y, (claim, test) in enumerate(rows):
            colour = COLOURS[claim.standing]
            panel.plot((test.low, test.high), (y, y), color=colour, linewidth=1.5)
            panel.plot(test.value, y, "o", color=colour, markersize=4)
        panel.axvline(margin, color=DARK, linewidth=0.8, linestyle=":")
        names = [f"{f.claim} ({f.where}{test.where.removeprefix(ALL)})" for f, test in rows]
        panel.set_yticks(range(len(rows)), names)
        panel.tick_params(axis="y", labelsize=7)
        for standing, colour in COLOURS.items():
            panel.plot([], [], color=colour, label=standing)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(title)
        return as_svg(figure)
