"""Which sets of a library are proved, and their evaluation on the items that took no part in that.

Of the sets that promise most the sums are tried first. The best few are composed by every method
and router and asked by rounds (`EvaluationRun`) beside the base, the best single adapters and
the members. Where one adapter leaves no room for a gain, it alone is proved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from loraprobe import evaluation
from loraprobe.adapters import Adapter
from loraprobe.defaults import BEST_SINGLES, TRIED
from loraprobe.errors import UsageError
from loraprobe.evaluation import System
from loraprobe.evaluation.plan import BASE
from loraprobe.formatting import count
from loraprobe.pipeline.conclusion import evidence_of
from loraprobe.pipeline.estimate import READ, CostEstimate, cost_of, timed, units_of
from loraprobe.pipeline.evaluate import Asked, EvaluationRun
from loraprobe.pipeline.evaluator import Evaluator
from loraprobe.pipeline.ranking import BaselineScores, Placed, Ranking, Subset
from loraprobe.pipeline.screen import Screen, items_of, too_few
from loraprobe.pipeline.systems import SystemBuilder, plan_of
from loraprobe.pipeline.transforms import transform
from loraprobe.records import (
    COMPOSITIONS,
    FORMS,
    QUESTION,
    EvaluationRecords,
    ItemResult,
)
from loraprobe.verdict.rules import at_ceiling

CONTROLS = 2
FINALIST = 6  # systems that a finalist adds: its compositions and its members


@dataclass(frozen=True, eq=False)
class Finalist:
    """A set of adapters that is proved, with its place in a ranking and its compositions by name.

    subset: the adapters by their numbers in the ranking.
    """

    place: int
    subset: Subset
    builder: SystemBuilder
    systems: Mapping[str, System]
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(adapter.name for adapter in self.builder.trained)

    @property
    def label(self) -> str:
        return ", ".join(self.names)

    def controls(self, results: Sequence[ItemResult], best: str) -> list[System]:
        """`shrunk:NAME` and `random-partner` for one of its compositions."""
        singles = [System(name, "adapter") for name in self.names]
        alone = evaluation.best_system(evaluation.score(results, singles), ("adapter",))
        controls = self.builder.controls(alone or self.names[0], self.systems[best].spec)
        return [  # kept by all members, since the gates depend on how many they are
            replace(control, stored=f"{control.key}({self.label})", members=self.names)
            for control in controls
        ]


@dataclass(frozen=True, eq=False)
class Proved:
    """What a screen found on both parts of the items.

    ranking: None where no composition was proved, since one adapter leaves no room for a gain.
    """

    screen: Screen
    asked: Asked
    finalists: Sequence[Finalist] = ()
    ranking: Ranking | None = None

    @property
    def adapters(self) -> list[Adapter]:
        """The single adapters that were proved: the best ones and the members of finalists."""
        singles = [s.composition for s in self.asked.systems if s.kind == "adapter"]
        return [single.experts[0] for single in singles if single is not None]


def choose_and_prove(screen: Screen) -> Proved:
    """Asks base and adapters alone, then proves the sets that promise most.

    Where one of them answers so much alone that no composition can gain the margin, only it is
    asked the items that prove.
    """
    assert screen.evaluator.plan.parts is not None
    proving = replace(screen.evaluator, tasks=screen.evaluator.plan.parts.left)
    options, attempts = proving.session.options, set[bool]()

    def proved_alone(answered: Sequence[str]) -> Proved | None:
        """The base or an adapter that leaves no room for a gain, proved."""
        tasks, margin = len(proving.tasks), options.needed_gain
        name = evaluation.near_ceiling(screen.results, answered, tasks, margin)
        # The base and one adapter have one attempt each: every attempt may succeed by chance.
        if name is None or (name == BASE) in attempts:
            return None
        attempts.add(name == BASE)
        asked = _ask_at_ceiling(screen, name, proving)
        return None if asked is None else Proved(screen, asked)

    answered = screen.ask([BASE])
    if proved := proved_alone(answered):
        return proved
    names = [*answered, *screen.ask(screen.in_order())]
    if len(names) < 3:
        if not screen.unasked:
            raise too_few(len(names) - 1, screen.failed)
        adapters = count(len(names) - 1, "adapter")
        minutes = math.ceil(screen.minutes_for(len(screen.unasked)) * 10) / 10
        raise UsageError(
            f"{adapters} could be asked within --budget; give --budget={minutes:g}, which is "
            "enough for all of them by the time that was taken so far."
        )
    if proved := proved_alone(names):
        return proved
    return _prove(screen, screen.ranking(names), proving)


def _ask_at_ceiling(screen: Screen, name: str, proving: Evaluator) -> Asked | None:
    """Asks a system alone (and the base) all items, if it leaves no room for a gain.

    None as soon as it is not above 1 - margin in any form or the budget is over, and where its
    interval after the last round leaves room. That interval is looked at once, so it needs no
    correction for the rounds.
    """
    options, tasks = proving.session.options, len(proving.tasks)
    systems = [screen.system(alone) for alone in dict.fromkeys([BASE, name])]

    def goes_on(results: Sequence[ItemResult], more: int) -> bool:
        near = evaluation.near_ceiling(results, [name], tasks, options.needed_gain)
        return near is not None and screen.affords(more)

    asked = EvaluationRun(proving, systems, proving.rounds(), lambda *_: [], goes_on).ask()
    scores = evaluation.score(asked.results, systems)
    measured = EvaluationRecords(scores=scores, guards=asked.measured.guards)
    evidence = evidence_of(options, proving.inputs, "base", measured)
    return asked if asked.round.last and at_ceiling(evidence) is not None else None


def _prove(screen: Screen, ranking: Ranking, proving: Evaluator) -> Proved:
    """Composes the finalists, and evaluates them beside base, best singles, members and a chain."""
    options, names = proving.session.options, ranking.names
    planned = proving.rounds()
    keep, first = options.keep, planned[0].items
    while keep > 1 and not screen.affords(first * _systems(keep)):
        keep -= 1
    chosen = _tried(screen, ranking, keep, first * _systems(keep))
    built = [_composed(screen, place, subset, names) for place, subset in chosen]
    finalists = [finalist for finalist in built if finalist.systems]
    composed = [member for finalist in finalists for member in finalist.subset]
    members = dict.fromkeys([*ranking.best, *ranking.knowers, *composed])
    alone = {member: screen.system(names[member]) for member in members}
    finalist_of = {name: finalist for finalist in finalists for name in finalist.systems}
    systems = [screen.system(BASE), *alone.values()]
    systems += [system for finalist in finalists for system in finalist.systems.values()]
    if any(task.has_hops for task in proving.tasks):
        hops = [alone[m].composition for m in ranking.knowers]
        systems.append(System("chain", "chain", chain=tuple(filter(None, hops))))

    def controls(results: Sequence[ItemResult], systems: Sequence[System]) -> list[System]:
        best = evaluation.best_system(evaluation.score(results, systems), COMPOSITIONS)
        return [] if best is None else finalist_of[best].controls(results, best)

    def goes_on(_: Sequence[ItemResult], more: int) -> bool:
        return screen.affords(more)

    asked = EvaluationRun(proving, systems, planned, controls, goes_on).ask()
    return Proved(screen, asked, finalists, ranking)


def _systems(keep: int) -> int:
    """How many systems the proof of so many sets asks, about."""
    return 1 + BEST_SINGLES + FINALIST * keep


def _tried(screen: Screen, ranking: Ranking, keep: int, later: int) -> list[Placed]:
    """The sets to prove: those whose sums answer most, of TRIED times as many that promise most.

    A forecast adds effects token by token. It cannot see whether a set still writes worked answers,
    and so it prefers members that are too weak to change how answers are written. Where the time
    is short, the forecast alone chooses. later: the answers that the proof needs at least.
    """
    tasks, names = screen.untried, ranking.names
    sets = screen.finalists(ranking, ranking.forms, TRIED * keep, ranking.leader)
    built, answers = list[Finalist](), len(sets) * items_of(tasks)
    if tasks and len(sets) > keep and screen.affords(answers + later):
        built = [_composed(screen, place, subset, names, ("sum",)) for place, subset in sets]
    systems = [system for one in built for system in one.systems.values()]
    if not systems:  # or no sum can be built
        return screen.finalists(ranking, ranking.forms, keep, ranking.leader)
    results = replace(screen.evaluator, tasks=tasks).run(systems, FORMS)
    screen.tried = len(systems)
    scores = [BaselineScores.of(task, [s.name for s in systems], results) for task in tasks]
    place_of = {one.subset: one.place for one in built if one.systems}
    values = [
        np.mean([np.nanmean(one.parts.get(form, one.parts[QUESTION]), 1) for one in scores], 0)
        for form in FORMS[: len(ranking.forms)]
    ]
    best = screen.finalists(ranking, ranking.tried([*place_of], values), keep)
    return [(place_of[subset], subset) for _, subset in best]


def _composed(
    screen: Screen, place: int, subset: Subset, names: Sequence[str], only: Sequence[str] = ()
) -> Finalist:
    """A set of adapters, composed by the methods and routers of the options, or by `only`."""
    evaluator, base = screen.evaluator, screen.evaluator.inputs.base
    adapters, options = screen.opened(names[m] for m in subset), evaluator.session.options
    members, plan = tuple(adapter.name for adapter in adapters), plan_of(options, adapters)
    with evaluator.session.stage("compose"):
        transformed = transform(adapters, options, (), base)
        builder = SystemBuilder(adapters, transformed, options, base)
        specs = {f"{spec}({', '.join(members)})": spec for spec in only or plan.specs}
        built, notes = builder.build_each(specs)
    systems = {system.name: replace(system, members=members) for system in built}
    return Finalist(place, subset, builder, systems, (*plan.left_out, *notes))


def estimate_of_screen(screen: Screen) -> CostEstimate:
    """The estimate of a whole screen; nothing is evaluated but a few items, which are timed.

    The adapters are asked alone, sums are tried, and as many sets as may be are proved.
    """
    evaluator, n = screen.evaluator, len(screen.members)
    options, parts = evaluator.session.options, evaluator.plan.parts
    alone = screen.system(next(iter(screen.members))).composition
    assert parts is not None and alone is not None
    pace, pairs = timed(evaluator, alone), n * (n - 1) // 2
    sets = min(options.keep, pairs)
    specs = plan_of(options, [next(iter(evaluator.inputs.adapters))] * 2).specs
    texts = 0 if screen.reading is None else len(screen.reading.rows)
    seconds = (units_of(screen.asked, options) + READ * texts) * (pace(0) + n * pace(1))
    seconds += units_of(screen.untried, options) * min(TRIED * options.keep, pairs) * pace(2)
    singles, compositions = min(n, BEST_SINGLES + 2 * sets), sets * len(specs) + CONTROLS
    proved = pace(0) + singles * pace(1) + compositions * pace(2)
    seconds += units_of(parts.left, options) * proved
    seconds += units_of(evaluator.inputs.guards, options) * (pace(0) + pace(1) + pace(2))
    return cost_of(evaluator, [BASE, *screen.members], seconds)
