"""The sets of adapters that a screen proves: composed, and evaluated beside base and adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from loraprobe import evaluation
from loraprobe.adapters import Adapter
from loraprobe.defaults import BEST_SINGLES
from loraprobe.evaluation import Round, System
from loraprobe.evaluation.plan import BASE
from loraprobe.evaluation.schedule import rounds
from loraprobe.pipeline.estimating import by_round
from loraprobe.pipeline.evaluating import best_system
from loraprobe.pipeline.evaluator import Evaluator
from loraprobe.pipeline.portfolio import Selection
from loraprobe.pipeline.rounds import AskedRounds, GoesOn, ask_at_ceiling, ask_in_rounds
from loraprobe.pipeline.screening.choosing import Choosing, Screened
from loraprobe.pipeline.screening.ranking import RankedSet
from loraprobe.pipeline.systems import SystemBuilder
from loraprobe.pipeline.transforms import prepare
from loraprobe.records import ItemResult
from loraprobe.routing.constant import single

SYSTEMS_PAIR = 4.0  # what a finalist costs, in single adapters: its compositions and its members
COMPOSED = 1.5  # the time of a composition for an item, in that of a single adapter


@dataclass(frozen=True, eq=False)
class Finalist:
    """A chosen set of adapters with its compositions by name."""

    candidate: RankedSet
    builder: SystemBuilder
    systems: Mapping[str, System]
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(adapter.name for adapter in self.builder.trained)

    def controls(self, results: Sequence[ItemResult], best: str) -> list[System]:
        """`shrunk:NAME` and `random-partner` for one of its compositions."""
        singles = [System(name, "adapter") for name in self.names]
        alone = best_system(evaluation.score(results, singles), ("adapter",))
        system = self.systems[best]
        made = self.builder.controls(alone or self.names[0], replace(system, name=system.spec))
        own = ", ".join(self.names)  # the gates depend on how many they are
        return [
            replace(control, stored=f"{control.key}({own})", members=self.names) for control in made
        ]


@dataclass(frozen=True, eq=False)
class Proved:
    """What a screen found on both parts of the items.

    screened: None where no composition was proved, since one adapter leaves no room for a gain.
    """

    choosing: Choosing
    asked: AskedRounds
    finalists: Sequence[Finalist] = ()
    screened: Screened | None = None

    @property
    def adapters(self) -> list[Adapter]:
        """The single adapters that were proved: the best ones and the members of finalists."""
        alone = [s.composition for s in self.asked.order if s.kind == "adapter"]
        return [one.experts[0] for one in alone if one is not None]


def ask_alone(choosing: Choosing, evaluator: Evaluator) -> Proved | None:
    """Asks the adapters alone, until one answers so much that no composition can gain the margin.

    Then only that adapter (or the base) is asked the items that prove. None where compositions have
    to be proved. The base and one adapter have one attempt each, since every attempt may
    succeed by chance.
    """
    tried = set[bool]()
    for _ in choosing.steps():
        name = choosing.at_ceiling()
        if name is None or (name == BASE) in tried:
            continue
        tried.add(name == BASE)
        systems = [choosing.system(one) for one in dict.fromkeys([BASE, name])]
        asked = ask_at_ceiling(evaluator, systems, _within_budget(choosing))
        if asked is not None:
            return Proved(choosing, asked)
    return None


def prove_sets(choosing: Choosing, evaluator: Evaluator) -> Proved:
    """Composes the finalists, and evaluates them beside base, best singles, members and a chain."""
    screened, base = choosing.screened(), evaluator.inputs.base
    most = min(evaluator.session.options.keep, _affordable(choosing, evaluator))
    chosen = choosing.finalists(screened, most)
    built = [_composed(one, screened.opened(one.members, base), evaluator) for one in chosen]
    finalists = [one for one in built if one.systems]
    composed = [m for one in finalists for m in one.candidate.members]
    members = list(dict.fromkeys([*screened.best, *screened.knowers, *composed]))
    adapters = screened.opened(members, base)
    singles = [
        System(BASE, "base"),
        *(System(a.name, "adapter", single(a), members=(a.name,)) for a in adapters),
    ]
    owner = {name: one for one in finalists for name in one.systems}
    systems = [*singles, *(system for one in finalists for system in one.systems.values())]
    if any(task.has_hops for task in evaluator.tasks):
        hops = (single(adapters[members.index(m)]) for m in screened.knowers)
        systems.append(System("chain", "chain", chain=tuple(hops)))

    def controls(results: Sequence[ItemResult], systems: Sequence[System]) -> list[System]:
        best = best_system(evaluation.score(results, systems), ("merge", "router"))
        return [] if best is None else owner[best].controls(results, best)

    proving = replace(evaluator, inputs=replace(evaluator.inputs, adapters=adapters))
    whole = choosing.pace * COMPOSED * sum(len(task.items) for task in proving.tasks)
    asked = by_round({system.name: whole for system in systems}, proving)
    proving.session.expect(lambda: {"screen": choosing.spent[0], **asked})
    found = ask_in_rounds(proving, systems, controls, _within_budget(choosing))
    return Proved(choosing, found, finalists, screened)


def _composed(candidate: RankedSet, adapters: Sequence[Adapter], evaluator: Evaluator) -> Finalist:
    """A set of adapters, composed by the methods and routers of the options."""
    options, base = evaluator.session.options, evaluator.inputs.base
    names = tuple(adapter.name for adapter in adapters)
    with evaluator.session.stage("compose"):
        prepared = prepare(adapters, options, (), base)
        builder = SystemBuilder(adapters, prepared, options, base)
        chosen = Selection(options, adapters)
        specs = {f"{spec}({', '.join(names)})": spec for spec in chosen.specs}
        built, notes = builder.build_each(specs)
    systems = {s.name: replace(s, members=names, spec=specs[s.name]) for s in built}
    return Finalist(candidate, builder, systems, (*chosen.unfit.values(), *notes))


def _affordable(choosing: Choosing, evaluator: Evaluator) -> int:
    """How many finalists can be asked a first round in the time that is left, at least one."""
    left, pace = evaluator.session.left(), choosing.pace
    if not pace or left == float("inf"):
        return evaluator.session.options.keep
    first = rounds(evaluator.tasks, evaluator.session.options.seed)[0].items
    each = pace * first * (SYSTEMS_PAIR * COMPOSED + 2)
    return max(1, int((left - pace * first * (1 + BEST_SINGLES)) / each))


def _within_budget(choosing: Choosing) -> GoesOn:
    """Whether a further round fits into the time that is left."""

    def goes_on(found: AskedRounds, following: Round) -> bool:
        asked = len(found.systems) + len(found.controls)
        more = following.items - found.round.items
        return choosing.evaluator.session.left() > choosing.pace * COMPOSED * asked * more

    return goes_on
