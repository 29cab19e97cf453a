"""`loraprobe lab theory`: the experiments on the base that ships with the package, as one document.

The quick run takes a quarter of a minute of one core, the full one two minutes; both are functions
of the seed, which chooses people and answers and starts the trainings.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from loraprobe_lab.facts import (
    CITY_QUESTION,
    SPOUSE_QUESTION,
    TARGET_QUESTION,
    Facts,
    FactSizes,
    make_facts,
)
from loraprobe_lab.theory import capacity, hops
from loraprobe_lab.theory.capacity import Lessons, Training
from loraprobe_lab.theory.store import Store
from loraprobe_lab.world import World, shipped_world, versions

Progress = Callable[[str, int, int], None]
EVERYWHERE = "all layers"


@dataclass(frozen=True)
class Plan:
    """Sizes of the experiments. `alone`: how many edits are tried against other prompts;
    `together`: chains held by one edit; the rest belongs to facts per rank."""

    alone: int = 50
    together: tuple[int, ...] = (10, 50, 100, 200)
    bound: tuple[int, ...] = (10, 25, 50, 100, 150, 200, 300, 400)
    approximations: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    counts: tuple[int, ...] = (10, 50, 200)
    ranks: tuple[int, ...] = (1, 4, 16)
    places: tuple[str, ...] = ("mlp",)
    training: Training = field(default_factory=lambda: Training(steps=200, rates=(1e-2,)))
    everywhere: Training = field(
        default_factory=lambda: Training(steps=200, batch_size=32, rates=(3e-3,))
    )
    everywhere_counts: tuple[int, ...] = ()
    everywhere_ranks: tuple[int, ...] = ()


QUICK = Plan()
FULL = Plan(
    counts=(10, 25, 50, 100, 200, 400),
    ranks=(1, 2, 4, 8, 16),
    places=("down", "mlp"),
    training=Training(steps=400, rates=(1e-2,)),
    everywhere_counts=(50, 200),
    everywhere_ranks=(1, 4, 16),
)


def theory(plan: Plan = QUICK, seed: int = 0, progress: Progress | None = None) -> dict[str, Any]:
    """Runs every experiment. The document holds plain numbers and lists, see `report`."""
    from loraprobe.base.quiet import quiet
    from loraprobe_lab.kit import load_base

    world = shipped_world()
    facts = _facts(world)
    assert world.base is not None
    with quiet():
        store = Store.of(*load_base(world.base))
    return {
        "command": "loraprobe lab theory" + (" --full" if plan == FULL else ""),
        "seed": seed,
        "base": world.base_name,
        "layer": {"hidden": store.down.shape[0], "inner": store.down.shape[1]},
        "versions": versions(),
        "plan": asdict(plan),
        **_edits(store, facts, plan, seed),
        "bound": _bound(store, facts, plan, seed),
        "trained": _trained(store, facts, plan, seed, progress),
    }


def _facts(world: World) -> Facts:
    return make_facts(FactSizes(**world.manifest["recipe"]["sizes"]), world.seed)


def _edits(store: Store, facts: Facts, plan: Plan, seed: int) -> dict[str, Any]:
    """Single facts and two hops."""
    links = random.Random(f"chains:{seed}").sample(facts.strangers, len(facts.strangers))
    chains = hops.chains_of(store, links)
    familiar = random.Random(f"known:{seed}").sample(facts.familiar, 100)
    known = {
        name: store.ask([link.fill(question) for link in familiar])
        for name, question in (
            ("same question", SPOUSE_QUESTION),
            ("other question", CITY_QUESTION),
            ("composed question", TARGET_QUESTION),
        )
    }
    spared = torch.cat([asked.keys for asked in known.values()])
    counts = [count for count in plan.together if count <= len(chains)]
    return {
        "chains": len(chains),
        "one fact": hops.one_fact(store, chains.first(plan.alone), known, spared),
        "one at a time": hops.one_at_a_time(store, chains),
        "one at a time, sparing": hops.one_at_a_time(store, chains, spared),
        "all at once": [row for n in counts for row in hops.all_at_once(store, chains.first(n))],
        "keys": hops.whose_key(chains),
    }


def _people(facts: Facts, seed: int) -> list[str]:
    """People of whom the base knows nothing, shuffled."""
    strangers = [name for link in facts.strangers for name in (link.person, link.spouse)]
    people = [*strangers, *(link.person for link in facts.newcomers)]
    random.Random(f"people:{seed}").shuffle(people)
    return people


def _marriages(store: Store, facts: Facts, count: int, seed: int) -> Lessons:
    """New facts with an answer of its own each."""
    names = random.Random(f"spouses:{seed}").sample(facts.names(), count)
    people = _people(facts, seed)[:count]
    return Lessons.of(store, [SPOUSE_QUESTION.format(a=name) for name in people], names)


def _homes(store: Store, facts: Facts, count: int, seed: int) -> Lessons:
    """New facts whose answers repeat: there are few cities."""
    cities = [facts.cities[i % len(facts.cities)] for i in range(count)]
    random.Random(f"homes:{seed}").shuffle(cities)
    people = _people(facts, seed)[:count]
    return Lessons.of(store, [CITY_QUESTION.format(b=name) for name in people], cities)


def _bound(store: Store, facts: Facts, plan: Plan, seed: int) -> list[dict[str, Any]]:
    asked = store.ask([link.fill(SPOUSE_QUESTION) for link in facts.familiar])
    known = (asked, store.token([link.spouse for link in facts.familiar]))
    most = max(plan.bound)
    rows = []
    for kind, lessons in (("own answers", _marriages(store, facts, most, seed)),
                          ("shared answers", _homes(store, facts, most, seed))):  # fmt: skip
        rows += capacity.bound(store, lessons, kind, plan.bound, plan.approximations, known)
    return rows


def _trained(
    store: Store, facts: Facts, plan: Plan, seed: int, progress: Progress | None
) -> list[dict[str, Any]]:
    from loraprobe.base.quiet import quiet

    lessons = _marriages(store, facts, max((*plan.counts, *plan.everywhere_counts)), seed)
    runs = [(place, n, rank) for place in plan.places for n in plan.counts for rank in plan.ranks]
    runs += [(EVERYWHERE, n, r) for n in plan.everywhere_counts for r in plan.everywhere_ranks]
    rows = []
    for done, (place, count, rank) in enumerate(runs):
        if progress is not None:
            progress("trainings", done, len(runs))
        some = lessons.first(count)
        if place == EVERYWHERE:
            with quiet():
                row = capacity.train_everywhere(store, some, rank, plan.everywhere, seed)
        else:
            row = capacity.train_in_layer(store, some, place, rank, plan.training, seed)
        rows.append(row)
    return rows
