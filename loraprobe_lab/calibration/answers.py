"""Collects adapter sets with several tasks, with the answers of the systems that ship as default.

`python -m loraprobe_lab.calibration.answers WORLD... FILE` evaluates the sets with several tasks of
worlds that trained their own bases, and appends them to a file of answered sets. Two adapters of
different sets that answer different kinds of questions are a set too: they cost no training. Such
sets share adapters, so they count for less than as many separately trained ones.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loraprobe_lab.calibration.collect import describe_set
from loraprobe_lab.calibration.observe import SMALL_BATCH, BaselineResults
from loraprobe_lab.calibration.several import AnsweredSet, merged, read_sets, write_sets
from loraprobe_lab.world import Scenario, World

MOST_ITEMS = 220  # of a task; routers learn from 20 of them


def pairs_of(world: World) -> list[Scenario]:
    """The sets of two adapters, each with a task of its own, that the world's adapters form.

    A set of the world keeps its name; another one is named by both adapters. Adapters of one kind
    of question (the last part of their names) form no set.
    """
    chosen = [s for s in world.scenarios.values() if len(s.tasks) > 1]
    owners = {
        name: (s, task)
        for s in chosen
        for task in s.tasks
        for name in s.adapters
        if task.stem == name
    }
    found = []
    for one, two in itertools.combinations(owners, 2):
        if one.rpartition(".")[2] == two.rpartition(".")[2]:
            continue
        (own, first), (other, second) = owners[one], owners[two]
        name = own.name if own is other else f"{one}+{two}"
        both = {n: world.adapters[n] for n in (one, two)}
        found.append(replace(own, name=name, adapters=both, tasks=(first, second)))
    return found


def answer(world: World) -> list[AnsweredSet]:
    """The answered sets of one world."""
    from loraprobe import pipeline

    base, known = pipeline.base_of(world.base or world.base_name, ()), BaselineResults()
    return [_answered(world, scenario, base, known) for scenario in pairs_of(world)]


def _answered(world: World, scenario: Scenario, base: Any, known: BaselineResults) -> AnsweredSet:
    """Asks base, single adapters and the default compositions, without what routers learn from."""
    from loraprobe import compatibility, hub
    from loraprobe.options import Options
    from loraprobe.pipeline.evaluator import open_evaluator
    from loraprobe.pipeline.inputs import Inputs
    from loraprobe.pipeline.session import Session
    from loraprobe.pipeline.systems import SystemBuilder, baseline_systems
    from loraprobe.pipeline.transforms import Prepared
    from loraprobe.tasks import load_task

    batch: Any = SMALL_BATCH if world.base is not None else "auto"
    options = Options(max_new_tokens=40, batch_size=batch, chat_template="off")
    adapters = hub.load_all([f"{name}={path}" for name, path in scenario.adapters.items()])
    tasks = [load_task(path, MOST_ITEMS) for path in scenario.tasks]
    inputs = Inputs(compatibility.aligned(adapters, base), adapters, base, tasks)
    prepared = Prepared(tuple(inputs.adapters))
    alone = baseline_systems(inputs.adapters)
    with open_evaluator(inputs, (), Session("inspect", options), composes=True) as evaluator:
        routers, _ = evaluator.fit_routers(prepared)
        built = SystemBuilder(inputs.adapters, prepared, options, base, routers=routers)
        composed = [s for s in built.compositions(tasks) if s.kind in ("merge", "router")]
        systems = [*alone, *composed]
        evaluator.ledger.append(known.of([s.name for s in alone], evaluator.tasks))
        results = evaluator.run(systems)
        known.keep(results, [s.name for s in alone])
    about = describe_set(world, scenario)
    fields = ("base", "architecture", "scenario", "world", "adapter_set")
    kinds = {s.name: s.kind for s in systems}
    return AnsweredSet(**{k: about[k] for k in fields}, kinds=kinds, results=tuple(results))


def append(worlds: Sequence[Path], path: Path) -> int:
    """Appends the sets of worlds to a file, in place of older ones; returns how many."""
    from loraprobe.base.quiet import quiet

    with quiet():
        found = [one for place in worlds for one in answer(World.load(place))]
    write_sets(path, merged(read_sets(path) if path.is_file() else [], found))
    return len(found)


if __name__ == "__main__":
    *places, file = map(Path, sys.argv[1:])
    print(f"{append(places, file)} adapter sets in {file}.")
