"""Sets items of the tasks apart for a search of weights, before anything is scored."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from loraprobe.defaults import SEARCH_LEAST, SEARCH_MOST, SEARCH_SHARE
from loraprobe.errors import TaskError
from loraprobe.options import Options
from loraprobe.tasks import Item, Task


@dataclass(frozen=True)
class TaskSplit:
    """Tasks in two parts that share no cluster and no prompt."""

    searched: tuple[Task, ...]
    left: tuple[Task, ...]

    @property
    def items(self) -> tuple[int, int]:
        """How many items went to the search, and how many are left."""
        return _count(self.searched), _count(self.left)

    @property
    def clusters(self) -> int:
        """Clusters of the part that is searched on."""
        return len({_key(item) for task in self.searched for item in task.items})


def split(tasks: Sequence[Task], options: Options) -> TaskSplit:
    """Sets items apart: whole clusters, drawn by the seed, the same for the same call.

    Raises TaskError where a task is too small to be split.
    """
    keys = sorted({_key(item) for task in tasks for item in task.items})
    random.Random(f"search:{options.seed}").shuffle(keys)
    apart: set[str] = set()
    for task in tasks:
        wanted = options.search_items or min(SEARCH_MOST, math.ceil(SEARCH_SHARE * len(task.items)))
        if wanted < SEARCH_LEAST and options.search_items is None:
            raise TaskError(
                f"Task {task.name} has {len(task.items)} items, too few to search "
                f"weights on a part of them; give at least {int(SEARCH_LEAST / SEARCH_SHARE)}, or "
                "--search-items."
            )
        own = [_key(item) for item in task.items]
        for key in keys:
            if sum(k in apart for k in own) >= wanted:
                break
            if key in own:
                apart.add(key)
        if len(set(own) - apart) < 2:
            raise TaskError(
                f"Task {task.name} has {len(own)} items in {len(set(own))} clusters, so nothing "
                f"is left to judge by once {wanted} are set apart for --weights search; give "
                "more items or fewer --search-items."
            )
    return TaskSplit(
        *(tuple(_part(task, apart, inside) for task in tasks) for inside in (True, False))
    )


def _count(tasks: Sequence[Task]) -> int:
    return sum(len(task.items) for task in tasks)


def _key(item: Item) -> str:
    """Items of one key stay together: the key is the group, or else the prompt, in any task."""
    return f"group:{item.group}" if item.group is not None else f"prompt:{item.prompt}"


def _part(task: Task, apart: set[str], inside: bool) -> Task:
    return replace(task, items=tuple(i for i in task.items if (_key(i) in apart) == inside))
