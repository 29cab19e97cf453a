"""`loraprobe lab map`: where success lives, over weights, norms, familiarity and invented facts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprobe.evaluation import System, gain
from loraprobe.records import Interval, ItemResult
from loraprobe_lab.experiments.bases import BaseInfo, Bases, Shape, small_base
from loraprobe_lab.experiments.figures import map_figure
from loraprobe_lab.experiments.map_points import Part, Point, points, scaled_name
from loraprobe_lab.experiments.pages import Pages, render, signed
from loraprobe_lab.experiments.runner import (
    Asker,
    Say,
    adapters_by_name,
    command_line,
    run_worlds,
    small_worlds,
)
from loraprobe_lab.training.pretrain import BaseRecipe
from loraprobe_lab.training.train import ProgressCallback
from loraprobe_lab.world import World
from loraprobe_lab.worlds.spec import WorldSpec
from loraprobe_lab.worlds.success_map import map_world

if TYPE_CHECKING:
    from loraprobe.adapters import Adapter

BASES = Bases(architectures=("llama", "gpt2"), hidden=(64,), seeds=(0, 1))
NAME, MARGIN = "border", 0.05


@dataclass(frozen=True)
class AnsweredMap:
    """A world, what every composition of the map answered in it, and the adapters' norms."""

    base: BaseInfo
    results: tuple[ItemResult, ...] = field(repr=False)
    norms: Mapping[str, float]


@dataclass(frozen=True)
class PointGain:
    """What a point of the map shows: gain over the best of base and singles, step by step.

    `gain` is the mean over the worlds with the interval over persons (each world a stratum, the
    choice of the best baseline covered); `each` gives it for every world; `score` is exact match.
    """

    point: Point
    gain: float
    ci95: Interval
    score: float
    against: str
    n: int
    each: Mapping[str, float]

    @property
    def succeeds(self) -> bool | None:
        """Whether the gain lies above the margin (True), below it (False), or neither is shown."""
        if self.ci95[0] > MARGIN:
            return True
        return False if self.ci95[1] < MARGIN else None


def draw_map(
    output: str | Path,
    *,
    bases: Bases = BASES,
    spec: Callable[[int, BaseRecipe], WorldSpec] = map_world,
    shape: Shape = small_base,
    arguments: Sequence[str] = (),
    progress: ProgressCallback | None = None,
    say: Say = lambda text: None,
) -> Pages:
    """Makes the map in the directory `output`: border.md, border.json, border.svg.

    What is finished is not made again, and the map is drawn anew after every world. Raises
    UsageError if matplotlib is missing, before anything is trained.
    """
    output = Path(output)

    def answer(world: World, base: BaseInfo) -> AnsweredMap:
        return answer_map(world, base, output / "results", progress=progress)

    return run_worlds(
        small_worlds(bases.each(shape), spec, output, answer, progress),
        lambda found, missing: map_pages(found, arguments, missing).write(output),
        say=say,
    )


def answer_map(
    world: World, base: BaseInfo, directory: Path, *, progress: ProgressCallback | None = None
) -> AnsweredMap:
    """Asks base, singles and every composition; what `directory` holds is not asked again."""
    from loraprobe.pipeline.transforms import total_norm

    adapters = adapters_by_name(world)
    asker = Asker(world, directory)
    loaded = asker.tasks(path for s in world.scenarios.values() for path in s.tasks)
    tasks, ledger = {task.name: task for task in loaded}, asker.ledger(base.name)
    asked = _systems(adapters)
    for at, (system, names, parts) in enumerate(asked, 1):
        asker.ask(ledger, system, [tasks[name] for name in names], parts)
        if progress is not None:
            progress(f"ask {base.name}", at, len(asked))
    norms = {name: total_norm(adapter) for name, adapter in adapters.items()}
    return AnsweredMap(replace(base, parameters=asker.parameters), tuple(ledger), norms)


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


def point_gains(worlds: Sequence[AnsweredMap]) -> list[PointGain]:
    """Every point of the map that was asked, over all worlds."""
    return [found for point in points() if (found := _point_gain(point, worlds)) is not None]


def _point_gain(point: Point, worlds: Sequence[AnsweredMap]) -> PointGain | None:
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


def map_pages(
    worlds: Sequence[AnsweredMap], arguments: Sequence[str] = (), missing: Sequence[str] = ()
) -> Pages:
    """The pages of these worlds."""
    found, command = point_gains(worlds), command_line(arguments, "draw_map()")
    document: dict[str, Any] = {
        "format": 1,
        "command": command,
        "margin": MARGIN,
        "missing": list(missing),
        "worlds": [{**dataclasses.asdict(w.base), "norms": dict(w.norms)} for w in worlds],
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
