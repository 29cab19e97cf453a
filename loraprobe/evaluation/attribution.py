"""Attributes each item of a composition to one cause: the first that applies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from loraprobe.evaluation.plan import COMPOSITIONS, System, hop_part
from loraprobe.records import BASELINES, FORMS, Attribution, ItemResult
from loraprobe.tasks import Item, Task

Answers = Mapping[tuple[str, str, str], ItemResult]  # (system, part, item) -> its answer


def attribute(
    results: Iterable[ItemResult], systems: Sequence[System], tasks: Sequence[Task]
) -> tuple[Attribution, ...]:
    """Counts for every composition (merge, router, chain) on every task with hops.

    *solved*: the answer is right. *step_by_step*: it is right only in the worked form.
    *said_otherwise*: it stands in the reply, but is not right by the metric. *unknown*: neither a
    single adapter nor the base knows some hop. *cut_off*: the reply to a hop that the composition
    misses, or else to the question, ended at the limit of tokens. *interference*: each hop is known
    to one of them, but the composition lost one. *not_composed*: the composition knows all hops,
    but not the answer. A hop is known if its answer stands in the reply, in whatever words.

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
        answers = {
            (r.system, r.part, r.item): r
            for r in results
            if r.task == task.name and r.metric != "answer_loss"
        }
        items = [item for item in task.items if item.hops]
        for system in systems:
            if system.kind not in COMPOSITIONS or not items or not known_by:
                continue
            own = (*known_by, system.name)
            needed = {(name, part, i.id) for i in items for part in _hops(i) for name in own}
            needed |= {(system.name, "question", item.id) for item in items}
            if needed <= answers.keys():
                of = {item.id: _cause(answers, system.name, known_by, item) for item in items}
                yield system.name, task.name, of


def _hops(item: Item) -> list[str]:
    return [hop_part(k) for k in range(len(item.hops))]


def _cause(answers: Answers, system: str, known_by: Sequence[str], item: Item) -> str:
    asked, steps = (answers.get((system, part, item.id)) for part in FORMS)
    assert asked is not None
    if asked.value == 1.0:
        return "solved"
    if steps is not None and steps.value == 1.0:
        return "step_by_step"
    if asked.stands:
        return "said_otherwise"
    hops = _hops(item)
    if not all(any(answers[name, part, item.id].stands for name in known_by) for part in hops):
        return "unknown"
    missed = [row for part in hops if not (row := answers[system, part, item.id]).stands]
    if any(row.cut for row in missed or [asked]):
        return "cut_off"
    return "interference" if missed else "not_composed"
