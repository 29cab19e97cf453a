"""`inspect` on the base model: what is known on a sample of questions, at a fraction of the cost.

On a seeded sample of each task the base and the single adapters answer, and the probes ask the
base. A few of these questions are then put to the compositions themselves, the pilot. It costs less
than a forecast of generated answers and says more (docs/forecast.md). All answers go into the
ledger, where `merge-and-eval --resume` finds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from loraprobe import evaluation, probes
from loraprobe.composition import Router
from loraprobe.defaults import CEILING_ITEMS, HOP_ITEMS, PILOT_ITEMS, PROBED_ITEMS
from loraprobe.evaluation import System
from loraprobe.evaluation.schedule import spent_by, spread_sample
from loraprobe.pipeline.evaluating import controls_of_best
from loraprobe.pipeline.evaluator import Evaluator, open_evaluator, open_scorer
from loraprobe.pipeline.inputs import Cards, Inputs
from loraprobe.pipeline.portfolio import Selection
from loraprobe.pipeline.rounds import compared
from loraprobe.pipeline.router_fitting import fit_routers
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.systems import SystemBuilder, baseline_systems, summed_specs
from loraprobe.pipeline.transforms import Prepared, prepare_inputs
from loraprobe.records import (
    FORMS,
    Coverage,
    EvaluationRecords,
    EvidenceLevel,
    Forecast,
    ItemResult,
    Rounds,
)
from loraprobe.scoring import MOST_BYTES, Recorder
from loraprobe.tasks import ProbePrompts, Task


@dataclass(frozen=True)
class BaseEvidence:
    """What the base model was asked.

    Its level is "probes" without a task, "base" for the base and the single adapters on a task, and
    "pilot" if compositions were asked too.
    """

    level: EvidenceLevel = "weights"
    records: EvaluationRecords = field(default_factory=EvaluationRecords)
    notes: tuple[str, ...] = ()


def measure_baselines(
    inputs: Inputs, probe: ProbePrompts | Cards | None, session: Session
) -> BaseEvidence:
    """Asks the base and the single adapters on samples of the tasks, then the compositions."""
    assert inputs.base is not None
    if not inputs.tasks:
        scorer, notes = open_scorer(inputs.base, session.options.dtype, session)
        rows = probe_without_task(scorer, inputs, probe, session)
        return BaseEvidence("probes", EvaluationRecords(rows), (*notes, scorer.batcher.note()))
    composes = len(inputs.adapters) > 1
    with open_evaluator(inputs, (), session, composes=composes) as evaluator:
        singles = baseline_systems(inputs.adapters)
        few = sampled(evaluator, items_alone(inputs.tasks))
        results, forecasts = answers_alone(few, singles)
        rows = few.probe_tasks(results, items=PROBED_ITEMS)
        rows += probe_without_task(evaluator.scorer, inputs, probe, session)
        results = at_ceiling(evaluator, singles, results)
        look = first_look(evaluator)
        composed, answers, notes = pilot(evaluator, singles, results, look)
        systems, results = [*singles, *composed], [*results, *answers]
        asked = sampled(evaluator, PILOT_ITEMS).tasks
        chat = evaluator.scorer.chat_template
        chain = evaluation.chain_hops(systems, asked, evaluator.ledger, chat)
    with session.stage("statistics"):
        found = EvaluationRecords(
            rows,
            forecasts,
            **compared(results, systems, evaluator, 1 - look.level),
            chain=chain,
            rounds=look if composed else None,
        )
    notes = [*evaluator.notes, *_sample_notes(evaluator), *notes, evaluator.scorer.batcher.note()]
    return BaseEvidence("pilot" if composed else "base", found, tuple(notes))


def first_look(evaluator: Evaluator) -> Rounds:
    """How far the pilot goes, as the first look of an evaluation of all items.

    It spends only the part of alpha that belongs to the smallest share of a task's clusters that it
    asks, so that it decides nothing that an evaluation would leave open.
    """
    tasks, few = evaluator.tasks, sampled(evaluator, PILOT_ITEMS).tasks
    shares = [
        len({item.cluster for item in part.items}) / len({item.cluster for item in task.items})
        for task, part in zip(tasks, few, strict=True)
    ]
    share = min(shares)
    planned = evaluation.rounds(tasks, evaluator.session.options.seed)[0].planned
    asked, every = (sum(len(task.items) for task in some) for some in (few, tasks))
    looks = 1 if asked == every else max(2, planned)
    return Rounds(1, looks, asked, every, 1 - spent_by(share, share))


def items_alone(tasks: Sequence[Task]) -> int:
    """How many items of each task the base and the single adapters answer.

    Hops decide for one task alone (`verdict.rules`), which takes more of them.
    """
    hops = len(tasks) == 1 and any(item.hops for item in tasks[0].items)
    return HOP_ITEMS if hops else PILOT_ITEMS


def sampled(evaluator: Evaluator, items: int) -> Evaluator:
    """The same evaluator on a sample of each task; a smaller sample is part of a larger one."""
    seed = evaluator.session.options.seed
    return replace(evaluator, tasks=[spread_sample(t, items, seed) for t in evaluator.tasks])


def answers_alone(
    evaluator: Evaluator, singles: Sequence[System]
) -> tuple[list[ItemResult], tuple[Forecast, ...]]:
    """The results of the base and the single adapters, and a forecast.

    Answers that are judged by likelihood are forecast from these same passes. Generated answers are
    not forecast: that costs more than a first round of the compositions, which says more.
    """
    adapters, options = evaluator.inputs.adapters, evaluator.session.options
    scorer, summed = evaluator.scorer, summed_specs(options, adapters)
    if len(adapters) < 2 or not summed or not _can_record(evaluator):
        return evaluator.run(singles), ()
    names = [adapter.name for adapter in adapters]
    results: list[ItemResult] = []
    recorder = scorer.recorder = Recorder("base", names)
    try:
        for system in singles:
            with recorder.of(system.name):
                results += evaluator.run([system])
    finally:
        scorer.recorder = None
    with evaluator.session.stage("forecast"):
        return results, probes.forecast_recorded(
            scorer,
            names,
            summed,
            evaluator.tasks,
            recorder,
            results=results,
            metric=options.metric,
            seed=options.seed,
        )


def _can_record(evaluator: Evaluator) -> bool:
    """Whether some answers are judged by likelihood, and their sums do not take too much memory."""
    asked = probes.scored_questions(evaluator.tasks, evaluator.session.options.metric)
    pairs = {(q.prompt, text) for q in asked for text in q.continuations}
    tokens = sum(len(ids) - start for ids, start in evaluator.scorer.encoded(list(pairs)))
    size = tokens * evaluator.scorer.vocab_size * torch.float16.itemsize
    return bool(asked) and size <= MOST_BYTES


def at_ceiling(
    evaluator: Evaluator, singles: Sequence[System], results: Sequence[ItemResult]
) -> list[ItemResult]:
    """The results, with more of those systems that answered every sampled question.

    Whether nothing is left to gain is a matter of a bound close to 1, which a sample is too small
    for; one system and one form of the question is cheap.
    """
    more: list[ItemResult] = []
    for system in singles:
        own = [r for r in results if (r.system, r.part) == (system.name, "question")]
        if own and all(r.metric != "answer_loss" and r.value == 1.0 for r in own):
            more += sampled(evaluator, CEILING_ITEMS).run([system], parts=("question",))
    return list({r.key: r for r in [*results, *more]}.values())


def pilot(
    evaluator: Evaluator, singles: Sequence[System], results: Sequence[ItemResult], look: Rounds
) -> tuple[list[System], list[ItemResult], list[str]]:
    """A first round of the compositions on a few questions: systems, results and notes.

    A chain is asked too where the task has hops. Controls are asked only where a composition gains
    more than the margin beyond its interval, since nothing else depends on them. There is no round
    of a single adapter.
    """
    inputs, session, few = evaluator.inputs, evaluator.session, sampled(evaluator, PILOT_ITEMS)
    if len(inputs.adapters) < 2:
        return [], [], []
    options = session.options
    prepared = prepare_inputs(inputs, "route", session)
    routers, told = _routers(evaluator, prepared)
    builder = SystemBuilder(inputs.adapters, prepared, options, inputs.base, routers=routers)
    composed, notes = _compositions(builder, session)
    notes = [*told, *notes]
    if "chain" in Selection(options, inputs.adapters, few.tasks).specs:
        composed.append(builder.build("chain"))  # nearly all of its hops were answered already
    answers = few.run(composed, parts=FORMS)
    seed, margin = options.seed, options.needed_gain
    both, systems = [*results, *answers], [*singles, *composed]
    merged = [system for system in systems if system.kind != "chain"]
    gains = evaluation.gains(both, merged, margin=margin, seed=seed, alpha=1 - look.level)
    if any(gain.adjusted_ci95[0] > margin for gain in gains):
        compared = controls_of_best(builder, composed, both, systems, session)
        answers += few.run(compared, parts=FORMS)
        composed += compared
    return composed, answers, notes


def _routers(evaluator: Evaluator, prepared: Prepared) -> tuple[dict[str, Router], list[str]]:
    """The default routers that learn from items set apart, fitted, and notes.

    A router that the user named would first have the adapters write prompts.
    """
    inputs = evaluator.inputs
    options, tasks, parts = evaluator.session.options, inputs.tasks, evaluator.split
    chosen = Selection(options, inputs.adapters, tasks)
    learning, added = chosen.learning, {one.spec for one in chosen.added}
    if parts is None or not learning or not learning.keys() <= added:
        return {}, []
    with evaluator.session.stage("fit"):
        return fit_routers(inputs.adapters, prepared, options, evaluator.scorer, tasks, parts)


def _compositions(builder: SystemBuilder, session: Session) -> tuple[list[System], list[str]]:
    """The compositions that the options ask for, and a note on each that is left out.

    Routers that learn are asked where they are fitted.
    """
    chosen = Selection(builder.options, builder.trained)
    left_out = {adapter.name for adapter in builder.trained} | chosen.learning.keys()
    specs = [spec for spec in chosen.specs if spec not in left_out]
    with session.stage("compose"):
        return builder.build_each({spec: spec for spec in (*specs, *builder.routers)})


def _sample_notes(evaluator: Evaluator) -> list[str]:
    """A note on each task of which a sample was asked."""
    few = sampled(evaluator, items_alone(evaluator.tasks))
    return [
        f"Of task {task.name} a sample of {len(asked.items)} of {len(task.items)} items was asked; "
        "merge-and-eval --resume uses their answers again."
        for task, asked in zip(evaluator.tasks, few.tasks, strict=True)
        if len(asked.items) < len(task.items)
    ]


def probe_without_task(
    scorer: Any, inputs: Inputs, probe: ProbePrompts | Cards | None, session: Session
) -> tuple[Coverage, ...]:
    """Figures on a probe file, or on prompts from cards and adapters."""
    if probe is None:
        return ()
    adapters, seed = inputs.adapters, session.options.seed
    with session.stage("probe"):
        if not isinstance(probe, ProbePrompts):
            probe = probes.generated_prompts(scorer, adapters, probe, seed=seed)
        return probes.probe_without_task(scorer, adapters, probe, seed=seed)
