"""`merge-and-eval` on the base model: `evaluate` scores all systems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loraprobe import evaluation
from loraprobe.evaluation import Samples, System
from loraprobe.pipeline.estimating import announce
from loraprobe.pipeline.evaluator import open_evaluator
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.systems import Built, SystemBuilder, baseline_systems, unfit_routers
from loraprobe.pipeline.transforms import Prepared
from loraprobe.records import (
    Coverage,
    EvaluationRecords,
    Forecast,
    GateStatistics,
    ItemResult,
    Sample,
    Score,
    Verdict,
    WeightSearch,
)
from loraprobe.tasks import Task


@dataclass(frozen=True)
class Evaluated:
    """The results of all systems on all tasks."""

    records: EvaluationRecords
    gates: tuple[GateStatistics, ...]
    search: WeightSearch | None
    compositions: Sequence[Built]
    builder: SystemBuilder
    samples: Samples
    notes: Sequence[str]


def evaluate(inputs: Inputs, prepared: Prepared, session: Session) -> Evaluated:
    """Evaluates the base and the single adapters, then the compositions, then the controls."""
    options = session.options
    with open_evaluator(inputs, prepared.general, session) as evaluator:
        announce(evaluator)
        routers, notes = evaluator.fit_routers(prepared)
        systems = baseline_systems(inputs.adapters)
        results = evaluator.run(systems)
        coverage, forecasts = evaluator.probe_tasks(results), evaluator.forecast(results)
        search, search_notes = evaluator.search_weights(prepared)
        weights = tuple(search.weights.values()) if search else options.given_weights
        builder = SystemBuilder(inputs.adapters, prepared, options, inputs.base, weights, routers)
        with session.stage("compose"):
            compositions = builder.compositions(any(task.has_hops for task in evaluator.tasks))
        composed = [one.system for one in compositions]
        systems += composed
        results = evaluator.run(systems)
        gates, gate_note = evaluator.gates(composed)
        systems += _controls(builder, composed, results, systems, session)
        results = evaluator.run(systems)
    findings = _findings(results, systems, evaluator.tasks, session, coverage, forecasts)
    samples = Samples.of(evaluator.ledger, results, systems, evaluator.tasks, options.metric)
    notes = [*evaluator.notes, *notes, *prepared.notes]
    notes += ["Single adapters were evaluated as they are."] if prepared.steps else []
    notes += [*search_notes, *unfit_routers(options, inputs.adapters).values()]
    for system in composed:
        notes += system.composition.notes() if system.composition else []
    notes += [gate_note, *evaluation.chain_notes(systems, evaluator.tasks)]
    notes.append(evaluator.scorer.batcher.note())
    return Evaluated(findings, gates, search, compositions, builder, samples, notes)


def wrong_answers(found: Evaluated, verdict: Verdict) -> tuple[Sample, ...]:
    """A few questions that the composition of the verdict, or else the best one, got wrong."""
    scores = found.records.evaluation
    system = verdict.system or best_system(scores, ("merge", "router", "chain"))
    form = verdict.gain.form if verdict.gain is not None else "question"
    return found.samples.wrong(system, form) if system else ()


def _findings(
    results: Sequence[ItemResult],
    systems: Sequence[System],
    tasks: Sequence[Task],
    session: Session,
    coverage: tuple[Coverage, ...],
    forecasts: tuple[Forecast, ...],
) -> EvaluationRecords:
    """Adds scores with intervals, paired comparisons, gains and attribution."""
    margin, seed = session.options.needed_gain, session.options.seed
    with session.stage("statistics"):
        return EvaluationRecords(
            coverage,
            forecasts,
            evaluation=evaluation.score(results, systems),
            comparisons=evaluation.compare(results, systems, seed=seed),
            gains=evaluation.gains(results, systems, margin=margin, seed=seed),
            oracles=evaluation.oracles(results, systems),
            attribution=evaluation.attribute(results, systems, tasks),
        )


def _controls(
    builder: SystemBuilder,
    composed: Sequence[System],
    results: Sequence[ItemResult],
    systems: Sequence[System],
    session: Session,
) -> list[System]:
    """The controls of the best single adapter and the best merge or router."""
    scores = evaluation.score(results, systems)
    alone, best = best_system(scores, ("adapter",)), best_system(scores, ("merge", "router"))
    if alone is None:
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
        if row.kind in kinds and row.part in ("question", "steps"):
            sign = -1.0 if row.metric == "answer_loss" else 1.0
            totals.setdefault((row.system, row.part), []).append(sign * row.value)
    if not totals:
        return None
    return min(totals, key=lambda key: (-sum(totals[key]) / len(totals[key]), key))[0]
