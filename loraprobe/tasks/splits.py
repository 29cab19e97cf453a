"""Sets items of the tasks apart, from which weights, routers and the choice of a screen are made.

They serve nothing else: the parts share no cluster and no prompt.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from loraprobe.defaults import (
    ALONE_LEAST,
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
    """Tasks in two parts that share no cluster and no prompt."""

    apart: tuple[Task, ...]
    left: tuple[Task, ...]

    @property
    def items(self) -> tuple[int, int]:
        """How many items were set apart, and how many are left."""
        apart, left = (sum(len(t.items) for t in part) for part in (self.apart, self.left))
        return apart, left

    @property
    def clusters(self) -> int:
        """Clusters of the part that was set apart."""
        return len({_key(item) for task in self.apart for item in task.items})


def split_for_weights(tasks: Sequence[Task], options: Options) -> TaskSplit:
    """Sets items apart on which weights are learned: whole clusters, drawn by the seed.

    Raises TaskError where a task is too small to be split.
    """
    wanted = [min(APART_MOST, math.ceil(APART_SHARE * len(task.items))) for task in tasks]
    for task, number in zip(tasks, wanted, strict=True):
        if number < APART_LEAST:
            raise TaskError(
                f"Task {task.name} has {len(task.items)} items, too few to learn weights on a part "
                f"of them; give at least {int(APART_LEAST / APART_SHARE)}."
            )
    parts = _drawn(tasks, wanted, options.seed)
    for task, number, left in zip(tasks, wanted, parts.left, strict=True):
        if _clusters(left) < 2:
            raise TaskError(
                f"Task {task.name} has {len(task.items)} items in {_clusters(task)} clusters, so "
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
    parts = _drawn(tasks, wanted, options.seed)
    for task, apart, left in zip(tasks, parts.apart, parts.left, strict=True):
        if len(apart.items) < ROUTER_LEAST or len(left.items) < FEWEST_ITEMS:
            return (
                f"task {task.name} has {len(task.items)} items in {_clusters(task)} clusters, and "
                f"it takes {FEWEST_ITEMS + ROUTER_LEAST}"
            )
    return parts


def split_for_screening(tasks: Sequence[Task], options: Options) -> TaskSplit:
    """Sets `--items` items of each task apart to choose by; the others prove the choice.

    Raises TaskError where fewer than FEWEST_ITEMS clusters are left to prove it.
    """
    parts = _drawn(tasks, [options.items] * len(tasks), options.seed)
    for task, apart, left in zip(tasks, parts.apart, parts.left, strict=True):
        if _clusters(left) < FEWEST_ITEMS:
            grouped = "" if _clusters(task) == len(task.items) else f" in {_clusters(task)} groups"
            raise TaskError(
                f"Task {task.name} has {len(task.items)} items{grouped}: {len(apart.items)} are "
                f"needed to choose by, and {FEWEST_ITEMS} others to prove the choice. Give at "
                f"least {options.items + FEWEST_ITEMS} items, or fewer --items."
            )
    return parts


def halves(tasks: Sequence[Task], options: Options) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """The items that choose: those that base and adapters answer alone, and those of sums of sets.

    The parts share no cluster. The first has half of `--items`, and at least ALONE_LEAST. There is
    no second part where a task has no items left for it.
    """
    parts = _drawn(tasks, [max(ALONE_LEAST, options.items // 2)] * len(tasks), options.seed)
    return (parts.apart, parts.left) if all(t.items for t in parts.left) else (tuple(tasks), ())


def _drawn(tasks: Sequence[Task], wanted: Sequence[int], seed: int) -> TaskSplit:
    """Sets at least the wanted number of items of each task apart, in whole clusters."""
    keys = sorted({_key(item) for task in tasks for item in task.items})
    random.Random(f"search:{seed}").shuffle(keys)
    apart: set[str] = set()
    for task, number in zip(tasks, wanted, strict=True):
        item_keys = [_key(item) for item in task.items]
        held = set(item_keys)
        for key in keys:
            if sum(k in apart for k in item_keys) >= number:
                break
            if key in held:
                apart.add(key)

    def part(task: Task, inside: bool) -> Task:
        return replace(task, items=tuple(i for i in task.items if (_key(i) in apart) == inside))

    return TaskSplit(*(tuple(part(task, inside) for task in tasks) for inside in (True, False)))


def _clusters(task: Task) -> int:
    return len({_key(item) for item in task.items})


def _key(item: Item) -> str:
    """Items of one key stay together: the key is the group, or else the prompt, in any task."""
    return f"group:{item.group}" if item.group is not None else f"prompt:{item.prompt}"
