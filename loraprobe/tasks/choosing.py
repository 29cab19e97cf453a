"""Which metric judges an item, and answers that a metric cannot tell apart.

The item's own key `metric` is chosen before `--metric NAME=metric` of its task, and that before
`--metric metric` for all tasks. Without any, an item with choices has `choice`, every other
`exact_match`. `answer_loss` is for all tasks at once: a loss and a share do not go into one mean.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import cast

from loraprobe.errors import TaskError, UsageError
from loraprobe.formatting import nearest
from loraprobe.tasks.answers import normalize_answer
from loraprobe.tasks.items import Item, Task
from loraprobe.tasks.metrics import GENERATED, METRICS, Metric, check_answers, json_at_start

ITEM_METRICS: tuple[Metric, ...] = (*GENERATED, "choice")

_NUMBER = re.compile(r"-?\d+(\.\d+)?")  # normalised, so that "5,600" is "5600"
# Signs of formal languages; those that prose has as well say nothing.
_FORMAL = frozenset(string.punctuation) - frozenset(".,;:!?'\"()-/&%$")


def item_metric(item: Item, task: str, metric: str | None = None) -> Metric:
    """The metric of an item's composed question. metric: the text of `--metric`.

    Raises UsageError for an unknown metric, and for "choice" if the item has no choices.
    """
    if item.source is not None and item.metric is not None:
        return cast(Metric, item.metric)
    for_all, by_task = named_metrics(metric)
    if for_all == "answer_loss":
        return "answer_loss"
    chosen = item.metric or by_task.get(task) or for_all
    if chosen is None:
        return "choice" if item.choices else "exact_match"
    if item.metric is not None and item.metric not in ITEM_METRICS:
        raise UsageError(
            f"Unknown metric {chosen!r} of item {item.id!r}: {nearest(chosen, ITEM_METRICS)}"
        )
    if chosen not in METRICS:
        raise _unknown(chosen)
    if chosen == "choice" and not item.choices:
        raise UsageError(
            f"Metric choice needs choices, and item {item.id!r} of task {task} has none; "
            "add them, or leave --metric choice out."
        )
    return chosen


def named_metrics(metric: str | None) -> tuple[str | None, dict[str, str]]:
    """The metric for all tasks, and those of single tasks, from "json" or "a=json,b=strict".

    Tasks of lm-evaluation-harness have metrics of their own, so names are not checked here. Raises
    UsageError for several metrics of one task or of all, and for "answer_loss" beside others.
    """
    for_all: str | None = None
    by_task: dict[str, str] = {}
    for entry in metric.split(",") if metric else ():
        task, _, name = entry.rpartition("=")
        if by_task.get(task, for_all if not task else None) is not None:
            raise UsageError(f"--metric names two metrics for {task or 'all tasks'}; give one.")
        if task:
            by_task[task] = name
        else:
            for_all = name
    if "answer_loss" in by_task.values() or (for_all == "answer_loss" and by_task):
        raise UsageError("--metric answer_loss is for all tasks at once: give no other metric.")
    return for_all, by_task


def check_metrics(tasks: Sequence[Task], metric: str | None) -> None:
    """Raises UsageError for an unknown metric or one of no task, TaskError for unfit answers."""
    for_all, by_task = named_metrics(metric)
    if for_all not in (None, *METRICS) and not any(task.of_harness for task in tasks):
        raise _unknown(for_all)
    for name in by_task:
        if name not in (known := [task.name for task in tasks]):
            raise UsageError(f"--metric names the task {name!r}: {nearest(name, known)}")
    for task in tasks:
        for item in task.items:
            try:
                own = item_metric(item, task.name, metric)
                check_answers(own, item.answers, item.answer_pattern)
            except TaskError as error:
                raise TaskError(f"Task {task.name}, item {item.id!r}: {error}") from None


def _unknown(metric: str | None) -> UsageError:
    return UsageError(f"Unknown metric {metric!r}: {nearest(str(metric), METRICS)}")


def stricter_metric(task: Task, metric: str | None) -> tuple[Metric, str] | None:
    """The metric that sees what `exact_match` drops from a task's answers, and an example.

    The first that applies: answers are JSON objects or lists; they hold signs of a formal language,
    such as "C#"; two of them that differ count as equal. None where nothing is lost.
    """
    golds = list(
        dict.fromkeys(
            item.answers[0].strip()
            for item in task.items
            if item_metric(item, task.name, metric) == "exact_match"
        )
    )
    for gold in golds:
        if gold.startswith(("{", "[")) and json_at_start(gold) is not None:
            return "json", repr(gold[:40])
    for gold in golds:
        if _FORMAL & set(gold) and normalize_answer(gold) != gold.lower():
            return "strict", repr(gold[:40])
    seen: dict[str, str] = {}
    for gold in golds:
        plain = normalize_answer(gold)
        other = seen.setdefault(plain, gold)
        if other != gold and not _NUMBER.fullmatch(plain):
            return "strict", f"{other[:40]!r} and {gold[:40]!r}"
    return None


def is_generated(metric: str) -> bool:
    """Whether a score's metric, or one of several joined by "+", judges generated texts."""
    return not set(GENERATED).isdisjoint(metric.split("+"))
