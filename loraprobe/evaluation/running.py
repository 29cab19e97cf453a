"""Per-item results of systems on tasks, one system at a time on one base in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from loraprobe.errors import OutputError, UsageError
from loraprobe.evaluation.asking import ask
from loraprobe.evaluation.chain import BASE, ChainRun, plan_of
from loraprobe.evaluation.ledger import CURE, Ledger
from loraprobe.evaluation.questions import Question, questions
from loraprobe.evaluation.systems import System
from loraprobe.records import ItemResult, Progress
from loraprobe.tasks import Task

if TYPE_CHECKING:
    from loraprobe.scoring import Scorer

BATCH = 256  # questions between two appends to the ledger


class QuestionBatch(NamedTuple):
    """Questions that one system answers together, a part of the work of a cluster."""

    system: System
    questions: Sequence[Question]


Answers = Iterable[tuple[QuestionBatch, list[ItemResult]]]
Asking = Callable[[Sequence[QuestionBatch]], Answers]


def run_systems(
    scorer: Scorer,
    systems: Sequence[System],
    tasks: Sequence[Task],
    ledger: Ledger,
    *,
    metric: str | None = None,
    max_new_tokens: int | None = None,
    progress: Progress | None = None,
    parts: Collection[str] | None = None,
    asking: Asking | None = None,
) -> list[ItemResult]:
    """The result of every system on every part of every item, or on `parts`; chains come last.

    Results in the ledger are not computed again, and new results are added to it in batches. Hops
    are scored with gold answers of earlier hops. A chain is scored only on items with hops; the
    results of its hops are those of the base or the adapters that answer them. The order of the
    results is that of systems and questions, whatever the order in the ledger is.

    asking: answers batches in any order, in place of the scorer (chains are always asked of it).
    Raises UsageError if two systems or two tasks share a name, OutputError if a result of the
    ledger does not fit its question.
    """
    _unique([system.name for system in systems], "systems")
    _unique([task.name for task in tasks], "tasks")
    run = Run(scorer, ledger, max_new_tokens, metric, progress)
    asked = [q for q in questions(tasks, metric) if parts is None or q.part in parts]
    batches = [b for s in systems if s.kind != "chain" for b in open_batches(s, asked, ledger)]
    run.ask(batches, asking)
    for system in systems:
        if system.kind == "chain":
            run.chain(system, tasks, [q for q in asked if q.part.startswith("hop")])
    return [
        replace(_checked(result, question, ledger), system=system.name)
        for system in systems
        for question in asked
        if (result := ledger.get(system.key, *question.key))
    ]


def open_batches(system: System, asked: Sequence[Question], ledger: Ledger) -> list[QuestionBatch]:
    """The questions without a result in batches, prompts of similar length together."""
    key = system.key
    open_ = [q for q in asked if ledger.get(key, *q.key) is None]
    open_.sort(key=lambda q: (q.part == "steps", len(q.prompt), q.prompt))
    return [QuestionBatch(system, open_[at : at + BATCH]) for at in range(0, len(open_), BATCH)]


def _checked(result: ItemResult, question: Question, ledger: Ledger) -> ItemResult:
    """A result of the ledger. Raises OutputError if it does not fit its question."""
    if (result.metric, result.group) != (question.metric, question.item.cluster):
        raise OutputError(
            f"{ledger.path} holds a result of item {result.item!r} that does not "
            f"fit task {result.task}: {CURE}"
        )
    return result


@dataclass(frozen=True)
class Run:
    """The scorer, ledger and options that all systems of one run share."""

    scorer: Scorer
    ledger: Ledger
    max_new_tokens: int | None
    metric: str | None
    progress: Progress | None

    def here(self, batches: Sequence[QuestionBatch]) -> Answers:
        """The scorer's own answers, in order; each system is put into the model once."""
        for _, group in groupby(batches, key=lambda batch: batch.system.key):
            of_one = list(group)
            system = of_one[0].system
            self._report(system.name, 0, sum(len(batch.questions) for batch in of_one))
            with self.scorer.with_composition(system.composition):
                for batch in of_one:
                    asked, most = batch.questions, self.max_new_tokens
                    yield batch, ask(self.scorer, asked, system.key, most)

    def ask(self, batches: Sequence[QuestionBatch], asking: Asking | None = None) -> None:
        """Append the answers to the ledger as they come. asking: None for the scorer."""
        totals: Counter[str] = Counter()
        for batch in batches:
            totals[batch.system.name] += len(batch.questions)
        done = dict.fromkeys(totals, 0)
        for (system, asked), rows in (asking or self.here)(batches):
            self.ledger.append(rows)
            done[system.name] += len(asked)
            self._report(system.name, done[system.name], totals[system.name])

    def chain(self, system: System, tasks: Sequence[Task], hops: Sequence[Question]) -> None:
        """Ask the base and each adapter the open hops, then run the chain over the hops.

        With more items another member may be the best at a hop. Items whose hops were answered
        otherwise by an earlier plan are asked again.
        """
        alone = [System(BASE, "base"), *(System(s.name, "adapter", s) for s in system.chain)]
        self.ask([batch for one in alone for batch in open_batches(one, hops, self.ledger)])
        kept, most = self.ledger.get, self.max_new_tokens
        for task in tasks:
            if not task.has_hops:
                continue
            run = ChainRun(self.scorer, system, task, self.ledger, self.metric, most)
            plan = plan_of(system, task, self.ledger)
            changed = [row for row in run.hops(plan) if kept(*row.key) != row]
            again = {row.item for row in changed if kept(*row.key) is not None}
            self.ledger.append(changed)
            open_ = [
                item
                for item in task.items
                if item.hops
                and (item.id in again or not kept(system.name, task.name, "question", item.id))
            ]
            for start in range(0, len(open_), BATCH):
                self._report(system.name, start, len(open_))
                self.ledger.append(run.targets(open_[start : start + BATCH], plan))
            self._report(system.name, len(open_), len(open_))

    def _report(self, name: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(f"evaluate {name}", done, total)


def _unique(names: Sequence[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"Two {what} are named {name!r}: give each its own name.")
