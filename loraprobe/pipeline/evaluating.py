"""The stages that ask the base model: what is known alone, and how every system scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loraprobe import evaluation
from loraprobe.adapters import Adapter
from loraprobe.evaluation import Samples, System
from loraprobe.pipeline.estimating import announce
from loraprobe.pipeline.evaluator import open_evaluator
from loraprobe.pipeline.inputs import Inputs, load_scorer
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.systems import (
    Built,
    SystemBuilder,
    baseline_systems,
    single,
    unfit_routers,
)
from loraprobe.pipeline.transforms import Prepared, prepare
from loraprobe.records import (
    Attribution,
    Comparison,
    Coverage,
    EvidenceLevel,
    Forecast,
    Gain,
    GateStatistics,
    ItemResult,
    Sample,
    Score,
    Verdict,
    WeightSearch,
)

if TYPE_CHECKING:
    from loraprobe.tasks import Probe, Task


@dataclass(frozen=True)
class Statistics:
    """What the results of all systems say: scores, paired differences, gains, causes of failure."""

    evaluation: tuple[Score, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    gains: tuple[Gain, ...] = ()
    attribution: tuple[Attribution, ...] = ()


def statistics_of(
    results: Sequence[ItemResult],
    systems: Sequence[System],
    tasks: Sequence[Task],
    session: Session,
) -> Statistics:
    """Scores with intervals, paired comparisons, gains, attribution, retention."""
    margin, seed = session.options.needed_gain, session.options.seed
    with session.stage("statistics"):
        return Statistics(
            evaluation=evaluation.score(results, systems),
            comparisons=evaluation.compare(results, systems, seed=seed),
            gains=evaluation.gains(results, systems, margin=margin, seed=seed),
            attribution=evaluation.attribute(results, systems, tasks),
        )


@dataclass(frozen=True)
class Evaluated:
    """Every system on every task, and what the report and the recommendation need of it."""

    statistics: Statistics
    coverage: tuple[Coverage, ...]
    forecasts: tuple[Forecast, ...]
    gates: tuple[GateStatistics, ...]
    search: WeightSearch | None
    compositions: Sequence[Built]
    builder: SystemBuilder
    samples: Samples
    notes: Sequence[str]


def evaluate(inputs: Inputs, general: Sequence[Adapter], session: Session) -> Evaluated:
    """Asks the base and the single adapters, then the compositions, then the controls."""
    options = session.options
    with open_evaluator(inputs, general, session) as evaluator:
        announce(evaluator)
        with session.stage("compose"):
            prepared = prepare(inputs.adapters, options, general, inputs.base)
        routers, notes = evaluator.fit_routers(prepared)
        systems = baseline_systems(inputs.adapters)
        results = evaluator.run(systems)
        coverage, forecasts = evaluator.probe_tasks(results), evaluator.forecast(results)
        search, search_notes = evaluator.search_weights(prepared)
        weights = tuple(search.weights.values()) if search else options.given_weights
        builder = SystemBuilder(inputs.adapters, prepared, options, inputs.base, weights, routers)
        has_hops = any(task.has_hops for task in evaluator.tasks)
        with session.stage("compose"):
            compositions = builder.compositions(has_hops)
        systems += [one.system for one in compositions]
        results = evaluator.run(systems)
        gates, gate_note = evaluator.gates([one.system for one in compositions])
        systems += _controls(builder, compositions, results, systems, session)
        results = evaluator.run(systems)
    statistics = statistics_of(results, systems, evaluator.tasks, session)
    samples = Samples.of(evaluator.ledger, results, systems, evaluator.tasks, options.metric)
    notes = [*evaluator.notes, *notes, *prepared.notes]
    notes += ["Single adapters were evaluated as they are."] if prepared.steps else []
    notes += [*search_notes, *unfit_routers(options, inputs.adapters).values()]
    for one in compositions:
        notes += one.system.composition.notes() if one.system.composition else []
    notes += [gate_note, *evaluation.chain_notes(systems, evaluator.tasks)]
    notes.append(evaluator.scorer.batcher.note())
    return Evaluated(
        statistics, coverage, forecasts, gates, search, compositions, builder, samples, notes
    )


def wrong_answers(found: Evaluated, verdict: Verdict) -> tuple[Sample, ...]:
    """A few questions that the composition of the verdict, or else the best one, got wrong."""
    scores = found.statistics.evaluation
    system = verdict.system or best_system(scores, ("merge", "router", "chain"))
    form = verdict.gain.form if verdict.gain is not None else "question"
    return found.samples.wrong(system, form) if system else ()


def _controls(
    builder: SystemBuilder,
    compositions: Sequence[Built],
    results: Sequence[ItemResult],
    systems: Sequence[System],
    session: Session,
) -> list[System]:
    """The controls of the best single adapter and the best merge or router."""
    scores = evaluation.score(results, systems)
    alone, best = best_system(scores, ("adapter",)), best_system(scores, ("merge", "router"))
    if alone is None:
        return []
    chosen = next((one.system for one in compositions if one.system.name == best), None)
    with session.stage("compose"):
        return builder.controls(alone, chosen)


@dataclass(frozen=True)
class Knowledge:
    """What base and single adapters know, from a task (level "base") or from probes alone."""

    level: EvidenceLevel = "weights"
    coverage: tuple[Coverage, ...] = ()
    forecasts: tuple[Forecast, ...] = ()
    evaluation: tuple[Score, ...] = ()
    notes: tuple[str, ...] = ()


def measure_knowledge(
    inputs: Inputs,
    probe: Probe | str | None,
    cards: Mapping[str, str | None],
    session: Session,
) -> Knowledge:
    """The base and the single adapters on the tasks and on a probe; nothing is composed."""
    assert inputs.base is not None
    if not inputs.tasks:
        scorer, notes = load_scorer(inputs.base, session.options.dtype, session)
        assert probe is not None
        rows = probe_without_task(scorer, inputs, probe, cards, session)
        return Knowledge("probes", rows, notes=(*notes, scorer.batcher.note()))
    with open_evaluator(inputs, (), session) as evaluator:
        prepared = Prepared(tuple(inputs.adapters))
        _, fitted = evaluator.fit_routers(prepared)
        systems = baseline_systems(inputs.adapters)
        results = evaluator.run(systems)
        rows, forecasts = evaluator.probe_tasks(results), evaluator.forecast(results)
        if probe is not None:
            rows += probe_without_task(evaluator.scorer, inputs, probe, cards, session)
        notes = [*evaluator.notes, *fitted, evaluator.scorer.batcher.note()]
    return Knowledge("base", rows, forecasts, evaluation.score(results, systems), tuple(notes))


def probe_without_task(
    scorer: Any,
    inputs: Inputs,
    probe: Probe | str,
    cards: Mapping[str, str | None],
    session: Session,
) -> tuple[Coverage, ...]:
    """Figures on a probe file, or on prompts that cards and adapters themselves give ("auto")."""
    from loraprobe import probes

    adapters, seed = inputs.adapters, session.options.seed
    with session.stage("probe"):
        if isinstance(probe, str):
            probe = probes.generated_prompts(scorer, adapters, cards, single=single, seed=seed)
        return probes.probe_without_task(scorer, adapters, probe, single=single, seed=seed)


def best_system(scores: Sequence[Score], kinds: Sequence[str]) -> str | None:
    """The system of these kinds with the best mean over the tasks, in the form that suits it best.

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
