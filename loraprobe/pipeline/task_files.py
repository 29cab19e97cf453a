"""Task files, probe files and prompt files as a user gives them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loraprobe import hub
from loraprobe.adapters import Adapter
from loraprobe.defaults import HARNESS
from loraprobe.errors import UsageError
from loraprobe.formatting import count
from loraprobe.options import Options
from loraprobe.session import Cards, Ref, Tasks
from loraprobe.tasks import (
    FieldMap,
    ProbePrompts,
    Task,
    is_text,
    load_probe,
    load_task,
    load_text,
    read_task,
    with_metrics,
)
from loraprobe.tasks.harness import check_losses, load_harness


def open_tasks(tasks: Tasks, options: Options) -> list[Task]:
    """Reads one or several tasks; Task objects are accepted too. Raises LoraprobeError."""
    return open_guarded(tasks, options)[0]


def open_guarded(tasks: Tasks, options: Options) -> tuple[list[Task], list[Task]]:
    """The tasks, and the guards of the options. Raises LoraprobeError."""
    several = [tasks] if isinstance(tasks, (str, Path, Task)) else list(tasks)
    if options.guards and not several:
        raise UsageError("--guard says what a gain on a task may not cost; add --task=FILE.")
    layouts = _layouts(options, len(several), len(options.guards))
    found, guards = list[Task](), list[Task]()
    for at, (one, layout) in enumerate(zip((*several, *options.guards), layouts, strict=True)):
        into = found if at < len(several) else guards
        into += _open(one, options, layout, guard=into is guards)
    every = with_metrics([*found, *guards], options.metric)
    found, guards = every[: len(found)], every[len(found) :]
    check_losses(found, options.margin)
    for at, guard in enumerate(guards):
        for others, flag in ((found, "--task"), (guards[:at], "--guard")):
            if any(guard.name == one.name or guard.items == one.items for one in others):
                raise UsageError(
                    f"The guard {guard.name} is also given by {flag}: give what nothing else asks, "
                    "or rename the file."
                )
    return found, guards


def _open(one: Any, options: Options, layout: FieldMap, guard: bool) -> list[Task]:
    """The task of a reference; several of the harness. guard: a file may also be a text."""
    if isinstance(one, Task):
        return [one]
    if not isinstance(one, (str, Path)):
        raise UsageError(
            f"{'guards' if guard else 'tasks'} takes files and tasks, not {one!r:.60}."
        )
    if str(one).startswith(HARNESS):
        return _of_harness(str(one), options, layout, guard)
    if guard and is_text(one):
        return [load_text(one, options.limit)]
    if not str(one).startswith(hub.DATASET):
        return [load_task(one, options.limit, layout)]
    from loraprobe.hub.datasets import resolve_dataset

    found = resolve_dataset(str(one))
    source = Task(found.name, (), found.reference, commit=found.commit)
    return [read_task(found.files, source, options.limit, layout)]


def _of_harness(task: str, options: Options, layout: FieldMap, guard: bool) -> list[Task]:
    """Raises UsageError for options that need questions which loraprobe asks itself."""
    for flag, given in (
        ("--weights=learn", options.learns and not guard),
        ("--fields", layout != FieldMap()),
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


def _layouts(options: Options, tasks: int, guards: int) -> list[FieldMap]:
    """The layout of each task, then of each guard.

    --fields given once is for all tasks, else for the tasks in order, after which guards may have
    theirs.
    """
    texts = options.fields
    if texts and not tasks:
        raise UsageError("--fields says how a task is read; add --task=FILE.")
    if len(texts) not in (0, 1, tasks, tasks + guards):
        raise UsageError(
            f"--fields is given {len(texts)} times for {count(tasks, 'task')}; give it once for "
            "all, or once for each in order ('' where a task needs none)."
        )
    own = texts * tasks if len(texts) == 1 else texts
    return [FieldMap.of(text) for text in (*own, *[""] * (tasks + guards - len(own)))]


def open_probe(
    probe: ProbePrompts | Ref | None, adapters: Sequence[Adapter]
) -> ProbePrompts | Cards | None:
    """A probe file read; for "auto" the adapters' model cards, from which it is made."""
    if probe == "auto":
        return {adapter.name: hub.model_card(adapter) for adapter in adapters}
    if isinstance(probe, (str, Path)):
        return load_probe(probe) if probe else None
    return probe


def read_prompts(file: Path) -> list[str]:
    """The lines of a prompt file that are not blank. Raises UsageError if there are none."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--router-prompts: {file} cannot be read as UTF-8 ({error}); save it as UTF-8."
        ) from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"--router-prompts: {file} holds no prompt; write one a line.")
    return list(dict.fromkeys(lines))
