"""`ask_in_rounds`: asks the systems in rounds of growing size and stops when the decision holds.

After a round the verdict is judged with the intervals of this look (`evaluation.schedule`). The run
goes on while the action is less certain than the decision (`verdict.advice.settled`). Systems
that can no longer win are not asked further. A composition that gains has to beat the controls too,
so these are asked the same items before the run stops. The base and the single adapters always
answer all items of a round, since they are what a composition is compared with, and their hops
explain what compositions get wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from loraprobe import evaluation
from loraprobe.defaults import ALPHA
from loraprobe.evaluation import Round, System
from loraprobe.formatting import count
from loraprobe.pipeline.evaluator import Evaluator
from loraprobe.records import BASELINES, FORMS, EvaluationRecords, ItemResult, Rounds
from loraprobe.verdict import Evidence, candidates, decide_compositions
from loraprobe.verdict.advice import settled
from loraprobe.verdict.rules import at_ceiling

Controls = Callable[[Sequence[ItemResult], Sequence[System]], list[System]]
GoesOn = Callable[["AskedRounds", Round], bool]
DECIDED = ("likely", "unlikely")


@dataclass
class AskedRounds:
    """What the rounds found so far.

    order: all systems but the controls. round: the last one. systems: those that are still asked.
    results: of all systems. dropped: the other ones, with their last round. controls: those of the
    best composition.
    """

    order: Sequence[System]
    round: Round
    systems: list[System]
    results: list[ItemResult] = field(default_factory=list)
    dropped: dict[str, tuple[System, Round]] = field(default_factory=dict)
    controls: list[System] = field(default_factory=list)

    @property
    def all_systems(self) -> list[System]:
        """All systems, in the order in which they are reported."""
        return [*self.order, *self.controls]

    def notes(self) -> list[str]:
        """Which systems were not asked to the end, for the report."""
        return [
            f"{name} was asked {count(last.items, 'item')} (round {last.number} of "
            f"{last.planned}): it could no longer win."
            for name, (_, last) in self.dropped.items()
        ]

    def record(self, total: int) -> Rounds:
        """How far the evaluation went, of `total` items."""
        dropped = {name: last.number for name, (_, last) in self.dropped.items()}
        here = self.round
        return Rounds(here.number, here.planned, here.items, total, 1 - here.alpha, dropped)


def ask_in_rounds(
    evaluator: Evaluator,
    systems: Sequence[System],
    controls: Controls,
    goes_on: GoesOn = lambda found, following: True,
) -> AskedRounds:
    """Asks systems round by round until the decision holds or all items are asked.

    controls: a function from results and systems to the controls of the best of them. goes_on:
    whether a round after the first may be asked.
    """
    options = evaluator.session.options
    planned = evaluation.rounds(evaluator.tasks, options.seed, all_items=options.all_items)
    found = AskedRounds(systems, planned[0], list(systems))
    decision = ""
    for this in planned:
        if this.number > 1 and not goes_on(found, this):
            break
        found.round = this
        _ask(found, evaluator, [*found.systems, *found.controls], this.suffix)
        evidence = _evidence(found, evaluator)
        if not this.last and _gains(evidence):
            found.controls = controls(found.results, found.systems)
            _ask(found, evaluator, found.controls)
            evidence = _evidence(found, evaluator)
        verdict = decide_compositions(evidence)
        decision = verdict.decision
        if this.last or (decision in DECIDED and settled(evidence, verdict)):
            break
        _drop(found, evidence)
    found.controls = controls(found.results, found.systems)
    asked = {row.system for row in found.results} & {control.name for control in found.controls}
    few = decision == "unlikely" and not found.round.last and not asked
    # Controls do not count for a composition that does not gain: a first round of them is enough.
    _ask(found, evaluator, found.controls, on=planned[0] if few else found.round)
    names = {system.name for system in found.all_systems}
    found.results = [row for row in found.results if row.system in names]
    return found


def ask_at_ceiling(
    evaluator: Evaluator, systems: Sequence[System], goes_on: GoesOn
) -> AskedRounds | None:
    """Asks systems alone all items, if the last of them leaves no room for a gain.

    None as soon as it is not above 1 - margin in any form or `goes_on` says no, and where its
    interval after the last round leaves room. That interval is looked at once, so it needs no
    correction for the rounds.
    """
    options, best = evaluator.session.options, systems[-1].name
    planned = evaluation.rounds(evaluator.tasks, options.seed, all_items=options.all_items)
    found = AskedRounds(systems, planned[0], list(systems))
    for this in planned:
        if this.number > 1 and not goes_on(found, this):
            return None
        found.round = this
        _ask(found, evaluator, systems, this.suffix)
        evidence = Evidence(
            tasks=len(evaluator.tasks),
            level="base",
            margin=options.needed_gain,
            evaluation=evaluation.score(found.results, systems),
        )
        forms = [evidence.scores(best, part) for part in FORMS]
        if not any(rows and min(row.value for row in rows) > 1 - evidence.margin for rows in forms):
            return None
    return found if at_ceiling(evidence) is not None else None


def records(
    found: AskedRounds, evaluator: Evaluator, **others: tuple[object, ...]
) -> EvaluationRecords:
    """What was measured, at the level of the last look. others: coverage and forecasts."""
    systems = found.all_systems
    results, stayed = found.results, [s for s in systems if s.name not in found.dropped]
    baselines = [s for s in systems if s.kind in BASELINES]
    attribution = evaluation.attribute(results, stayed, found.round.tasks)
    for system, last in found.dropped.values():
        attribution += evaluation.attribute(results, [*baselines, system], last.tasks)
    return EvaluationRecords(
        **compared(results, systems, evaluator, found.round.alpha, stayed),
        attribution=attribution,
        rounds=found.record(sum(len(task.items) for task in evaluator.tasks)),
        **others,  # type: ignore[arg-type]
    )


def compared(
    results: Sequence[ItemResult],
    systems: Sequence[System],
    evaluator: Evaluator,
    alpha: float = ALPHA,
    stayed: Sequence[System] | None = None,
) -> dict[str, Any]:
    """Scores, comparisons and gains, on which a decision rests.

    alpha: that of the look. stayed: the systems that were asked to the end, which have gains.
    """
    options, tasks, level = evaluator.session.options, evaluator.tasks, 1 - alpha
    margin, seed, kept = options.needed_gain, options.seed, systems if stayed is None else stayed
    return {
        "evaluation": evaluation.score(results, systems, level=level),
        "comparisons": evaluation.compare(results, systems, seed=seed, level=level),
        "gains": evaluation.gains(
            results, kept, margin=margin, seed=seed, alpha=alpha, tasks=tasks
        ),
    }


def _ask(
    found: AskedRounds,
    evaluator: Evaluator,
    systems: Sequence[System],
    told: str = "",
    on: Round | None = None,
) -> None:
    """Adds the systems' results on the items of a round; told: the round, for the progress."""
    names, here = {system.name for system in systems}, on or found.round
    session = evaluator.session.renamed(
        lambda step: step + told if step.startswith("evaluate ") else step
    )
    asked = replace(evaluator, tasks=here.tasks, session=session).run(systems)
    found.results = [row for row in found.results if row.system not in names] + asked


def _evidence(found: AskedRounds, evaluator: Evaluator) -> Evidence:
    """What the decision rests on after this round."""
    options = evaluator.session.options
    systems = [*found.systems, *found.controls]
    own = {system.name for system in systems}
    results = [row for row in found.results if row.system in own]
    with evaluator.session.stage("statistics"):
        rows = compared(results, systems, evaluator, found.round.alpha)
    return Evidence(
        tasks=len(evaluator.tasks),
        level="evaluation",
        margin=options.needed_gain,
        retention=options.retention,
        **rows,
    )


def _gains(evidence: Evidence) -> bool:
    """Whether some composition gains and keeps what it has to, so that controls decide."""
    return any(
        one.gain.outcome == one.retains == "likely"
        for part in FORMS
        for one in candidates(evidence, part)
    )


def _drop(found: AskedRounds, evidence: Evidence) -> None:
    """Moves the compositions that can no longer win to `dropped`.

    These are shown to fail in every form of the question, or, for one task, to be worse than the
    best composition. For several tasks the best mean may lose a skill that another one keeps.
    """
    composed = [s.name for s in found.systems if s.kind in ("merge", "router")]
    outcomes: dict[str, list[str]] = {name: [] for name in composed}
    for part in FORMS:
        for one in candidates(evidence, part):
            outcomes[one.system].append(one.outcome)
    out = {name for name, said in outcomes.items() if said and set(said) == {"unlikely"}}
    if not evidence.several:
        out |= evaluation.beaten(found.results, composed, found.round.alpha)
    for system in [s for s in found.systems if s.name in out]:
        found.systems.remove(system)
        found.dropped[system.name] = system, found.round
