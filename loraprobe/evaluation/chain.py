"""The chain: who answers each hop of a task, by what everybody answered alone."""

from __future__ import annotations

from collections.abc import Sequence

from loraprobe.evaluation.kept import Ledger
from loraprobe.evaluation.plan import BASE, System
from loraprobe.records import ChainHop, hop_part
from loraprobe.tasks import Task


def members_of_hops(system: System, task: Task, ledger: Ledger) -> dict[str, list[str]]:
    """Item -> the member of a chain, an adapter or the base, that answers each of its hops.

    The ledger must contain the hops of the base and of every adapter. Hops at the same place for
    which the task names the same adapter, or none, go to the member with the best score on them: of
    equals the adapter that is named, then the base, then the first adapter.
    """
    groups: dict[tuple[int, str | None], list[str]] = {}
    for item in task.items:
        for k, hop in enumerate(item.hops):
            groups.setdefault((k, hop.adapter), []).append(item.id)

    def merit(name: str, k: int, items: Sequence[str]) -> float:
        rows = (ledger.get(name, task.name, hop_part(k), item) for item in items)
        values = [row.merit for row in rows if row is not None]
        return sum(values) / len(values) if values else float("-inf")

    best = {}
    for (k, named), items in groups.items():
        merits = {name: merit(name, k, items) for name in (BASE, *(s.name for s in system.chain))}
        equals = [name for name, value in merits.items() if value == max(merits.values())]
        best[k, named] = named if named in equals else equals[0]
    return {
        item.id: [best[k, hop.adapter] for k, hop in enumerate(item.hops)]
        for item in task.items
        if item.hops
    }


def chain_hops(
    systems: Sequence[System], tasks: Sequence[Task], ledger: Ledger, chat: bool
) -> tuple[ChainHop, ...]:
    """Who answers each hop of the chain of these systems, task by task, for the report.

    chat: whether prompts are turns of the chat template.
    """
    hops = []
    for system, task in ((s, t) for s in systems if s.kind == "chain" for t in tasks):
        groups: dict[tuple[str, ...], list[str]] = {}
        for item, members in members_of_hops(system, task, ledger).items():
            groups.setdefault(tuple(members), []).append(item)
        prompts = {item.id: item.hops for item in task.items}
        for named, items in sorted(groups.items(), key=lambda group: -len(group[1])):
            for k, (member, hop) in enumerate(zip(named, prompts[items[0]], strict=True), 1):
                of = task.name, k, member, hop.prompt, items[0], len(items)
                hops.append(ChainHop(*of, chat))
    return tuple(hops)


def chain_notes(systems: Sequence[System], tasks: Sequence[Task]) -> tuple[str, ...]:
    """Notes for a report on tasks that name adapters which are not present."""
    notes = []
    for system in (system for system in systems if system.kind == "chain"):
        names = [single.name for single in system.chain]
        for task in tasks:
            wanted = {hop.adapter for item in task.items for hop in item.hops if hop.adapter}
            for missing in sorted(wanted - set(names)):
                notes.append(
                    f"Task {task.name} names the adapter {missing!r} for a hop, which is "
                    f"none of {', '.join(names)}; in {system.name} whoever has the best "
                    "score on that hop answers it, an adapter or the base."
                )
    return tuple(notes)
