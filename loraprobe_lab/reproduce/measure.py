"""Answers of every system of a matrix, kept as they come, and pooled over worlds.

A world of the matrix holds trials whose axes say `template`, `library` (2 or 3), `form` (the way in
which compositions are asked: "target" plainly, "cot" step by step) and `joint`, the yardstick.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loraprobe.evaluation import Ledger, System, run_systems
from loraprobe.records import ItemResult
from loraprobe.tasks import Task
from loraprobe_lab.reproduce.bases import Place
from loraprobe_lab.train import ProgressCallback
from loraprobe_lab.world import Scenario, World

METHODS = ("uniform", "sum", "arrow")  # compositions of weights; the chain stands beside them
NEW_TOKENS = 48


@dataclass(frozen=True)
class Answered:
    """A world and what every system answered in it."""

    place: Place
    scenarios: tuple[Scenario, ...]
    results: tuple[ItemResult, ...] = field(repr=False)


def system_name(scenario: Scenario, method: str) -> str:
    """What a composition of a trial is called among all systems of its world."""
    return f"{scenario.name}:{method}"


def answer_world(
    world: World,
    place: Place,
    directory: Path,
    *,
    limit: int | None = None,
    device: str = "cpu",
    progress: ProgressCallback | None = None,
) -> Answered:
    """Asks base, singles, yardsticks and every composition; what is known is not asked again.

    Results are kept in `directory`, in a file whose name holds the digest of what they depend on.
    """
    import torch

    from loraprobe.base import open_base, pick_device
    from loraprobe.scoring import Scorer
    from loraprobe.tasks import load_task

    scenarios = tuple(world.scenarios.values())
    paths = dict.fromkeys(path for scenario in scenarios for path in scenario.tasks)
    tasks = [load_task(path, limit) for path in paths]
    identity = {"files": world.manifest["files"], "limit": limit, "base": world.base_name}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    ledger = Ledger(
        directory / f"{place.name}-{digest}.jsonl", resume=True, fingerprint={"world": digest}
    )
    loaded = open_base(world.base or world.base_name).load(
        device=pick_device(device), dtype=torch.float32
    )
    scorer = Scorer(loaded.model, loaded.tokenizer, max_new_tokens=NEW_TOKENS)
    systems = systems_of(world, scenarios, any(task.has_hops for task in tasks))
    for at, (system, parts) in enumerate(systems):
        _ask(scorer, system, tasks, parts, ledger)
        if progress is not None:
            progress(f"ask {place.name}", at + 1, len(systems))
    kept = _chain_as_asked(ledger, scenarios)
    found = replace(place, parameters=sum(p.numel() for p in loaded.model.parameters()))
    return Answered(found, scenarios, tuple(kept))


def systems_of(
    world: World, scenarios: Sequence[Scenario], has_hops: bool = True
) -> list[tuple[System, frozenset[str] | None]]:
    """Every system with the parts that it is asked; None for all of them."""
    from loraprobe.hub import load_all
    from loraprobe.options import Options
    from loraprobe.pipeline.systems import SystemBuilder, single

    names = dict.fromkeys(name for scenario in scenarios for name in scenario.adapters)
    names |= dict.fromkeys(str(s.axes["joint"]) for s in scenarios if s.axes.get("joint"))
    adapters = {a.name: a for a in load_all([f"{n}={world.adapters[n]}" for n in names])}
    found: list[tuple[System, frozenset[str] | None]] = [(System("base", "base"), None)]
    found += [(System(a.name, "adapter", single(a)), None) for a in adapters.values()]
    for scenario in scenarios:
        builder = SystemBuilder.of([adapters[name] for name in scenario.adapters], Options())
        forms = {"target", "cot"} if scenario.axes["form"] == "target" else {"cot"}
        parts = frozenset({*forms, "hop1", "hop2"})
        for built in builder.compositions(has_hops):
            system = built.system
            named = replace(system, name=system_name(scenario, system.name))
            found.append((named, None if system.kind == "chain" else parts))
    return found


def _ask(
    scorer: Any,
    system: System,
    tasks: Sequence[Task],
    parts: frozenset[str] | None,
    ledger: Ledger,
) -> None:
    """One system's results into the ledger: all parts, or those named."""
    if parts is None:
        run_systems(scorer, [system], tasks, ledger, max_new_tokens=NEW_TOKENS)
        return
    answer_parts(scorer, system, tasks, parts, ledger)


def answer_parts(
    scorer: Any,
    system: System,
    tasks: Sequence[Task],
    parts: Iterable[str],
    ledger: Ledger,
    batch: int = 256,
) -> None:
    """Asks a system some parts of all items, and keeps what it says."""
    from loraprobe.evaluation.questions import Limits, ask, questions

    wanted, limits = set(parts), Limits.of(NEW_TOKENS)
    open_ = [
        q
        for q in questions(tasks)
        if q.part in wanted and ledger.get(system.name, q.task, q.part, q.item.id) is None
    ]
    open_.sort(key=lambda q: (q.part == "cot", len(q.prompt), q.prompt))
    with scorer.with_composition(system.composition):
        for start in range(0, len(open_), batch):
            chosen = open_[start : start + batch]
            ledger.append(ask(scorer, chosen, system.name, limits))


def _chain_as_asked(ledger: Ledger, scenarios: Sequence[Scenario]) -> list[ItemResult]:
    """All results; a chain's answer counts under the form of its trial.

    A chain needs no worked steps, but where compositions are asked step by step it has to beat
    the single adapters in either form, as they do.
    """
    forms = {system_name(s, "chain"): str(s.axes["form"]) for s in scenarios}
    return [
        replace(row, part=forms[row.system])
        if row.system in forms and row.part == "target"
        else row
        for row in ledger
    ]


def groups_of(scenario: Scenario) -> dict[str, str]:
    """Task -> the set of questions that it belongs to: its own name, unless the axes say another.

    Templates may ask the same questions in words of their own: then their tasks are one group.
    """
    group = scenario.axes.get("group")
    return {path.stem: str(group) if group else path.stem for path in scenario.tasks}


def pooled(
    worlds: Sequence[Answered], group: str, scenarios: Sequence[Scenario]
) -> list[ItemResult]:
    """The results of one set of questions in several worlds, each world a stratum of its own."""
    tasks = {t for s in scenarios for t, its in groups_of(s).items() if its == group}
    return [
        replace(row, task=f"{group}@{world.place.name}")
        for world in worlds
        for row in world.results
        if row.task in tasks
    ]
