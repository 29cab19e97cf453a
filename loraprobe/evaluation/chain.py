"""The chain: one adapter answers each hop, and its answer goes into the next hop's prompt.

A chain needs no merging, so it is the alternative to every composition.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from loraprobe.evaluation.ledger import Ledger
from loraprobe.evaluation.questions import Limits, Question, ask, target_metric
from loraprobe.evaluation.systems import System
from loraprobe.records import ItemResult
from loraprobe.tasks import Item, Task, fill, read_answer

if TYPE_CHECKING:
    from loraprobe.composition import Composition

Plan = Mapping[str, Sequence[str]]  # item -> the adapter of each hop


@dataclass(frozen=True)
class ChainRun:
    """One chain on one task. The ledger must contain the hops of every adapter."""

    scorer: Any
    system: System
    task: Task
    ledger: Ledger
    metric: str | None
    limits: Limits

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
            self.ledger.get(name, self.task.name, f"hop{k}", item)
            for item, names in plan.items()
            for k, name in enumerate(names, 1)
        ]
        return [replace(row, system=self.system.name) for row in rows if row is not None]

    def targets(self, items: Sequence[Item], plan: Plan) -> list[ItemResult]:
        """The chain's answers to the composed question of these items, all of which have hops.

        A step asks all items of one adapter together, except those whose prompt the adapter has
        already answered. The last hop's answer is judged as the answer of the item, by its choices
        if it has any.
        """
        answers: dict[str, list[str]] = {item.id: [] for item in items}
        results: list[ItemResult] = []
        for k in range(max(len(item.hops) for item in items)):
            for single, step in self._by_adapter(items, plan, k):
                prompts = {item.id: fill(item.hops[k].prompt, answers[item.id]) for item in step}
                asked = self._asked_before(single.name, step, k, prompts)
                with self.scorer.with_composition(single):
                    last = [item for item in step if len(item.hops) == k + 1]
                    results += self._last(last, prompts, asked)
                    going = [item for item in step if len(item.hops) > k + 1]
                    for item, text in self._generated(going, prompts, asked):
                        answers[item.id].append(text)
        return results

    def _asked_before(
        self, name: str, step: Sequence[Item], k: int, prompts: Mapping[str, str]
    ) -> dict[str, str]:
        """Answers from the ledger, for prompts that equal the prompt with gold answers."""
        found = {}
        for item in step:
            row = self.ledger.get(name, self.task.name, f"hop{k + 1}", item.id)
            same = row is not None and prompts[item.id] == item.hop_prompt(k)
            if row is not None and same and row.metric == "exact_match":
                found[item.id] = row.text
        return found

    def _last(
        self, items: Sequence[Item], prompts: Mapping[str, str], asked: Mapping[str, str]
    ) -> list[ItemResult]:
        known, open_ = [], []
        for item in items:
            question = Question(
                self.task.name,
                "question",
                item,
                prompts[item.id],
                item.answers,
                target_metric(item, self.metric),
            )
            if question.metric == "exact_match" and item.id in asked:
                known.append(question.judged(self.system.name, asked[item.id]))
            else:
                open_.append(question)
        return known + ask(self.scorer, open_, self.system.name, self.limits)

    def _generated(
        self, items: Sequence[Item], prompts: Mapping[str, str], asked: Mapping[str, str]
    ) -> list[tuple[Item, str]]:
        open_ = [item for item in items if item.id not in asked]
        texts = (
            self.scorer.generate(
                [prompts[item.id] for item in open_],
                max_new_tokens=self.limits.plain,
                until_newline=True,
            )
            if open_
            else []
        )
        new = {item.id: read_answer(text) for item, text in zip(open_, texts, strict=True)}
        return [(item, asked.get(item.id, new.get(item.id, ""))) for item in items]

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
            self.ledger.get(name, self.task.name, f"hop{k + 1}", item.id)
            for item in self.task.items
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
