"""`screen_task`: what of a library to use for a task.

One part of each task's items chooses, the other proves. On the first, base and adapters answer
alone, and every pair is forecast from that. On the second, the best few are composed and evaluated
by rounds beside the base, the best single adapters and the members. The items that prove took no
part in the choice, so the choice out of the whole library needs no correction; the choice among the
finalists is covered by the intervals.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from loraprobe import evaluation
from loraprobe.adapters import Adapter
from loraprobe.base import Base
from loraprobe.compatibility import aligned
from loraprobe.defaults import BEST_SINGLES, SCREENING_SHARE, TEMPLATE_ADAPTERS
from loraprobe.errors import UsageError
from loraprobe.evaluation import Round, System
from loraprobe.evaluation.rounds import rounds
from loraprobe.library import Arranged, Member
from loraprobe.options import Options
from loraprobe.pipeline.asking_alone import (
    Alone,
    Budget,
    ask_alone,
    forecast_pairs,
    forecast_worked,
)
from loraprobe.pipeline.estimating import CostEstimate
from loraprobe.pipeline.evaluating import best_system
from loraprobe.pipeline.evaluator import Evaluator, task_notes
from loraprobe.pipeline.finalists import Finalist, build_finalist, fit_together
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.ranking_sets import rankings_of
from loraprobe.pipeline.results import open_ledger
from loraprobe.pipeline.rounds import Played, play
from loraprobe.pipeline.scorer import open_scorer, with_better_template
from loraprobe.pipeline.screening_answer import Proved, audit_of_screen
from loraprobe.pipeline.screening_cost import announce_proof, announce_screen, estimate_of_screen
from loraprobe.pipeline.screening_workers import Elsewhere
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.shortlisting import Ranking, Subset, choose
from loraprobe.pipeline.task_split import TaskSplit, split_for_screening
from loraprobe.probes import KnownAlone, PairForecast, ScreenedTexts
from loraprobe.records import Audit, ItemResult
from loraprobe.routing import ROUTERS
from loraprobe.routing.constant import single
from loraprobe.tasks import Task

SYSTEMS_PAIR = 4.0  # what a finalist costs, in single adapters: its compositions and its members
COMPOSED = 1.5  # the time of a composition for an item, in that of a single adapter


@dataclass(frozen=True, eq=False)
class Screened:
    """What the items that choose said.

    members: those that were asked, in the order of `alone.names` without the base. rankings: of
    pairs and larger sets, one for each form of the question. scores [1 + n]: of the base and each
    adapter alone, the mean over tasks.
    """

    members: Sequence[Member]
    alone: Alone
    known: Sequence[KnownAlone]
    forecast: PairForecast | None
    rankings: Sequence[Ranking]
    scores: np.ndarray

    @property
    def best(self) -> list[int]:
        """The best single adapters, and of several tasks the best on each."""
        order = np.argsort(-self.scores[1:], kind="stable")[:BEST_SINGLES]
        own = [int(known.alone()[1:].argmax()) for known in self.known]
        return list(dict.fromkeys([*order.tolist(), *own]))


def screen_task(
    found: Arranged,
    base: Base,
    tasks: Sequence[Task],
    session: Session,
    workers: Elsewhere | None = None,
) -> Audit:
    """The audit of a library that was opened, on these tasks.

    workers: ask the adapters alone. Raises LoraprobeError for tasks with too few items, for fewer
    than two usable adapters, and where base or adapters cannot be asked.
    """
    _check(found, session.options)
    parts = split_for_screening(tasks, session.options)
    budget = Budget(session.options.budget, session.options.started or session.begun)
    with _open(found, base, tasks, parts, session) as evaluator:
        reading = ScreenedTexts.of(evaluator.scorer, parts.apart, session.options.metric)
        announce_screen(evaluator, found.usable, parts, reading)
        screened = _screened(found, evaluator, reading, budget, workers)
        proving = replace(evaluator, tasks=parts.left)
        finalists = _finalists(screened, found, proving, budget)
        played, adapters = _prove(proving, finalists, screened, budget)
        proved = Proved(
            played, finalists, adapters, screened.alone, screened.forecast, screened.rankings
        )
        return audit_of_screen(found, proving, tasks, parts, proved)


def estimate_task(
    found: Arranged, base: Base, tasks: Sequence[Task], session: Session
) -> CostEstimate:
    """What `screen_task` of the same would take; nothing is evaluated."""
    _check(found, session.options)
    parts = split_for_screening(tasks, session.options)
    with tempfile.TemporaryDirectory() as place:  # of a ledger that nobody needs
        options = replace(session.options, state=Path(place), resume=False)
        session = replace(session, options=options)
        with _open(found, base, tasks, parts, session) as evaluator:
            reading = ScreenedTexts.of(evaluator.scorer, parts.apart, options.metric)
            return estimate_of_screen(found, evaluator, parts, reading)


def _check(found: Arranged, options: Options) -> None:
    """Raises UsageError for a router that learns, and where nothing can be composed."""
    for spec in options.routers:
        if ROUTERS.make(spec).needs_prompts:
            raise UsageError(
                f"--router {spec} learns from prompts, which a screen does not set apart; screen "
                "without it, and give it to merge-and-eval with the adapters that were chosen."
            )
    if len(found.usable) < 2:
        raise UsageError(
            f"{len(found.usable)} of {len(found.members)} adapters can be used with this base, and "
            "a screen composes two or more; run screen without --task to see why."
        )


def _open(
    found: Arranged, base: Base, tasks: Sequence[Task], parts: TaskSplit, session: Session
) -> Evaluator:
    """Loads the base, chooses the form of the prompts, and opens the results of earlier runs."""
    scorer, notes = open_scorer(base, session.options.dtype, session)
    usable = [member.open() for member in found.usable]
    ledger, kept = open_ledger(usable, base, tasks, session)
    step = max(1, len(usable) // TEMPLATE_ADAPTERS)
    asked = aligned(usable[::step][:TEMPLATE_ADAPTERS], base)
    scorer, why, template = with_better_template(
        scorer, session, asked, parts.apart, session.options.metric, ledger
    )
    notes += [*why, *task_notes(parts.left, session.options.metric), kept]
    inputs = Inputs((), (), base, parts.apart)
    return Evaluator(inputs, session, scorer, ledger, parts.apart, None, notes, template)


def _screened(
    found: Arranged,
    evaluator: Evaluator,
    reading: ScreenedTexts | None,
    budget: Budget,
    workers: Elsewhere | None,
) -> Screened:
    """Asks base and adapters alone, and ranks the sets of adapters."""
    base, tasks = evaluator.inputs.base, evaluator.tasks
    usable = {member.record.name: member for member in found.usable}

    def opened(name: str) -> Adapter:
        return aligned([usable[name].open()], base)[0]

    def goes_on() -> bool:
        return budget.left(SCREENING_SHARE) > 0

    if workers is not None:
        workers.ask(evaluator, list(usable), reading, goes_on)
    alone = ask_alone(evaluator, list(usable), opened, reading, goes_on)
    members = [usable[name] for name in alone.names[1:]]
    if len(members) < 2:
        raise UsageError(
            f"{len(members)} adapters could be asked within --budget; give it more minutes."
            if alone.unasked
            else f"{len(members)} adapters can be asked: {next(iter(alone.failed.values()))}"
        )
    known = [KnownAlone.of(task, alone.names, alone.results) for task in tasks]
    forecast = forecast_pairs(evaluator, alone, reading)
    worked = forecast_worked(evaluator, alone, known, opened) if goes_on() else None
    scores = np.mean([one.alone() for one in known], 0)
    with evaluator.session.stage("forecast"):
        rankings = rankings_of(known, forecast, worked, len(members))
    return Screened(members, alone, known, forecast, rankings, scores)


def _finalists(
    screened: Screened, found: Arranged, evaluator: Evaluator, budget: Budget
) -> list[Finalist]:
    """The sets of adapters to prove, composed."""
    options, base = evaluator.session.options, evaluator.inputs.base
    assert base is not None

    def opened(members: Subset) -> list[Adapter]:
        return aligned([screened.members[m].open() for m in members], base)

    families = [
        -at - 1 if member.record.family is None else member.record.family
        for at, member in enumerate(screened.members)
    ]
    keep = min(options.keep, _affordable(screened, evaluator, budget))
    chosen = choose(
        screened.rankings,
        keep,
        families,
        lambda members: fit_together(opened(members), base, options),
    )
    made = [
        build_finalist(one, opened(one.members), base, options, evaluator.session) for one in chosen
    ]
    return [one for one in made if one.systems]


def _affordable(screened: Screened, evaluator: Evaluator, budget: Budget) -> int:
    """How many finalists can be asked a first round in the time that is left, at least one."""
    left, pace = budget.left(), screened.alone.pace
    if not pace or left == float("inf"):
        return evaluator.session.options.keep
    first = rounds(evaluator.tasks, evaluator.session.options.seed)[0].items
    each = pace * first * (SYSTEMS_PAIR * COMPOSED + 2)
    return max(1, int((left - pace * first * (1 + BEST_SINGLES)) / each))


def _prove(
    evaluator: Evaluator, finalists: Sequence[Finalist], screened: Screened, budget: Budget
) -> tuple[Played, list[Adapter]]:
    """Evaluates the finalists beside base, best singles and members; and these adapters."""
    base = evaluator.inputs.base
    chosen = [*screened.best, *(m for one in finalists for m in one.candidate.members)]
    members = [screened.members[m] for m in dict.fromkeys(chosen)]
    adapters = aligned([member.open() for member in members], base)
    singles = [System("base", "base"), *(System(a.name, "adapter", single(a)) for a in adapters)]
    owner = {name: one for one in finalists for name in one.systems}
    composed = [system for one in finalists for _, system in one.systems.values()]

    def controls(results: Sequence[ItemResult], systems: Sequence[System]) -> list[System]:
        best = best_system(evaluation.score(results, systems), ("merge", "router"))
        return [] if best is None else owner[best].controls(results, best)

    def goes_on(found: Played, following: Round) -> bool:
        asked = len(found.systems) + len(found.controls)
        more = following.items - found.round.items
        return budget.left() > screened.alone.pace * COMPOSED * asked * more

    proving = replace(evaluator, inputs=replace(evaluator.inputs, adapters=adapters))
    pace = screened.alone.pace
    spent = pace * len(screened.alone.names) * len(screened.known[0].task.items)
    announce_proof(proving, [*singles, *composed], spent, pace * COMPOSED)
    return play(proving, [*singles, *composed], controls, goes_on), adapters
