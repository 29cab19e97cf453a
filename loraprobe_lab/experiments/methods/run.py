"""`loraprobe lab methods`: builds the worlds, evaluates every system, writes the pages."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from loraprobe_lab.build import describe_base
from loraprobe_lab.experiments.methods.evaluating import (
    ROLES,
    CaseResults,
    cases_of,
    evaluate_cases,
    open_worlds,
)
from loraprobe_lab.experiments.methods.portfolio import portfolio_files
from loraprobe_lab.experiments.methods.systems import ComparedSystem, all_systems
from loraprobe_lab.experiments.methods.table import MARGIN, MethodsRow, MethodsTable, tabulated
from loraprobe_lab.experiments.pages import (
    BLUE,
    DARK,
    GREEN,
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
    WorldEvaluator,
    Worlds,
    small_base,
)
from loraprobe_lab.training.pretrain import BaseRecipe
from loraprobe_lab.world import World, versions
from loraprobe_lab.worlds.small import methods_world
from loraprobe_lab.worlds.spec import WorldSpec

BASES = Bases(architectures=("llama", "gpt2"), hidden=(96,), seeds=(0, 1, 2, 3))
PAUSE = 60.0  # seconds between two times that the pages are written


@dataclass(frozen=True)
class MethodsPlan:
    """The worlds and systems of the experiment.

    worlds: directories of existing worlds; without any, those of `spec` are trained on `bases`.
    methods, routers: if any is named, only these are compared.
    """

    worlds: tuple[Path, ...] = ()
    bases: Bases = BASES
    spec: Callable[[int, BaseRecipe], WorldSpec] = methods_world
    shape: Shape = small_base
    methods: tuple[str, ...] = ()
    routers: tuple[str, ...] = ()
    strengths: tuple[float | None, ...] = (None, 1.0)

    def systems(self) -> list[ComparedSystem]:
        """What is compared. Raises UsageError for a method or router that is not there."""
        return all_systems(self.methods, self.routers, self.strengths)


WorldCases = tuple[World, list[CaseResults]]


def try_methods(run: ExperimentRun, plan: MethodsPlan | None = None) -> Pages:
    """Makes the table (methods.md, methods.json, methods.svg), and from it the default systems of
    merge-and-eval (portfolio.json, portfolio.md).

    The run's limit cuts the tasks; routers that need prompts are fitted to the items beyond it.
    Raises UsageError for an unknown method, router or world, or a missing matplotlib, before
    anything is trained.
    """
    plan = plan or MethodsPlan()
    systems = plan.systems()
    worlds: Worlds = [
        (BaseInfo(world.path.resolve().name, "", world.seed), partial(World.load, world.path))
        for world in open_worlds(plan.worlds)
    ]

    def answer(evaluator: WorldEvaluator, base: BaseInfo) -> WorldCases:
        return evaluator.world, evaluate_cases(evaluator, cases_of(evaluator.world), systems)

    def pages(found: Sequence[WorldCases], missing: Sequence[str]) -> Pages:
        answers = [one for _, answered in found for one in answered]
        made = [world for world, _ in found]
        table = methods_pages(tabulated(answers, systems), answers, made, run.command, missing)
        return replace(table, more=portfolio_files(json.loads(table.json)))

    return run.run_worlds(
        worlds or run.small_worlds(plan.bases, plan.spec, plan.shape), answer, pages
    )


def methods_pages(
    table: MethodsTable,
    answered: Sequence[CaseResults],
    worlds: Sequence[World],
    command: str,
    missing: Sequence[str] = (),
) -> Pages:
    """Everything measured, with the figures of each world, and the page of it."""
    bases = [_base(world) for world in worlds]
    document = {
        "format": 1,
        "command": command,
        "missing": list(missing),
        "versions": versions(),
        "margin": MARGIN,
        "worlds": bases,
        "cases": [
            {"case": one.case.name, "question": one.case.kind, "roles": dict(one.case.roles)}
            for one in answered
        ],
        "counts": {kind: asdict(count) for kind, count in table.counts.items()},
        "refused": dict(table.refused),
        "cells": [_cell(row) for row in table.rows],
    }
    same = {r.system.spec: r.system.same for r in table.rows if len(r.system.same) > 1}
    markdown = render(
        "methods",
        document=document,
        table=table,
        roles=ROLES,
        same=[f"{spec}: {', '.join(spaces)}" for spec, spaces in same.items()],
    )
    return Pages("methods", document, markdown, lambda: methods_figure(table.rows))


def _cell(row: MethodsRow) -> dict[str, Any]:
    found = asdict(row)
    for key, gain in (("two_hop", row.two_hop), ("step_by_step", row.step_by_step)):
        if gain is not None:
            found[key]["standing"] = gain.standing
    return {**found.pop("system"), **found}


def _base(world: World) -> dict[str, Any]:
    base = describe_base(world)
    return {
        "name": world.path.resolve().name,
        "kind": world.manifest["kind"],
        "architecture": base["architecture"],
        "parameters": base["parameters"] or 0,
        "seed": world.seed,
    }


FAMILIES = {
    "linear": (DARK, "constant gates"),
    "merge": (RED, "merge into new weights"),
    "router": (BLUE, "router"),
    "chain": (GREEN, "chain of adapters"),
}
METHOD_PANELS = (  # what the panel shows, the line that counts, and its span
    ("two hops, asked at once\ngain over base and singles", 0.05, (-0.3, 1.02)),
    ("keep both\nretention of the worse skill", 0.8, (-0.15, 1.05)),
    ("new facts, step by step\ngain over base and singles", 0.05, (-0.3, 1.02)),
)


def methods_figure(rows: Sequence[MethodsRow]) -> str:
    """SVG. The thick line is each figure's own 95 % interval, the thin one holds for all of its
    panel; the dashed line is the margin, or the retention that counts as keeping."""
    from matplotlib.lines import Line2D

    with drawing() as Figure:
        figure = Figure(figsize=(10.5, 0.165 * len(rows) + 1.6), layout="constrained")
        panels = figure.subplots(1, len(METHOD_PANELS), sharey=True, squeeze=False)[0]
        for i, (panel, (title, line, span)) in enumerate(zip(panels, METHOD_PANELS, strict=True)):
            panel.set_title(title, fontsize=9)
            panel.set(xlim=span, xlabel="thick: 95 %, thin: 95 % for the whole panel")
            panel.axvline(line, color=DARK, linewidth=0.8, linestyle="--")
            grid_lines(panel)
            for y, row in enumerate(rows):
                found, colour = row.figures[i], FAMILIES[row.system.family][0]
                if found is not None:
                    panel.plot(found.adjusted_ci95, [y, y], color=colour, lw=0.7, alpha=0.6)
                    panel.plot(found.ci95, [y, y], color=colour, lw=2.0, alpha=0.7)
                    panel.plot(found.value, y, "o", color=colour, markersize=3.2)
        panels[0].set_yticks(range(len(rows)), [row.system.label for row in rows], fontsize=7)
        panels[0].set_ylim(len(rows) - 0.4, -0.6)
        handles = [Line2D([], [], marker="o", color=c, label=text) for c, text in FAMILIES.values()]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
        return as_svg(figure)
