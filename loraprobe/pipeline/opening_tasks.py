"""The tasks of a command: files and data sets of the Hub, and tasks of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loraprobe import hub
from loraprobe.command_options import LAYOUT
from loraprobe.errors import UsageError
from loraprobe.formatting import count
from loraprobe.options import Options
from loraprobe.tasks import Layout, Task, load_task, read_task
from loraprobe.tasks.harness import check_losses, is_harness, load_harness


def open_tasks(
    tasks: Sequence[Task | str | Path] | Task | str | Path, options: Options
) -> list[Task]:
    """Reads one or several tasks; Task objects are accepted too. Raises LoraprobeError."""
    several = [tasks] if isinstance(tasks, (str, Path, Task)) else list(tasks)
    found: list[Task] = []
    for one, layout in zip(several, _layouts(options, len(several)), strict=True):
        if isinstance(one, Task):
            found.append(one)
        elif is_harness(one):
            found += _of_harness(str(one), options, layout)
        else:
            found.append(_open(one, options.limit, layout))
    check_losses(found, options.metric, options.margin)
    return found


def _of_harness(task: str, options: Options, layout: Layout) -> list[Task]:
    """Raises UsageError for options that need questions which loraprobe asks itself."""
    for flag, given in (
        ("--weights search", options.weights == "search"),
        ("--fields and the templates", layout != Layout()),
    ):
        if given:
            raise UsageError(f"{flag} cannot be used with {task}: give a task file (JSONL).")
    return load_harness(
        task,
        options.limit,
        metric=options.metric,
        max_new_tokens=options.max_new_tokens,
        run_unsafe_code=options.run_unsafe_code,
    )


def _open(task: str | Path, limit: int | None, layout: Layout) -> Task:
    if not str(task).startswith(hub.DATASET):
        return load_task(task, limit, layout)
    found = hub.resolve_dataset(str(task))
    source = Task(found.name, (), found.reference, commit=found.commit)
    return read_task(found.files, source, limit, layout)


def _layouts(options: Options, tasks: int) -> list[Layout]:
    """The layout of each task: an option given once is for all, else for the tasks in order."""
    rows = []
    for name in LAYOUT.split():
        texts, flag = getattr(options, name), "--" + name.replace("_", "-")
        if texts and not tasks:
            raise UsageError(f"{flag} says how a task is read; add --task FILE.")
        if len(texts) not in (0, 1, tasks):
            raise UsageError(
                f"{flag} is given {len(texts)} times for {count(tasks, 'task')}; give it once for "
                "all, or once for each in order ('' where a task needs none)."
            )
        rows.append([*(texts or [""])] * (1 if len(texts) > 1 else tasks))
    return [Layout.of(*texts) for texts in zip(*rows, strict=True)]
