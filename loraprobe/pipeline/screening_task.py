"""`screen_task`: what of a library to use for a task.

One part of each task's items chooses, the other proves. On the first, base and adapters answer
alone, and every pair is forecast from that (`choosing`). On the second, the best few are composed
and evaluated by rounds beside the base, the best single adapters and the members. The items that
prove took no part in the choice, so the choice out of the whole library needs no correction; the
choice among the finalists is covered by the intervals. Where one adapter leaves no room for a gain,
it alone is proved.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loraprobe import evaluation
from loraprobe.adapters import Adapter
from loraprobe.base import Base
from loraprobe.compatibility import aligned
from loraprobe.defaults import BEST_SINGLES, TEMPLATE_ADAPTERS
from loraprobe.errors import UsageError
from loraprobe.evaluation import Round, System
from loraprobe.evaluation.chain import BASE
from loraprobe.evaluation.rounds import rounds
from loraprobe.library import Arranged
from loraprobe.options import Options
from loraprobe.pipeline.asking_alone import Asker, Budget, looks_of
from loraprobe.pipeline.choosing import Choosing, Screened
from loraprobe.pipeline.estimating import CostEstimate
from loraprobe.pipeline.evaluating import best_system
from loraprobe.pipeline.evaluator import Evaluator, task_notes
from loraprobe.pipeline.finalists import Finalist, build_finalist, fit_together
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.results import open_ledger
from loraprobe.pipeline.rounds import GoesOn, Played, play, play_alone
from loraprobe.pipeline.scorer import open_scorer, with_better_template
from loraprobe.pipeline.screening_answer import Proved, audit_of_screen
from loraprobe.pipeline.screening_cost import announce_proof, announce_screen, estimate_of_screen
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.shortlisting import Subset, choose
from loraprobe.pipeline.task_split import TaskSplit, split_for_screening
from loraprobe.records import Audit, ItemResult
from loraprobe.routing import ROUTERS
from loraprobe.routing.constant import single
from loraprobe.tasks import Task

SYSTEMS_PAIR = 4.0  # what a finalist costs, in single adapters: its compositions and its members
COMPOSED = 1.5  # the time of a composition for an item, in that of a single adapter


def screen_task(found: Arranged, base: Base, tasks: Sequence[Task], session: Session) -> Audit:
    """The audit of a library that was opened, on these tasks.

    Raises LoraprobeError for tasks with too few items, for fewer than two usable adapters, and
    where base or adapters cannot be asked.
    """
    _check(found, session.options)
    parts = split_for_screening(tasks, session.options)
    budget = Budget(session.options.budget, session.options.started or session.begun)
    with _open(found, base, tasks, parts, session) as evaluator:
        choosing = Choosing.of(found, evaluator, budget)
        announce_screen(evaluator, found.usable, parts, choosing.looks)
        proving = replace(evaluator.with_setup(), tasks=parts.left)
        proved = _at_ceiling(choosing, proving, budget)
        if proved is None:
            screened = choosing.screened()
            finalists = _finalists(screened, choosing.asker, proving, budget)
            proved = _prove(proving, finalists, screened, choosing, budget)
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
            looks = looks_of(evaluator.scorer, parts.apart, options)
            return estimate_of_screen(found, evaluator, parts, looks)


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


def _at_ceiling(choosing: Choosing, evaluator: Evaluator, budget: Budget) -> Proved | None:
    """Asks the adapters alone, until one answers so much that no composition can gain the margin.

    Then only that adapter (or the base) is asked the items that prove. None where compositions have
    to be proved. The base and one adapter have one attempt each, so that chance has no more.
    """
    tried = set[bool]()
    for _ in choosing.steps():
        name = choosing.at_ceiling()
        if name is None or (name == BASE) in tried:
            continue
        tried.add(name == BASE)
        systems = [choosing.asker.system(one) for one in dict.fromkeys([BASE, name])]
        played = play_alone(evaluator, systems, _within(budget, choosing.asker))
        if played is not None:
            adapters = [one.composition.experts[0] for one in systems if one.composition]
            return Proved(played, (), adapters, choosing)
    return None


def _finalists(
    screened: Screened, asker: Asker, evaluator: Evaluator, budget: Budget
) -> list[Finalist]:
    """The sets of adapters to prove, composed."""
    options, base = evaluator.session.options, evaluator.inputs.base
    assert base is not None

    def opened(members: Subset) -> list[Adapter]:
        return aligned([screened.members[m].open() for m in members], base)

    chosen = choose(
        screened.rankings,
        min(options.keep, _affordable(asker, evaluator, budget)),
        screened.families,
        lambda members: fit_together(opened(members), base, options),
    )
    made = [
        build_finalist(one, opened(one.members), base, options, evaluator.session) for one in chosen
    ]
    return [one for one in made if one.systems]


def _affordable(asker: Asker, evaluator: Evaluator, budget: Budget) -> int:
    """How many finalists can be asked a first round in the time that is left, at least one."""
    left, pace = budget.left(), asker.pace
    if not pace or left == float("inf"):
        return evaluator.session.options.keep
    first = rounds(evaluator.tasks, evaluator.session.options.seed)[0].items
    each = pace * first * (SYSTEMS_PAIR * COMPOSED + 2)
    return max(1, int((left - pace * first * (1 + BEST_SINGLES)) / each))


def _prove(
    evaluator: Evaluator,
    finalists: Sequence[Finalist],
    screened: Screened,
    choosing: Choosing,
    budget: Budget,
) -> Proved:
    """Evaluates the finalists beside base, best singles and members."""
    base, asker = evaluator.inputs.base, choosing.asker
    chosen = [*screened.best, *(m for one in finalists for m in one.candidate.members)]
    members = [screened.members[m] for m in dict.fromkeys(chosen)]
    adapters = aligned([member.open() for member in members], base)
    singles = [
        System(BASE, "base"),
        *(System(a.name, "adapter", single(a), members=(a.name,)) for a in adapters),
    ]
    owner = {name: one for one in finalists for name in one.systems}
    composed = [system for one in finalists for system in one.systems.values()]

    def controls(results: Sequence[ItemResult], systems: Sequence[System]) -> list[System]:
        best = best_system(evaluation.score(results, systems), ("merge", "router"))
        return [] if best is None else owner[best].controls(results, best)

    proving = replace(evaluator, inputs=replace(evaluator.inputs, adapters=adapters))
    announce_proof(proving, [*singles, *composed], asker.spent[0], asker.pace * COMPOSED)
    played = play(proving, [*singles, *composed], controls, _within(budget, asker))
    return Proved(played, finalists, adapters, choosing, screened)


def _within(budget: Budget, asker: Asker) -> GoesOn:
    """Whether a further round fits into the time that is left."""

    def goes_on(found: Played, following: Round) -> bool:
        asked = len(found.systems) + len(found.controls)
        more = following.items - found.round.items
        return budget.left() > asker.pace * COMPOSED * asked * more

    return goes_on
