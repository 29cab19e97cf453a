"""`loraprobe lab map`: success of new facts x worked steps over weights, norms and familiarity."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from loraprobe.evaluation import System, gain
from loraprobe.records import ItemResult
from loraprobe_lab.experiments.map_figure import map_figure
from loraprobe_lab.experiments.map_points import MARGIN, Part, Point, PointGain, points, scaled_name
from loraprobe_lab.experiments.pages import Pages, render, signed
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
    from loraprobe.pipeline.transforms import total_norm

    adapters, scenarios = evaluator.adapters(), tuple(evaluator.world.scenarios.values())
    loaded = evaluator.tasks(path for scenario in scenarios for path in scenario.tasks)
    tasks = {task.name: task for task in loaded}
    asked = [
        (system, [tasks[name] for name in names], parts)
        for system, names, parts in _systems(adapters)
    ]
    results = evaluator.evaluate_all(base.name, asked)
    norms = {name: total_norm(adapter) for name, adapter in adapters.items()}
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
        return gain(results, [point.system], point.baselines, "steps", margin=MARGIN)

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
