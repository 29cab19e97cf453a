"""Attributes each item of a composition to one cause: the first that applies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from loraprobe.evaluation.questions import hop_part
from loraprobe.evaluation.systems import BASELINES, COMPOSITIONS, System
from loraprobe.records import Attribution, ItemResult
from loraprobe.tasks import Item, Task

Right = Mapping[tuple[str, str, str], bool]  # (system, part, item) -> right


def attribute(
    results: Iterable[ItemResult], systems: Sequence[System], tasks: Sequence[Task]
) -> tuple[Attribution, ...]:
    """Counts for every composition (merge, router, chain) on every task with hops.

    *solved*: the answer is right. *step_by_step*: it is right only in the worked form. *unknown*:
    neither a single adapter nor the base knows some hop. *interference*: each hop is known to one
    of them, but the composition gets a hop wrong. *not_composed*: the composition gets all hops
    right, but not the answer.

    Items without hops and losses (which are neither right nor wrong) do not count. A system has no
    row until the base, every single adapter and the system itself were asked all hops.
    """
    return tuple(
        Attribution(system, task, **Counter(cause_of.values()))
        for system, task, cause_of in causes(results, systems, tasks)
    )


def causes(
    results: Iterable[ItemResult], systems: Sequence[System], tasks: Sequence[Task]
) -> Iterator[tuple[str, str, dict[str, str]]]:
    """The names of each composition and task of `attribute`, and the cause of each item."""
    results = list(results)
    known_by = [system.name for system in systems if system.kind in BASELINES]
    for task in tasks:
        right = {
            (r.system, r.part, r.item): r.value == 1.0
            for r in results
            if r.task == task.name and r.metric != "answer_loss"
        }
        items = [item for item in task.items if item.hops]
        for system in systems:
            if system.kind not in COMPOSITIONS or not items or not known_by:
                continue
            if _complete(right, known_by, system.name, items):
                of = {item.id: _cause(right, system.name, known_by, item) for item in items}
                yield system.name, task.name, of


def _complete(right: Right, known_by: Sequence[str], system: str, items: Sequence[Item]) -> bool:
    return all(
        (system, "question", item.id) in right
        and all(
            (name, part, item.id) in right for name in (*known_by, system) for part in _hops(item)
        )
        for item in items
    )


def _hops(item: Item) -> list[str]:
    return [hop_part(k) for k in range(len(item.hops))]


def _cause(right: Right, system: str, known_by: Sequence[str], item: Item) -> str:
    if right[system, "question", item.id]:
        return "solved"
    if right.get((system, "steps", item.id), False):
        return "step_by_step"
    hops = _hops(item)
    if not all(any(right[name, part, item.id] for name in known_by) for part in hops):
        return "unknown"
    if not all(right[system, part, item.id] for part in hops):
        return "interference"
    return "not_composed"
