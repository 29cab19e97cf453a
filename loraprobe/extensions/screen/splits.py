"""Sets items of the tasks apart by which a screen chooses."""

from __future__ import annotations

from collections.abc import Sequence

from loraprobe.defaults import FEWEST_ITEMS
from loraprobe.errors import TaskError
from loraprobe.extensions.screen import ScreenOptions
from loraprobe.extensions.screen.defaults import ALONE_LEAST
from loraprobe.options import Options
from loraprobe.tasks import Task
from loraprobe.tasks.splits import TaskSplit, drawn, groups_of


def split_for_screening(tasks: Sequence[Task], options: Options) -> TaskSplit:
    """Sets `--items` items of each task apart to choose by; the others prove the choice.

    Raises TaskError where fewer than FEWEST_ITEMS groups are left to prove it.
    """
    items = options.of_extension(ScreenOptions).items
    parts = drawn(tasks, [items] * len(tasks), options.seed)
    for task, apart, left in zip(tasks, parts.apart, parts.left, strict=True):
        if groups_of(left) < FEWEST_ITEMS:
            grouped = "" if groups_of(task) == len(task.items) else f" in {groups_of(task)} groups"
            raise TaskError(
                f"Task {task.name} has {len(task.items)} items{grouped}: {len(apart.items)} are "
                f"needed to choose by, and {FEWEST_ITEMS} others to prove the choice.",
                f"Give at least {items + FEWEST_ITEMS} items, or fewer --items.",
            )
    return parts


def halves(tasks: Sequence[Task], options: Options) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """The items that choose: those that base and adapters answer alone, and those of sums of sets.

    The parts share no group. The first has half of `--items`, and at least ALONE_LEAST. There is
    no second part where a task has no items left for it.
    """
    items = max(ALONE_LEAST, options.of_extension(ScreenOptions).items // 2)
    parts = drawn(tasks, [items] * len(tasks), options.seed)
    return (parts.apart, parts.left) if all(t.items for t in parts.left) else (tuple(tasks), ())
