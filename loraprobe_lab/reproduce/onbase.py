"""The adapters of a matrix on any causal language model that lies in a directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraprobe_lab.kit import Kit, Lesson, Trial, scenario_rows
from loraprobe_lab.train import ProgressCallback, train_adapter
from loraprobe_lab.world import MANIFEST, World, WorldError, write_manifest, write_tasks


@dataclass(frozen=True)
class Library:
    """What is trained on a base that exists already, and what is asked of it."""

    kind: str
    seed: int
    lessons: tuple[Lesson, ...]
    tasks: Mapping[str, Sequence[Mapping[str, Any]]] = field(repr=False)
    trials: tuple[Trial, ...]

    @classmethod
    def of(cls, kit: Kit) -> Library:
        """What a kit teaches, without the base that it would train."""
        return cls(kit.kind, kit.seed, kit.lessons, kit.tasks, kit.trials)


def build_on_base(
    library: Library,
    base: str | Path,
    output: str | Path,
    *,
    device: str = "auto",
    progress: ProgressCallback | None = None,
) -> World:
    """Trains every lesson on the model in the directory `base`; what is finished is kept.

    Raises:
        BaseError: `base` holds no causal model and tokenizer that load.
        WorldError: its tokenizer has no EOS token; or `output` holds a world of another kind, seed
            or base.
    """
    import torch

    from loraprobe.base import open_base, pick_device

    base, output = Path(base).resolve(), Path(output)
    _check_same(library, base, output)
    loaded = open_base(base).load(device=pick_device(device), dtype=torch.float32)
    if loaded.tokenizer.eos_token_id is None:
        raise WorldError(
            f"The tokenizer in {base} has no EOS token, which ends each answer; give a base whose "
            "tokenizer has one."
        )
    total = sum(lesson.recipe.steps * lesson.recipe.batch_size for lesson in library.lessons)
    before = 0
    for lesson in library.lessons:
        train_adapter(
            loaded.model,
            loaded.tokenizer,
            lesson.examples,
            lesson.recipe,
            output / "adapters" / lesson.name,
            base_name=str(base),
            progress=_shifted(progress, before, lesson.recipe.batch_size, total),
        )
        before += lesson.recipe.steps * lesson.recipe.batch_size
    for name, items in library.tasks.items():
        write_tasks(output / "tasks" / f"{name}.jsonl", items)
    return _record(library, base, output)


def _shifted(
    report: ProgressCallback | None, before: int, size: int, total: int
) -> ProgressCallback | None:
    """Steps of one training as texts of all texts."""
    if report is None:
        return None
    return lambda stage, step, steps: report(stage, before + step * size, total)


def _check_same(library: Library, base: Path, output: Path) -> None:
    if not (output / MANIFEST).exists():
        return
    found = World.load(output)
    there = (found.manifest["kind"], found.seed, found.base_name)
    if there != (library.kind, library.seed, str(base)):
        raise WorldError(
            f"{output} holds the world {there[0]} of seed {there[1]} on {there[2]}; choose another "
            "directory, or remove that one."
        )


def _record(library: Library, base: Path, output: Path) -> World:
    return write_manifest(
        output,
        kind=library.kind,
        seed=library.seed,
        recipe={lesson.name: lesson.recipe.as_dict() for lesson in library.lessons},
        base={"path": None, "name": str(base)},
        adapters={
            lesson.name: {"path": f"adapters/{lesson.name}", "description": lesson.description}
            for lesson in library.lessons
        },
        scenarios=scenario_rows(library.trials),
    )
