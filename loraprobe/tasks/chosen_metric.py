"""Which metric judges an item.

The item's own key `metric` is chosen before `--metric NAME=metric` of its task, and that before
`--metric metric` for all tasks. Without any, an item with choices has `choice`; for the others the
gold answers of the task decide (`auto_metric`). `answer_loss` is for all tasks at once: a loss and
a share do not go into one mean.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import regex

from loraprobe.defaults import LOSS, SPOILED
from loraprobe.errors import TaskError, UsageError
from loraprobe.formatting import nearest
from loraprobe.tasks.items import Item, Task
from loraprobe.tasks.metrics import METRICS, is_amount, is_structure, normalize_answer

AUTO = "auto"  # of --metric: the gold answers decide
_NORMAL_NUMBER = regex.compile(r"-?\d+(\.\d+)?")  # so that "5,600" is "5600"
# Signs of formal languages; those that prose has as well say nothing.
_FORMAL = frozenset(string.punctuation) - frozenset(".,;:!?'\"()-/&%$")


def item_metrics() -> list[str]:
    """The metrics that an item may name; a loss is for all tasks at once."""
    return [name for name in METRICS if name != LOSS]


def given_metric(task: str, metric: str | None) -> str | None:
    """What `--metric` gives for a task; None where its gold answers choose (AUTO)."""
    for_all, by_task = named_metrics(metric)
    given = by_task.get(task, for_all)
    return None if given == AUTO else given


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
    if LOSS in by_task.values() or (for_all == LOSS and by_task):
        raise UsageError("--metric=answer_loss is for all tasks at once: give no other metric.")
    return for_all, by_task


def with_metrics(tasks: Sequence[Task], metric: str | None) -> list[Task]:
    """The tasks whose items all say how they are judged. metric: the text of `--metric`.

    A task that has its metric already is returned as it is. Raises UsageError for an unknown metric
    or one of no task, TaskError for answers that a metric cannot use.
    """
    for_all, by_task = named_metrics(metric)
    if for_all not in (None, AUTO, *METRICS) and not any(task.of_harness for task in tasks):
        raise UsageError(f"Unknown metric {for_all!r}: {nearest(str(for_all), METRICS)}")
    names = [task.name for task in tasks]
    for name in by_task:
        if name not in names:
            raise UsageError(f"--metric names the task {name!r}: {nearest(name, names)}")
    return [_with_metric(task, given_metric(task.name, metric)) for task in tasks]


def judged_by(task: Task, metric: str) -> Task:
    """The task with all items judged by one metric."""
    return replace(task, items=tuple(replace(item, metric=metric) for item in task.items))


def _with_metric(task: Task, given: str | None) -> Task:
    if task.metric:
        return task
    needs, why = auto_metric(task)
    items = []
    for item in task.items:
        chosen = _metric_of(item, task.name, given, needs)
        if chosen in METRICS:  # lm-evaluation-harness judges by others
            try:
                METRICS[chosen].check(item.answers, item.answer_pattern)
            except TaskError as error:
                raise TaskError(f"Task {task.name}, item {item.id!r}: {error}") from None
        items.append(replace(item, metric=chosen))
    named = sorted({item.judge for item in items})
    return replace(task, items=tuple(items), metric="+".join(named), needs=needs, why=why)


def _metric_of(item: Item, task: str, given: str | None, needs: str) -> str:
    """The metric of an item. given: that of its task; needs: what the gold answers need."""
    if item.metric is not None and (item.source is not None or not item.prompt):
        return item.metric
    if given == LOSS:
        return LOSS
    chosen = item.metric or given or ("choice" if item.choices else needs)
    known = item_metrics()
    if chosen not in known:
        raise UsageError(
            f"Unknown metric {chosen!r} of item {item.id!r} of task {task}: "
            f"{nearest(chosen, known)}"
        )
    if chosen == "choice" and not item.choices:
        raise UsageError(
            f"Metric choice needs choices, and item {item.id!r} of task {task} has none; "
            "add them, or leave --metric=choice out."
        )
    return chosen


def auto_metric(task: Task) -> tuple[str, str]:
    """The metric that the gold answers of a task need, and why; "" where exact match drops nothing.

    Items with choices or another metric of their own do not count. `json` if all answers are JSON
    objects or lists; `numeric` if all are numbers; `strict` if exact match drops what more than
    SPOILED of the items need: signs of a formal language, such as "C#", or what an answer differs
    by from a commoner one of the same words.
    """
    items = [item for item in task.items if _by_gold(item)]
    every = [answer for item in items for answer in item.answers]
    if every and all(map(is_structure, every)):
        return "json", "all gold answers are JSON objects or lists"
    if every and all(map(is_amount, every)):
        return "numeric", "all gold answers are numbers"
    lost, example = _lost([item.answers[0].strip() for item in items])
    why = f"exact_match drops what matters in {lost:,} of {len(items):,} gold answers ({example})"
    return "strict" if lost > SPOILED * len(items) else "exact_match", why if lost else ""


def _by_gold(item: Item) -> bool:
    """Whether the gold answer of an item may decide its metric."""
    return item.metric in (None, "exact_match") and not (item.choices or item.source)


def _lost(golds: Sequence[str]) -> tuple[int, str]:
    """How many answers hold what exact match drops although it tells them apart, and an example."""
    forms: dict[str, Counter[str]] = {}
    for gold in golds:
        forms.setdefault(normalize_answer(gold), Counter())[gold] += 1
    lost, examples = 0, [""]
    for plain, spelled in forms.items():
        first, *others = (gold for gold, _ in spelled.most_common())
        formal = [g for g in spelled if _FORMAL & set(g) and plain != g.lower()]
        others = [] if _NORMAL_NUMBER.fullmatch(plain) else others
        examples += [repr(gold[:40]) for gold in formal]
        examples += [f"{first[:40]!r} and {other[:40]!r}" for other in others]
        lost += sum(spelled[gold] for gold in {*formal, *others})
    return lost, examples[-1]
