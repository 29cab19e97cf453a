"""Sets items of the tasks apart by which a screen chooses."""

from __future__ import annotations

from collections.abc import Sequence

from loraprobe.defaults import FEWEST_ITEMS
from loraprobe.errors import TaskError
from loraprobe.extensions.screen import ScreenOptions
from loraprobe.extensions.screen.defaults import ALONE_LEAST
from loraprobe.options import Options
from loraprobe.pipeline.plan import Sources, with_sources
from loraprobe.tasks import Task
from loraprobe.tasks.splits import TaskSplit, drawn, groups_of


def split_for_screening(tasks: Sequence[Task], options: Options) -> tuple[TaskSplit, Sources]:
    """Sets `--items` items of each task apart to choose by; the others prove the choice.

    Of what other extensions make of items (`SystemSource`), these prove nothing either; by one seed
    they are mostly those that choose. Raises TaskError where fewer than FEWEST_ITEMS groups are
    left to prove it.
    """
    items = options.of_extension(ScreenOptions).items
    parts = drawn(tasks, [items] * len(tasks), options.seed)
    sources, rest = with_sources(tasks, parts, options)
    for task, left in zip(tasks, rest, strict=True):
        if groups_of(left) < FEWEST_ITEMS:
            grouped = "" if groups_of(task) == len(task.items) else f" in {groups_of(task)} groups"
            needed = len(task.items) - len(left.items)
            flags = "".join(f" and for {source.flag}" for source, _ in sources)
            raise TaskError(
                f"Task {task.name} has {len(task.items)} items{grouped}: {needed} are "
                f"needed to choose by{flags}, and {FEWEST_ITEMS} others to prove the choice.",
                f"Give at least {needed + FEWEST_ITEMS} items, or fewer --items.",
            )
    return TaskSplit(parts.apart, rest), sources


def halves(tasks: Sequence[Task], options: Options) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """The items that choose: those that base and adapters answer alone, and those of sums of sets.

    The parts share no group. The first has half of `--items`, and at least ALONE_LEAST. There is
    no second part where a task has no items left for it.
    """
    items = max(ALONE_LEAST, options.of_extension(ScreenOptions).items // 2)
    parts = drawn(tasks, [items] * len(tasks), options.seed)
    return (parts.apart, parts.left) if all(t.items for t in parts.left) else (tuple(tasks), ())
