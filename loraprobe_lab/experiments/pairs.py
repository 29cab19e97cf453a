"""The truth about a library: what every pair of its adapters answers, by brute force.

`loraprobe lab pairs WORLD -o FILE` merges pairs into the base and counts right answers, without
loraprobe's own composition and forecast. A pair is merged as a sum (weights 1) and as an average
(weights 1/2). For each task it looks at every pair of the adapters that learned something about it,
and at some of the other pairs, drawn at random, which bound how many good ones were not looked at.

Sums are asked `FIRST` items by one pass over question and gold answer: greedy decoding gives the
gold answer where every token of it is the most probable one. The `FINAL` best are then asked every
item, as sum and as average, and their answers are decoded. Tasks with worked steps are asked so.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraprobe.hub import load
from loraprobe.records import Progress
from loraprobe.scoring import ModelScorer
from loraprobe.tasks import answered
from loraprobe_lab.training import Batch, Example, collate, encode, load_base
from loraprobe_lab.world import World, read_lines, silent
from loraprobe_lab.worlds.couples import COUPLES
from loraprobe_lab.worlds.facts import Chain
from loraprobe_lab.worlds.library import FAMILIES

FIRST, OTHERS = 32, 100
FINAL = {1: 5, 2: 20}  # how many single adapters and pairs are asked every item
WEIGHTS = {"sum": 1.0, "average": 0.5}
NEW_TOKENS = 24
Set = tuple[tuple[int, ...], bool]  # places of the members, and whether they were drawn
Delta = Mapping[str, tuple[Tensor, Tensor]]  # module -> scaled B [out, r] and A [r, in]


@dataclass(frozen=True)
class Asked:
    """The items of a task, and which texts are the right answers."""

    items: Sequence[Mapping[str, Any]]

    @property
    def steps(self) -> bool:
        return "cot_prompt" in self.items[0]

    @property
    def prompts(self) -> list[str]:
        return [item["cot_prompt" if self.steps else "prompt"] for item in self.items]

    def examples(self) -> list[Example]:
        """Question and gold answer of each item."""
        found = []
        for prompt, item in zip(self.prompts, self.items, strict=True):
            gold = f" {item['answer']}"
            if self.steps:
                a, b = item["entities"]
                gold = Chain(a, b, item["answer"]).fill(COUPLES.step1 + COUPLES.step2)
            found.append(Example(prompt, gold))
        return found


class MergedBase:
    """A base into whose weights adapters are added and taken out again."""

    def __init__(self, world: World) -> None:
        assert world.base is not None
        self.model, self.tokenizer = load_base(world.base)
        self._layers = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, torch.nn.Linear) and name != "lm_head"
        }
        self._base = {name: layer.weight.data.clone() for name, layer in self._layers.items()}
        self.deltas = {name: _delta(path) for name, path in world.adapters.items()}

    @torch.no_grad()
    def set(self, adapters: Sequence[str], weight: float) -> None:
        """Base weights plus `weight` times the update of each adapter."""
        for name, layer in self._layers.items():
            layer.weight.data.copy_(self._base[name])
            for adapter in adapters:
                if name in self.deltas[adapter]:
                    B, A = self.deltas[adapter][name]
                    layer.weight.data.addmm_(B, A, alpha=weight)

    def batch(self, asked: Asked) -> Batch:
        """Questions with their gold answers, the latter labelled."""
        rows = [encode(self.tokenizer, example) for example in asked.examples()]
        return collate(rows, self.tokenizer.pad_token_id)

    @torch.no_grad()
    def certain(self, batch: Batch) -> float:
        """The share of items whose gold answer is the greedy one, by one pass."""
        logits = self.model(**batch.inputs(self.model)).logits[:, :-1]
        targets = batch.labels[:, 1:]
        right = (logits.argmax(-1) == targets) | (targets < 0)
        return float(right.all(-1).float().mean())

    def decoded(self, asked: Asked) -> float:
        """The share of items that are answered right, by decoding."""
        texts = ModelScorer(self.model, self.tokenizer).generate(
            asked.prompts, max_new_tokens=NEW_TOKENS
        )
        right = [
            answered(text, (item["answer"],), cot=asked.steps)
            for text, item in zip(texts, asked.items, strict=True)
        ]
        return sum(right) / len(right)


def _delta(path: Path) -> Delta:
    updates = load(str(path)).modules
    return {name: (u.B.float() * u.scaling, u.A.float()) for name, u in updates.items()}


def pairs_of(world: World, progress: Progress = silent) -> dict[str, Any]:
    """For each task: what the base, single adapters and pairs answer.

    Of each task: how many items and sets there were, and a row for each set whose sum answers one
    of the first items. It has the places of the members in `adapters`, whether it was drawn, the
    share of the first items, and of those with the largest shares what sum and average answer of
    all items.
    """
    merged, names = MergedBase(world), sorted(world.adapters)
    tasks = {}
    for scenario in world.scenarios.values():
        asked = Asked([json.loads(line) for line in read_lines(scenario.tasks[0])])
        rng = random.Random(f"pairs:{scenario.name}:0")
        sets = _sets(scenario.name, names, asked.steps, rng)
        tasks[scenario.name] = _answers(
            merged, asked, names, sets, partial(progress, scenario.name)
        )
    return {"kind": "library", "seed": world.seed, "adapters": names, "tasks": tasks}


def _sets(task: str, names: Sequence[str], steps: bool, rng: random.Random) -> list[Set]:
    """Single adapters, the pairs that are about the task, and `OTHERS` drawn from the rest.

    Adapters of one family know the same hop or the same steps: where worked steps need both, their
    pairs are among the rest.
    """
    families = [name.rpartition("-")[0] for name in names]
    about = [at for at, family in enumerate(families) if task in FAMILIES[family]["tasks"]]
    pairs = [(i, j) for i, j in combinations(about, 2) if not steps or families[i] != families[j]]
    rest = sorted(set(combinations(range(len(names)), 2)) - set(pairs))
    drawn = rng.sample(rest, min(OTHERS, len(rest)))
    chosen = [((at,), False) for at in range(len(names))]
    return [*chosen, *((pair, False) for pair in pairs), *((pair, True) for pair in sorted(drawn))]


def _answers(
    merged: MergedBase,
    asked: Asked,
    names: Sequence[str],
    sets: Sequence[Set],
    told: Callable[[int, int], None],
) -> dict[str, Any]:
    """The rows of one task."""
    first = Asked(asked.items[:: max(1, len(asked.items) // FIRST)][:FIRST])
    batch = merged.batch(first)
    rows: list[dict[str, Any]] = []
    for members, drawn in sets:
        merged.set([names[m] for m in members], 1.0)
        rows.append({"members": list(members), "drawn": drawn, "first": merged.certain(batch)})
        told(len(rows), len(sets))
    rows.sort(key=lambda row: -row["first"])
    for size, most in FINAL.items():
        for row in [row for row in rows if len(row["members"]) == size][:most]:
            for name, weight in WEIGHTS.items() if size > 1 else [("sum", 1.0)]:
                merged.set([names[m] for m in row["members"]], weight)
                row[name] = merged.decoded(asked)
    merged.set([], 1.0)
    base = merged.decoded(asked)
    return {
        "items": len(asked.items),
        "first_items": len(first.items),
        "base": base,
        "pairs": sum(len(members) == 2 and not drawn for members, drawn in sets),
        "drawn": sum(drawn for _, drawn in sets),
        "sets": [row for row in rows if row["first"] or "sum" in row],
    }
