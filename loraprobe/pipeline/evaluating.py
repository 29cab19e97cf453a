"""`merge-and-eval`: its inputs, and `evaluate`, which asks all systems by rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from loraprobe import evaluation
from loraprobe.adapters import Adapter
from loraprobe.errors import UsageError
from loraprobe.evaluation import Samples, System
from loraprobe.options import Options
from loraprobe.pipeline.estimating import expected_steps
from loraprobe.pipeline.evaluator import Evaluator, open_evaluator
from loraprobe.pipeline.gate_statistics import gate_statistics
from loraprobe.pipeline.inputs import Adapters, Given, Inputs, check_state, open_inputs
from loraprobe.pipeline.portfolio import Selection
from loraprobe.pipeline.results import SEARCH
from loraprobe.pipeline.rounds import ask_in_rounds, records
from loraprobe.pipeline.router_fitting import fit_routers
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.systems import SystemBuilder, baseline_systems, check_systems
from loraprobe.pipeline.task_split import split
from loraprobe.pipeline.transforms import Prepared
from loraprobe.pipeline.weight_search import find_weights, note, tried_weights
from loraprobe.records import (
    FORMS,
    EvaluationRecords,
    GateStatistics,
    ItemResult,
    Score,
    Verdict,
    WeightSearch,
)


@dataclass(frozen=True)
class Evaluated:
    """The results of all systems on all tasks."""

    records: EvaluationRecords
    gates: tuple[GateStatistics, ...]
    search: WeightSearch | None
    compositions: Sequence[System]
    builder: SystemBuilder
    samples: Samples
    notes: Sequence[str]

    def shown(self, verdict: Verdict) -> dict[str, Any]:
        """What an audit with this verdict shows of it, by field.

        The samples are a few questions that its composition, or else the best one, got wrong.
        """
        system = verdict.system or best_system(
            self.records.evaluation, ("merge", "router", "chain")
        )
        form = verdict.gain.form if verdict.gain is not None else "question"
        wrong = self.samples.wrong(system, form) if system else ()
        return {"gates": self.gates, "search": self.search, "samples": wrong, **vars(self.records)}


def open_composition(adapters: Adapters, **given: Unpack[Given]) -> Inputs:
    """The inputs of merge-and-eval. Raises LoraprobeError before a model is loaded."""
    options = given.get("options", Options())
    given.setdefault("base", "auto")
    if not given.get("tasks"):
        raise UsageError(
            "merge-and-eval needs --task FILE; without one, try inspect --base auto --probe auto."
        )
    if isinstance(adapters, (str, Path, Adapter)) or len(adapters) < 2:
        raise UsageError("merge-and-eval composes adapters; give at least two.")
    check_state(options)
    inputs = open_inputs(adapters, **given)
    check_systems(inputs.adapters, options)
    chosen = Selection(options, inputs.adapters, inputs.tasks)
    if not options.systems and not chosen.specs:
        why = " ".join(chosen.unfit.values()) or "--method none and --router none leave none."
        raise UsageError(f"There is no composition to evaluate: {why} Give a --method.")
    if options.weights == "search":
        split(inputs.tasks, options)  # raises where a task has too few items
    return inputs


def evaluate(inputs: Inputs, prepared: Prepared, session: Session) -> Evaluated:
    """Builds the compositions and asks them, the base, the single adapters and the controls."""
    options = session.options
    with open_evaluator(inputs, prepared.general, session, composes=True) as evaluator:
        session.expect(lambda: expected_steps(evaluator))
        builder, search, notes = open_builder(evaluator, prepared)
        with session.stage("compose"):
            composed = builder.compositions(inputs.tasks)
        found = ask_in_rounds(
            evaluator,
            [*baseline_systems(inputs.adapters), *composed],
            lambda results, systems: controls_of_best(builder, composed, results, systems, session),
        )
        systems, results = found.all_systems, found.results
        asked = replace(evaluator, tasks=found.round.tasks)
        coverage = asked.probe_tasks(results)
        with session.stage("gates"):
            gates, gate_note = gate_statistics(asked.scorer, composed, asked.tasks, options.seed)
    with session.stage("statistics"):
        findings = records(found, evaluator, coverage=coverage)
    samples = Samples.of(results, systems, asked.tasks, options.metric)
    notes = [*evaluator.notes, *notes, *prepared.notes]
    notes += ["Single adapters were evaluated as they are."] if prepared.steps else []
    notes += [note(search)] if search else []
    notes += [*builder.chosen(inputs.tasks).unfit.values()]
    for system in composed:
        notes += system.composition.notes() if system.composition else []
    notes += [gate_note, *found.notes(), *evaluation.chain_notes(systems, evaluator.tasks)]
    notes.append(evaluator.scorer.batcher.note())
    return Evaluated(findings, gates, search, composed, builder, samples, notes)


def open_builder(
    evaluator: Evaluator, prepared: Prepared
) -> tuple[SystemBuilder, WeightSearch | None, list[str]]:
    """A builder with fitted routers and, with `--weights search`, the weights that were found.

    Both learn on items on which no system is scored. Returns the builder, what the search found,
    and notes on the routers.
    """
    inputs, session, scorer = evaluator.inputs, evaluator.session, evaluator.scorer
    options, parts, path, search = session.options, evaluator.split, evaluator.ledger.path, None
    with session.stage("fit"):
        routers, notes = fit_routers(
            inputs.adapters, prepared, options, scorer, inputs.tasks, parts
        )
    if parts is not None and options.weights == "search":
        memory = None if path is None else tried_weights(path.with_name(SEARCH), options.resume)
        with session.stage("search"):
            search = find_weights(
                scorer, prepared.adapters, parts, options, memory=memory, progress=session.progress
            )
    searched = tuple(search.weights.values()) if search else None
    builder = SystemBuilder(inputs.adapters, prepared, options, inputs.base, searched, routers)
    return builder, search, notes


def controls_of_best(
    builder: SystemBuilder,
    composed: Sequence[System],
    results: Sequence[ItemResult],
    systems: Sequence[System],
    session: Session,
) -> list[System]:
    """The controls of the best single adapter and the best merge or router, if there are any."""
    scores = evaluation.score(results, systems)
    alone, best = best_system(scores, ("adapter",)), best_system(scores, ("merge", "router"))
    if alone is None or best is None:
        return []
    chosen = next((system for system in composed if system.name == best), None)
    with session.stage("compose"):
        return builder.controls(alone, chosen)


def best_system(scores: Sequence[Score], kinds: Sequence[str]) -> str | None:
    """The system of these kinds with the best mean over the tasks, in its better form.

    Names break ties, so that the order in which adapters are given does not matter.
    """
    totals: dict[tuple[str, str], list[float]] = {}
    for row in scores:
        if row.kind in kinds and row.part in FORMS:
            sign = -1.0 if row.metric == "answer_loss" else 1.0
            totals.setdefault((row.system, row.part), []).append(sign * row.value)
    if not totals:
        return None
    return min(totals, key=lambda key: (-sum(totals[key]) / len(totals[key]), key))[0]
