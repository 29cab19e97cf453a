"""`loraprobe lab map`: success of new facts x worked steps over weights, norms and familiarity."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

from loraprobe.adapters import Adapter
from loraprobe.composition import Composition
from loraprobe.defaults import MARGIN
from loraprobe.evaluation import System
from loraprobe.pipeline.transforms import scaled_adapter
from loraprobe.routing import ROUTERS
from loraprobe.routing.constant import ConstantGates
from loraprobe_lab.experiments.pages import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    RED,
    Pages,
    as_svg,
    drawing,
    grid_lines,
    render,
    signed,
)
from loraprobe_lab.experiments.reproduce import best_gain
from loraprobe_lab.experiments.runner import (
    BaseInfo,
    Bases,
    ExperimentRun,
    Shape,
    WorldEvaluator,
    WorldResults,
    small_base,
)
from loraprobe_lab.training import BaseRecipe
from loraprobe_lab.worlds.name_sets import SHARES, map_world
from loraprobe_lab.worlds.spec import WorldSpec

BASES = Bases(architectures=("llama", "gpt2"), hidden=(64,), seeds=(0, 1))
NAME = "success-map"
GATES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
ROUTES = {"uniform": 0.5, "0.7 each": 0.7, "sum": 1.0, "arrow": 1.0}  # gate of each adapter
PAIR = ("facts", "steps-0")  # the steps were learned on familiar couples
# how the second hop is known: task, adapters
SECOND_HOPS = {
    "read often": ("familiar", PAIR),
    "read seldom": ("rare", PAIR),
    "made-up, in the facts adapter": ("made-up", ("both", "steps-0")),
    "made-up, in a third adapter": ("made-up", ("facts", "homes", "steps-0")),
}

Part = tuple[str, float, float]  # adapter, scale of the adapter itself, gate (unused by arrow)


@dataclass(frozen=True)
class Point:
    """One composition on one task.

    panel: "weights", "familiarity", "invented" or "norms"; `series` and `x` are its coordinates.
    parts: (adapter, factor of its deltas, gate); with `arrow` the gates come from the router.
    """

    panel: str
    series: str
    x: float
    task: str
    parts: tuple[Part, ...]
    arrow: bool = False

    @property
    def system(self) -> str:
        """A name that is the same for the same composition in several panels."""
        names = ",".join(
            f"{scaled_name(name, scale)}{'' if self.arrow else f'*{gate:g}'}"
            for name, scale, gate in self.parts
        )
        return f"{'arrow' if self.arrow else 'gates'}({names})"

    @property
    def baselines(self) -> tuple[str, ...]:
        """The base and the scaled adapters, each alone with gate 1."""
        return ("base", *(scaled_name(name, scale) for name, scale, _ in self.parts))


def scaled_name(name: str, scale: float) -> str:
    """The name of an adapter whose deltas are multiplied by `scale`."""
    return name if scale == 1.0 else f"{name}x{scale:g}"


def points() -> Iterator[Point]:
    """Every composition of the map, panel by panel.

    weights: unequal weights. familiarity: equal weights, by the source of the second hop. invented:
    by the share of made-up couples in the skill adapter's data. norms: one of the two adapters
    multiplied by a factor.
    """
    for gates in product(GATES, GATES):
        parts = tuple((name, 1.0, gate) for name, gate in zip(PAIR, gates, strict=True))
        yield Point("weights", f"{gates[1]:g}", gates[0], "familiar", parts)
    for (series, (task, names)), gate in product(SECOND_HOPS.items(), GATES):
        yield Point("familiarity", series, gate, task, tuple((n, 1.0, gate) for n in names))
    for (route, gate), share in product(ROUTES.items(), SHARES):
        parts = tuple((name, 1.0, gate) for name in ("facts", f"steps-{share}"))
        yield Point("invented", route, share / 100, "familiar", parts, arrow=route == "arrow")
    for which, route, scale in product(PAIR, ("uniform", "arrow"), SCALES):
        parts = tuple((name, scale if name == which else 1.0, 0.5) for name in PAIR)
        series = f"{which.partition('-')[0]} scaled, {route}"
        yield Point("norms", series, scale, "familiar", parts, arrow=route == "arrow")


def draw_map(
    run: ExperimentRun,
    bases: Bases = BASES,
    spec: Callable[[int, BaseRecipe], WorldSpec] = map_world,
    shape: Shape = small_base,
) -> Pages:
    """Makes the map: success-map.md, success-map.json, success-map.svg.

    Finished worlds are not made again.
    """
    pages = partial(map_pages, run.command)
    return run.run_worlds(run.small_worlds(bases, spec, shape), evaluate_map, pages)


def evaluate_map(evaluator: WorldEvaluator, base: BaseInfo) -> WorldResults:
    """Evaluates base, singles and every composition; known results are not computed again."""
    adapters, scenarios = evaluator.adapters(), tuple(evaluator.world.scenarios.values())
    loaded = evaluator.tasks(path for scenario in scenarios for path in scenario.tasks)
    tasks = {task.name: task for task in loaded}
    asked = _systems(adapters)
    results = evaluator.evaluate_all(
        base.name, [(system, [tasks[n] for n in names], parts) for system, names, parts in asked]
    )
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
    experts = tuple(
        replace(scaled_adapter(adapters[adapter], scale), name=scaled_name(adapter, scale))
        for adapter, scale, _ in parts
    )
    router: Any = ROUTERS.make("arrow") if arrow else ConstantGates(tuple(g for *_, g in parts))
    return System(name, "router" if arrow else "merge", Composition(name, experts, router))


def _cell(point: Point, worlds: Sequence[WorldResults]) -> dict[str, Any] | None:
    """A point with its gain over the best of base and singles, step by step; None unmeasured.

    `gain` is the mean over the worlds with the interval over persons (each world a stratum, the
    choice of the best baseline covered); `score` is exact match. `succeeds`: whether the gain lies
    above the margin (True), below it (False), or neither is shown (None).
    """
    rows = [
        replace(row, task=f"{row.task}@{world.base.name}")
        for world in worlds
        for row in world.results
        if row.task == point.task
    ]
    found = best_gain(rows, [point.system], point.baselines, "steps", MARGIN)
    if found is None:
        return None
    right = [r.value for r in rows if r.system == point.system and r.part == "steps"]
    low, high = ends = found.adjusted_ci95
    return {
        **dataclasses.asdict(point),
        "gain": found.difference,
        "ci95": ends,
        "score": sum(right) / len(right),
        "against": found.against,
        "n": found.n,
        "succeeds": True if low > MARGIN else False if high < MARGIN else None,
    }


def map_pages(command: str, worlds: Sequence[WorldResults]) -> Pages:
    """The pages of these worlds."""
    found = [one for point in points() if (one := _cell(point, worlds)) is not None]
    document: dict[str, Any] = {
        "format": 1,
        "command": command,
        "margin": MARGIN,
        "worlds": [{**dataclasses.asdict(w.base), "norms": w.norms} for w in worlds],
        "cells": found,
    }
    markdown = render(
        "success_map",
        command=command,
        bases=", ".join(f"{w.base.size} (seed {w.base.seed})" for w in worlds),
        margin=f"{MARGIN:g}",
        figure=f"{NAME}.svg",
        panels={panel: _panel(found, panel) for panel in dict.fromkeys(p.panel for p in points())},
    )
    return Pages(NAME, document, markdown, lambda: map_figure(found, len(worlds)))


def _panel(found: Sequence[dict[str, Any]], panel: str) -> tuple[list[str], list[list[str]]]:
    """Head (without that of the series) and rows of a panel's table: series down, x across."""
    cells = {
        (one["series"], one["x"]): signed(one["gain"], one["ci95"], one["succeeds"])
        for one in found
        if one["panel"] == panel
    }
    columns = sorted({x for _, x in cells})
    rows = [
        [series, *(cells.get((series, x), "-") for x in columns)]
        for series in dict.fromkeys(series for series, _ in cells)
    ]
    return [f"{x:g}" for x in columns], rows


COLOURS = (BLUE, RED, GREEN, "#7a5aa0", DARK, GREY)  # of the series of a panel
MAP_PANELS = {
    "weights": ("unequal weights: lines by that of the skill", "weight of the facts adapter"),
    "familiarity": ("second hop, over equal weights", "weight of each adapter"),
    "invented": ("made-up couples in the skill adapter's data", "share of made-up couples"),
    "norms": ("norm of one adapter", "factor on one adapter's update"),
}


def map_figure(found: Sequence[dict[str, Any]], bases: int) -> str:
    """SVG of the map: gain over the best of base and singles, step by step."""
    with drawing() as Figure:
        figure = Figure(figsize=(11.5, 8.2))
        panels = dict(zip(MAP_PANELS, figure.subplots(2, 2).flat, strict=True))
        for name, panel in panels.items():
            rows = [one for one in found if one["panel"] == name]
            panel.axhline(MARGIN, color="#777777", linewidth=0.8, linestyle=":")
            panel.axhline(0, color="#bbbbbb", linewidth=0.8)
            series = dict.fromkeys(one["series"] for one in rows)
            for colour, line in zip(COLOURS, series, strict=False):
                own = sorted((r for r in rows if r["series"] == line), key=lambda r: r["x"])
                x, gains = [r["x"] for r in own], [r["gain"] for r in own]
                low, high = zip(*(r["ci95"] for r in own), strict=True)
                panel.plot(x, gains, "o-", color=colour, markersize=4, label=line)
                panel.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
            grid_lines(panel)
            panel.legend(frameon=False, fontsize=8)
            title, label = MAP_PANELS[name]
            panel.set_title(title, fontsize=10)
            panel.set(xlabel=label, ylabel="gain, step by step")
        panels["norms"].set_xscale("log", base=2)
        figure.suptitle(f"Gain over the best of base and singles, {bases} bases, 95 % intervals")
        figure.tight_layout(rect=(0, 0, 1, 0.98))
        return as_svg(figure)
