"""Runs systems, probes and the search of weights on one loaded base model."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from loraprobe import evaluation, probes
from loraprobe.adapters import Adapter
from loraprobe.composition import Router
from loraprobe.evaluation import Ledger, System, stored_as
from loraprobe.evaluation.running import Asking
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.portfolio import Selection
from loraprobe.pipeline.results import SEARCH, open_ledger
from loraprobe.pipeline.router_fitting import fit_routers
from loraprobe.pipeline.scorer import open_scorer, with_better_template
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.task_split import TaskSplit, split
from loraprobe.pipeline.transforms import Prepared
from loraprobe.pipeline.units import Setup
from loraprobe.pipeline.weight_search import TriedWeights, find_weights, note
from loraprobe.records import Coverage, ItemResult, WeightSearch
from loraprobe.tasks import Task, is_generated


@dataclass(frozen=True)
class Evaluator(AbstractContextManager["Evaluator"]):
    """Scores systems on one base in memory; the ledger stores each batch of results at once.

    `tasks` are evaluated; `split` has the items that are set apart for a search of weights or for
    routers that learn. With a `setup` workers answer too, if there are any. As a context it closes
    the ledger.
    """

    inputs: Inputs
    session: Session
    scorer: Any
    ledger: Ledger
    tasks: Sequence[Task]
    split: TaskSplit | None = None
    notes: Sequence[str] = ()
    template: tuple[Coverage, ...] = ()
    setup: Setup | None = None

    def __exit__(self, *_: object) -> None:
        self.ledger.close()

    def run(
        self, systems: Sequence[System], parts: Collection[str] | None = None
    ) -> list[ItemResult]:
        """Results of systems on all tasks, or on `parts` of their items.

        Results in the ledger are not computed again.
        """
        options = self.session.options
        with self.session.stage("evaluate"):
            return evaluation.run_systems(
                self.scorer,
                systems,
                self.tasks,
                self.ledger,
                metric=options.metric,
                max_new_tokens=options.max_new_tokens,
                progress=self.session.progress,
                parts=parts,
                asking=self.workers(),
            )

    @property
    def chat_template(self) -> bool:
        """Whether questions are put into the chat template."""
        return bool(self.scorer.chat_template)

    def with_setup(
        self,
        searched: tuple[float, ...] | None = None,
        routers: Mapping[str, Router] = MappingProxyType({}),
    ) -> Evaluator:
        """The same with what workers have to know of the systems before they answer."""
        kind = self.session.kind_of_device
        setup = Setup(*kind, self.chat_template, searched, dict(routers))
        return replace(self, setup=setup)

    def workers(self) -> Asking | None:
        """What asks the workers; None without workers, and before the systems are known."""
        session, setup = self.session, self.setup
        if session.units.pool is None or setup is None:
            return None
        most = session.options.max_new_tokens
        return functools.partial(session.units.answers, self.scorer, setup, most)

    def probe_tasks(
        self, results: Sequence[ItemResult], items: int | None = None
    ) -> tuple[Coverage, ...]:
        """The coverage probes on the tasks, and the accuracies with and without the template.

        items: the most that a probe asks the base of each part; None for each probe's own number.
        """
        with self.session.stage("cover"):
            guessed = evaluation.guessing(self.tasks, self.session.options.metric)
            return (
                self.template
                + guessed
                + probes.cover(
                    self.scorer,
                    self.inputs.adapters,
                    self.tasks,
                    results=results,
                    items=items,
                    seed=self.session.options.seed,
                    progress=self.session.progress,
                )
            )

    def fit_routers(self, prepared: Prepared) -> tuple[dict[str, Router], list[str]]:
        """The fitted routers by spec, and notes."""
        options = self.session.options
        with self.session.stage("fit"):
            adapters, tasks = self.inputs.adapters, self.inputs.tasks
            return fit_routers(adapters, prepared, options, self.scorer, tasks, self.split)

    def search_weights(self, prepared: Prepared) -> tuple[WeightSearch | None, list[str]]:
        """`--weights search`, on items on which no system is scored; None without that option."""
        options, path = self.session.options, self.ledger.path
        if self.split is None or options.weights != "search":
            return None, []
        kept = None if path is None else path.with_name(SEARCH)
        with self.session.stage("search"):
            found = find_weights(
                self.scorer,
                prepared.adapters,
                self.split,
                options,
                memory=TriedWeights(kept, options.resume or bool(options.joined)),
                progress=self.session.progress,
            )
        return found, [note(found)]


def open_evaluator(
    inputs: Inputs, general: Sequence[Adapter], session: Session, composes: bool = False
) -> Evaluator:
    """Loads the base, chooses the chat template and opens the results of earlier runs.

    general: the adapters that `--subtract` names, on which the results depend too. composes: also
    sets items apart for the routers that learn, because compositions will be evaluated.
    """
    assert inputs.base is not None
    options = session.options
    parts = split(inputs.tasks, options) if options.weights == "search" else None
    chosen = Selection(options, inputs.adapters, inputs.tasks)
    if composes and parts is None and chosen.learning:
        found = chosen.items_for_routers
        parts = found if isinstance(found, TaskSplit) else None
    tasks = parts.left if parts else inputs.tasks
    scorer, notes = open_scorer(inputs.base, options.dtype, session)
    ledger, kept = open_ledger([*inputs.adapters, *general], inputs.base, inputs.tasks, session)
    scorer, why, template = with_better_template(
        scorer, session, inputs.adapters, tasks, options.metric, ledger
    )
    known = template_answers(ledger, inputs.adapters, scorer.chat_template)
    ledger.add_missing(known)
    notes += [*why, *task_notes(tasks, options.metric), kept]
    return Evaluator(inputs, session, scorer, ledger, tasks, parts, notes, template)


def template_answers(ledger: Ledger, adapters: Sequence[Adapter], chat: bool) -> list[ItemResult]:
    """The answers that chose the form of prompts, those in this form, as results of the adapters.

    Those that are judged by likelihood are left out: a forecast may read them from passes of the
    evaluation.
    """
    names = {stored_as(adapter.name, chat): adapter.name for adapter in adapters}
    return [
        replace(row, system=names[row.system])
        for row in ledger
        if row.system in names and is_generated(row.metric)
    ]


def task_notes(tasks: Sequence[Task], metric: str | None) -> list[str]:
    """Notes on tasks that a reader of the figures needs."""
    notes = []
    if metric == "answer_loss":
        notes.append("Differences of losses are signed so that a lower loss is a gain.")
    for task in tasks:
        if task.of_harness:
            notes.append(task.items[0].source.told(task.name))
        if len(task.items) > 1 and len({item.cluster for item in task.items}) == 1:
            notes.append(
                f"All {len(task.items)} items of task {task.name} share one group, so they count "
                "as one observation and decide nothing: add items of other groups."
            )
    return notes
