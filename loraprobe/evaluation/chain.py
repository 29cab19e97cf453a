"""The chain: one adapter answers each hop, and its answer goes into the next hop's prompt.

A chain needs no merging, so it is the alternative to every composition.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from loraprobe.evaluation.asking import ask
from loraprobe.evaluation.ledger import Ledger
from loraprobe.evaluation.questions import Question, TokenLimits, hop_part
from loraprobe.evaluation.systems import System
from loraprobe.records import ItemResult
from loraprobe.tasks import Item, Task, fill, item_metric

if TYPE_CHECKING:
    from loraprobe.composition import Composition
    from loraprobe.scoring import Scorer

Plan = Mapping[str, Sequence[str]]  # item -> the adapter of each hop


@dataclass(frozen=True)
class ChainRun:
    """One chain on one task. The ledger must contain the hops of every adapter."""

    scorer: Scorer
    system: System
    task: Task
    ledger: Ledger
    metric: str | None
    limits: TokenLimits

    def plan(self) -> Plan:
        """The adapter that answers each hop.

        This is the adapter that the task names, if it exists, else the single adapter with the
        best score on that hop over the whole task (the first of equals).
        """
        names = [single.name for single in self.system.chain]
        longest = max((len(item.hops) for item in self.task.items), default=0)
        best = [max(names, key=lambda name: self._merit(name, k)) for k in range(longest)]
        return {
            item.id: [
                hop.adapter if hop.adapter in names else best[k] for k, hop in enumerate(item.hops)
            ]
            for item in self.task.items
        }

    def hops(self, plan: Plan) -> list[ItemResult]:
        """The results of the planned adapters on the hops, with gold answers of earlier hops."""
        rows = [
            self.ledger.get(name, self.task.name, hop_part(k), item)
            for item, names in plan.items()
            for k, name in enumerate(names)
        ]
        return [replace(row, system=self.system.name) for row in rows if row is not None]

    def targets(self, items: Sequence[Item], plan: Plan) -> list[ItemResult]:
        """The chain's answers to the composed question of these items, all of which have hops.

        A step asks all items of one adapter together. The last hop's answer is judged as the answer
        of the item, by its choices if it has any.
        """
        answers: dict[str, list[str]] = {item.id: [] for item in items}
        results: list[ItemResult] = []
        for k in range(max(len(item.hops) for item in items)):
            for single, step in self._by_adapter(items, plan, k):
                asked = [self._question(item, k, answers[item.id]) for item in step]
                for item, result in zip(step, self._replies(single, asked, k), strict=True):
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

    def _replies(self, single: Composition, asked: Sequence[Question], k: int) -> list[ItemResult]:
        """The chain's results on hop k of one adapter, in the questions' order.

        A question is not asked again if the ledger has the adapter's answer to the same prompt.
        """
        known = {}
        for question in asked:
            row = self.ledger.get(single.name, self.task.name, hop_part(k), question.item.id)
            same = question.prompt == question.item.hop_prompt(k)
            if row is not None and same and row.metric == question.metric == "exact_match":
                known[question] = question.judged(self.system.name, row.text, row.cut)
        open_ = [question for question in asked if question not in known]
        if open_:
            with self.scorer.with_composition(single):
                new = ask(self.scorer, open_, self.system.name, self.limits)
            known.update(zip(open_, new, strict=True))
        return [known[question] for question in asked]

    def _by_adapter(
        self, items: Sequence[Item], plan: Plan, k: int
    ) -> Iterator[tuple[Composition, list[Item]]]:
        """The items that have a hop k, grouped by the adapter that answers it."""
        singles = {single.name: single for single in self.system.chain}
        present = sorted((i for i in items if len(i.hops) > k), key=lambda i: plan[i.id][k])
        for name, step in groupby(present, key=lambda item: plan[item.id][k]):
            yield singles[name], list(step)

    def _merit(self, name: str, k: int) -> float:
        rows = (
            self.ledger.get(name, self.task.name, hop_part(k), item.id) for item in self.task.items
        )
        values = [-r.value if r.metric == "answer_loss" else r.value for r in rows if r is not None]
        return sum(values) / len(values) if values else float("-inf")


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
                    f"none of {', '.join(names)}; in {system.name} the single adapter "
                    "with the best score on that hop answers it."
                )
    return tuple(notes)
