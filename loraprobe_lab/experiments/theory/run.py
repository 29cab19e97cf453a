"""`loraprobe lab theory`: the experiments on the base that ships with the package, as one document.

The quick run takes a quarter of a minute of one core, the full one two minutes; both are functions
of the seed, which chooses people and answers and starts the trainings.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from loraprobe.records import Progress
from loraprobe_lab.experiments.pages import Pages, render
from loraprobe_lab.experiments.theory import capacity, hops
from loraprobe_lab.experiments.theory.capacity import EVERYWHERE, NewFacts
from loraprobe_lab.experiments.theory.fact_store import FactStore
from loraprobe_lab.experiments.theory.figure import theory_figure
from loraprobe_lab.experiments.theory.hops import (
    CITY_QUESTION,
    SPOUSE_QUESTION,
    TARGET_QUESTION,
    ChainKeys,
)
from loraprobe_lab.training.pretrain import load_base
from loraprobe_lab.training.train import Recipe
from loraprobe_lab.world import shipped_world, versions
from loraprobe_lab.worlds.couples import Facts, FactSizes, make_facts

IN_LAYER = Recipe(steps=200, learning_rate=1e-2, batch_size=64)
IN_ALL_LAYERS = Recipe(steps=200, learning_rate=3e-3, batch_size=32)


@dataclass(frozen=True)
class TheoryPlan:
    """Sizes of the experiments. `alone`: how many edits are tried against other prompts;
    `together`: chains held by one edit; the rest belongs to facts per rank."""

    alone: int = 50
    together: tuple[int, ...] = (10, 50, 100, 200)
    bound: tuple[int, ...] = (10, 25, 50, 100, 150, 200, 300, 400)
    approximations: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    counts: tuple[int, ...] = (10, 50, 200)
    ranks: tuple[int, ...] = (1, 4, 16)
    places: tuple[str, ...] = ("mlp",)
    training: Recipe = IN_LAYER
    everywhere: Recipe = IN_ALL_LAYERS
    everywhere_counts: tuple[int, ...] = ()
    everywhere_ranks: tuple[int, ...] = ()


QUICK = TheoryPlan()
FULL = TheoryPlan(
    counts=(10, 25, 50, 100, 200, 400),
    ranks=(1, 2, 4, 8, 16),
    places=("down", "mlp"),
    training=replace(IN_LAYER, steps=400),
    everywhere_counts=(50, 200),
    everywhere_ranks=(1, 4, 16),
)


def theory(plan: TheoryPlan = QUICK, seed: int = 0, progress: Progress | None = None) -> Pages:
    """Runs every experiment. The document holds plain numbers and lists, see `report`."""
    from loraprobe.base.quiet import quiet

    world = shipped_world()
    facts = make_facts(FactSizes(**world.manifest["recipe"]["sizes"]), world.seed)
    assert world.base is not None
    with quiet():
        store = FactStore.of(*load_base(world.base))
        document = {
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
    return theory_pages(document)


def _edits(store: FactStore, facts: Facts, plan: TheoryPlan, seed: int) -> dict[str, Any]:
    """Single facts and two hops."""
    strangers = random.Random(f"chains:{seed}").sample(facts.strangers, len(facts.strangers))
    chains = ChainKeys.of(store, strangers)
    familiar = random.Random(f"known:{seed}").sample(facts.familiar, 100)
    known = {
        name: store.read([chain.fill(question) for chain in familiar])
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
        "keys": hops.key_cosines(chains),
    }


def _new_facts(
    store: FactStore, facts: Facts, question: str, answers: Sequence[str], seed: int
) -> NewFacts:
    """As many new facts as there are answers, about people of whom the base knows nothing."""
    people = [name for chain in facts.strangers for name in (chain.a, chain.b)]
    people += [chain.a for chain in facts.newcomers]
    random.Random(f"people:{seed}").shuffle(people)
    prompts = [question.format(a=name, b=name) for name in people[: len(answers)]]
    return NewFacts.of(store, prompts, answers)


def _marriages(store: FactStore, facts: Facts, count: int, seed: int) -> NewFacts:
    """New facts with an answer of its own each."""
    names = random.Random(f"spouses:{seed}").sample(facts.names(), count)
    return _new_facts(store, facts, SPOUSE_QUESTION, names, seed)


def _homes(store: FactStore, facts: Facts, count: int, seed: int) -> NewFacts:
    """New facts whose answers repeat: there are few cities."""
    cities = [facts.cities[i % len(facts.cities)] for i in range(count)]
    random.Random(f"homes:{seed}").shuffle(cities)
    return _new_facts(store, facts, CITY_QUESTION, cities, seed)


def _bound(store: FactStore, facts: Facts, plan: TheoryPlan, seed: int) -> list[dict[str, Any]]:
    asked = store.read([chain.fill(SPOUSE_QUESTION) for chain in facts.familiar])
    known = (asked, store.token([chain.b for chain in facts.familiar]))
    most = max(plan.bound)
    kinds = {
        "own answers": _marriages(store, facts, most, seed),
        "shared answers": _homes(store, facts, most, seed),
    }
    return [
        row
        for kind, new in kinds.items()
        for row in capacity.bound(store, new, kind, plan.bound, plan.approximations, known)
    ]


def _trained(
    store: FactStore, facts: Facts, plan: TheoryPlan, seed: int, progress: Progress | None
) -> list[dict[str, Any]]:
    new = _marriages(store, facts, max((*plan.counts, *plan.everywhere_counts)), seed)
    runs = [(place, n, rank) for place in plan.places for n in plan.counts for rank in plan.ranks]
    runs += [(EVERYWHERE, n, r) for n in plan.everywhere_counts for r in plan.everywhere_ranks]
    rows = []
    for done, (place, count, rank) in enumerate(runs):
        if progress is not None:
            progress("trainings", done, len(runs))
        recipe = plan.everywhere if place == EVERYWHERE else plan.training
        rows.append(capacity.train(store, new.first(count), place, rank, recipe, seed))
    return rows


PLACES = {
    "down": "`down` of the last layer",
    "mlp": "the MLP of the last layer",
    "all layers": "all linear layers",
}


def theory_pages(document: dict[str, Any]) -> Pages:
    """The pages of what `theory` found, also of a document that was saved."""
    markdown = render(
        "theory",
        document=document,
        alone={row["system"]: row for row in document["one at a time"]},
        bound_met=all(row["edit rank"] == row["residual rank"] for row in document["bound"]),
        most=max(document["trained"], key=lambda row: row["facts"] / row["rank"]),
        places=PLACES,
    )
    return Pages("theory", document, markdown, lambda: theory_figure(document), digits=None)
