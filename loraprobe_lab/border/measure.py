"""Asks every composition of the map in a world, and pools the worlds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprobe.evaluation import Ledger, System, gain
from loraprobe.records import Interval, ItemResult
from loraprobe_lab.border.points import Part, Point, points, scaled_name
from loraprobe_lab.reproduce.bases import Place
from loraprobe_lab.reproduce.measure import answer_parts
from loraprobe_lab.train import ProgressCallback
from loraprobe_lab.world import World

if TYPE_CHECKING:
    from loraprobe.adapter import Adapter

MARGIN = 0.05


@dataclass(frozen=True)
class Surveyed:
    """A world and what every composition of the map answered in it."""

    place: Place
    results: tuple[ItemResult, ...] = field(repr=False)
    norms: Mapping[str, float]


@dataclass(frozen=True)
class Reading:
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


def survey(
    world: World, place: Place, directory: Path, *, progress: ProgressCallback | None = None
) -> Surveyed:
    """Asks base, singles and every composition; what `directory` holds is not asked again."""
    import torch

    from loraprobe.base import open_base
    from loraprobe.hub import load_all
    from loraprobe.scoring import Scorer
    from loraprobe.tasks import load_task

    adapters = {a.name: a for a in load_all([f"{n}={p}" for n, p in world.adapters.items()])}
    paths = dict.fromkeys(path for s in world.scenarios.values() for path in s.tasks)
    tasks = {path.stem: load_task(path) for path in paths}
    digest = hashlib.sha256(
        json.dumps(world.manifest["files"], sort_keys=True).encode()
    ).hexdigest()[:12]
    ledger = Ledger(
        directory / f"{place.name}-{digest}.jsonl", resume=True, fingerprint={"world": digest}
    )
    assert world.base is not None  # a small world holds its base
    loaded = open_base(world.base).load(dtype=torch.float32)
    scorer = Scorer(loaded.model, loaded.tokenizer)
    asked = _asked(adapters)
    for at, (system, names, parts) in enumerate(asked):
        answer_parts(scorer, system, [tasks[name] for name in names], parts, ledger)
        if progress is not None:
            progress(f"ask {place.name}", at + 1, len(asked))
    size = sum(p.numel() for p in loaded.model.parameters())
    return Surveyed(replace(place, parameters=size), tuple(ledger), _norms(adapters))


def _asked(
    adapters: Mapping[str, Adapter],
) -> list[tuple[System, tuple[str, ...], frozenset[str]]]:
    """Systems with their tasks and parts: baselines in both forms, compositions step by step."""
    whole: dict[str, dict[str, None]] = {}
    made: dict[str, System] = {"base": System("base", "base")}
    composed: dict[str, dict[str, None]] = {}
    for point in points():
        for name, scale, _ in point.parts:
            single = scaled_name(name, scale)
            whole.setdefault(single, {})[point.task] = None
            made[single] = _system(single, adapters, ((name, scale, 1.0),), False)
        whole.setdefault("base", {})[point.task] = None
        composed.setdefault(point.system, {})[point.task] = None
        made[point.system] = _system(point.system, adapters, point.parts, point.arrow)
    both, steps = frozenset({"target", "cot", "hop1", "hop2"}), frozenset({"cot"})
    rows = [(made[name], tuple(tasks), both) for name, tasks in whole.items()]
    return rows + [(made[name], tuple(tasks), steps) for name, tasks in composed.items()]


def _system(
    name: str, adapters: Mapping[str, Adapter], parts: Sequence[Part], arrow: bool
) -> System:
    from loraprobe.composition import Composition
    from loraprobe.routing import ROUTERS
    from loraprobe.routing.constant import ConstantGates

    experts = tuple(scaled(adapters[adapter], scale) for adapter, scale, _ in parts)
    router: Any = ROUTERS.make("arrow") if arrow else ConstantGates(tuple(g for *_, g in parts))
    return System(name, "router" if arrow else "merge", Composition(name, experts, router))


def scaled(adapter: Adapter, scale: float) -> Adapter:
    """The adapter with all its deltas multiplied with `scale`."""
    from loraprobe.adapter import Adapter, Modules

    if scale == 1.0:
        return adapter
    name = scaled_name(adapter.name, scale)
    modules = Modules(adapter.layout, lambda path: adapter.modules[path].scaled(scale))
    return Adapter(
        name=name,
        source=adapter.source,
        base_model=adapter.base_model,
        modules=modules,
        config=adapter.config,
    )


def _norms(adapters: Mapping[str, Adapter]) -> dict[str, float]:
    """Frobenius norm of each adapter over all its modules."""
    import torch

    return {
        name: sum(float(a.modules[path].to(torch.float32).norm()) ** 2 for path in a.modules) ** 0.5
        for name, a in adapters.items()
    }


def readings(worlds: Sequence[Surveyed]) -> list[Reading]:
    """Every point of the map, over all worlds."""
    return [reading for point in points() if (reading := _reading(point, worlds)) is not None]


def _reading(point: Point, worlds: Sequence[Surveyed]) -> Reading | None:
    rows = {
        world.place.name: [
            replace(row, task=f"{row.task}@{world.place.name}")
            for row in world.results
            if row.task == point.task
        ]
        for world in worlds
    }
    everything = [row for found in rows.values() for row in found]
    found = gain(everything, [point.system], point.baselines, "cot", margin=MARGIN)
    if found is None:
        return None
    each = {
        name: own.difference
        for name, results in rows.items()
        if (own := gain(results, [point.system], point.baselines, "cot", margin=MARGIN))
    }
    right = [r.value for r in everything if r.system == point.system and r.part == "cot"]
    return Reading(
        point,
        found.difference,
        found.adjusted_ci95,
        sum(right) / len(right),
        found.against,
        found.n,
        each,
    )
