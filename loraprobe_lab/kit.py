"""A kit holds all that a small world is made of; `build_kit` trains it. Resumable.

Every kind of small world gives a kit: the words of its tokenizer, what its base reads, what each
adapter learns, the tasks, and which adapters are judged on which tasks. The kit is plain data made
from a seed; nothing in it depends on how it is trained.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraprobe_lab.pretrain import BaseRecipe, build_base, save_base
from loraprobe_lab.train import Example, ProgressCallback, Recipe, train_adapter
from loraprobe_lab.vocabulary import build_tokenizer
from loraprobe_lab.world import MANIFEST, World, WorldError, write_manifest, write_tasks, write_text

BASE_NAME = "loraprobe/small-world-base"


@dataclass(frozen=True)
class Lesson:
    """What one adapter is trained on, and how."""

    name: str
    description: str
    examples: tuple[Example, ...] = field(repr=False)
    recipe: Recipe


@dataclass(frozen=True)
class Trial:
    """Adapters judged together on tasks.

    `world` is the class of scenarios it belongs to (two-hop, keep-both ...); `axes` says where on
    the axes of that class it lies, for tables and for the map of where success lives.
    """

    name: str
    world: str
    adapters: tuple[str, ...]
    tasks: tuple[str, ...]
    description: str
    axes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Kit:
    """A small world before it is trained.

    words: texts that hold every word of the world. corpus(seed) gives a function that draws one
    pretraining text after the other. tasks: name -> items as in task files. made_from: what else
    decides the base (sizes of its facts ...), so that a build is not resumed on another base.
    """

    kind: str
    seed: int
    words: tuple[str, ...] = field(repr=False)
    corpus: Callable[[int], Callable[[], Example]] = field(repr=False)
    base: BaseRecipe
    lessons: tuple[Lesson, ...]
    tasks: Mapping[str, Sequence[Mapping[str, Any]]] = field(repr=False)
    trials: tuple[Trial, ...]
    reserve: tuple[str, ...] = ()
    base_dtype: str = "bfloat16"
    made_from: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)


def build_kit(
    kit: Kit,
    output: str | Path,
    *,
    progress: ProgressCallback | None = None,
    resume: bool = True,
) -> World:
    """Trains base and adapters of a kit in the directory `output`; writes tasks and manifest.

    What is finished in `output` is not trained again unless `resume` is false. The same kit gives
    the same bytes on the same machine, library versions and number of threads. `progress` gets
    (stage, texts seen, texts in all), where every text takes about as long, so that the time left
    can be told from it.

    Raises:
        WorldError: `output` holds a world of another seed.
    """
    output = Path(output)
    _same_seed(output, kit.seed)
    meter = _Meter(kit, progress)
    _make_base(output, kit, meter, resume)
    model, tokenizer = load_base(output / "base")
    for lesson in kit.lessons:
        train_adapter(
            model,
            tokenizer,
            lesson.examples,
            lesson.recipe,
            output / "adapters" / lesson.name,
            base_name=BASE_NAME,
            progress=meter.stage(lesson.name, lesson.recipe),
            resume=resume,
        )
    for name, items in kit.tasks.items():
        write_tasks(output / "tasks" / f"{name}.jsonl", items)
    return _record(output, kit)


def load_base(directory: Path) -> tuple[Any, Any]:
    """Model in float32 and tokenizer of a base directory, from local files only."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        str(directory), dtype=torch.float32, local_files_only=True
    )
    return model.eval(), tokenizer


def _same_seed(output: Path, seed: int) -> None:
    if (output / MANIFEST).is_file() and World.load(output).seed != seed:
        raise WorldError(
            f"{output} holds a world of seed {World.load(output).seed}, not {seed}: "
            "choose another directory or that seed."
        )


def _make_base(output: Path, kit: Kit, meter: _Meter, resume: bool) -> None:
    """Trains and writes the base unless it is there; adapters of an older base are removed."""
    base, recipe = output / "base", dataclasses.replace(kit.base, seed=kit.seed)
    makings = {"recipe": recipe.as_dict(), **kit.made_from, "dtype": kit.base_dtype}
    made_by = json.dumps(makings, indent=2) + "\n"
    record = base / "training.json"
    if resume and record.is_file() and record.read_text(encoding="utf-8") == made_by:
        return
    for stale in (base, output / "adapters"):
        shutil.rmtree(stale, ignore_errors=True)
    tokenizer = build_tokenizer(kit.words)
    model = build_base(kit.corpus(recipe.seed), tokenizer, recipe, meter.stage("base", recipe))
    part = output / ".base.part"
    shutil.rmtree(part, ignore_errors=True)
    save_base(model, tokenizer, part, kit.base_dtype)
    write_text(part / "training.json", made_by)
    os.replace(part, base)


def _record(output: Path, kit: Kit) -> World:
    return write_manifest(
        output,
        kind=kit.kind,
        seed=kit.seed,
        recipe=dict(kit.recipe) or {"base": kit.base.as_dict()},
        base={"path": "base", "name": BASE_NAME, "architecture": kit.base.architecture},
        adapters={
            lesson.name: {
                "path": f"adapters/{lesson.name}",
                "description": lesson.description,
                "recipe": lesson.recipe.as_dict(),
            }
            for lesson in kit.lessons
        },
        scenarios=scenario_rows(kit.trials),
        reserve=kit.reserve,
    )


def scenario_rows(trials: Sequence[Trial]) -> dict[str, dict[str, Any]]:
    """The trials as the scenarios of a world's manifest."""
    return {
        trial.name: {
            "world": trial.world,
            "adapters": list(trial.adapters),
            "tasks": [f"tasks/{task}.jsonl" for task in trial.tasks],
            "description": trial.description,
            "axes": dict(trial.axes),
        }
        for trial in trials
    }


class _Meter:
    """Turns the steps of each training into texts seen of all texts of the build."""

    def __init__(self, kit: Kit, report: ProgressCallback | None) -> None:
        recipes: list[tuple[str, Any]] = [("base", kit.base)]
        recipes += [(lesson.name, lesson.recipe) for lesson in kit.lessons]
        self._report, self._before, self._total = report, {}, 0
        for name, recipe in recipes:
            self._before[name] = self._total
            self._total += recipe.steps * recipe.batch_size

    def stage(self, name: str, recipe: Any) -> ProgressCallback | None:
        report = self._report
        if report is None:
            return None
        start, size, total = self._before[name], recipe.batch_size, self._total

        def tick(what: str, step: int, steps: int) -> None:
            report(what, start + step * size, total)

        return tick
