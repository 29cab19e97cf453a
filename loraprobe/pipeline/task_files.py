"""Tasks, probe files and prompt files as a user gives them; extensions have further tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loraprobe import hub
from loraprobe.adapters import Adapter
from loraprobe.defaults import LOSS
from loraprobe.errors import UsageError
from loraprobe.extension import task_source_of
from loraprobe.options import Options
from loraprobe.session import Cards, Ref, Tasks
from loraprobe.tasks import (
    ProbePrompts,
    Task,
    is_text,
    load_probe,
    load_task,
    load_text,
    with_metrics,
)


def open_tasks(tasks: Tasks, options: Options) -> list[Task]:
    """Reads one or several tasks; Task objects are accepted too. Raises LoraprobeError."""
    return open_tasks_and_guards(tasks, options)[0]


def open_tasks_and_guards(tasks: Tasks, options: Options) -> tuple[list[Task], list[Task]]:
    """The tasks, and the guards of the options. Raises LoraprobeError."""
    several = [tasks] if isinstance(tasks, (str, Path, Task)) else list(tasks)
    if options.guards and not several:
        raise UsageError("--guard says what a gain on a task may not cost; add --task=FILE.")
    each = options.for_each(several, options.guards)
    found, guards = list[Task](), list[Task]()
    for at, (one, own) in enumerate(zip((*several, *options.guards), each, strict=True)):
        into = found if at < len(several) else guards
        into += open_reference(one, own, guard=into is guards)
    every = with_metrics([*found, *guards], options.metric)
    found, guards = every[: len(found)], every[len(found) :]
    _check_losses(found, options.margin)
    for at, guard in enumerate(guards):
        for others, flag in ((found, "--task"), (guards[:at], "--guard")):
            if any(guard.name == one.name or guard.items == one.items for one in others):
                raise UsageError(
                    f"The guard {guard.name} is also given by {flag}:",
                    "give what nothing else asks, or rename the file.",
                )
    return found, guards


def open_reference(one: Any, options: Options, guard: bool = False) -> Sequence[Task]:
    """The tasks of a reference. options: for it. guard: a file may also be a text.

    Raises LoraprobeError, UsageError for weights to learn from questions that something else asks.
    """
    if isinstance(one, Task):
        return [one]
    if not isinstance(one, (str, Path)):
        raise UsageError(
            f"{'guards' if guard else 'tasks'} takes files and tasks, not {one!r:.60}."
        )
    if guard and is_text(str(one)):  # which is judged by its loss
        return [load_text(str(one), options.limit)]
    source = task_source_of(str(one), options)
    if source is None:
        return [load_task(str(one), options.limit)]
    if source.asks and options.learns and not guard:
        raise UsageError(f"--weights=learn cannot be used with {one}:", "give a task file (JSONL).")
    return source.open(str(one), options)


def _check_losses(tasks: Sequence[Task], margin: float | None) -> None:
    """Raises UsageError where losses by an `Examiner` have no margin, or stand beside shares."""
    if not any(task.examiner for task in tasks):
        return
    losses = [task.name for task in tasks if any(item.metric == LOSS for item in task.items)]
    shares = [task.name for task in tasks if task.name not in losses]
    if losses and shares:
        raise UsageError(
            f"Task {losses[0]} is judged by a loss and {shares[0]} by a share, so they have no "
            "common mean:",
            "give them in two runs, or choose metrics by --metric=TASK=METRIC.",
        )
    if losses and margin is None:
        raise UsageError(
            f"Task {losses[0]} is judged by a loss in nats, so it needs --margin; give the loss "
            "difference that matters."
        )


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
