"""Asks systems round by round until the decision holds: `evaluate`, and the two commands on it.

After a round the verdict is judged with the intervals of this round (`evaluation.plan`). The
run goes on while the action is less certain than the decision (`verdict.advice.settled`). Systems
that can no longer win are not asked further. A composition that gains has to beat the controls too,
so these are asked the same items before the run stops. The base and the single adapters always
answer all items of a round, since they are what a composition is compared with, and their hops
explain what compositions get wrong.

`merge-and-eval` asks all rounds (`evaluate_all`). `inspect` asks the first one on a sample of the
items (`evaluate_sample`): the base and the single adapters answer, the probes ask the base, and a
few questions are put to the compositions, the pilot. That costs less than a forecast of generated
answers and says more (docs/forecast.md). `merge-and-eval --resume` finds these answers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from loraprobe import evaluation, probes
from loraprobe.defaults import CEILING_ITEMS, HOP_ITEMS, PILOT_ITEMS
from loraprobe.evaluation import Round, Samples, System
from loraprobe.evaluation.plan import pilot, spread_sample
from loraprobe.formatting import count
from loraprobe.merging import METHODS
from loraprobe.options import Options
from loraprobe.pipeline.estimate import steps_of_plan, steps_of_sample
from loraprobe.pipeline.evaluator import LEARNED, Evaluator, open_evaluator, open_scorer
from loraprobe.pipeline.fitting import fit_routers, learn, learned_note
from loraprobe.pipeline.gate_statistics import gate_statistics
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.session import Cards, Session
from loraprobe.pipeline.systems import Plan, SystemBuilder, baseline_systems, constant_gates
from loraprobe.pipeline.transforms import Transformed
from loraprobe.records import (
    BASELINES,
    COMPOSITIONS,
    FORMS,
    QUESTION,
    SEVERAL_ADAPTERS,
    STEPS,
    Coverage,
    EvaluationRecords,
    EvidenceLevel,
    Forecast,
    GateStatistics,
    ItemResult,
    Rounds,
    Score,
    Verdict,
)
from loraprobe.scoring import MOST_BYTES, Recorder
from loraprobe.tasks import ProbePrompts, Task
from loraprobe.verdict import Evidence, candidates, decide_compositions
from loraprobe.verdict.advice import settled

Controls = Callable[[Sequence[ItemResult], Sequence[System]], list[System]]
GoesOn = Callable[[Sequence[ItemResult], int], bool]
DECIDED = ("likely", "unlikely")


@dataclass(frozen=True)
class Asked:
    """What systems answered by the last round that was asked.

    systems: all, in the order in which they are reported, controls last. dropped: those that could
    no longer win, each with its last round.
    """

    evaluator: Evaluator
    round: Round
    systems: Sequence[System]
    results: Sequence[ItemResult]
    dropped: Mapping[str, Round]

    def notes(self) -> list[str]:
        """Which systems were not asked to the end, for the report."""
        return [
            f"{name} was asked {count(last.items, 'item')} (round {last.number} of "
            f"{last.planned}): it could no longer win."
            for name, last in self.dropped.items()
        ]

    def records(
        self, coverage: tuple[Coverage, ...] = (), forecasts: tuple[Forecast, ...] = ()
    ) -> EvaluationRecords:
        """What was measured, at the level of the last round, beside what probes found."""
        evaluator, here = self.evaluator, self.round
        stayed = [system for system in self.systems if system.name not in self.dropped]
        baselines = [system for system in self.systems if system.kind in BASELINES]
        attribution = evaluation.attribute(self.results, stayed, here.tasks)
        by_name = {system.name: system for system in self.systems}
        for name, last in self.dropped.items():
            own = [*baselines, by_name[name]]
            attribution += evaluation.attribute(self.results, own, last.tasks)
        total = sum(len(task.items) for task in evaluator.tasks)
        dropped = {name: last.number for name, last in self.dropped.items()}
        measured = compared(self.results, self.systems, evaluator, here, stayed)
        return replace(
            measured,
            coverage=measured.coverage + coverage,
            forecasts=forecasts,
            attribution=attribution,
            chain=evaluation.chain_hops(
                self.systems, here.tasks, evaluator.ledger, evaluator.scorer.chat_template
            ),
            rounds=Rounds(here.number, here.planned, here.items, total, 1 - here.alpha, dropped),
        )


def evaluate(
    evaluator: Evaluator,
    systems: Sequence[System],
    schedule: Sequence[Round],
    controls: Controls,
    *,
    goes_on: GoesOn = lambda results, more: True,
    known: Sequence[ItemResult] = (),
    parts: Collection[str] | None = None,
) -> Asked:
    """Asks systems round by round until the decision holds or the schedule ends.

    controls: a function from results and systems to the controls of the best of them. goes_on:
    whether a round after the first may be asked, from the results and how many items all systems
    together would answer. known: results of systems that are not asked again. parts: those of the
    items that are asked; None for all.
    """
    ask = functools.partial(_with_answers, evaluator, {row.system for row in known}, parts)
    asking, checks, dropped = list(systems), list[System](), dict[str, Round]()
    results, last, decision = list(known), schedule[0], ""
    for this in schedule:
        more = (this.items - last.items) * (len(asking) + len(checks))
        if this.number > 1 and not goes_on(results, more):
            break
        last, final = this, this is schedule[-1]
        told = this.suffix if len(schedule) > 1 else ""
        results = ask(results, [*asking, *checks], this, told)
        evidence = _evidence(evaluator, results, [*asking, *checks], this)
        both = [one for part in FORMS for one in candidates(evidence, part)]
        gains = any(one.gain.outcome == one.retains == "likely" for one in both)
        if gains and not final:  # so the controls decide
            checks = controls(results, asking)
            results = ask(results, checks, this)
            evidence = _evidence(evaluator, results, [*asking, *checks], this)
        verdict = decide_compositions(evidence)
        decision = verdict.decision
        if final or (decision in DECIDED and settled(evidence, verdict)):
            break
        out = _cannot_win(evaluator, results, asking, evidence, this)
        dropped |= dict.fromkeys(out, this)
        asking = [system for system in asking if system.name not in out]
    checks = controls(results, asking)
    asked = {row.system for row in results} & {control.name for control in checks}
    few = decision == "unlikely" and not last.last and not asked
    # Controls do not count for a composition that does not gain: a first round of them is enough.
    results = ask(results, checks, schedule[0] if few else last)
    every = [*systems, *checks]
    names = {system.name for system in every}
    results = [row for row in results if row.system in names]
    return Asked(evaluator, last, every, results, dropped)


def _with_answers(
    evaluator: Evaluator,
    known: Collection[str],
    parts: Collection[str] | None,
    results: Sequence[ItemResult],
    systems: Sequence[System],
    on: Round,
    told: str = "",
) -> list[ItemResult]:
    """The results, with those of these systems on the items of a round in place of earlier ones.

    known: systems that are not asked. told: the round, for the progress.
    """
    asked = [system for system in systems if system.name not in known]
    names = {system.name for system in asked}
    session = evaluator.session.renamed(
        lambda step: step + told if step.startswith("evaluate ") else step
    )
    new = replace(evaluator, tasks=on.tasks, session=session).run(asked, parts)
    return [row for row in results if row.system not in names] + new


def compared(
    results: Sequence[ItemResult],
    systems: Sequence[System],
    evaluator: Evaluator,
    this: Round,
    stayed: Sequence[System],
) -> EvaluationRecords:
    """What guessing would score, scores, comparisons and gains, on which a decision rests.

    stayed: the systems that were asked to the end of this round, which have gains.
    """
    options, tasks, level = evaluator.session.options, evaluator.tasks, 1 - this.alpha
    margin, seed, alpha = options.needed_gain, options.seed, this.alpha
    return EvaluationRecords(
        coverage=evaluation.guessing(this.tasks, options.metric),
        scores=evaluation.score(results, systems, level=level),
        comparisons=evaluation.compare(results, systems, seed=seed, level=level),
        gains=evaluation.gains(results, stayed, margin=margin, seed=seed, alpha=alpha, tasks=tasks),
    )


def _evidence(
    evaluator: Evaluator, results: Sequence[ItemResult], systems: Sequence[System], this: Round
) -> Evidence:
    """What the decision rests on after this round."""
    options, own = evaluator.session.options, {system.name for system in systems}
    rows = [row for row in results if row.system in own]
    with evaluator.session.stage("statistics"):
        return Evidence(
            compared(rows, systems, evaluator, this, systems),
            tasks=len(evaluator.tasks),
            level="evaluation",
            margin=options.needed_gain,
            retention=options.retention,
        )


def _cannot_win(
    evaluator: Evaluator,
    results: Sequence[ItemResult],
    systems: Sequence[System],
    evidence: Evidence,
    this: Round,
) -> list[str]:
    """The compositions that can no longer win.

    These are shown to fail in every form of the question, or, for one task, to be worse than the
    best composition. For several tasks the best mean may lose a skill that another one keeps. The
    best composition always goes on, because the decision is about it, and with --serve the best
    merge, because that may be advised.
    """
    composed = [system.name for system in systems if system.kind in COMPOSITIONS]
    both = [one for part in FORMS for one in candidates(evidence, part)]
    hopeful = {one.system for one in both if one.outcome != "unlikely"}
    out = {one.system for one in both} - hopeful
    if not evidence.several:
        out |= evaluation.beaten(results, composed, this.alpha)
    if evaluator.session.options.serve:  # the best merge, which servers run, may be advised
        best = best_system([s for s in evidence.measured.scores if s.system in hopeful], ("merge",))
        out.discard(best or "")
    if out.issuperset(composed):
        out.discard(best_system(evidence.measured.scores, COMPOSITIONS) or "")
    return [name for name in composed if name in out]


def controls_of_best(
    builder: SystemBuilder,
    composed: Sequence[System],
    results: Sequence[ItemResult],
    systems: Sequence[System],
    session: Session,
) -> list[System]:
    """The controls of the best single adapter and the best merge or router, if there are any."""
    scores = evaluation.score(results, systems)
    alone, best = best_system(scores, ("adapter",)), best_system(scores, COMPOSITIONS)
    if alone is None or best is None:
        return []
    with session.stage("compose"):
        return builder.controls(alone, next(one for one in composed if one.name == best))


def best_system(scores: Sequence[Score], kinds: Sequence[str]) -> str | None:
    """The system of these kinds with the best mean over the tasks, in its better form.

    Names break ties, so that the order in which adapters are given does not matter.
    """
    totals: dict[tuple[str, str], list[float]] = {}
    for row in scores:
        if row.kind in kinds and row.part in FORMS:
            totals.setdefault((row.system, row.part), []).append(row.estimate.value)
    if not totals:
        return None
    return min(totals, key=lambda key: (-sum(totals[key]) / len(totals[key]), key))[0]


def shares_right(results: Sequence[ItemResult], tasks: int) -> dict[tuple[str, str], float]:
    """(system, form of the question) -> the smallest share of right answers on a task.

    Forms that are not asked in every task are left out. A loss has no ceiling, so it counts as 0.
    """
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in results:
        of = values.setdefault((row.system, row.part), {}).setdefault(row.task, [])
        of.append(0.0 if row.metric == "answer_loss" else row.value)
    return {
        key: min(sum(own) / len(own) for own in by_task.values())
        for key, by_task in values.items()
        if key[1] in FORMS and len(by_task) == tasks
    }


def near_ceiling(
    results: Sequence[ItemResult], names: Sequence[str], tasks: int, margin: float
) -> str | None:
    """The one of the systems with the largest share of right answers, if no room is left above it.

    The share is that of `shares_right` in the better form; less than the margin is no room.
    """
    shares = shares_right(results, tasks)
    best = {name: max(shares.get((name, part), 0.0) for part in FORMS) for name in names}
    first = max(best, key=best.__getitem__)
    return first if best[first] > 1 - margin else None


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found, and of `merge-and-eval` what can be saved and shown of it.

    level: "probes" without a task, "base" for the base and the single adapters on a task, "pilot"
    if compositions were asked a sample.
    """

    level: EvidenceLevel = "weights"
    records: EvaluationRecords = field(default_factory=EvaluationRecords)
    notes: Sequence[str] = ()
    gates: tuple[GateStatistics, ...] = ()
    builder: SystemBuilder | None = None
    compositions: Sequence[System] = ()
    samples: Samples | None = None

    def shown(self, verdict: Verdict) -> dict[str, Any]:
        """What an audit with this verdict shows of it, by field.

        The samples are a few questions that its composition, or else the best one, got wrong.
        """
        system = verdict.system or best_system(self.records.scores, SEVERAL_ADAPTERS)
        form = verdict.gain.form if verdict.gain is not None else QUESTION
        wrong = self.samples.wrong(system, form) if system and self.samples is not None else ()
        return {
            "gates": self.gates,
            "search": self.builder.learned if self.builder is not None else None,
            "samples": wrong,
            "evaluation": self.records,
        }


def evaluate_all(
    inputs: Inputs, plan: Plan, transformed: Transformed, session: Session
) -> Evaluated:
    """Builds the compositions and asks them, the base, the single adapters and the controls."""
    options = session.options
    session.expect(lambda: steps_of_plan(inputs, plan, options))
    with open_evaluator(inputs, plan, session, transformed.general) as evaluator:
        builder, notes = _builder(evaluator, transformed)
        with session.stage("compose"):
            built = [builder.build(spec) for spec in plan.fitted(builder.routers)]
            composed = [one for one in built if builder.runs(one.composition)]
        found = evaluate(
            evaluator,
            [*baseline_systems(inputs.adapters), *composed],
            evaluation.rounds(plan.tasks, options.seed, all_items=options.all_items),
            lambda results, systems: controls_of_best(builder, composed, results, systems, session),
        )
        asked = found.round.tasks
        coverage = replace(evaluator, tasks=asked).probe_tasks(found.results)
        with session.stage("gates"):
            gates, gate_note = gate_statistics(evaluator.scorer, composed, asked, options.seed)
    with session.stage("statistics"):
        records = found.records(coverage=coverage)
    notes = [*evaluator.notes, *notes, *transformed.notes]
    notes += ["Single adapters were evaluated as they are."] if transformed.steps else []
    notes += [learned_note(builder.learned)] if builder.learned else []
    notes += plan.left_out
    for system in composed:
        notes += system.composition.notes() if system.composition else []
    notes += [gate_note, *found.notes(), *evaluation.chain_notes(found.systems, plan.tasks)]
    notes.append(evaluator.scorer.note())
    samples = Samples.of(found.results, found.systems, asked, options.metric)
    return Evaluated("evaluation", records, notes, gates, builder, composed, samples)


def _builder(evaluator: Evaluator, transformed: Transformed) -> tuple[SystemBuilder, list[str]]:
    """A builder with fitted routers and learned weights, and notes on the routers.

    Both learn on items on which no system is scored.
    """
    inputs, session, scorer = evaluator.inputs, evaluator.session, evaluator.scorer
    options, parts, path = session.options, evaluator.plan.parts, evaluator.ledger.path
    with session.stage("fit"):
        routers, notes = fit_routers(inputs.adapters, transformed, options, scorer, evaluator.plan)
    learned = None
    if parts is not None and options.learns:
        file = None if path is None else path.with_name(LEARNED)
        with session.stage("learn"):
            learned = learn(
                scorer,
                transformed.adapters,
                parts,
                options,
                path=file,
                resume=session.resume,
                progress=session.progress,
            )
    builder = SystemBuilder(
        inputs.adapters, transformed, options, inputs.base, learned, routers, scorer.runs
    )
    return builder, notes


def evaluate_sample(
    inputs: Inputs, plan: Plan, probe: ProbePrompts | Cards | None, session: Session
) -> Evaluated:
    """Asks the base and the single adapters on samples of the tasks, then the compositions."""
    assert inputs.base is not None
    if not inputs.tasks:
        scorer, notes = open_scorer(inputs.base, session.options.dtype, session)
        rows = _probe_without_task(scorer, inputs, probe, session)
        records = EvaluationRecords(coverage=rows)
        return Evaluated("probes", records, [*notes, scorer.note()])
    options, singles = session.options, baseline_systems(inputs.adapters)
    first = pilot(plan.tasks, PILOT_ITEMS, options.seed)
    # Hops decide for one task alone (`verdict.rules`), which takes more items; a worked answer is
    # long, and serves the comparison with compositions only.
    deciding = len(plan.tasks) == 1 and any(item.hops for item in plan.tasks[0].items)
    sample = _sampled(plan.tasks, HOP_ITEMS if deciding else PILOT_ITEMS, options)
    short = {part for task in plan.tasks for part in task.parts} - {STEPS}
    session.expect(lambda: steps_of_sample(inputs, plan, options, first))
    with open_evaluator(inputs, plan, session) as evaluator:
        results, forecasts = _answers_alone(replace(evaluator, tasks=first.tasks), singles)
        few = replace(evaluator, tasks=sample)
        results += few.run(singles, short)
        rows = few.probe_tasks(results, probe is not None)
        rows += _probe_without_task(evaluator.local, inputs, probe, session)
        # Whether nothing is left to gain is a matter of a bound close to 1, which a sample is too
        # small for; one system and one form of the question is cheap.
        shares = shares_right(results, len(plan.tasks))
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
        found, composed, told = _pilot(evaluator, first, singles, results)
    with session.stage("statistics"):
        records = found.records(coverage=rows, forecasts=forecasts)
    notes = [*evaluator.notes, *notes, *plan.left_out, *told, evaluator.scorer.note()]
    if not composed:
        return Evaluated("base", replace(records, rounds=None), notes)
    return Evaluated("pilot", records, notes)


def _pilot(
    evaluator: Evaluator, first: Round, singles: Sequence[System], results: Sequence[ItemResult]
) -> tuple[Asked, list[System], list[str]]:
    """The first round of the compositions, on a few questions; the compositions, and notes.

    results: of the base and the single adapters. Controls are asked only where a composition gains
    more than the margin: nothing else depends on them.
    """
    inputs, session, plan = evaluator.inputs, evaluator.session, evaluator.plan
    builder, notes = _builder(evaluator, Transformed(tuple(inputs.adapters)))
    names = {adapter.name for adapter in inputs.adapters}
    specs = [spec for spec in plan.fitted(builder.routers) if spec not in names]
    with session.stage("compose"):
        built, left_out = builder.build_each({spec: spec for spec in specs})
        composed = [one for one in built if builder.runs(one.composition)]
    seed, margin = session.options.seed, session.options.needed_gain

    def controls(results: Sequence[ItemResult], systems: Sequence[System]) -> list[System]:
        merged = [system for system in systems if system.kind != "chain"]
        gains = evaluation.gains(results, merged, margin=margin, seed=seed, alpha=first.alpha)
        if not any(gain.adjusted_ci95[0] > margin for gain in gains):
            return []
        return controls_of_best(builder, composed, results, systems, session)

    systems = [*singles, *composed]
    found = evaluate(evaluator, systems, [first], controls, known=results, parts=FORMS)
    return found, composed, [*notes, *left_out]


def _sampled(tasks: Sequence[Task], items: int, options: Options) -> list[Task]:
    """A sample of each task; a smaller sample is part of a larger one."""
    return [spread_sample(task, items, options.seed) for task in tasks]


def _answers_alone(
    evaluator: Evaluator, singles: Sequence[System]
) -> tuple[list[ItemResult], tuple[Forecast, ...]]:
    """The results of the base and the single adapters, and a forecast of merges at gates of 1.

    Answers that are judged by likelihood are forecast from these same passes, unless their sums
    take too much memory. Generated answers are not forecast: that costs more than a first round of
    the compositions, which says more.
    """
    session, scorer = evaluator.session, evaluator.scorer
    options, names = session.options, [adapter.name for adapter in evaluator.inputs.adapters]
    if options.served:  # gives no logits that could be added
        return evaluator.run(singles), ()
    ones = (1.0,) * len(names)
    summed = [
        spec
        for spec in evaluator.plan.specs
        if spec in METHODS and constant_gates(spec, options, None, len(names)) == ones
    ]
    asked = probes.scored_questions(evaluator.tasks, options.metric)
    pairs = {(q.prompt, text) for q in asked for text in q.continuations}
    tokens = sum(len(ids) - start for ids, start in scorer.encoded(list(pairs)))
    size = tokens * scorer.vocab_size * torch.float16.itemsize
    if not summed or not asked or size > MOST_BYTES:
        return evaluator.run(singles), ()
    results: list[ItemResult] = []
    recorder = scorer.recorder = Recorder("base", names)
    try:
        for system in singles:
            with recorder.of(system.name):
                results += evaluator.run([system])
    finally:
        scorer.recorder = None
    with session.stage("forecast"):
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


def _probe_without_task(
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
