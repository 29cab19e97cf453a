"""Worlds -> cases: evaluates every adapter set once, stores it, and computes cases from the files.

observations/WORLD/SET.json.gz of the output directory holds the description of the set, its audit
before any composition was run, and which system answered which item right. A set whose adapters,
base, tasks and sizes have not changed is not evaluated again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.records import Progress
from loraprobe.tasks import load_task
from loraprobe.verdict.probability import error_of
from loraprobe_lab.calibration.cases import METHODS, NATURAL, Case, CaseError
from loraprobe_lab.calibration.observations import (
    evidence_of,
    measured_gain,
    measured_retention,
    packed,
    read_observation,
    unpacked,
)
from loraprobe_lab.calibration.observe import SMALL_BATCH, BaselineResults, SampleSizes, observe
from loraprobe_lab.world import Scenario, World, in_processes, write_text

OBSERVATIONS = "observations"
DESCRIPTION = ("base", "architecture", "scenario", "world", "adapter_set")  # fields of a case


def collect(
    worlds: Sequence[Path],
    output: Path,
    sizes: SampleSizes = SampleSizes(),
    *,
    processes: int = 1,
    progress: Progress | None = None,
) -> None:
    """Evaluates every adapter set of these worlds that is not stored in `output` yet.

    processes: worlds in parallel, one thread each. Raises UsageError for two worlds of one name,
    and the errors of `World.load`.
    """
    opened = [World.load(path) for path in worlds]
    names = [world.path.resolve().name for world in opened]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"Two worlds are called {name}: rename a directory.")
    places = [place_of(output, world, name) for world in opened for name in world.scenarios]

    def tick() -> None:
        if progress is not None:
            progress("adapter sets", sum(place.is_file() for place in places), len(places))

    if processes == 1 or len(opened) < 2:
        for world in opened:
            for _ in observe_world(world.path, output, sizes):
                tick()
    else:
        calls = [(world.path, output, sizes) for world in opened]
        in_processes(_observe_all, calls, processes, tick)


def _observe_all(path: Path, output: Path, sizes: SampleSizes) -> None:
    for _ in observe_world(path, output, sizes):
        pass


def place_of(output: Path, world: World, name: str) -> Path:
    """The file of an adapter set's observation."""
    return output / OBSERVATIONS / world.path.resolve().name / f"{name}.json.gz"


def observe_world(path: Path, output: Path, sizes: SampleSizes) -> Iterator[str]:
    """Evaluates the adapter sets of one world one after the other; yields their names."""
    from loraprobe.pipeline import inputs

    world, known = World.load(path), BaselineResults()
    base = inputs.base_of(world.base or world.base_name, ())
    batch: Any = SMALL_BATCH if world.base is not None else "auto"
    for name, scenario in world.scenarios.items():
        place, mark = place_of(output, world, name), fingerprint(world, scenario, sizes)
        if not _holds(place, mark):
            state = output / ".running" / place.parent.name / name
            shutil.rmtree(state, ignore_errors=True)  # of an interrupted run: its stages would mix
            about = {**describe_set(world, scenario), "fingerprint": mark, "skipped": None}
            about["model_type"] = base.model_type
            try:
                found = observe(scenario, base, state, sizes, known, batch)
            except LoraprobeError as error:
                about["skipped"] = str(error)
            else:
                about |= {"audit": found.audit.to_dict(), "kinds": dict(found.kinds)}
                about["results"] = packed(found.results)
            write_text(place, json.dumps(about, ensure_ascii=False))
            shutil.rmtree(state, ignore_errors=True)
        yield name


def _holds(place: Path, fingerprint: str) -> bool:
    """Whether the file has this fingerprint; a skipped set is evaluated again."""
    if not place.is_file():
        return False
    row = read_observation(place)
    return row["fingerprint"] == fingerprint and row["skipped"] is None


def describe_set(world: World, scenario: Scenario) -> dict[str, Any]:
    """The description of an adapter set, without measurements, as plain data."""
    own = world.base is not None
    name = world.path.resolve().name
    return {
        "world": name,
        "base": name if own else world.base_name.rstrip("/").rpartition("/")[2],
        "base_digest": _digests(world, ("base/",)) if own else None,
        "architecture": _architecture(world),
        "scenario": scenario.world,
        "adapter_set": scenario.name,
        "hops": max(len(item.hops) for path in scenario.tasks for item in load_task(path).items),
    }


def fingerprint(world: World, scenario: Scenario, sizes: SampleSizes) -> str:
    """A digest of everything on which a set's results depend."""
    places = [*scenario.adapters.values(), *scenario.tasks, world.path / "base"]
    prefixes = tuple(path.relative_to(world.path).as_posix() for path in places)
    parts = [_digests(world, prefixes), world.base_name, dataclasses.asdict(sizes), METHODS]
    return _digest(parts)[:24]


def kept_cases(output: Path) -> tuple[list[Case], list[str]]:
    """The cases of all stored observations, and a line for each set without a case.

    Worlds whose bases are the same files count as one base.
    """
    owner: dict[str, str] = {}
    cases: list[Case] = []
    skipped: list[str] = []
    for path in sorted((output / OBSERVATIONS).glob("*/*.json.gz")):
        row = read_observation(path)
        base = owner.setdefault(row["base_digest"] or row["base"], row["base"])
        if row["skipped"] is not None:
            skipped.append(f"{row['world']}/{row['adapter_set']}: {row['skipped']}")
        else:
            cases += _cases_of({**row, "base": base})
    return cases, skipped


def _cases_of(row: Mapping[str, Any]) -> Iterator[Case]:
    evidence, results = evidence_of(row["audit"]), unpacked(row["results"])
    forecasts = {forecast.system: forecast for forecast in evidence.forecasts}
    kind, baseline = replace(evidence.kind_of_task, hops=row["hops"]), evidence.baseline
    for method in METHODS:
        if method not in row["kinds"] or method not in forecasts or baseline is None:
            raise CaseError(
                f"{row['world']}/{row['adapter_set']} was collected without {method} or its "
                "forecast: collect it again."
            )
        forecast, truth = forecasts[method], measured_gain(results, row["kinds"], method)
        kept = [one.value for one in forecast.retentions]
        yield Case(
            **{key: row[key] for key in DESCRIPTION},
            **dataclasses.asdict(kind),
            **dataclasses.asdict(truth),
            method=method,
            adapters=len(evidence.systems(("adapter",))),
            forecast=forecast.gain,
            error=error_of(forecast),
            part=forecast.part,
            baseline=baseline,
            model_type=row.get("model_type", ""),
            forecast_retention=min(kept, default=None),
            retention=measured_retention(results, row["kinds"], method, forecast.part),
        )


def _architecture(world: World) -> str:
    if named := world.manifest["base"].get("architecture"):
        return str(named)
    if world.base is None:
        return NATURAL
    return str(json.loads((world.base / "config.json").read_text(encoding="utf-8"))["model_type"])


def _digests(world: World, prefixes: tuple[str, ...]) -> str:
    """One digest of all files of a world that begin with one of these paths."""
    chosen = {
        name: digest
        for name, digest in sorted(world.manifest["files"].items())
        if any(name == p or name.startswith(p.rstrip("/") + "/") for p in prefixes)
    }
    return _digest(chosen)[:24]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
