"""`loraprobe lab map`: success of new facts x worked steps over weights, norms and familiarity."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from loraprobe.evaluation import System
from loraprobe.records import ItemResult
from loraprobe_lab.experiments.map_points import MARGIN, Part, Point, PointGain, points, scaled_name
from loraprobe_lab.experiments.matrix import best_gain
from loraprobe_lab.experiments.pages import (
    BLUE,
    GREEN,
    RED,
    Pages,
    as_svg,
    drawing,
    grid_lines,
    render,
    signed,
)
from loraprobe_lab.experiments.runner import (
    BaseInfo,
    Bases,
    ExperimentRun,
    Shape,
    WorldEvaluator,
    WorldResults,
    small_base,
)
from loraprobe_lab.training.pretrain import BaseRecipe
from loraprobe_lab.worlds.name_sets import map_world
from loraprobe_lab.worlds.spec import WorldSpec

if TYPE_CHECKING:
    from loraprobe.adapters import Adapter

BASES = Bases(architectures=("llama", "gpt2"), hidden=(64,), seeds=(0, 1))
NAME = "success-map"


def draw_map(
    run: ExperimentRun,
    bases: Bases = BASES,
    spec: Callable[[int, BaseRecipe], WorldSpec] = map_world,
    shape: Shape = small_base,
) -> Pages:
    """Makes the map: success-map.md, success-map.json, success-map.svg.

    Finished worlds are not made again, and the map is updated after every world. Raises UsageError
    if matplotlib is missing, before anything is trained.
    """
    pages = partial(map_pages, run.command("draw_map()"))
    return run.run_worlds(run.small_worlds(bases, spec, shape), evaluate_map, pages)


def evaluate_map(evaluator: WorldEvaluator, base: BaseInfo) -> WorldResults:
    """Evaluates base, singles and every composition; known results are not computed again."""

    adapters, scenarios = evaluator.adapters(), tuple(evaluator.world.scenarios.values())
    loaded = evaluator.tasks(path for scenario in scenarios for path in scenario.tasks)
    tasks = {task.name: task for task in loaded}
    asked = [
        (system, [tasks[name] for name in names], parts)
        for system, names, parts in _systems(adapters)
    ]
    results = evaluator.evaluate_all(base.name, asked)
    norms = {name: adapter.norm() for name, adapter in adapters.items()}
    return WorldResults(base, scenarios, tuple(results), norms)


def _systems(
    adapters: Mapping[str, Adapter],
) -> list[tuple[System, tuple[str, ...], tuple[str, ...]]]:
    """Systems with their tasks and parts: baselines in both forms, compositions step by step."""
    both = ("question", "steps", "hop1", "hop2")
    made: dict[str, tuple[System, dict[str, None], tuple[str, ...]]] = {}

    def add(system: System, task: str, parts: tuple[str, ...]) -> None:
        made.setdefault(system.name, (system, {}, parts))[1][task] = None

    for point in points():
        for name, scale, _ in point.parts:
            single = _system(scaled_name(name, scale), adapters, ((name, scale, 1.0),), False)
            add(single, point.task, both)
        add(System("base", "base"), point.task, both)
    for point in points():
        add(_system(point.system, adapters, point.parts, point.arrow), point.task, ("steps",))
    return [(system, tuple(tasks), parts) for system, tasks, parts in made.values()]


def _system(
    name: str, adapters: Mapping[str, Adapter], parts: Sequence[Part], arrow: bool
) -> System:
    from loraprobe.composition import Composition
    from loraprobe.pipeline.transforms import scaled
    from loraprobe.routing import ROUTERS
    from loraprobe.routing.constant import ConstantGates

    experts = tuple(
        replace(scaled(adapters[adapter], scale), name=scaled_name(adapter, scale))
        for adapter, scale, _ in parts
    )
    router: Any = ROUTERS.make("arrow") if arrow else ConstantGates(tuple(g for *_, g in parts))
    return System(name, "router" if arrow else "merge", Composition(name, experts, router))


def _point_gain(point: Point, worlds: Sequence[WorldResults]) -> PointGain | None:
    rows = {
        world.base.name: [
            replace(row, task=f"{row.task}@{world.base.name}")
            for row in world.results
            if row.task == point.task
        ]
        for world in worlds
    }
    everything = [row for found in rows.values() for row in found]

    def gained(results: Sequence[ItemResult]) -> Any:
        return best_gain(results, [point.system], point.baselines, "steps", MARGIN)

    found = gained(everything)
    if found is None:
        return None
    each = {name: own.difference for name, results in rows.items() if (own := gained(results))}
    right = [r.value for r in everything if r.system == point.system and r.part == "steps"]
    score = sum(right) / len(right)
    return PointGain(
        point, found.difference, found.adjusted_ci95, score, found.against, found.n, each
    )


def map_pages(command: str, worlds: Sequence[WorldResults], missing: Sequence[str] = ()) -> Pages:
    """The pages of these worlds."""
    found = [one for point in points() if (one := _point_gain(point, worlds)) is not None]
    document: dict[str, Any] = {
        "format": 1,
        "command": command,
        "margin": MARGIN,
        "missing": list(missing),
        "worlds": [{**dataclasses.asdict(w.base), "norms": w.norms} for w in worlds],
        "claims": [],
        "cells": [_row(one) for one in found],
    }
    markdown = render(
        "success_map",
        command=command,
        bases=", ".join(f"{w.base.size} (seed {w.base.seed})" for w in worlds),
        missing=missing,
        margin=f"{MARGIN:g}",
        figure=f"{NAME}.svg",
        panels={panel: _panel(found, panel) for panel in dict.fromkeys(p.panel for p in points())},
    )
    return Pages(NAME, document, markdown, lambda: map_figure(found, len(worlds)))


def _row(found: PointGain) -> dict[str, Any]:
    row = dataclasses.asdict(found)
    return {**row.pop("point"), **row, "succeeds": found.succeeds}


def _panel(found: Sequence[PointGain], panel: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a panel's table: series (or second weights) down, x across."""
    cells = {
        (one.point.series if one.point.y is None else f"{one.point.y:g}", one.point.x): signed(
            one.gain, one.ci95, one.succeeds
        )
        for one in found
        if one.point.panel == panel
    }
    columns = sorted({x for _, x in cells})
    rows = [
        [series, *(cells.get((series, x), "-") for x in columns)]
        for series in dict.fromkeys(series for series, _ in cells)
    ]
    return ["", *(f"{x:g}" for x in columns)], rows


MAP_PANELS = {
    "weights": ("weights: unequal", ""),
    "familiarity": ("second hop, over equal weights", "weight of each adapter"),
    "invented": ("made-up couples in the skill adapter's data", "share of made-up couples"),
    "norms": ("norm of one adapter", "factor on one adapter's update"),
}


def map_figure(found: Sequence[PointGain], bases: int) -> str:
    """SVG of the map: gain over the best of base and singles, step by step."""
    with drawing() as Figure:
        figure = Figure(figsize=(11.5, 8.2))
        panels = dict(zip(MAP_PANELS, figure.subplots(2, 2).flat, strict=True))
        for name, panel in panels.items():
            rows = [one for one in found if one.point.panel == name]
            (_heat if name == "weights" else _series)(panel, rows)
            title, label = MAP_PANELS[name]
            panel.set_title(title, fontsize=10)
            if label:
                panel.set(xlabel=label, ylabel="gain, step by step")
        panels["norms"].set_xscale("log", base=2)
        ticks = sorted({one.point.x for one in found if one.point.panel == "norms"})
        panels["norms"].set_xticks(ticks, [f"{x:g}" for x in ticks])
        figure.suptitle(
            "Where success lives: new facts in one adapter x worked steps in another "
            f"({bases} bases; gain over the best of base and singles; 95 % intervals)",
            fontsize=11,
        )
        figure.tight_layout(rect=(0, 0, 1, 0.98))
        return as_svg(figure)


def _heat(panel: Any, rows: Sequence[PointGain]) -> None:
    """Gain over both weights; framed where the interval lies above the margin."""
    import numpy as np
    from matplotlib.patches import Rectangle

    gates: list[Any] = sorted({one.point.x for one in rows})
    values = np.full((len(gates), len(gates)), np.nan)
    cells = {(gates.index(one.point.y), gates.index(one.point.x)): one for one in rows}
    for place, one in cells.items():
        values[place] = one.gain
    image = panel.imshow(values, origin="lower", cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    for (y, x), one in cells.items():
        colour = "white" if abs(one.gain) > 0.6 else "#222222"
        panel.text(x, y, f"{one.gain:+.2f}", ha="center", va="center", fontsize=8, color=colour)
        if one.succeeds:
            corner, side = (x - 0.46, y - 0.46), 0.92
            frame = Rectangle(corner, side, side, fill=False, edgecolor="#111111", lw=1.4)
            panel.add_patch(frame)
    panel.set_xticks(range(len(gates)), [f"{g:g}" for g in gates])
    panel.set_yticks(range(len(gates)), [f"{g:g}" for g in gates])
    panel.set(xlabel="weight of the facts adapter", ylabel="weight of the skill adapter")
    panel.figure.colorbar(image, ax=panel, label="gain (framed: above the margin)")


def _series(panel: Any, rows: Sequence[PointGain]) -> None:
    """A line for each series with its intervals; every base as a small dot."""
    panel.axhline(0.05, color="#777777", linewidth=0.8, linestyle=":")  # the margin
    panel.axhline(0, color="#bbbbbb", linewidth=0.8)
    series = dict.fromkeys(one.point.series for one in rows)
    for colour, name in zip((BLUE, RED, GREEN, "#7a5aa0"), series, strict=False):
        own = sorted((r for r in rows if r.point.series == name), key=lambda r: r.point.x)
        x = [r.point.x for r in own]
        panel.plot(x, [r.gain for r in own], "o-", color=colour, markersize=4, label=name)
        low, high = zip(*(r.ci95 for r in own), strict=True)
        panel.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        for r in own:
            dots = [r.point.x] * len(r.each)
            panel.plot(dots, list(r.each.values()), ".", color=colour, markersize=3, alpha=0.5)
    grid_lines(panel)
    panel.legend(frameon=False, fontsize=8)
