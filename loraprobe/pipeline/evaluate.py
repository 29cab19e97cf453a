"""Asks systems round by round until the decision holds: `merge-and-eval` all of a plan, `inspect` a
first round.

One run, step by step: `evaluate` opens the base and builds the systems of the plan.
`SequentialEvaluation.ask` asks them, round after round. After a round `RoundResult` holds the
answers, what they measure (`measured`) and the verdict by the intervals of this round
(`evaluation.questions`). The run ends where the action is as certain as the decision
(`RoundResult.settled`); else the systems that can no longer win are dropped (`losers`), and the
others are asked the next round.

A composition that gains has to beat its controls too, so those of the one that the verdict is about
are asked the same items before the run stops. The base and the single adapters always answer all
items of a round, since they are what a composition is compared with, and their hops explain what
compositions get wrong.

`run_pilot` is what `inspect` asks: all systems a first round, the base and the single adapters some
more, and the probes the base; or prompts without a task. `merge-and-eval --resume` finds these
answers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from loraprobe import evaluation, probes
from loraprobe.defaults import CEILING_ITEMS, HOP_ITEMS, PILOT_ITEMS
from loraprobe.evaluation import Round, System
from loraprobe.evaluation.questions import BASE, pilot_round, spread_sample
from loraprobe.extension import AddedSystems, SourceInputs, installed
from loraprobe.formatting import count
from loraprobe.options import Options
from loraprobe.pipeline.conclusion import evidence_of, exclusions
from loraprobe.pipeline.evaluator import LEARNED, Evaluator, open_evaluator, open_scorer
from loraprobe.pipeline.fitting import fit, learned_note
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.plan import Plan, SystemBuilder, baseline_systems
from loraprobe.pipeline.transforms import PreparedAdapters
from loraprobe.records import (
    BASELINES,
    COMPOSITIONS,
    FORMS,
    QUESTION,
    STEPS,
    Coverage,
    EvaluationRecords,
    EvidenceLevel,
    ItemResult,
    Rounds,
    Sample,
    Verdict,
    display_name,
    references,
)
from loraprobe.scoring import ModelScorer
from loraprobe.session import Cards, Session
from loraprobe.tasks import ProbePrompts, Task
from loraprobe.verdict import Evidence, Exclusion, candidates, decide_compositions
from loraprobe.verdict.advice import action_is_certain
from loraprobe.verdict.evidence import SWITCH, Candidate
from loraprobe.verdict.reasons import named_in, without_form
from loraprobe.verdict.unanswered import closest, telling

MakeControls = Callable[[str, Evidence], list[System]]
GoesOn = Callable[[Sequence[ItemResult], int], bool]
DECIDED = ("likely", "unlikely")


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation of a whole plan found, and what can be saved and shown of it.

    added: what extensions made and measured.
    """

    records: EvaluationRecords
    notes: Sequence[str]
    builder: SystemBuilder
    compositions: Sequence[System]
    added: AddedSystems
    samples: Sequence[Sample]

    def wrong(self, verdict: Verdict) -> tuple[Sample, ...]:
        """A few questions that the verdict's composition got wrong.

        First are those whose right answer somebody names without its form. Where nothing answers,
        they show what may be wrong.
        """
        if verdict.missing == "answers":
            return unanswered_samples(self.samples, self.records)
        gain = verdict.gain
        if gain is None:
            return ()
        named = without_form(self.records)
        first = sorted(self.samples, key=lambda sample: not named_in(sample, named))
        return evaluation.wrong_samples(first, verdict.system or gain.system, gain.form)


def unanswered_samples(samples: Sequence[Sample], records: EvaluationRecords) -> tuple[Sample, ...]:
    """A few questions that show why nothing answers, those first that show most."""
    best = closest(records)[0]
    return evaluation.wrong_samples(telling(samples, records), best.system, best.part)


def evaluate(inputs: Inputs, plan: Plan, prepared: PreparedAdapters, session: Session) -> Evaluated:
    """Builds the compositions and asks them, the base, the single adapters and the controls."""
    with open_evaluator(inputs, plan, session, prepared.subtrahends) as evaluator:
        builder = builder_for(evaluator, prepared)
        with session.stage("compose"):
            composed = [builder.build(spec) for spec in builder.fitted.specs(plan)]
        alone = baseline_systems(inputs.adapters)
        added = added_systems(evaluator, composed, alone)
        result = SequentialEvaluation(
            evaluator,
            [*alone, *composed, *added.systems],
            evaluator.rounds(),
            functools.partial(controls_of, builder, composed),
        ).ask()
        tasks = result.round.tasks
        coverage = replace(evaluator, tasks=tasks).probe_tasks(result.results)
        measured = [one.measure(evaluator.local, composed, tasks, session) for one in installed()]
    every = [*added.records, *(record for one in measured for record in one.records)]
    with session.stage("statistics"):
        records = result.records(coverage=coverage)
    fitted = builder.fitted
    notes = [*evaluator.told(), *fitted.notes, *prepared.notes]
    notes += ["Single adapters were evaluated as they are."] if prepared.steps else []
    notes += [learned_note(fitted.weights)] if fitted.weights else []
    notes += [*added.notes, *plan.left_out]
    notes += [note for one in measured for note in one.notes]
    notes += [*result.notes(), *evaluation.chain_notes(result.systems, plan.tasks)]
    notes.append(evaluator.scorer.note())
    samples = evaluation.samples_of(result.results, result.systems, tasks)
    return Evaluated(records, notes, builder, composed, replace(added, records=every), samples)


def builder_for(evaluator: Evaluator, prepared: PreparedAdapters) -> SystemBuilder:
    """A builder of the systems of the evaluator's plan, with what is fitted for them."""
    inputs, session, responses = evaluator.inputs, evaluator.session, evaluator.responses.path
    path = None if responses is None else responses.with_name(LEARNED)
    fitted = fit(inputs, prepared, evaluator.plan, evaluator.local, session, path)
    return SystemBuilder(inputs.adapters, prepared, session.options, inputs.base, fitted)


def added_systems(
    evaluator: Evaluator,
    composed: Sequence[System],
    alone: Sequence[System],
    ends: float = float("inf"),
) -> AddedSystems:
    """The systems that extensions add to the evaluator's plan, together.

    composed: the compositions. alone: base and adapters. ends: when they should be made.
    """
    file, base = evaluator.responses.path, evaluator.inputs.base
    assert file is not None and base is not None

    def ask(systems: Sequence[System]) -> Evidence:
        first, asked = evaluator.rounds()[0], [*alone, *systems]
        results = replace(evaluator, tasks=first.tasks).run(asked)
        return RoundResult(evaluator, first, asked, results).evidence

    made = [
        source.make(
            SourceInputs(
                evaluator.local,
                base,
                parts,
                composed,
                evaluator.session,
                ask,
                file.parent,
                ends,
            )
        )
        for source, parts in evaluator.plan.sources
    ]
    return AddedSystems(
        [system for one in made for system in one.systems],
        [note for one in made for note in one.notes],
        [record for one in made for record in one.records],
    )


def controls_of(
    builder: SystemBuilder, composed: Sequence[System], name: str, evidence: Evidence
) -> list[System]:
    """The controls of a composition: the best single adapter shrunk, and random partners of it."""
    alone = evidence.leading("adapter")
    spec = next(system.spec for system in composed if system.name == name)
    return [] if alone is None else builder.controls(alone, spec)


@dataclass(eq=False)
class SequentialEvaluation:
    """One run: asks systems round by round until the decision holds or the schedule ends.

    systems: all but the controls. make_controls: a function from the name of a composition and the
    evidence to its controls. goes_on: whether a round after the first may be asked, from the
    results and how many items all systems together would answer. parts: of the items that controls
    are asked; None for all. level: that of the evidence.

    competing: the systems that can still win. dropped: the others, each with its last round.
    controls: those of the last round, by composition. results: the newest answers of each system.
    guard_results: likewise, to the guards.
    """

    evaluator: Evaluator
    systems: Sequence[System]
    schedule: Sequence[Round]
    make_controls: MakeControls
    goes_on: GoesOn = lambda results, more: True
    parts: Collection[str] | None = None
    level: EvidenceLevel = "evaluation"
    competing: list[System] = field(init=False)
    dropped: dict[str, Round] = field(default_factory=dict, init=False)
    controls: dict[str, list[System]] = field(default_factory=dict, init=False)
    results: list[ItemResult] = field(default_factory=list, init=False)
    guard_results: list[ItemResult] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.competing = list(self.systems)

    def ask(self) -> RoundResult:
        """What all systems and controls answered by the last round that was asked."""
        result = self.ask_round(self.schedule[0])
        for this in self.schedule[1:]:
            if result.settled:
                break
            self.dropped |= dict.fromkeys(result.losers(), result.round)
            self.competing = [one for one in self.competing if one.name not in self.dropped]
            systems = len(self.competing) + sum(map(len, self.controls.values()))
            more = (this.items - result.round.items) * systems
            if not self.goes_on(self.results, more):
                break
            result = self.ask_round(this)
        return self._ask_last_controls(result)

    def ask_round(self, this: Round) -> RoundResult:
        """Asks whoever competes; and controls and guards where the decision hangs on them."""
        self.controls = {}
        self._ask(self.competing, this)
        result = self._asked(this, self.competing)
        if this is self.schedule[-1] or result.has_gain or result.verdict.decision in DECIDED:
            return self.confirm(result, this if result.has_gain else None)
        return result

    def _ask_last_controls(self, result: RoundResult) -> RoundResult:
        """Asks the controls in every case, of all systems.

        They do not count for a composition that does not gain: a first round of them is enough.
        """
        few = result.verdict.decision == "unlikely" and not result.round.last and not self.controls
        on = self.schedule[0] if few else result.round
        return self.confirm(self._asked(result.round, [*self.systems, *result.controls]), on)

    def confirm(self, result: RoundResult, on: Round | None) -> RoundResult:
        """Asks controls and guards of what the verdict is about, until that has answered them.

        on: the round on which controls are asked; None where the decision does not hang on them.
        """
        while True:
            new = [name for name in result.leaders if name not in self.controls]
            if on is not None and new:
                result = self._ask_controls(result, new[0], on)
            elif names := result.without_guard_results:
                result = self._ask_guards(result, names)
            else:
                return result

    def _ask_controls(self, result: RoundResult, leader: str, on: Round) -> RoundResult:
        """Asks the controls of one composition beside those that were asked before.

        A second random partner has the name of its composition behind its own.
        """
        with self.evaluator.session.stage("compose"):
            controls = self.make_controls(leader, result.evidence)
        known = {one.name: one for one in result.controls}
        for one in controls:
            same = known.get(one.name, one).of == one.of
            name = one.name if same else f"{one.name}:{leader}"
            known[name] = replace(one, name=name)
        self.controls[leader] = [one for one in known.values() if one.of in ("", leader)]
        self._ask(self.controls[leader], on)
        others = [system for system in result.systems if system.kind != "control"]
        return self._asked(result.round, [*others, *known.values()])

    def _ask_guards(self, result: RoundResult, names: set[str]) -> RoundResult:
        """Asks the guards of some systems and of the base."""
        chosen = [system for system in result.systems if system.name in {*names, BASE}]
        others = [row for row in self.guard_results if row.system not in {*names, BASE}]
        answers = replace(self.evaluator, tasks=result.round.guards).run(chosen, FORMS)
        self.guard_results = others + answers
        return replace(result, guard_results=self.guard_results)

    def _ask(self, systems: Sequence[System], on: Round) -> None:
        """Takes the answers of these systems on a round in place of those on earlier ones."""
        names = {system.name for system in systems}
        others = [row for row in self.results if row.system not in names]
        self.results = others + replace(self.evaluator, tasks=on.tasks).run(systems, self.parts)

    def _asked(self, on: Round, systems: Sequence[System]) -> RoundResult:
        """What these systems answered by a round."""
        names = {system.name for system in systems}
        rows = [row for row in self.results if row.system in names]
        so_far = self.dropped, self.guard_results
        return RoundResult(self.evaluator, on, systems, rows, *so_far, level=self.level)


@dataclass(frozen=True)
class RoundResult:
    """What systems answered by a round.

    systems: all, in the order in which they are reported, controls last. dropped: those that could
    no longer win, each with its last round. guard_results: answers to the guards, of the base and
    of what a verdict rested on.
    """

    evaluator: Evaluator
    round: Round
    systems: Sequence[System]
    results: Sequence[ItemResult]
    dropped: Mapping[str, Round] = field(default_factory=dict)
    guard_results: Sequence[ItemResult] = ()
    level: EvidenceLevel = "evaluation"

    @property
    def controls(self) -> list[System]:
        """The controls that were asked."""
        return [system for system in self.systems if system.kind == "control"]

    @property
    def leaders(self) -> list[str]:
        """The composition that the verdict is about, and the one that is advised where it gains.

        These are two where the first is excluded.
        """
        verdict, composed = self.verdict, [one.system for one in self.candidates]
        names = composed[:1] if verdict.gain is None else [verdict.gain.system]
        names += [verdict.system or ""] if verdict.decision == "likely" else []
        return [name for name in dict.fromkeys(names) if name in composed]

    @property
    def stayed(self) -> list[System]:
        """The systems that were asked to the end of the round, which have gains."""
        return [system for system in self.systems if system.name not in self.dropped]

    @functools.cached_property
    def measured(self) -> EvaluationRecords:
        """What guessing would score, scores, comparisons and gains, on which a decision rests."""
        options, here, level = self.evaluator.session.options, self.round, 1 - self.round.alpha
        results, systems, most = self.results, self.systems, options.guard_margin
        guards = evaluation.guard_scores(self.guard_results, here.guards, most, here.alpha)
        guards += evaluation.guards_of_chain(guards, self.chain_members)
        unsafe = EvaluationRecords(guards=guards).unsafe
        return EvaluationRecords(
            guards=guards,
            coverage=(
                *evaluation.guessing(here.tasks),
                *evaluation.right_together(results, systems),
                *evaluation.named_alone(results, here.tasks),
            ),
            scores=evaluation.score(results, systems, level=level),
            comparisons=evaluation.compare(results, systems, seed=options.seed, level=level),
            gains=evaluation.measure_gains(
                results,
                # An adapter that loses a guard is no alternative.
                [one for one in self.stayed if one.kind != "adapter" or one.name not in unsafe],
                margin=options.needed_gain,
                seed=options.seed,
                alpha=here.alpha,
                tasks=self.evaluator.tasks,
            ),
        )

    @functools.cached_property
    def chain_members(self) -> set[str]:
        """The adapters that answer hops of the chain; asked where guards concern them."""
        if not self.round.guards:
            return set()
        hops = self.evaluator.asker.chain_hops(self.systems, self.round.tasks)
        return {row.adapter for row in hops} - {BASE}

    @functools.cached_property
    def evidence(self) -> Evidence:
        """What the decision after this round rests on."""
        session, inputs = self.evaluator.session, self.evaluator.inputs
        options = session.options
        composed = [system for system in self.systems if system.kind in COMPOSITIONS]
        with session.stage("statistics"):
            excluded = exclusions(options, inputs.base, lambda: (inputs.given, composed))
            return evidence_of(options, inputs, self.level, self.measured, excluded=excluded)

    @functools.cached_property
    def candidates(self) -> list[Candidate]:
        """The merges and routers with all that decides on them, in each form of the question."""
        return [one for part in FORMS for one in candidates(self.evidence, part)]

    @property
    def has_gain(self) -> bool:
        """Whether a composition gains and keeps each skill, so that the controls decide."""
        return any(one.gain.outcome == one.retains == "likely" for one in self.candidates)

    @functools.cached_property
    def verdict(self) -> Verdict:
        """The decision after this round, before what weights and coverage add to it."""
        return decide_compositions(self.evidence)

    @property
    def settled(self) -> bool:
        """Whether there is a decision, or nothing answers, and the action is as certain."""
        decided = self.verdict.decision in DECIDED or self.verdict.missing == "answers"
        return decided and action_is_certain(self.evidence, self.verdict)

    @property
    def without_guard_results(self) -> set[str]:
        """What the verdict rests on and has not answered the guards of this round.

        These are the leading composition, what it is compared with, and what is advised, of a chain
        and of adapters switched by task the adapters; without a composition the best adapter; and
        references. What was shown to lose a guard is not asked again.
        """
        if not self.round.guards:
            return set()
        verdict = self.verdict
        best, names = verdict.gain, {verdict.system, verdict.used}
        names |= {best.system, best.against} if best is not None else set()
        names |= set() if self.candidates else {self.evidence.leading("adapter")}
        names |= self.chain_members if verdict.action.kind == "chain" else set()
        names |= self.evidence.switched if verdict.action.kind == SWITCH else set()
        names |= {one.name for one in self.systems if one.kind in references()}
        known = {row.system for row in self.measured.guards}
        kinds = "adapter", *COMPOSITIONS, *references()
        own = {one.name for one in self.systems if one.kind in kinds}
        return {name for name in names if name in own - known}

    def losers(self) -> list[str]:
        """The compositions that can no longer win.

        These are shown to fail in every form of the question, or, for one task, to be worse than
        the best composition of those that are not shown to lose a guard. For several tasks the best
        mean may lose a skill that another one keeps. The leading composition always goes on, since
        the decision is about it, and where something is excluded so does the best merge, which may
        be advised.
        """
        composed = [system.name for system in self.systems if system.kind in COMPOSITIONS]
        hopeful = {one.system for one in self.candidates if one.outcome != "unlikely"}
        out = {one.system for one in self.candidates} - hopeful
        if not self.evidence.several:
            safe = [name for name in composed if name not in self.measured.unsafe]
            out |= evaluation.beaten(self.results, safe, self.round.alpha)
        if self.evidence.excluded:
            out.discard(self.evidence.leading("merge", hopeful) or "")
        if out.issuperset(composed):
            out -= {*self.leaders}
        return [name for name in composed if name in out]

    def notes(self) -> list[str]:
        """Which systems were not asked to the end, for the report."""
        return [
            f"{display_name(name)} was asked {count(last.items, 'item')} (round {last.number} of "
            f"{last.planned}): it could no longer win."
            for name, last in self.dropped.items()
        ]

    def records(self, coverage: tuple[Coverage, ...] = ()) -> EvaluationRecords:
        """What was measured, at the level of this round, beside what probes found."""
        here = self.round
        baselines = [system for system in self.systems if system.kind in BASELINES]
        attribution = evaluation.attribute(self.results, self.stayed, here.tasks)
        for system in self.systems:
            if last := self.dropped.get(system.name):
                attribution += evaluation.attribute(self.results, [*baselines, system], last.tasks)
        total = sum(len(task.items) for task in self.evaluator.tasks)
        dropped = {name: last.number for name, last in self.dropped.items()}
        return replace(
            self.measured,
            coverage=self.measured.coverage + coverage,
            attribution=attribution,
            chain=self.evaluator.asker.chain_hops(self.systems, here.tasks),
            rounds=Rounds(here.number, here.planned, here.items, total, 1 - here.alpha, dropped),
        )


# ---- what inspect asks ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Pilot:
    """What `inspect` asked the base, and what it measured.

    level: "probes" without a task, "base" where no composition was asked, else "pilot". excluded:
    what cannot be used.
    """

    level: EvidenceLevel
    records: EvaluationRecords
    notes: Sequence[str]
    compositions: Sequence[System] = ()
    samples: Sequence[Sample] = ()
    excluded: Mapping[str, Exclusion] = field(default_factory=dict)


def run_pilot(
    inputs: Inputs, plan: Plan, probe: ProbePrompts | Cards | None, session: Session
) -> Pilot:
    """Asks the base, the single adapters and the compositions a first round, and the former two
    some more questions and the probes.

    What is compared is what all answered in this round, as `merge-and-eval` compares it.
    """
    assert inputs.base is not None
    if not inputs.tasks:
        scorer, notes = open_scorer(inputs.base, session.options.dtype, session)
        rows = _probe_without_task(scorer, inputs, probe, session)
        return Pilot("probes", EvaluationRecords(coverage=rows), [*notes, scorer.note()])
    options, singles = session.options, baseline_systems(inputs.adapters)
    # Hops decide for one task alone (`verdict.rules`), which takes more items; a worked answer is
    # long, and serves the comparison with compositions only.
    deciding = len(plan.tasks) == 1 and any(item.hops for item in plan.tasks[0].items)
    sample = _sampled(plan.tasks, HOP_ITEMS if deciding else PILOT_ITEMS, options)
    short = {part for task in plan.tasks for part in task.parts} - {STEPS}
    with open_evaluator(inputs, plan, session) as evaluator:
        few, first = replace(evaluator, tasks=sample), pilot_round(plan.tasks, options.seed)
        alone = few.run(singles, short)  # first, since hops say who answers those of a chain
        builder = builder_for(evaluator, PreparedAdapters(tuple(inputs.adapters)))
        names = {adapter.name for adapter in inputs.adapters}
        specs = [spec for spec in builder.fitted.specs(plan) if spec not in names]
        with session.stage("compose"):
            composed, left_out = builder.build_each({spec: spec for spec in specs})
        make = functools.partial(controls_of, builder, composed)
        result = SequentialEvaluation(
            evaluator, [*singles, *composed], [first], make, parts=FORMS, level="pilot"
        ).ask_round(first)
        results = list({row.key: row for row in (*alone, *result.results)}.values())
        rows = few.probe_tasks(results, probe is not None)
        rows += _probe_without_task(evaluator.local, inputs, probe, session)
        # Whether nothing is left to gain is a matter of a bound close to 1, which a sample is too
        # small for; one system and one form of the question is cheap.
        shares = evaluation.shares_right(results, len(plan.tasks))
        for system in singles:
            if shares.get((system.name, QUESTION)) == 1.0:
                more = _sampled(plan.tasks, CEILING_ITEMS, options)
                results += replace(evaluator, tasks=more).run([system], parts=(QUESTION,))
        whole = replace(result, results=list({row.key: row for row in results}.values()))
        notes = [
            f"Of task {task.name} a sample of {len(sampled.items)} of {len(task.items)} items was "
            "asked; merge-and-eval --resume uses their answers again."
            for task, sampled in zip(plan.tasks, sample, strict=True)
            if len(sampled.items) < len(task.items)
        ]
    with session.stage("statistics"):
        compared = result.measured
        records = replace(
            whole.records(coverage=rows), gains=compared.gains, comparisons=compared.comparisons
        )
    samples = evaluation.samples_of(whole.results, result.systems, sample)
    notes = [*evaluator.told(), *notes, *plan.left_out, *builder.fitted.notes, *left_out]
    notes.append(evaluator.scorer.note())
    if not composed:
        return Pilot("base", replace(records, rounds=None), notes, samples=samples)
    return Pilot("pilot", records, notes, composed, samples, result.evidence.excluded)


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
