"""Build the small bases on which the advice is measured: their adapters, their tasks, their sets.

    python worlds.py OUT [NAME...]

BASES are libraries of the lab (`loraprobe lab build library`) of seeds that no calibration uses,
with the adapters that SETS names. What an adapter learns and how long is drawn from the seed, so a
set is chosen by the kinds of its adapters alone, before anything is trained. FACTS is a world of
adapter sets as the lab's atlas has them, with a seed of its own. Interrupted builds go on.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from loraprobe_lab.build import WorldPlan, spec_of
from loraprobe_lab.training import BaseRecipe
from loraprobe_lab.worlds.library import library_world
from loraprobe_lab.worlds.spec import AdapterSet, Item, WorldSpec, build_world

BASES = {  # seed, architecture, width
    "llama-07": (7, "llama", 160),
    "gpt2-108": (108, "gpt2", 96),
    "qwen3-109": (109, "qwen3", 96),
    "llama-211": (211, "llama", 128),  # judged once, after the rules stood
}
FACTS = {"facts-llama-101": WorldPlan("facts", 101, "llama", wide=2, favourable=1)}
SETS = {  # name -> kind, adapters, tasks
    # one task: a marriage in one adapter, worked steps in another, the home known to the base
    "steps-1": ("facts and steps", "marriages-long-00 steps-long-00", "newcomers"),
    "steps-2": ("facts and steps", "marriages-long-01 steps-long-01", "newcomers"),
    "steps-3": ("facts and steps", "marriages-long-02 steps-00", "newcomers"),
    "steps-4": ("facts and steps", "marriages-00 steps-01", "newcomers"),
    "asked": ("facts from questions alone", "marriages-asked-00 steps-long-00", "newcomers"),
    "three": ("a third adapter", "marriages-long-00 steps-long-00 lists-00", "newcomers"),
    "shares": ("two shares and steps", "marriages-01 marriages-02 steps-long-00", "newcomers"),
    "twins": ("near duplicates", "marriages-long-00 marriages-long-01", "newcomers"),
    "unrelated": ("unrelated partner", "marriages-long-00 lists-00", "newcomers"),
    "no-facts": ("nobody knows the facts", "steps-long-00 steps-long-01", "newcomers"),
    # both hops new
    "hops-1": ("disjoint hops", "spouses-00 homes-00", "strangers"),
    "hops-2": ("disjoint hops", "spouses-01 homes-01", "strangers"),
    "worked": ("disjoint hops, worked", "spouses-00 homes-worked-00", "strangers"),
    "worked-2": ("disjoint hops, worked", "spouses-01 homes-worked-01 steps-long-00", "strangers"),
    # answered at once: the target relation, for some of the people
    "answers": ("shares of the answers", "answers-00 answers-01", "guests"),
    "answers-3": ("shares of the answers", "answers-00 answers-01 answers-02", "guests"),
    "target": ("target adapter, unrelated partner", "answers-02 marriages-00", "guests"),
    "lists": ("list skills in one task", "lists-00 lists-01", "lists"),
    # one model for several skills
    "keep-1": ("two skills", "marriages-long-00 homes-00", "marriages homes"),
    "keep-2": ("two skills", "marriages-long-01 spouses-01", "marriages spouses"),
    "keep-3": ("two skills", "marriages-long-02 two-lists-00", "marriages lists"),
    "keep-4": ("three skills", "marriages-long-00 homes-01 spouses-00", "marriages homes spouses"),
    "keep-5": ("three skills", "marriages-00 homes-00 two-lists-00", "marriages homes lists"),
}


def spec(seed: int, architecture: str, hidden: int) -> WorldSpec:
    """The library of this seed with the adapters, tasks and sets of SETS."""
    base = BaseRecipe(hidden=hidden, intermediate=5 * hidden // 2, architecture=architecture)
    library = library_world(seed, base=base)
    names = {name for _, adapters, _ in SETS.values() for name in adapters.split()}
    tasks = dict(library.tasks)
    tasks |= {
        "marriages": hop(library.tasks["newcomers"], 0),
        "spouses": hop(library.tasks["strangers"], 0),
        "homes": hop(library.tasks["strangers"], 1),
    }
    sets = tuple(
        AdapterSet(name, kind, tuple(adapters.split()), tuple(asked.split()), kind)
        for name, (kind, adapters, asked) in SETS.items()
    )
    training = tuple(one for one in library.training if one.name in names)
    return dataclasses.replace(library, training=training, tasks=tasks, adapter_sets=sets)


def hop(items: list[Item], number: int) -> list[Item]:
    """One hop of each item as a task of its own."""
    found = []
    for item in items:
        asked = item["hops"][number]
        first = item["hops"][0]["answer"]
        prompt = asked["prompt"].replace("{1}", first)
        group = first if number else item["group"]
        found.append(
            {"id": item["id"], "prompt": prompt, "answer": asked["answer"], "group": group}
        )
    return found


def main() -> None:
    """Build the bases that are named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join((*FACTS, *BASES)))
    given = parser.parse_args()
    for name in given.names or (*FACTS, *BASES):
        plan = spec_of(FACTS[name]) if name in FACTS else spec(*BASES[name])
        build_world(plan, given.out / name)
        print(f"{given.out / name} is built", flush=True)


if __name__ == "__main__":
    main()
