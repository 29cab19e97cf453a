"""Task files, probe files and prompt files as a user gives them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loraprobe import hub
from loraprobe.adapters import Adapter
from loraprobe.defaults import HARNESS
from loraprobe.errors import UsageError
from loraprobe.formatting import count
from loraprobe.options import TASK_FIELDS, Options, flag_of
from loraprobe.pipeline.session import Cards, Ref, Tasks
from loraprobe.tasks import (
    FieldMap,
    ProbePrompts,
    Task,
    check_metrics,
    load_probe,
    load_task,
    read_task,
    with_metric,
)
from loraprobe.tasks.harness import check_losses, load_harness


def open_tasks(tasks: Tasks, options: Options) -> list[Task]:
    """Reads one or several tasks; Task objects are accepted too. Raises LoraprobeError."""
    several = [tasks] if isinstance(tasks, (str, Path, Task)) else list(tasks)
    opened: list[Task] = []
    for given, layout in zip(several, _layouts(options, len(several)), strict=True):
        if isinstance(given, Task):
            opened.append(given)
        elif str(given).startswith(HARNESS):
            opened += _of_harness(str(given), options, layout)
        else:
            opened.append(_open(given, options.limit, layout))
    check_losses(opened, options.metric, options.margin)
    check_metrics(opened, options.metric)
    return [with_metric(task, options.metric) for task in opened]


def _of_harness(task: str, options: Options, layout: FieldMap) -> list[Task]:
    """Raises UsageError for options that need questions which loraprobe asks itself."""
    for flag, given in (
        ("--weights=learn", options.learns),
        ("--fields and the template", layout != FieldMap()),
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


def _open(task: str | Path, limit: int | None, layout: FieldMap) -> Task:
    if not str(task).startswith(hub.DATASET):
        return load_task(task, limit, layout)
    from loraprobe.hub.datasets import resolve_dataset

    dataset = resolve_dataset(str(task))
    source = Task(
        dataset.name, (), dataset.reference, commit=dataset.commit, benchmark=dataset.benchmark
    )
    return read_task(dataset.files, source, limit, layout)


def _layouts(options: Options, tasks: int) -> list[FieldMap]:
    """The layout of each task: an option given once is for all, else for the tasks in order."""
    rows = []
    for name in TASK_FIELDS:
        texts, flag = getattr(options, name), flag_of(name)
        if texts and not tasks:
            raise UsageError(f"{flag} says how a task is read; add --task=FILE.")
        if len(texts) not in (0, 1, tasks):
            raise UsageError(
                f"{flag} is given {len(texts)} times for {count(tasks, 'task')}; give it once for "
                "all, or once for each in order ('' where a task needs none)."
            )
        rows.append([*(texts or [""])] * (1 if len(texts) > 1 else tasks))
    return [FieldMap.of(*texts) for texts in zip(*rows, strict=True)]


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
