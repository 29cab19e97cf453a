"""Asks systems round by round until the decision holds (`ask_rounds`), for `merge-and-eval` all of
a plan (`evaluate`).

After a round the verdict is judged with the intervals of this round (`evaluation.plan`). The
run goes on while the action is less certain than the decision (`verdict.advice.settled`). Systems
that can no longer win are not asked further. A composition that gains has to beat the controls too,
so these are asked the same items before the run stops. The base and the single adapters always
answer all items of a round, since they are what a composition is compared with, and their hops
explain what compositions get wrong.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from loraprobe import evaluation, probes
from loraprobe.adapters import Adapter
from loraprobe.defaults import PROBED_ITEMS
from loraprobe.errors import LoraprobeError
from loraprobe.evaluation import Ledger, Round, System, stored_as
from loraprobe.evaluation.asking import Answers, Open, ask, batches
from loraprobe.evaluation.gate_statistics import gate_statistics
from loraprobe.evaluation.plan import BASE, Question
from loraprobe.formatting import count
from loraprobe.merging import METHODS
from loraprobe.pipeline.conclusion import evidence_of
from loraprobe.pipeline.estimate import GUARD, steps_of_plan
from loraprobe.pipeline.fitted_routers import fit_routers
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.learned_weights import learn, learned_note
from loraprobe.pipeline.opening import (
    LEARNED,
    open_ledger,
    open_scorer,
    task_notes,
    with_better_template,
)
from loraprobe.pipeline.systems import Plan, SystemBuilder, baseline_systems
from loraprobe.pipeline.transforms import Transformed
from loraprobe.records import (
    BASELINES,
    COMPOSITIONS,
    FORMS,
    QUESTION,
    SEVERAL_ADAPTERS,
    Coverage,
    EvaluationRecords,
    Forecast,
    GateStatistics,
    ItemResult,
    Rounds,
    Sample,
    Verdict,
)
from loraprobe.scoring import ModelScorer, Scorer
from loraprobe.session import Here, Session
from loraprobe.tasks import Task, is_generated
from loraprobe.verdict import Evidence, candidates, decide_compositions
from loraprobe.verdict.advice import settled
from loraprobe.verdict.evidence import Candidate

Controls = Callable[[Sequence[ItemResult], Sequence[System]], list[System]]
GoesOn = Callable[[Sequence[ItemResult], int], bool]
DECIDED = ("likely", "unlikely")


@dataclass(frozen=True)
class Evaluator(AbstractContextManager["Evaluator"]):
    """Scores systems on one base in memory; the ledger stores each batch of results at once.

    `tasks` are asked: those of `plan`, or a sample of their items. `local` scores by transformers
    where a server is the scorer. suffix: of the steps that are told to progress. step: what is told
    in place of each system. As a context it closes the ledger.
    """

    inputs: Inputs
    session: Session
    scorer: Scorer
    local: ModelScorer
    ledger: Ledger
    tasks: Sequence[Task]
    plan: Plan = field(default_factory=Plan)
    notes: Sequence[str] = ()
    template: tuple[Coverage, ...] = ()
    suffix: str = ""
    step: str = ""

    def __exit__(self, *_: object) -> None:
        self.ledger.close()
        self.scorer.close()

    def rounds(self) -> tuple[Round, ...]:
        """The rounds in which the tasks and the guards are asked."""
        options, guards = self.session.options, self.inputs.guards
        return evaluation.rounds(
            self.tasks, options.seed, all_items=options.all_items, guards=guards
        )

    def run(
        self, systems: Sequence[System], parts: Collection[str] | None = None
    ) -> list[ItemResult]:
        """Results of systems on all tasks, or on `parts` of their items.

        Results in the ledger are not computed again.
        """
        options, here = self.session.options, isinstance(self.session.workers, Here)
        with self.session.stage("evaluate"):
            return evaluation.run_systems(
                self.scorer,
                systems,
                self.tasks,
                self.ledger,
                metric=options.metric,
                max_new_tokens=options.max_new_tokens,
                progress=lambda step, *counts: self.session.tell(
                    (self.step or step) + self.suffix, *counts
                ),
                parts=parts,
                asking=None if here else self._by_workers,
            )

    def _by_workers(self, to_ask: Open) -> Answers:
        """The answers of the session's workers to batches, as they come. Raises LoraprobeError."""
        sent = [(replace(system, merged=None), open_) for system, open_ in to_ask]
        parts = [(system, batch) for system, open_ in sent for batch in batches(open_)]
        for at, rows in self.session.workers.map(answer, self, parts):
            if isinstance(rows, LoraprobeError):
                raise rows
            yield parts[at][0], rows

    def probe_tasks(
        self, results: Sequence[ItemResult], every: bool = False
    ) -> tuple[Coverage, ...]:
        """The accuracies with and without the template, and the coverage probes on the tasks.

        every: all probes, as --explain asks for; else those that a verdict reads.
        """
        with self.session.stage("cover"):
            found = probes.cover(
                self.local,
                self.inputs.adapters,
                self.tasks,
                results=results,
                probes=None if every or self.session.explain else probes.READ_BY_VERDICT,
                items=PROBED_ITEMS,
                seed=self.session.options.seed,
                progress=self.session.progress,
            )
        return self.template + found


def answer(evaluator: Evaluator, system: System, asked: Sequence[Question]) -> list[ItemResult]:
    """The answers of a system to a batch of questions, in any process."""
    with evaluator.scorer.with_composition(system.composition) as scorer:
        return ask(scorer, asked, system.key, evaluator.session.options.max_new_tokens)


def open_evaluator(
    inputs: Inputs,
    plan: Plan,
    session: Session,
    others: Sequence[Adapter] = (),
    together: int | None = None,
) -> Evaluator:
    """Loads the base, chooses the chat template and opens the results of earlier runs.

    others: adapters on which the results depend too, beside those that choose the template.
    together: how many are composed at most; None for all.
    """
    assert inputs.base is not None
    adapters, metric = inputs.adapters, session.options.metric
    told = task_notes(plan.tasks, metric)
    local, notes = open_scorer(inputs.base, session.options.dtype, session)
    scorer: Scorer = local
    if session.options.served:
        from loraprobe.servers.engine import open_served

        scorer = open_served(
            inputs.base,
            adapters,
            plan.tasks,
            session,
            local,
            others=others,
            together=together,
            guards=inputs.guards,
            merges=any(spec in METHODS for spec in plan.specs),
        )
        notes.append(
            f"Questions were answered by {session.engine}; coverage and gates, where they are "
            "measured, by transformers here."
        )
    with contextlib.ExitStack() as stack:
        stack.callback(scorer.close)
        ledger, kept = open_ledger([*adapters, *others], inputs.base, inputs.tasks, session)
        stack.callback(ledger.close)
        scorer, why, template = with_better_template(
            scorer, session, adapters, plan.tasks, metric, ledger, inputs.base
        )
        # Generated answers in the chosen form are results of the adapters. Those that are judged by
        # likelihood are not: a forecast may read them from passes of the evaluation.
        names = {stored_as(one.name, scorer.chat_template): one.name for one in adapters}
        known = [row for row in ledger if row.system in names and is_generated(row.metric)]
        ledger.add_missing([replace(row, system=names[row.system]) for row in known])
        stack.pop_all()
    notes += [*why, *told, kept]
    local = local.with_template(scorer.chat_template)
    return Evaluator(inputs, session, scorer, local, ledger, plan.tasks, plan, notes, template)


@dataclass(frozen=True)
class Asked:
    """What systems answered by a round.

    systems: all, in the order in which they are reported, controls last. dropped: those that could
    no longer win, each with its last round. guarded: answers to the guards, of the base and of what
    a verdict rested on.
    """

    evaluator: Evaluator
    round: Round
    systems: Sequence[System]
    results: Sequence[ItemResult]
    dropped: Mapping[str, Round] = field(default_factory=dict)
    guarded: Sequence[ItemResult] = ()

    @property
    def stayed(self) -> list[System]:
        """The systems that were asked to the end of the round, which have gains."""
        return [system for system in self.systems if system.name not in self.dropped]

    @functools.cached_property
    def measured(self) -> EvaluationRecords:
        """What guessing would score, scores, comparisons and gains, on which a decision rests."""
        options, here, level = self.evaluator.session.options, self.round, 1 - self.round.alpha
        results, systems, most = self.results, self.systems, options.guard_margin
        guards = evaluation.guard_scores(self.guarded, here.guards, most, here.alpha)
        unsafe = EvaluationRecords(guards=guards).unsafe
        return EvaluationRecords(
            guards=guards,
            coverage=evaluation.guessing(here.tasks, options.metric),
            scores=evaluation.score(results, systems, level=level),
            comparisons=evaluation.compare(results, systems, seed=options.seed, level=level),
            gains=evaluation.gains(
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
    def evidence(self) -> Evidence:
        """What the decision after this round rests on."""
        session = self.evaluator.session
        with session.stage("statistics"):
            return evidence_of(session.options, self.evaluator.inputs, "evaluation", self.measured)

    @functools.cached_property
    def candidates(self) -> list[Candidate]:
        """The merges and routers with all that decides on them, in each form of the question."""
        return [one for part in FORMS for one in candidates(self.evidence, part)]

    def unguarded(self, verdict: Verdict) -> set[str]:
        """What a verdict rests on and has not answered the guards of this round.

        These are the leading composition, what it is compared with, and what is advised; with
        --serve also the best merge, because that may be advised; without a composition the best
        adapter. What was shown to lose a guard is not asked again.
        """
        if not self.round.guards:
            return set()
        best, scores = verdict.gain, self.measured.scores
        names = {verdict.system, verdict.action.partition(":")[2]}
        names |= {best.system, best.against} if best is not None else set()
        kinds = [] if self.candidates else ["adapter"]
        kinds += ["merge"] if self.evaluator.session.options.serve else []
        names |= {evaluation.best_system(scores, (kind,)) for kind in kinds}
        known = {row.system for row in self.measured.guards}
        own = {one.name for one in self.systems if one.kind in ("adapter", *COMPOSITIONS)}
        return {name for name in names if name in own - known}

    def losers(self) -> list[str]:
        """The compositions that can no longer win.

        These are shown to fail in every form of the question, or, for one task, to be worse than
        the best composition. For several tasks the best mean may lose a skill that another one
        keeps. The best composition always goes on, because the decision is about it, and with
        --serve the best merge, because that may be advised.
        """
        composed = [system.name for system in self.systems if system.kind in COMPOSITIONS]
        hopeful = {one.system for one in self.candidates if one.outcome != "unlikely"}
        out = {one.system for one in self.candidates} - hopeful
        if not self.evidence.several:
            out |= evaluation.beaten(self.results, composed, self.round.alpha)
        scores = self.measured.scores
        if self.evaluator.session.options.serve:  # servers run merges
            merges = [score for score in scores if score.system in hopeful]
            out.discard(evaluation.best_system(merges, ("merge",)) or "")
        if out.issuperset(composed):
            out.discard(evaluation.best_system(scores, COMPOSITIONS) or "")
        return [name for name in composed if name in out]

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
        """What was measured, at the level of this round, beside what probes found."""
        here, scorer = self.round, self.evaluator.scorer
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
            forecasts=forecasts,
            attribution=attribution,
            chain=evaluation.chain_hops(
                self.systems, here.tasks, self.evaluator.ledger, scorer.chat_template
            ),
            rounds=Rounds(here.number, here.planned, here.items, total, 1 - here.alpha, dropped),
        )


def ask_rounds(
    evaluator: Evaluator,
    systems: Sequence[System],
    schedule: Sequence[Round],
    controls: Controls,
    *,
    goes_on: GoesOn = lambda results, more: True,
) -> Asked:
    """Asks systems round by round until the decision holds or the schedule ends.

    controls: a function from results and systems to the controls of the best of them. goes_on:
    whether a round after the first may be asked, from the results and how many items all systems
    together would answer.
    """
    asking, checks, dropped = list(systems), list[System](), dict[str, Round]()
    results, guarded = list[ItemResult](), list[ItemResult]()
    last, decision = schedule[0], ""

    def ask_systems(asked: Sequence[System], on: Round, suffix: str = "") -> Asked:
        """Takes the answers of these systems on a round in place of those on earlier ones."""
        nonlocal results
        names = {system.name for system in asked}
        here = replace(evaluator, tasks=on.tasks, suffix=suffix)
        results = [row for row in results if row.system not in names] + here.run(asked)
        return found_by(on, [*asking, *checks])

    def found_by(on: Round, own: Sequence[System]) -> Asked:
        names = {system.name for system in own}
        rows = [row for row in results if row.system in names]
        return Asked(evaluator, on, own, rows, dropped, guarded)

    def ask_guards(found: Asked) -> tuple[Asked, Verdict]:
        """Asks the guards of what the verdict rests on, until that has answered them."""
        nonlocal guarded
        verdict = decide_compositions(found.evidence)
        while names := found.unguarded(verdict):
            names.add(BASE)
            on = found.round
            here = replace(evaluator, tasks=on.guards, suffix=on.suffix, step=GUARD)
            asked = [system for system in found.systems if system.name in names]
            guarded = [row for row in guarded if row.system not in names] + here.run(asked, FORMS)
            found = replace(found, guarded=guarded)
            verdict = decide_compositions(found.evidence)
        return found, verdict

    for this in schedule:
        more = (this.items - last.items) * (len(asking) + len(checks))
        if this.number > 1 and not goes_on(results, more):
            break
        last, final = this, this is schedule[-1]
        found = ask_systems([*asking, *checks], this, this.suffix if len(schedule) > 1 else "")
        gains = any(one.gain.outcome == one.retains == "likely" for one in found.candidates)
        if gains and not final:  # so the controls decide
            checks = controls(results, asking)
            found = ask_systems(checks, this)
        verdict = decide_compositions(found.evidence)
        if final or gains or verdict.decision in DECIDED:
            found, verdict = ask_guards(found)
        decision = verdict.decision
        if final or (decision in DECIDED and settled(found.evidence, verdict)):
            break
        dropped |= dict.fromkeys(found.losers(), this)
        asking = [system for system in asking if system.name not in dropped]
    safe = [system for system in asking if system.name not in found.measured.unsafe]
    checks = controls(results, safe) or controls(results, asking)
    asked = {row.system for row in results} & {control.name for control in checks}
    few = decision == "unlikely" and not last.last and not asked
    # Controls do not count for a composition that does not gain: a first round of them is enough.
    ask_systems(checks, schedule[0] if few else last)
    return ask_guards(found_by(last, [*systems, *checks]))[0]


def controls_of_best(
    builder: SystemBuilder,
    composed: Sequence[System],
    results: Sequence[ItemResult],
    systems: Sequence[System],
    session: Session,
) -> list[System]:
    """The controls of the best single adapter and the best merge or router, if there are any."""
    scores = evaluation.score(results, systems)
    alone = evaluation.best_system(scores, ("adapter",))
    best = evaluation.best_system(scores, COMPOSITIONS)
    if alone is None or best is None:
        return []
    with session.stage("compose"):
        return builder.controls(alone, next(s.spec for s in composed if s.name == best))


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation of a whole plan found, and what can be saved and shown of it."""

    records: EvaluationRecords
    notes: Sequence[str]
    gates: tuple[GateStatistics, ...]
    builder: SystemBuilder
    compositions: Sequence[System]
    samples: Sequence[Sample]

    def wrong(self, verdict: Verdict) -> tuple[Sample, ...]:
        """A few questions that the verdict's composition, or else the best one, got wrong."""
        system = verdict.system or evaluation.best_system(self.records.scores, SEVERAL_ADAPTERS)
        form = verdict.gain.form if verdict.gain is not None else QUESTION
        return evaluation.wrong_samples(self.samples, system, form) if system else ()


def evaluate(inputs: Inputs, plan: Plan, transformed: Transformed, session: Session) -> Evaluated:
    """Builds the compositions and asks them, the base, the single adapters and the controls."""
    options = session.options
    session.expect(lambda: steps_of_plan(inputs, plan, options))
    with open_evaluator(inputs, plan, session, transformed.general) as evaluator:
        builder, notes = builder_for(evaluator, transformed)
        with session.stage("compose"):
            composed = [builder.build(spec) for spec in plan.fitted(builder.routers)]
        found = ask_rounds(
            evaluator,
            [*baseline_systems(inputs.adapters), *composed],
            evaluator.rounds(),
            lambda results, systems: controls_of_best(builder, composed, results, systems, session),
        )
        asked = found.round.tasks
        coverage = replace(evaluator, tasks=asked).probe_tasks(found.results)
        with session.stage("gates"):
            gates, gate_note = gate_statistics(evaluator.local, composed, asked, options.seed)
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
    samples = evaluation.samples_of(found.results, found.systems, asked, options.metric)
    return Evaluated(records, notes, gates, builder, composed, samples)


def builder_for(evaluator: Evaluator, transformed: Transformed) -> tuple[SystemBuilder, list[str]]:
    """A builder with fitted routers and learned weights, and notes on the routers.

    Both learn on items on which no system is scored.
    """
    inputs, session, scorer = evaluator.inputs, evaluator.session, evaluator.local
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
    builder = SystemBuilder(inputs.adapters, transformed, options, inputs.base, learned, routers)
    return builder, notes
