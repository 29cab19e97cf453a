"""Collects adapter sets with several tasks, with the answers of the systems that ship as default.

`python -m loraprobe_lab.calibration.answers WORLD... FILE` evaluates the sets with two tasks of
worlds, and appends each to a file of answered sets as soon as it is answered. Two adapters of
different sets that answer different kinds of questions are a set too: they cost no training. Such
sets share adapters, so they count for less than as many separately trained ones.

Worlds on one given base are one world here. Their sets come first, then the sets that their
adapters form, in an order that is drawn from the names alone. What the file holds of them is not
asked again, so the command may be repeated.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loraprobe.records import BASELINES
from loraprobe_lab.calibration.collect import describe_set
from loraprobe_lab.calibration.observe import SMALL_BATCH, BaselineResults
from loraprobe_lab.calibration.several import AnsweredSet, merged, read_sets, write_sets
from loraprobe_lab.world import Scenario, World

# Items of a task, of which routers learn from up to 20, and the longest answer, in tokens.
MOST_ITEMS, LONGEST = 220, 40
GIVEN_ITEMS, GIVEN_LONGEST = 60, 12  # on a base that the lab did not train


def pairs_of(world: World) -> list[Scenario]:
    """The sets of two adapters, each with a task of its own, that the world's adapters form.

    A set of the world keeps its name; another one is named by both adapters. Adapters of one kind
    of question (the last part of their names) form no set.
    """
    chosen = [s for s in world.scenarios.values() if len(s.tasks) == 2]
    owners = {
        name: (s, task)
        for s in chosen
        for task in s.tasks
        for name in s.adapters
        if task.stem.rpartition(".")[2] == name.rpartition(".")[2]
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


def joined(worlds: Sequence[World]) -> list[World]:
    """Worlds with bases of their own, and one world for all that lie on one given base.

    There the adapters are called SET.NAME, and the sets keep their names.
    """
    found = [world for world in worlds if world.base is not None]
    for base in dict.fromkeys(world.base_name for world in worlds if world.base is None):
        own = [world for world in worlds if world.base is None and world.base_name == base]
        scenarios = {
            s.name: replace(s, adapters={f"{s.name}.{n}": path for n, path in s.adapters.items()})
            for world in own
            for s in world.scenarios.values()
        }
        adapters = {n: path for s in scenarios.values() for n, path in s.adapters.items()}
        found.append(replace(own[0], path=Path(base), adapters=adapters, scenarios=scenarios))
    return found


def answer(world: World, stored: Sequence[AnsweredSet] = ()) -> Iterator[AnsweredSet]:
    """The answered sets of one world, one after the other.

    stored: sets on a given base that are left out, and whose single adapters' answers are used.
    """
    from loraprobe.pipeline import inputs

    base, known = inputs.base_of(world.base or world.base_name, ()), BaselineResults()
    pairs = pairs_of(world)
    if world.base is None:
        pairs.sort(key=lambda s: ("+" in s.name, random.Random(s.name).random()))
        stored = [one for one in stored if one.world == describe_set(world, pairs[0])["world"]]
        for one in stored:
            known.keep(one.results, [n for n, k in one.kinds.items() if k in BASELINES])
        names = {one.adapter_set for one in stored}
        pairs = [s for s in pairs if s.name not in names]
    for scenario in pairs:
        yield _answered(world, scenario, base, known)


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

    given = world.base is None
    most, longest = (GIVEN_ITEMS, GIVEN_LONGEST) if given else (MOST_ITEMS, LONGEST)
    batch: Any = "auto" if given else SMALL_BATCH
    options = Options(max_new_tokens=longest, batch_size=batch, chat_template="off")
    adapters = hub.load_all([f"{name}={path}" for name, path in scenario.adapters.items()])
    tasks = [  # as their adapters, because tasks of different sets may share a name
        replace(load_task(path, most), name=name)
        for name, path in zip(scenario.adapters, scenario.tasks, strict=True)
    ]
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

    found = 0
    with quiet():
        for world in joined([World.load(place) for place in worlds]):
            stored = read_sets(path) if path.is_file() else []
            for one in answer(world, stored):
                stored = merged(stored, [one])
                write_sets(path, stored)
                found += 1
    return found


if __name__ == "__main__":
    *places, file = map(Path, sys.argv[1:])
    print(f"{append(places, file)} adapter sets in {file}.")
