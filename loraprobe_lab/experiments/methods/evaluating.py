"""Evaluates every system on a case's questions, and stores the results as they come."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from loraprobe.adapters import Adapter
from loraprobe.errors import LoraprobeError
from loraprobe.evaluation import Ledger, System
from loraprobe.records import ItemResult
from loraprobe.routing import ROUTERS
from loraprobe.tasks import Task
from loraprobe_lab.experiments.methods.cases import FORM, MethodsCase
from loraprobe_lab.experiments.methods.systems import ComparedSystem
from loraprobe_lab.experiments.runner import WorldEvaluator
from loraprobe_lab.world import write_text

if TYPE_CHECKING:
    from loraprobe.composition import Router
    from loraprobe.pipeline.systems import SystemBuilder


@dataclass(frozen=True)
class CaseResults:
    """The results of one case.

    `results` name the base, singles by their role, and every system by its label; all in the form
    of the case's question. `lost`: label -> the relative error of a merge at the default rank;
    `refused`: label -> why it could not be built.
    """

    case: MethodsCase
    results: tuple[ItemResult, ...] = field(repr=False)
    lost: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def evaluate_cases(
    evaluator: WorldEvaluator, cases: Sequence[MethodsCase], systems: Sequence[ComparedSystem]
) -> list[CaseResults]:
    """The results of every case of a world; results in the ledgers are not computed again."""
    return [_CaseRun(evaluator, case).answers(systems) for case in cases]


class _CaseRun:
    """One case, the model in memory, and the results so far."""

    def __init__(self, evaluator: WorldEvaluator, case: MethodsCase) -> None:
        from loraprobe.routing.constant import single

        self.evaluator, self.case = evaluator, case
        self.tasks: list[Task] = evaluator.tasks(case.scenario.tasks)
        self.ledger: Ledger = evaluator.ledger(case.name)
        self.form = FORM[case.kind]
        self.adapters = list(evaluator.adapters(case.scenario.adapters).values())
        self.baselines = [System("base", "base")]
        self.baselines += [System(a.name, "adapter", single(a)) for a in self.adapters]
        self.learned: dict[str, Any] = {}  # by routers that need prompts
        assert self.ledger.path is not None
        self.lost_file = self.ledger.path.with_suffix(".lost.json")
        there = self.lost_file.is_file()
        self.lost = json.loads(self.lost_file.read_text(encoding="utf-8")) if there else {}

    def answers(self, systems: Sequence[ComparedSystem]) -> CaseResults:
        refused: dict[str, str] = {}
        for baseline in self.baselines:
            self.evaluator.evaluate(self.ledger, baseline, self.tasks, {"question", self.form})
        for at, system in enumerate(systems, 1):
            if system.family != "chain" or self.tasks[0].has_hops:
                try:
                    self._answer(system)
                except LoraprobeError as error:
                    refused[system.label] = str(error)
            self.evaluator.report(self.case.name, at, len(systems))
        asked = {system.label for system in systems} - set(refused)
        return CaseResults(self.case, tuple(self._results(asked)), dict(self.lost), refused)

    def _answer(self, compared: ComparedSystem) -> None:
        """Builds and evaluates a system unless its results exist; measures a merge's loss."""
        merges, parts = compared.family == "merge", {self.form}
        label, part = compared.label, "question" if compared.family == "chain" else self.form
        answered = all(
            self.ledger.get(label, task.name, part, item.id)
            for task in self.tasks
            for item in task.items
        )
        if answered and not (merges and label not in self.lost):
            return
        builder = compared.builder(self.adapters)
        spec = compared.spec
        if compared.family == "router" and ROUTERS.make(spec).needs_prompts:
            builder = replace(builder, routers={spec: self._fitted(builder, spec)})
        system = compared.build(builder)
        if merges:
            self.lost[compared.label] = lost_at_default_rank(system, self.adapters)
            write_text(self.lost_file, json.dumps(self.lost, indent=0) + "\n")
        self.evaluator.evaluate(self.ledger, system, self.tasks, parts)

    def _fitted(self, builder: SystemBuilder, spec: str) -> Router:
        """The router fitted to prompts that are not evaluated, or else to generated ones.

        Every router of a case is fitted to the same prompts.
        """
        from loraprobe.pipeline.router_fitting import fit_routers, fitted_to

        router, prompts = ROUTERS.make(spec), self.case.prompts(self.evaluator.limit)
        if self.learned:
            return router.with_state(self.learned)
        if prompts:
            router = fitted_to(router, self.evaluator.scorer, builder.prepared.adapters, prompts)
        else:
            fitted, _ = fit_routers(
                builder.trained,
                builder.prepared,
                builder.options,
                self.evaluator.scorer,
                self.tasks,
            )
            router = fitted[spec]
        self.learned.update(router.state())
        return router

    def _results(self, asked: set[str]) -> Iterator[ItemResult]:
        """The results in the form of the question, singles under their roles.

        A chain needs no worked steps, but counts under the form in which the others are asked.
        """
        roles = self.case.roles
        for row in self.ledger:
            if row.system == "chain":
                if row.part == "question" and "chain" in asked:
                    yield replace(row, part=self.form)
            elif row.system in roles:
                yield replace(row, system=roles[row.system])
            elif row.system == "base" or row.system in asked:
                yield row


def lost_at_default_rank(system: System, adapters: Sequence[Adapter]) -> float:
    """||dW - dW_k||_F / ||dW||_F of a merge if every module were cut to the default rank k.

    k is the sum of the sources' ranks; the loss is in the other singular values (Eckart and Young).
    """
    import torch

    assert system.composition is not None
    (merged,) = system.composition.experts
    whole = beyond = 0.0
    for path, update in merged.modules.items():
        rank = sum(a.modules[path].rank for a in adapters if path in a.modules)
        squares = update.to(dtype=torch.float64).svd()[1] ** 2
        whole += float(squares.sum())
        beyond += float(squares[rank:].sum())
    return (beyond / whole) ** 0.5
