"""Tasks of lm-evaluation-harness: `lm_eval:TASK[,TASK]`, and `lm_eval:TASK@DIR` for own YAML files.

The package lm-eval loads the tasks, writes their prompts, filters replies and judges them. A
`HarnessTask` here tells which requests belong to an item and turns what the harness says of it into
one value: a share in [0, 1], or a loss under the metric "answer_loss".

Of a task's metrics the first that is a mean over items counts, shares before losses, unless
`--metric TASK=METRIC` or `TASK=METRIC:FILTER` names another. A perplexity is the exponential of a
mean of losses: nats a word or a byte, where a longer text counts more, as in the harness.

A group with one score over all items of its subtasks (its `aggregate_metric_list` weighs by size)
is one task with all these items. Other groups and tags are only names for several tasks, whose
plain mean decides here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from loraprobe.defaults import HARNESS
from loraprobe.errors import TaskError, UsageError
from loraprobe.formatting import listing, nearest
from loraprobe.tasks.choosing import given_metric, item_metric
from loraprobe.tasks.harness_task import HarnessTask, explained, quiet
from loraprobe.tasks.items import Task


def is_harness(reference: object) -> bool:
    """Whether a reference to a task names one of lm-evaluation-harness."""
    return isinstance(reference, (str, Path)) and str(reference).startswith(HARNESS)


def load_harness(
    reference: str,
    limit: int | None = None,
    *,
    metric: str | None = None,
    max_new_tokens: int | None = None,
    run_unsafe_code: bool = False,
) -> list[Task]:
    """The tasks of a reference, with their data; limit: only the first items of every subtask.

    metric: the text of `--metric`. run_unsafe_code: a folder of YAML files may be read, which can
    run any code, and a task may run what a model writes. Raises UsageError for an unknown name, for
    code that is not confirmed, and without lm-eval; TaskError for a task that cannot be loaded, or
    that has no metric which is a mean over items.
    """
    names, _, folder = reference.removeprefix(HARNESS).partition("@")
    if folder and not run_unsafe_code:
        raise UsageError(
            f"The YAML files in {folder} can run any code on this machine when lm-eval reads them: "
            "add --run-unsafe-code if you trust whoever wrote them."
        )
    place = f"@{Path(folder).resolve().name}" if folder else ""
    with quiet():
        manager, tasks = _manager(folder), list[Task]()
        for name in filter(None, names.split(",")):
            if name not in manager.all_tasks:
                raise _unknown(name, manager.all_tasks, folder)
            with explained(name, "cannot be loaded", "check its YAML and the place of its data"):
                loaded = manager.load([name])
            group = loaded["groups"].get(name)
            for title, leaves, counted in _separate([group] if group else loaded["tasks"].values()):
                parts = [HarnessTask(one, limit, max_new_tokens, run_unsafe_code) for one in leaves]
                _choose(title, parts, counted, metric)
                items = [item for part in parts for item in part.items(len(parts) > 1)]
                digest = sha256(f"{[*map(str, parts)]} {items}".encode()).hexdigest()
                tasks.append(Task(title, tuple(items), f"{HARNESS}{title}{place}", digest))
    if not tasks:
        raise UsageError(
            f"{reference} names no task: write {HARNESS}TASK, such as lm_eval:arc_easy."
        )
    return tasks


def check_losses(tasks: Sequence[Task], metric: str | None, margin: float | None) -> None:
    """Raises UsageError where losses of the harness have no margin, or stand beside shares."""
    if not any(task.of_harness for task in tasks):
        return
    losses = [
        task.name
        for task in tasks
        if any(item_metric(item, task.name, metric) == "answer_loss" for item in task.items)
    ]
    shares = [task.name for task in tasks if task.name not in losses]
    if losses and shares:
        raise UsageError(
            f"Task {losses[0]} is judged by a loss and {shares[0]} by a share, so they have no "
            "common mean: give them in two runs, or choose metrics by --metric TASK=METRIC."
        )
    if losses and margin is None:
        raise UsageError(
            f"Task {losses[0]} is judged by a loss in nats, so it needs --margin; give the loss "
            "difference that matters."
        )


def _choose(
    title: str, parts: Sequence[HarnessTask], counted: Sequence[str] | None, metric: str | None
) -> None:
    """Chooses the metric by which the parts of a task are judged. counted: those of a group."""
    readings = [part.readings() for part in parts]
    wanted = given_metric(title, metric)
    known = [
        key
        for key in readings[0]
        if (counted is None or key[0] in counted) and all(key in found for found in readings)
    ]
    named = [key for key in known if wanted in (None, key[0], ":".join(key))]
    if wanted is not None and not named:
        names = list(dict.fromkeys(key[0] for key in known))
        raise UsageError(f"Task {title} has no metric {wanted!r}: {nearest(wanted, names)}")
    usable = [key for key in named if all(found[key][0] for found in readings)]
    if not usable:
        names = list(dict.fromkeys(key[0] for key in named))
        raise TaskError(
            f"Task {title} is judged by {listing(names) or 'nothing'}, which is no mean over its "
            "items, so answers cannot be compared item by item: choose another metric by --metric, "
            "or name one such as exact_match in metric_list of its YAML."
        )
    chosen = min(usable, key=lambda key: readings[0][key][1])  # the first share, else a loss
    for part, found in zip(parts, readings, strict=True):
        read, loss = found[chosen]
        part.key, part.loss, part.read = chosen, loss, read or float


def _separate(
    things: Iterable[Any],
) -> Iterator[tuple[str, list[Any], Sequence[str] | None]]:
    """Each task's name, its leaves, and the metrics that a group counts (None without a group)."""
    for thing in things:
        if not hasattr(thing, "get_all_tasks"):
            yield thing.task_name, [thing], None
        elif (found := thing.aggregate_metric_list) and all(one.weight_by_size for one in found):
            yield thing.name, thing.get_all_tasks(), [one.metric for one in found]
        else:
            yield from _separate(thing)


def _manager(folder: str) -> Any:
    """lm-eval's index of the tasks in a folder, or of its own; these take some seconds to list."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        TaskManager = None
    if TaskManager is None or not hasattr(TaskManager, "load"):
        raise UsageError(
            "Tasks of lm-evaluation-harness need lm-eval 0.4.13 or later: pip install "
            '"loraprobe[lm-eval]".'
        )
    if folder and not Path(folder).is_dir():
        raise UsageError(
            f"There is no directory {folder} with YAML files of tasks: check the path."
        )
    return TaskManager(include_path=folder or None, include_defaults=not folder)


def _unknown(name: str, known: Sequence[str], folder: str) -> UsageError:
    others = "lm_eval ls tasks lists them, and lm_eval:TASK@DIR takes your own."
    if folder:
        others = "" if known else "check the folder, it has no task."
    hint = nearest(name, known, others)
    return UsageError(f"{folder or 'lm-evaluation-harness'} has no task {name!r}: {hint}")
