"""Worlds -> cases: every trial is observed once and kept, and cases are computed from what is kept.

Layout of the output directory::

    audits/WORLD/TRIAL.json    what the trial is, and its audit before any composition was run
    items/WORLD/TRIAL.npz      who answered which item right, compositions included

A trial whose adapters, base, tasks and effort are those that were observed is not observed again.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.verdict.probability import forecast_error
from loraprobe_lab.calibration.cases import METHODS, Case, CaseError
from loraprobe_lab.calibration.observe import SMALL_BATCH, Effort, Known, observe
from loraprobe_lab.calibration.stored import Items, evidence_of, read_audit, write_audit
from loraprobe_lab.calibration.truth import truth_of
from loraprobe_lab.world import Scenario, World

Progress = Callable[[str, int, int], None]
NATURAL = "natural"  # the architecture told of bases that the lab did not train
POLL = 2.0  # seconds between two looks at what other processes have finished
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Place:
    """Where a trial is kept."""

    output: Path
    world: str
    trial: str

    @property
    def audit(self) -> Path:
        return self.output / "audits" / self.world / f"{self.trial}.json"

    @property
    def items(self) -> Path:
        return self.output / "items" / self.world / f"{self.trial}.npz"

    def holds(self, fingerprint: str) -> bool:
        """Whether exactly this trial was observed; one that was skipped is tried again."""
        if not (self.audit.is_file() and self.items.is_file()):
            return False
        row = read_audit(self.audit)
        return row["fingerprint"] == fingerprint and row["skipped"] is None


def collect(
    worlds: Sequence[Path],
    output: Path,
    effort: Effort = Effort(),
    *,
    processes: int = 1,
    progress: Progress | None = None,
) -> None:
    """Observes every trial of these worlds that is not kept in `output` yet.

    Worlds go side by side over `processes`, of a thread each. Raises UsageError for two worlds of
    one name, and what `World.load` raises.
    """
    opened = [World.load(path) for path in worlds]
    names = [world.path.resolve().name for world in opened]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"Two worlds are called {name}: rename a directory.")
    wanted = [
        (Place(output, name, trial), fingerprint(world, scenario, effort))
        for name, world in zip(names, opened, strict=True)
        for trial, scenario in world.scenarios.items()
    ]
    if processes == 1 or len(opened) < 2:
        for world in opened:
            for _ in observe_world(world.path, output, effort):
                _tell(progress, wanted)
        return
    with _one_thread_each(), _pool(processes) as pool:
        running = {pool.submit(_observe_all, world.path, output, effort) for world in opened}
        while running:
            done, running = concurrent.futures.wait(running, timeout=POLL)
            for future in done:
                future.result()
            _tell(progress, wanted)


def observe_world(path: Path, output: Path, effort: Effort) -> Iterator[str]:
    """Observes the trials of one world, one after the other; yields their names."""
    from loraprobe import pipeline

    world, known = World.load(path), Known()
    base = pipeline.base_of(world.base or world.base_name, ())
    batch: Any = SMALL_BATCH if world.base is not None else "auto"
    for name, scenario in world.scenarios.items():
        place = Place(output, world.path.resolve().name, name)
        mark = fingerprint(world, scenario, effort)
        if not place.holds(mark):
            state = output / ".running" / place.world / place.trial
            shutil.rmtree(state, ignore_errors=True)  # half a trial would mix its two stages
            about = {**about_trial(world, scenario), "fingerprint": mark, "skipped": None}
            try:
                found = observe(scenario, base, state, effort, known, batch)
            except LoraprobeError as error:
                write_audit(place.audit, {**about, "skipped": str(error)})
            else:
                Items.of(found.results, found.kinds).save(place.items)
                write_audit(place.audit, {**about, "audit": found.audit.to_dict()})
            shutil.rmtree(state, ignore_errors=True)
        yield name


def about_trial(world: World, scenario: Scenario) -> dict[str, Any]:
    """What a trial is, apart from what is measured: plain data for its audit's file."""
    own = world.base is not None
    name = world.path.resolve().name
    return {
        "world": name,
        "base": name if own else world.base_name.rstrip("/").rpartition("/")[2],
        "base_digest": _digests(world, ("base/",)) if own else None,
        "architecture": _architecture(world),
        "scenario": scenario.world,
        "trial": scenario.name,
    }


def fingerprint(world: World, scenario: Scenario, effort: Effort) -> str:
    """Of all that a trial's results depend on."""
    places = [*scenario.adapters.values(), *scenario.tasks, world.path / "base"]
    prefixes = tuple(path.relative_to(world.path).as_posix() for path in places)
    parts = [_digests(world, prefixes), world.base_name, dataclasses.asdict(effort), METHODS]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def kept_cases(output: Path) -> tuple[list[Case], list[str]]:
    """All cases that the kept trials give, and a line for each trial that gives none.

    Worlds whose bases are the same files count as one base.
    """
    rows = [read_audit(path) for path in sorted((output / "audits").glob("*/*.json"))]
    owner: dict[str, str] = {}
    for row in rows:
        if row["base_digest"]:
            owner.setdefault(row["base_digest"], row["base"])
    cases: list[Case] = []
    skipped: list[str] = []
    for row in rows:
        if row["skipped"] is not None:
            skipped.append(f"{row['world']}/{row['trial']}: {row['skipped']}")
            continue
        items = Items.load(Place(output, row["world"], row["trial"]).items)
        base = owner.get(row["base_digest"] or "", row["base"])
        cases += _cases_of({**row, "base": base}, items)
    return cases, skipped


def _cases_of(row: Mapping[str, Any], items: Items) -> Iterator[Case]:
    evidence, results = evidence_of(row["audit"]), items.results()
    forecasts = {forecast.system: forecast for forecast in evidence.forecasts}
    kind, baseline = evidence.kind_of_task, evidence.baseline
    for method in METHODS:
        if method not in items.kinds or method not in forecasts or baseline is None:
            raise CaseError(
                f"{row['world']}/{row['trial']} was collected without {method} or its forecast: "
                "collect it again."
            )
        forecast, truth = forecasts[method], truth_of(results, items.kinds, method)
        yield Case(
            **{key: row[key] for key in ("base", "architecture", "scenario", "world", "trial")},
            method=method,
            adapters=len(evidence.systems(("adapter",))),
            tasks=kind.tasks,
            hops=kind.hops,
            metric=kind.metric,
            forecast=forecast.gain,
            error=forecast_error(forecast),
            part=forecast.part,
            baseline=baseline,
            gain=truth.gain,
            ci95=truth.ci95,
            n=truth.n,
        )


def _architecture(world: World) -> str:
    if named := world.manifest["base"].get("architecture"):
        return str(named)
    if world.base is None:
        return NATURAL
    return str(json.loads((world.base / "config.json").read_text(encoding="utf-8"))["model_type"])


def _digests(world: World, prefixes: tuple[str, ...]) -> str:
    """One digest of all files of a world that begin with one of these paths."""
    files: Mapping[str, str] = world.manifest["files"]
    chosen = {
        name: digest
        for name, digest in sorted(files.items())
        if any(name == p or name.startswith(p.rstrip("/") + "/") for p in prefixes)
    }
    return hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:24]


def _observe_all(path: Path, output: Path, effort: Effort) -> None:
    """One world in a process of its own."""
    import torch

    torch.set_num_threads(1)
    for _ in observe_world(path, output, effort):
        pass


def _pool(processes: int) -> concurrent.futures.ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    return concurrent.futures.ProcessPoolExecutor(processes, mp_context=context)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that are started meanwhile use one thread each."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _tell(progress: Progress | None, wanted: Iterable[tuple[Place, str]]) -> None:
    if progress is not None:
        places = list(wanted)
        progress("trials", sum(place.audit.is_file() for place, _ in places), len(places))
