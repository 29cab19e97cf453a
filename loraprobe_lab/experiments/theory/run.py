"""`loraprobe lab theory`: the experiments on the base that ships with the package, as one document.

The quick run takes half a minute of one core, the full one six minutes; both are functions
of the seed, which chooses people and answers and starts the trainings.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import torch

from loraprobe.records import Progress
from loraprobe_lab.experiments.pages import BLUE, DARK, GREY, RED, Pages, as_svg, drawing, render
from loraprobe_lab.experiments.theory import capacity, hops
from loraprobe_lab.experiments.theory.capacity import NewFacts
from loraprobe_lab.experiments.theory.fact_store import FactStore
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
EVERYWHERE = Recipe(steps=200, learning_rate=3e-3, batch_size=32)


@dataclass(frozen=True)
class TheoryPlan:
    """Sizes of the experiments. `alone`: how many edits are tried against other prompts;
    `together`: chains held by one edit; the rest belongs to facts per rank. runs: (place, facts,
    rank) of each training."""

    alone: int = 50
    together: tuple[int, ...] = (10, 50, 100, 200)
    bound: tuple[int, ...] = (10, 25, 50, 100, 150, 200, 300, 400)
    approximations: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    runs: tuple[tuple[str, int, int], ...] = tuple(product(("mlp",), (10, 50, 200), (1, 4, 16)))
    training: Recipe = IN_LAYER
    everywhere: Recipe = EVERYWHERE


QUICK = TheoryPlan()
FULL = TheoryPlan(
    runs=(
        *product(("down", "mlp"), (10, 50, 200, 400), (1, 4, 16)),
        *product(("all layers",), (50, 200), (1, 4, 16)),
    ),
    training=replace(QUICK.training, steps=400),
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
    new, rows = _marriages(store, facts, max(n for _, n, _ in plan.runs), seed), []
    for done, (place, count, rank) in enumerate(plan.runs):
        if progress is not None:
            progress("trainings", done, len(plan.runs))
        recipe = plan.everywhere if place == "all layers" else plan.training
        rows.append(capacity.train(store, new.first(count), place, rank, recipe, seed))
    return rows


def theory_pages(document: dict[str, Any]) -> Pages:
    """The pages of what `theory` found, also of a document that was saved."""
    markdown = render(
        "theory",
        document=document,
        alone={row["system"]: row for row in document["one at a time"]},
        bound_met=all(row["edit rank"] == row["residual rank"] for row in document["bound"]),
        most=max(document["trained"], key=lambda row: row["facts"] / row["rank"]),
        places={place: name for place, (*_, name) in PLACES.items()},
    )
    return Pages("theory", document, markdown, lambda: theory_figure(document), digits=None)


def theory_figure(document: Mapping[str, Any]) -> str:
    """SVG with two panels: two hops by rank-one edits, and what training holds."""
    with drawing() as Figure:
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        _hops_panel(left, document)
        _trained_panel(right, document)
        return as_svg(figure)


BARS = {
    "composed": (RED, "asked at once"),
    "sentence": (GREY, "after the written step"),
    "chain": (BLUE, "second hop asked anew"),
}
# colour and name in the figure, name on the page
PLACES = {
    "down": (GREY, "down, last layer", "`down` of the last layer"),
    "mlp": (BLUE, "MLP, last layer", "the MLP of the last layer"),
    "all layers": (RED, "all linear layers", "all linear layers"),
}


def _hops_panel(ax: Any, document: Mapping[str, Any]) -> None:
    rows = document["one at a time"]
    for k, (part, (colour, label)) in enumerate(BARS.items()):
        places = [i + 0.26 * (k - 1) for i in range(len(rows))]
        ax.barh(places, [row[part] for row in rows], 0.24, color=colour, label=label)
    ax.set_yticks(range(len(rows)), [row["system"].replace("->", "→") for row in rows])
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel=f"share of {document['chains']} chains right")
    ax.set_title("Rank-one edits, one chain at a time", loc="left")
    ax.legend(frameon=False, fontsize=7, loc="upper right")


def _trained_panel(ax: Any, document: Mapping[str, Any]) -> None:
    """Most facts that any training of a rank recalled, by place."""
    rows = document["trained"]
    ranks = sorted({row["rank"] for row in rows})
    for place, (colour, label, _) in PLACES.items():
        most: dict[int, int] = {}
        for row in sorted(rows, key=lambda row: row["rank"]):
            if row["place"] == place:
                most[row["rank"]] = max(row["facts"], most.get(row["rank"], 0))
        if most:
            ax.plot(list(most), list(most.values()), "o-", color=colour, ms=4, label=label)
    ax.plot(ranks, ranks, "--", color=DARK, lw=0.8, label="one fact a rank")
    ax.set_xscale("log", base=2)
    ax.set_yscale("symlog", linthresh=1)
    ax.set_xticks(ranks, [str(rank) for rank in ranks])
    ax.set_yticks([0, 1, 10, 100, 400], ["0", "1", "10", "100", "400"])
    ax.set(ylim=(0, None), xlabel="rank of the trained LoRA", ylabel="most facts recalled")
    ax.set_title("What training holds", loc="left")
    ax.legend(frameon=False, fontsize=7, loc="lower right")
