"""Adapter libraries: the adapters of a world, as data in `data/libraries.json`.

An adapter is trained on the texts of some parts (`learns`) with a recipe; a world makes the texts
of each part. A set is a scenario of the world: adapters that are composed.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraprobe_lab.training.batches import Example
from loraprobe_lab.training.train import Recipe
from loraprobe_lab.worlds.known import table
from loraprobe_lab.worlds.spec import AdapterSet, Item, TrainingSet, WorldSpec, own_seed

LIBRARIES = table("libraries")
Parts = Mapping[str, Callable[[], Sequence[Example]]]  # part -> what makes its texts


def training_sets(
    library: str,
    parts: Parts,
    seed_of: Callable[[str], int],
    *,
    only: Sequence[str] | None = None,
    recipes: str | None = None,
) -> tuple[TrainingSet, ...]:
    """The adapters of a library; `only` names some, `recipes` a library whose recipes they take."""
    made: dict[str, Sequence[Example]] = {}
    found = []
    for name, row in LIBRARIES[library]["adapters"].items():
        if only is None or name in only:
            for part in row["learns"]:
                made.setdefault(part, parts[part]())
            examples = tuple(text for part in row["learns"] for text in made[part])
            recipe = recipe_of(LIBRARIES[recipes or library]["recipes"][row["recipe"]])
            recipe = dataclasses.replace(recipe, seed=seed_of(name))
            found.append(TrainingSet(name, row["about"], examples, recipe))
    return tuple(found)


def recipe_of(row: Mapping[str, object]) -> Recipe:
    """A recipe from its JSON; what it does not say is `Recipe`'s default."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return Recipe(**values)  # type: ignore[arg-type]


def adapter_sets(library: str) -> tuple[AdapterSet, ...]:
    """The sets of a library."""
    rows: list[dict[str, Any]] = [
        {key: tuple(v) if isinstance(v, list) else v for key, v in row.items()}
        for row in LIBRARIES[library]["sets"]
    ]
    return tuple(AdapterSet(**row) for row in rows)


@dataclass(frozen=True)
class TrainedSet:
    """An adapter set with the training sets of its adapters, and its tasks."""

    name: str
    world: str
    training: Sequence[TrainingSet]
    tasks: Mapping[str, Sequence[Item]]
    description: str
    axes: Mapping[str, Any]


def contents_of(sets: Sequence[TrainedSet]) -> dict[str, Any]:
    """The fields of a WorldSpec with these sets, which may share adapters and tasks."""
    return {
        "training": tuple({one.name: one for made in sets for one in made.training}.values()),
        "tasks": {name: items for made in sets for name, items in made.tasks.items()},
        "adapter_sets": tuple(
            AdapterSet(
                made.name,
                made.world,
                tuple(one.name for one in made.training),
                tuple(made.tasks),
                made.description,
                made.axes,
            )
            for made in sets
        ),
    }


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
            recipe = dataclasses.replace(recipe, seed=seed, **common)
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
