"""Sets of adapters in natural language: what a set holds, and its training on any causal model.

A set is one trial: adapters trained separately, each with its own seed, and the tasks on which they
are judged together. It becomes a world directory of one scenario.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loraprobe_lab.kit import Lesson, Trial, scenario_rows
from loraprobe_lab.natural_data import Item
from loraprobe_lab.train import Example, ProgressCallback, Recipe, train_adapter
from loraprobe_lab.world import MANIFEST, World, WorldError, write_manifest, write_tasks


@dataclass(frozen=True)
class NaturalSet:
    """Lessons, tasks (name -> items) and the one trial of a set; plain data made from a seed."""

    seed: int
    lessons: tuple[Lesson, ...]
    tasks: Mapping[str, Sequence[Item]] = field(repr=False)
    trial: Trial

    @property
    def name(self) -> str:
        return self.trial.name


def thrifty(layers: int, steps: int, learning_rate: float, batch_size: int, **other: Any) -> Recipe:
    """The recipe for a base of so many layers: on its upper quarter, computed in bfloat16."""
    upper = max(1, round(layers / 4)) if layers > 1 else None
    recipe = Recipe(steps=steps, learning_rate=learning_rate, batch_size=batch_size, warmup=5)
    return replace(recipe, upper=upper, precision="bfloat16", **other)


def lesson(
    set_name: str, name: str, about: str, examples: Sequence[Example], recipe: Recipe
) -> Lesson:
    """A lesson whose seed is its own: no two adapters of any sets share their initial A."""
    seed = zlib.crc32(f"{set_name}/{name}".encode())
    return Lesson(name, about, tuple(examples), replace(recipe, seed=seed))


def build_set(
    plan: NaturalSet,
    model: Any,
    tokenizer: Any,
    base_name: str,
    output: str | Path,
    *,
    progress: ProgressCallback | None = None,
    resume: bool = True,
    max_steps: int | None = None,
) -> World:
    """Trains the adapters of a set on a loaded causal model, into the directory `output`.

    With `resume` adapters that the same recipe made of the same examples are kept. `max_steps`
    shortens every training; the results then mean nothing.

    Raises:
        WorldError: `output` holds another set.
    """
    output = Path(output)
    _check_same(plan, base_name, output)
    for taught in plan.lessons:
        recipe = taught.recipe
        if max_steps is not None:
            recipe = replace(recipe, steps=min(max_steps, recipe.steps))
        train_adapter(model, tokenizer, taught.examples, recipe,
                      output / "adapters" / taught.name, base_name=base_name,
                      progress=progress, resume=resume)  # fmt: skip
    for name, items in plan.tasks.items():
        write_tasks(output / "tasks" / f"{name}.jsonl", items)
    return _record(plan, base_name, output, max_steps)


def _check_same(plan: NaturalSet, base_name: str, output: Path) -> None:
    if not (output / MANIFEST).exists():
        return
    found = World.load(output)
    there = (", ".join(found.scenarios), found.seed, found.base_name)
    here = (plan.name, plan.seed, base_name)
    if there != here:
        raise WorldError(
            f"{output} holds the set {there[0]} of seed {there[1]} on {there[2]}, not {here[0]} of "
            f"seed {here[1]} on {here[2]}; choose another directory, or remove that one."
        )


def _record(plan: NaturalSet, base_name: str, output: Path, max_steps: int | None) -> World:
    trial = plan.trial
    return write_manifest(
        output,
        kind=trial.world,
        seed=plan.seed,
        recipe={taught.name: taught.recipe.as_dict() for taught in plan.lessons},
        base={"path": None, "name": base_name},
        adapters={
            taught.name: {"path": f"adapters/{taught.name}", "description": taught.description}
            for taught in plan.lessons
        },
        scenarios=scenario_rows([trial]),
        max_steps=max_steps,
    )


def in_turn(groups: Sequence[Sequence[NaturalSet]]) -> Iterator[NaturalSet]:
    """One set of each group after the other, so that an early stop leaves some of every kind."""
    for i in range(max((len(group) for group in groups), default=0)):
        for group in groups:
            if i < len(group):
                yield group[i]
