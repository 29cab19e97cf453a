"""The chain: each hop is asked of the adapter, or of the base, that answers it best.

The answer goes into the next hop's prompt. A chain needs no merging, so it is the alternative to
every composition. The base is a member of every chain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loraprobe.evaluation.asking import ask
from loraprobe.evaluation.ledger import Ledger
from loraprobe.evaluation.questions import Question, hop_part
from loraprobe.evaluation.systems import System
from loraprobe.records import ChainHop, ItemResult
from loraprobe.tasks import Item, Task, fill, item_metric

if TYPE_CHECKING:
    from loraprobe.composition import Composition
    from loraprobe.scoring import Scorer

BASE = "base"  # the name under which the ledger holds the base's results
Plan = Mapping[str, Sequence[str]]  # item -> the member that answers each hop


@dataclass(frozen=True)
class ChainRun:
    """One chain on one task."""

    scorer: Scorer
    system: System
    task: Task
    ledger: Ledger
    metric: str | None
    max_new_tokens: int | None

    def members(self) -> dict[str, Composition | None]:
        """The base, then the adapters, by name."""
        return {BASE: None, **{single.name: single for single in self.system.chain}}

    def hops(self, plan: Plan) -> list[ItemResult]:
        """The results of the planned members on the hops, with gold answers of earlier hops."""
        rows = [
            self.ledger.get(name, self.task.name, hop_part(k), item)
            for item, names in plan.items()
            for k, name in enumerate(names)
        ]
        return [replace(row, system=self.system.name) for row in rows if row is not None]

    def targets(self, items: Sequence[Item], plan: Plan) -> list[ItemResult]:
        """The chain's answers to the composed question of these items, all of which have hops.

        A step asks all items of one member together. The last hop's answer is judged as the answer
        of the item, by its choices if it has any.
        """
        answers: dict[str, list[str]] = {item.id: [] for item in items}
        results: list[ItemResult] = []
        for k in range(max(len(item.hops) for item in items)):
            for name in self.members():
                step = [i for i in items if len(i.hops) > k and plan[i.id][k] == name]
                asked = [self._question(item, k, answers[item.id]) for item in step]
                for item, result in zip(step, self._replies(name, asked, k), strict=True):
                    answers[item.id].append(result.text)
                    results += [result] if result.part == "question" else []
        return results

    def _question(self, item: Item, k: int, earlier: Sequence[str]) -> Question:
        """Hop k after the answers to earlier hops; the last hop asks for the item's answer."""
        hop = item.hops[k]
        prompt = fill(hop.prompt, earlier)
        if k + 1 < len(item.hops):
            part = hop_part(k)
            return Question(self.task.name, part, item, prompt, hop.answers, "exact_match")
        metric = item_metric(item, self.task.name, self.metric)
        return Question(self.task.name, "question", item, prompt, item.answers, metric)

    def _replies(self, name: str, asked: Sequence[Question], k: int) -> list[ItemResult]:
        """The chain's results on hop k of one member, in the questions' order.

        A question is not asked again if the ledger has the member's answer to the same prompt.
        """
        known = {}
        for question in asked:
            row = self.ledger.get(name, self.task.name, hop_part(k), question.item.id)
            same = question.prompt == question.item.hop_prompt(k)
            if row is not None and same and row.metric == question.metric == "exact_match":
                known[question] = question.judged(self.system.name, row.text, row.cut)
        open_ = [question for question in asked if question not in known]
        if open_:
            with self.scorer.with_composition(self.members()[name]):
                new = ask(self.scorer, open_, self.system.name, self.max_new_tokens)
            known.update(zip(open_, new, strict=True))
        return [known[question] for question in asked]


def plan_of(system: System, task: Task, ledger: Ledger) -> Plan:
    """The member of a chain, an adapter or the base, that answers each hop.

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
        values = [-r.value if r.metric == "answer_loss" else r.value for r in rows if r is not None]
        return sum(values) / len(values) if values else float("-inf")

    best = {}
    for (k, named), items in groups.items():
        merits = {name: merit(name, k, items) for name in (BASE, *(s.name for s in system.chain))}
        equals = [name for name, value in merits.items() if value == max(merits.values())]
        best[k, named] = named if named in equals else equals[0]
    return {
        item.id: [best[k, hop.adapter] for k, hop in enumerate(item.hops)] for item in task.items
    }


def chain_hops(
    systems: Sequence[System], tasks: Sequence[Task], ledger: Ledger, chat: bool
) -> tuple[ChainHop, ...]:
    """Who answers each hop of the chain of these systems, task by task, for the report.

    chat: whether prompts are turns of the chat template.
    """
    found = []
    for system, task in ((s, t) for s in systems if s.kind == "chain" for t in tasks if t.has_hops):
        groups: dict[tuple[str, ...], list[str]] = {}
        for item, members in plan_of(system, task, ledger).items():
            groups.setdefault(tuple(members), []).append(item)
        prompts = {item.id: item.hops for item in task.items}
        for members, items in sorted(groups.items(), key=lambda group: -len(group[1])):
            for k, (member, hop) in enumerate(zip(members, prompts[items[0]], strict=True), 1):
                of = task.name, k, member, hop.prompt, items[0], len(items)
                found.append(ChainHop(*of, chat))
    return tuple(found)


def chain_notes(systems: Sequence[System], tasks: Sequence[Task]) -> tuple[str, ...]:
    """Notes for a report on tasks that name adapters which are not present."""
    notes = []
    for system in systems:
        names = [single.name for single in system.chain]
        if not names:
            continue
        for task in tasks:
            wanted = {hop.adapter for item in task.items for hop in item.hops if hop.adapter}
            for missing in sorted(wanted - set(names)):
                notes.append(
                    f"Task {task.name} names the adapter {missing!r} for a hop, which is "
                    f"none of {', '.join(names)}; in {system.name} whoever has the best "
                    "score on that hop answers it, an adapter or the base."
                )
    return tuple(notes)
