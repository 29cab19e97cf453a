"""The pilot: what `inspect` asks the base, of a sample of the items or of prompts without a task.

The base and the single adapters answer, the probes ask the base, and a few questions are put to the
compositions. `merge-and-eval --resume` finds these answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from loraprobe import evaluation, probes
from loraprobe.defaults import CEILING_ITEMS, HOP_ITEMS, PILOT_ITEMS
from loraprobe.evaluation import Round, System
from loraprobe.evaluation.plan import pilot_round, spread_sample
from loraprobe.options import Options
from loraprobe.pipeline.evaluate import Asked, builder_for, controls_of_best
from loraprobe.pipeline.evaluator import Evaluator, open_evaluator, open_scorer
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.systems import Plan, baseline_systems
from loraprobe.pipeline.transforms import Transformed
from loraprobe.records import (
    FORMS,
    QUESTION,
    STEPS,
    Coverage,
    EvaluationRecords,
    EvidenceLevel,
    ItemResult,
)
from loraprobe.scoring import ModelScorer
from loraprobe.session import Cards, Session
from loraprobe.tasks import ProbePrompts, Task


def run_pilot(
    inputs: Inputs, plan: Plan, probe: ProbePrompts | Cards | None, session: Session
) -> tuple[EvidenceLevel, EvaluationRecords, list[str]]:
    """Asks the base and the single adapters on samples of the tasks, then the compositions.

    Returns "probes" without a task, "base" where no composition was asked, or "pilot"; what was
    measured; and notes.
    """
    assert inputs.base is not None
    if not inputs.tasks:
        scorer, notes = open_scorer(inputs.base, session.options.dtype, session)
        rows = _probe_without_task(scorer, inputs, probe, session)
        return "probes", EvaluationRecords(coverage=rows), [*notes, scorer.note()]
    options, singles = session.options, baseline_systems(inputs.adapters)
    first = pilot_round(plan.tasks, PILOT_ITEMS, options.seed)
    # Hops decide for one task alone (`verdict.rules`), which takes more items; a worked answer is
    # long, and serves the comparison with compositions only.
    deciding = len(plan.tasks) == 1 and any(item.hops for item in plan.tasks[0].items)
    sample = _sampled(plan.tasks, HOP_ITEMS if deciding else PILOT_ITEMS, options)
    short = {part for task in plan.tasks for part in task.parts} - {STEPS}
    with open_evaluator(inputs, plan, session) as evaluator:
        results = replace(evaluator, tasks=first.tasks).run(singles)
        few = replace(evaluator, tasks=sample)
        results += few.run(singles, short)
        rows = few.probe_tasks(results, probe is not None)
        rows += _probe_without_task(evaluator.local, inputs, probe, session)
        # Whether nothing is left to gain is a matter of a bound close to 1, which a sample is too
        # small for; one system and one form of the question is cheap.
        shares = evaluation.shares_right(results, len(plan.tasks))
        for system in singles:
            if shares.get((system.name, QUESTION)) == 1.0:
                more = _sampled(plan.tasks, CEILING_ITEMS, options)
                results += replace(evaluator, tasks=more).run([system], parts=(QUESTION,))
        results = list({row.key: row for row in results}.values())
        notes = [
            f"Of task {task.name} a sample of {len(asked.items)} of {len(task.items)} items was "
            "asked; merge-and-eval --resume uses their answers again."
            for task, asked in zip(plan.tasks, sample, strict=True)
            if len(asked.items) < len(task.items)
        ]
        found, failed = _compositions(evaluator, first, singles, results)
    with session.stage("statistics"):
        records = found.records(coverage=rows)
    notes = [*evaluator.notes, *notes, *plan.left_out, *failed, evaluator.scorer.note()]
    if len(found.systems) == len(singles):
        return "base", replace(records, rounds=None), notes
    return "pilot", records, notes


def _compositions(
    evaluator: Evaluator, first: Round, singles: Sequence[System], alone: Sequence[ItemResult]
) -> tuple[Asked, list[str]]:
    """The first round of the compositions, on a few questions, and notes.

    alone: results of the base and the single adapters. Controls are asked only where a composition
    gains more than the margin: nothing else depends on them.
    """
    inputs, session, plan = evaluator.inputs, evaluator.session, evaluator.plan
    builder, notes = builder_for(evaluator, Transformed(tuple(inputs.adapters)))
    names = {adapter.name for adapter in inputs.adapters}
    specs = [spec for spec in plan.fitted(builder.routers) if spec not in names]
    with session.stage("compose"):
        composed, left_out = builder.build_each({spec: spec for spec in specs})
    here, systems = replace(evaluator, tasks=first.tasks), [*singles, *composed]
    results, checks = [*alone, *here.run(composed, FORMS)], list[System]()
    merged = [system for system in systems if system.kind != "chain"]
    seed, margin = session.options.seed, session.options.needed_gain
    gains = evaluation.gains(results, merged, margin=margin, seed=seed, alpha=first.alpha)
    if any(gain.adjusted_ci95[0] > margin for gain in gains):
        checks = controls_of_best(builder, composed, results, systems, session)
        results += here.run(checks, FORMS)
    return Asked(evaluator, first, [*systems, *checks], results), [*notes, *left_out]


def _sampled(tasks: Sequence[Task], items: int, options: Options) -> list[Task]:
    """A sample of each task; a smaller sample is part of a larger one."""
    return [spread_sample(task, items, options.seed) for task in tasks]


def _probe_without_task(
    scorer: ModelScorer, inputs: Inputs, probe: ProbePrompts | Cards | None, session: Session
) -> tuple[Coverage, ...]:
    """Figures on a probe file, or on prompts from cards and adapters."""
    if probe is None:
        return ()
    adapters, seed = inputs.adapters, session.options.seed
    with session.stage("probe"):
        if not isinstance(probe, ProbePrompts):
            probe = probes.generated_prompts(scorer, adapters, probe, seed=seed)
        return probes.probe_without_task(scorer, adapters, probe, seed=seed)
