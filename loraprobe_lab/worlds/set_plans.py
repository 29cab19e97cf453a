"""A set of adapters in English before it is trained: texts, tasks, and the specification."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loraprobe_lab.training.batches import Example
from loraprobe_lab.training.train import Recipe
from loraprobe_lab.worlds.libraries import TrainedSet, contents_of
from loraprobe_lab.worlds.spec import Item, TrainingSet, WorldSpec, own_seed


@dataclass(frozen=True)
class SetPlan:
    """What each adapter learns (name, description, texts), the tasks, the axes, and a description
    of the set."""

    adapters: Sequence[tuple[str, str, Sequence[Example]]]
    tasks: Mapping[str, Sequence[Item]]
    axes: Mapping[str, Any]
    text: str

    def spec(self, kind: str, number: int, recipes: Sequence[Recipe], layers: int) -> WorldSpec:
        """The set on a base of so many layers: adapters lie on its upper quarter. With fewer
        recipes than adapters, the recipes are used in turn."""
        name = f"{kind}-{number:02d}"
        common: dict[str, Any] = {
            "upper": max(1, round(layers / 4)) if layers > 1 else None,
            "warmup": 5,
        }
        training = []
        for i, (adapter, about, examples) in enumerate(self.adapters):
            seed = own_seed(name, adapter, "/")
            recipe = recipes[i % len(recipes)]
            recipe = replace(recipe, seed=seed, **common)
            training.append(TrainingSet(adapter, about, tuple(examples), recipe))
        axes = {
            **self.axes,
            "steps": [recipe.steps for recipe in recipes],
            "learning_rates": [recipe.learning_rate for recipe in recipes],
            "targets": [recipe.target_modules for recipe in recipes],
        }
        tasks = {task: groups_first(items) for task, items in self.tasks.items()}
        made = TrainedSet(name, kind, training, tasks, self.text, axes)
        return WorldSpec(kind=kind, seed=number, **contents_of([made]), notes={"set": name})


def groups_first(items: Sequence[Item]) -> list[Item]:
    """The items in an order that asks every group once before any twice, so that the first items of
    a task are about as many groups as possible."""
    asked = Counter[str]()
    turns = []
    for item in items:
        turns.append(asked[item["group"]])
        asked[item["group"]] += 1
    return [items[i] for i in sorted(range(len(items)), key=lambda i: turns[i])]
