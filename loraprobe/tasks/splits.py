"""Sets items of the tasks apart, from which something is learned or chosen, such as weights.

They serve nothing else: the parts share no `group` of items and no prompt. Without a group, items
with the same prompt count as one. In statistics each of them is a cluster of its own
(`Item.cluster`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from loraprobe.defaults import (
    APART_LEAST,
    APART_MOST,
    APART_SHARE,
    FEWEST_ITEMS,
    ROUTER_LEAST,
    ROUTER_MOST,
)
from loraprobe.errors import TaskError
from loraprobe.formatting import count
from loraprobe.options import Options
from loraprobe.tasks import Item, Task


@dataclass(frozen=True)
class TaskSplit:
    """Tasks in two parts that share no group and no prompt."""

    apart: tuple[Task, ...]
    left: tuple[Task, ...]

    @property
    def items(self) -> tuple[int, int]:
        """How many items were set apart, and how many are left."""
        apart, left = (sum(len(t.items) for t in part) for part in (self.apart, self.left))
        return apart, left

    @property
    def groups(self) -> int:
        """Groups of the part that was set apart."""
        return len({_group_of(item) for task in self.apart for item in task.items})


def split_for_weights(tasks: Sequence[Task], options: Options) -> TaskSplit:
    """Sets items apart on which weights are learned: whole groups, drawn by the seed.

    Raises TaskError where a task is too small to be split.
    """
    wanted = [min(APART_MOST, math.ceil(APART_SHARE * len(task.items))) for task in tasks]
    for task, number in zip(tasks, wanted, strict=True):
        if number < APART_LEAST:
            raise TaskError(
                f"Task {task.name} has {len(task.items)} items, too few to learn weights on a part "
                f"of them; give at least {int(APART_LEAST / APART_SHARE)}."
            )
    parts = drawn(tasks, wanted, options.seed)
    for task, number, left in zip(tasks, wanted, parts.left, strict=True):
        if groups_of(left) < 2:
            raise TaskError(
                f"Task {task.name} has {len(task.items)} items in {groups_of(task)} groups, so "
                f"nothing is left to judge by once {number} are set apart for --weights=learn; "
                "give more items."
            )
    return parts


def split_for_router(tasks: Sequence[Task], options: Options, adapters: int) -> TaskSplit | str:
    """Sets items apart for a router to learn from, or says why that cannot be.

    Every adapter needs a task of its own. Every task gives a quarter of its items, at most
    ROUTER_MOST, and has to keep FEWEST_ITEMS. With --weights learn the items of the weights serve
    the router too.
    """
    texts = [task.name for task in tasks if any(not item.answers for item in task.items)]
    if texts:
        return f"task {texts[0]} holds texts and no questions"
    if len(tasks) < adapters:
        few = f"{count(len(tasks), 'task')} for {count(adapters, 'adapter')}"
        return f"with {few} not every adapter has questions of its own"
    if options.learns:
        return split_for_weights(tasks, options)
    wanted = [min(ROUTER_MOST, math.ceil(APART_SHARE * len(task.items))) for task in tasks]
    parts = drawn(tasks, wanted, options.seed)
    for task, apart, left in zip(tasks, parts.apart, parts.left, strict=True):
        if len(apart.items) < ROUTER_LEAST or len(left.items) < FEWEST_ITEMS:
            return (
                f"task {task.name} has {len(task.items)} items in {groups_of(task)} groups, and "
                f"it takes {FEWEST_ITEMS + ROUTER_LEAST}"
            )
    return parts


def drawn(tasks: Sequence[Task], wanted: Sequence[int], seed: int) -> TaskSplit:
    """Sets at least the wanted number of items of each task apart, in whole groups."""
    groups = sorted({_group_of(item) for task in tasks for item in task.items})
    random.Random(f"search:{seed}").shuffle(groups)
    apart: set[str] = set()
    for task, number in zip(tasks, wanted, strict=True):
        own = [_group_of(item) for item in task.items]
        for group in groups:
            if sum(one in apart for one in own) >= number:
                break
            if group in own:
                apart.add(group)

    def part(task: Task, inside: bool) -> Task:
        items = (item for item in task.items if (_group_of(item) in apart) == inside)
        return replace(task, items=tuple(items))

    return TaskSplit(*(tuple(part(task, inside) for task in tasks) for inside in (True, False)))


def left_by(tasks: Sequence[Task], splits: Sequence[TaskSplit]) -> tuple[Task, ...]:
    """The items of the tasks that no split set apart.

    Several splits overlap where `drawn` made them, so that little is lost. Raises TaskError where
    nothing of a task is left.
    """
    taken = [{i.id for split in splits for i in split.apart[at].items} for at in range(len(tasks))]
    left = tuple(
        replace(task, items=tuple(item for item in task.items if item.id not in own))
        for task, own in zip(tasks, taken, strict=True)
    )
    for task, rest in zip(tasks, left, strict=True):
        if task.items and not rest.items:
            raise TaskError(
                f"All {count(len(task.items), 'item')} of task {task.name} are set apart to learn "
                "from; give more items."
            )
    return left


def groups_of(task: Task) -> int:
    """The number of groups of a task's items, which are never parted."""
    return len({_group_of(item) for item in task.items})


def _group_of(item: Item) -> str:
    """What an item stays together with: its group, or else its prompt, in any task."""
    return f"group:{item.group}" if item.group is not None else f"prompt:{item.prompt}"
