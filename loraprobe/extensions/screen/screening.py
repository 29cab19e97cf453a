"""Chooses sets of a library by what its adapters answer alone, and proves them.

One part of each task's items chooses which sets are proved, the other part proves them. Half of the
items that choose are asked of base and adapters alone, the other half of the sums of those sets
that promise most. The items that prove took no part in the choice, so the choice out of the whole
library needs no correction; the choice among the finalists is covered by the intervals.

The best few sets are composed by every method and router and asked by rounds
(`SequentialEvaluation`) beside the base, the best single adapters and the members. Where one
adapter leaves no room for a gain, it alone is proved.

Answers go into the response cache and next tokens into a directory beside it, so that --resume asks
nothing twice.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from loraprobe import compatibility, evaluation
from loraprobe.adapters import Adapter
from loraprobe.base import Base
from loraprobe.errors import EngineError, LoraprobeError, OutputError, UsageError, unwritable
from loraprobe.evaluation import System
from loraprobe.evaluation.questions import BASE, questions
from loraprobe.extension import AddedSystems, engine_of
from loraprobe.extensions.screen import ScreenOptions
from loraprobe.extensions.screen.defaults import (
    BEST_SINGLES,
    SCREENING_SHARE,
    TEMPLATE_ADAPTERS,
    TRIED,
)
from loraprobe.extensions.screen.effects import by_effect
from loraprobe.extensions.screen.forecasting import AdditiveForecast, ForecastTexts, NextTokens
from loraprobe.extensions.screen.ranking import (
    LARGEST,
    FormRanking,
    Placed,
    Ranking,
    Subset,
    TaskScores,
    choose,
)
from loraprobe.extensions.screen.reading import Member
from loraprobe.extensions.screen.splits import halves, split_for_screening
from loraprobe.formatting import count
from loraprobe.options import Options
from loraprobe.pipeline.conclusion import evidence_of
from loraprobe.pipeline.estimate import (
    READ,
    CostEstimate,
    cost_of,
    measure_pace,
    texts_read,
    units_of,
)
from loraprobe.pipeline.evaluate import RoundResult, SequentialEvaluation, added_systems
from loraprobe.pipeline.evaluator import NEXT_TOKENS, Evaluator, open_evaluator
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.plan import Plan, SystemBuilder, check_free, plan_of
from loraprobe.pipeline.transforms import transform
from loraprobe.records import FORMS, QUESTION, EvaluationRecords, ItemResult
from loraprobe.results import FREE_CACHE
from loraprobe.routing.constant import single
from loraprobe.scoring import ModelScorer
from loraprobe.session import LocalExecutor, Session
from loraprobe.tasks import Task
from loraprobe.verdict import Evidence
from loraprobe.verdict.rules import at_ceiling

ALONE = "ask base and adapters alone"  # in the progress of a run
AnsweredAlone = tuple[list[ItemResult], NextTokens | None]  # of one system in one pass
COMPOSED = 1.5  # the time of a composition for an item, in that of a single adapter


@dataclass(eq=False)
class Screen:
    """Asks base and adapters alone, and forecasts sets of them.

    evaluator: of the items that choose. members: the adapters by name. contents: a digest of each,
    by which its answers are kept. asked: the items that base
    and adapters answer alone. reading: the texts of which next tokens are kept; None where no text
    can be read. untried: the items on which sums of sets are tried; empty where
    all items are asked alone. results: the answers of base and adapters so far. failed: an adapter
    -> why it cannot be asked. unasked: adapters that the budget left out. seconds: for so many
    `answers` (a system and an item each) that were not kept already. looked_at: how many sets were
    compared. tried: how many were tried.
    """

    evaluator: Evaluator
    members: Mapping[str, Member]
    contents: Mapping[str, str]
    asked: Sequence[Task]
    reading: ForecastTexts | None
    untried: Sequence[Task]
    results: list[ItemResult] = field(default_factory=list)
    failed: dict[str, LoraprobeError] = field(default_factory=dict)
    unasked: list[str] = field(default_factory=list)
    seconds: float = 0.0
    answers: int = 0
    looked_at: int = 0
    tried: int = 0

    @property
    def passes(self) -> tuple[tuple[int, int], ...]:
        """How many systems answered how many items that choose: alone, and as sums of sets."""
        alone = len({row.system for row in self.results}), items_of(self.asked)
        return alone, *([(self.tried, items_of(self.untried))] if self.tried else [])

    def affords(self, more: int) -> bool:
        """Whether so many further answers of compositions fit into the time that is left."""
        return left(self.evaluator.session) > self.takes(more)

    def takes(self, more: int) -> float:
        """The seconds of so many further answers of compositions, about."""
        return self.seconds / self.answers * COMPOSED * more if self.answers else 0.0

    def opened(self, names: Iterable[str]) -> list[Adapter]:
        """Some of the adapters on the base's layout of fused projections."""
        adapters = [self.members[name].open() for name in names]
        return compatibility.aligned(adapters, self.evaluator.inputs.base)

    def system(self, name: str) -> System:
        """The base or an adapter."""
        if name == BASE:
            return System(BASE, "base")
        return replace(System.alone(single(*self.opened([name]))), members=(name,))

    def answered(self, name: str) -> System:
        """The base or an adapter whose answers are kept, which is not opened."""
        return System(name, "adapter", content=self.contents.get(name, BASE))

    def in_order(self) -> list[str]:
        """The adapters in the order in which they are asked.

        With --budget, which may leave some out, those that add most to what the base makes of the
        questions come first. A server does not tell that.
        """
        names, scorer = [*self.members], self.evaluator.scorer
        budget = own(self.evaluator.session.options).budget
        if budget is None or not isinstance(scorer, ModelScorer):
            return names
        forms: dict[tuple[str, str], list[str]] = {}
        for question in questions(self.asked):
            forms.setdefault((question.task, question.part), []).append(question.prompt)
        order = by_effect(
            scorer, [*forms.values()], lambda: (self.opened([name])[0] for name in names)
        )
        return [names[at] for at in order]

    def ask(self, names: Sequence[str]) -> list[str]:
        """Asks adapters, or the base, which has no budget; the names of those that answered."""
        session, start = self.evaluator.session, time.perf_counter()
        silent = replace(session, progress=None, seconds={}, executor=LocalExecutor())
        asking = replace(self.evaluator, session=silent, tasks=self.asked)
        with session.stage("screen", "ask the adapters alone"):
            to_ask = [name for name in names if not self.is_kept(name)]
            # An adapter is opened when it is asked, and its tensors are gone with it.
            parts = ((self.system(name), self.reading) for name in to_ask)
            outcomes = session.executor.map(ask_alone, asking, parts)
            for done in range(len(to_ask)):
                session.tell(ALONE, done, len(to_ask))
                if BASE not in names and left(session, SCREENING_SHARE) <= 0:
                    break
                at, outcome = next(outcomes)
                self._keep(to_ask[at], outcome)
                self.answers += items_of(self.asked)
        self.seconds += time.perf_counter() - start if to_ask else 0.0
        kept = [name for name in names if self.is_kept(name)]
        self.unasked += [name for name in names if name not in {*kept, *self.failed}]
        self.results += asking.run([self.answered(name) for name in kept])
        return kept

    def is_kept(self, name: str) -> bool:
        """Whether all answers of a system are kept, and its next tokens if any are read."""
        system, asker = self.answered(name), self.evaluator.asker
        answered = all(asker.get(system, question) for question in questions(self.asked))
        return answered and (self.reading is None or self._stored(name) is not None)

    def _keep(self, name: str, outcome: AnsweredAlone | LoraprobeError) -> None:
        """Keeps what a system answered, or the error of one adapter.

        Raises the error of the base or an engine, and OutputError where the disk fails.
        """
        if isinstance(outcome, LoraprobeError):
            if name == BASE or isinstance(outcome, OutputError | EngineError):
                raise outcome
            self.failed[name] = outcome
            return
        answers, next_tokens = outcome
        self.evaluator.responses.append(answers)  # before the tokens, which stand for all of it
        if next_tokens is not None and self.reading is not None:
            path = self._places(name)[0]
            try:
                next_tokens.save(path, self.reading.mark)
            except OSError as error:
                raise unwritable(path, error, FREE_CACHE) from None

    def _places(self, name: str) -> list[Path]:
        """Where the next tokens of a system are kept, in this run and in others."""
        assert self.reading is not None
        of = f"{self.contents.get(name, BASE)} {self.reading.mark}"
        file = f"{hashlib.sha256(of.encode()).hexdigest()[:24]}.safetensors"
        return [one.parent / NEXT_TOKENS / file for one in self.evaluator.responses.files]

    def _stored(self, name: str) -> NextTokens | None:
        """The next tokens of a system, if they are kept."""
        assert self.reading is not None
        kept = (NextTokens.load(place, self.reading.mark) for place in self._places(name))
        return next(filter(None, kept), None)

    def ranking(self, names: Sequence[str]) -> Ranking:
        """Ranks sets of the systems, the base first, that were asked alone."""

        def load(k: int) -> NextTokens:
            next_tokens = self._stored(names[k])
            assert next_tokens is not None
            return next_tokens

        scorer, forecast = self.evaluator.scorer, None
        with self.evaluator.session.stage("forecast", "forecast every set"):
            if self.reading is not None:
                forecast = AdditiveForecast.of(scorer, self.reading, len(names), load)
            alone = [
                TaskScores.of(task, names, self.results, whole)
                for task, whole in zip(self.asked, self.evaluator.tasks, strict=True)
            ]
            ranking = Ranking.of(names[1:], alone, forecast)
        self.looked_at = ranking.forms[0].looked_at
        return ranking

    def finalists(
        self, ranking: Ranking, forms: Sequence[FormRanking], most: int, leader: int | None = None
    ) -> list[Placed]:
        """At most so many sets of a ranking in the order of `forms`; see `choose`.

        All of them may be composed by what their headers say.
        """
        base, allow = self.evaluator.inputs.base, self.evaluator.session.options.allow
        families = [self.members[name].record.family for name in ranking.names]

        def fits(subset: Subset) -> bool:
            adapters = self.opened(ranking.names[m] for m in subset)
            checked = compatibility.check_headers(adapters, base, purpose="route", allow=allow)
            return checked.compatible

        # An adapter that is alone is a family of its own.
        numbers = [-at - 1 if family is None else family for at, family in enumerate(families)]
        return choose(forms, most, numbers, fits, leader)


def own(options: Options) -> ScreenOptions:
    """The options that only a screen has."""
    return options.of_extension(ScreenOptions)


def without_budget(options: Options) -> Options:
    """The options of a run that goes on to its end."""
    others = (one for one in options.added if not isinstance(one, ScreenOptions))
    return replace(options, added=(*others, replace(own(options), budget=None)))


def left(session: Session, share: float = 1.0) -> float:
    """Seconds that are left of a share of --budget; infinite without one."""
    minutes = own(session.options).budget
    if minutes is None:
        return float("inf")
    return session.begun + share * 60 * minutes - time.perf_counter()


def items_of(tasks: Iterable[Task]) -> int:
    """How many items tasks have together."""
    return sum(len(task.items) for task in tasks)


def ask_alone(evaluator: Evaluator, system: System, reading: ForecastTexts | None) -> AnsweredAlone:
    """What a system answers, and its next tokens; in any process."""
    next_tokens = None
    if reading is not None:
        with evaluator.local.with_composition(system.composition) as scorer:
            most = evaluator.session.options.max_new_tokens
            next_tokens, answers = reading.read(scorer, system, most)
        evaluator.responses.append(answers)  # of scored questions, which are not asked again
    return evaluator.run([system]), next_tokens


@contextmanager
def open_screen(
    library: Iterable[Member],
    base: Base,
    tasks: Sequence[Task],
    session: Session,
    guards: Sequence[Task] = (),
) -> Iterator[Screen]:
    """Loads the base, on which the usable members are asked the items that choose.

    A few of the members choose the form of the prompts. Raises UsageError where the server of
    --engine loads fewer than two of them.
    """
    parts, sources = split_for_screening(tasks, session.options)
    usable = {member.record.name: member for member in library if member.usable}
    for source, apart in sources:
        check_free([*usable], source.expected(apart))
    opened, failed = [member.open() for member in usable.values()], dict[str, LoraprobeError]()
    if (engine := engine_of(session.options)) is not None:
        failed |= engine.refused(opened)
        opened = [adapter for adapter in opened if adapter.name not in failed]
    if failed and len(opened) < 2:
        raise too_few(len(opened), failed)
    few = opened[:: max(1, len(opened) // TEMPLATE_ADAPTERS)][:TEMPLATE_ADAPTERS]
    names = {adapter.name for adapter in few}
    others = [adapter for adapter in opened if adapter.name not in names]
    inputs = Inputs(compatibility.aligned(few, base), few, base, tasks, guards)
    plan = Plan(tasks=parts.apart, parts=parts, sources=sources)
    with open_evaluator(inputs, plan, session, others, LARGEST) as evaluator:
        contents = {adapter.name: adapter.content for adapter in opened}
        del opened, others  # a thousand of them take memory until the end of the run
        members = {name: member for name, member in usable.items() if name not in failed}
        asked, untried = halves(evaluator.tasks, session.options)
        reading = ForecastTexts.of(evaluator.scorer, asked)
        yield Screen(evaluator, members, contents, asked, reading, untried, failed=failed)


def too_few(asked: int, failed: Mapping[str, LoraprobeError]) -> UsageError:
    """The error of a library of which fewer than two adapters can be asked."""
    return UsageError(f"{count(asked, 'adapter')} can be asked: {next(iter(failed.values()))}")


# ---- the proof -----------------------------------------------------------------------------------

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

    def controls(self, name: str, evidence: Evidence) -> list[System]:
        """`shrunk:NAME` and `random-partner` for one of its compositions."""
        alone = evidence.leading("adapter", self.names) or self.names[0]
        shrunk, random = self.builder.controls(alone, self.systems[name].spec)
        return [  # kept by all members, since the gates depend on how many they are
            replace(one, members=self.names, of=name) for one in (shrunk, random)
        ]


@dataclass(frozen=True, eq=False)
class Proved:
    """What a screen found on both parts of the items.

    ranking: None where no composition was proved, since one adapter leaves no room for a gain.
    added: the systems of other extensions.
    """

    screen: Screen
    asked: RoundResult
    finalists: Sequence[Finalist] = ()
    ranking: Ranking | None = None
    added: AddedSystems = field(default_factory=AddedSystems)

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
        name = _near_ceiling(screen.results, answered, tasks, margin)
        # The base and one adapter have one attempt each: every attempt may succeed by chance.
        if name is None or (name == BASE) in attempts:
            return None
        attempts.add(name == BASE)
        asked = _ask_at_ceiling(screen, name, proving)
        if asked is None:
            return None
        spared = [one for source, own in proving.plan.sources for one in source.expected(own)]
        notes = [f"{one} was not made: {name} leaves no room for a gain." for one in spared]
        return Proved(screen, asked, added=AddedSystems(notes=notes))

    answered = screen.ask([BASE])
    if proved := proved_alone(answered):
        return proved
    names = [*answered, *screen.ask(screen.in_order())]
    if len(names) < 3:
        if not screen.unasked:
            raise too_few(len(names) - 1, screen.failed)
        adapters = count(len(names) - 1, "adapter")
        raise UsageError(f"{adapters} could be asked within --budget; give more minutes.")
    if proved := proved_alone(names):
        return proved
    return _prove(screen, screen.ranking(names), proving)


def _near_ceiling(
    results: Sequence[ItemResult], names: Sequence[str], tasks: int, margin: float
) -> str | None:
    """The one of the systems with the largest share of right answers, if no room is left above it.

    The share is that of `shares_right` in the better form; less than the margin is no room.
    """
    shares = evaluation.shares_right(results, tasks)
    best = {name: max(shares.get((name, part), 0.0) for part in FORMS) for name in names}
    first = max(best, key=best.__getitem__)
    return first if best[first] > 1 - margin else None


def _ask_at_ceiling(screen: Screen, name: str, proving: Evaluator) -> RoundResult | None:
    """Asks a system alone (and the base) all items, if it leaves no room for a gain.

    None as soon as it is not above 1 - margin in any form or the budget is over, and where its
    interval after the last round leaves room. That interval is looked at once, so it needs no
    correction for the rounds.
    """
    options, tasks = proving.session.options, len(proving.tasks)
    systems = [screen.system(alone) for alone in dict.fromkeys([BASE, name])]

    def goes_on(results: Sequence[ItemResult], more: int) -> bool:
        near = _near_ceiling(results, [name], tasks, options.needed_gain)
        return near is not None and screen.affords(more)

    asked = SequentialEvaluation(proving, systems, proving.rounds(), lambda *_: [], goes_on).ask()
    scores = evaluation.score(asked.results, systems)
    measured = EvaluationRecords(scores=scores, guards=asked.measured.guards)
    evidence = evidence_of(options, proving.inputs, "base", measured)
    return asked if asked.round.last and at_ceiling(evidence) is not None else None


def _prove(screen: Screen, ranking: Ranking, proving: Evaluator) -> Proved:
    """Composes the finalists, and evaluates them beside base, best singles, members and a chain."""
    options, names = proving.session.options, ranking.names
    planned = proving.rounds()
    keep, first = own(options).keep, planned[0].items
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
    composed_systems = [one for finalist in finalists for one in finalist.systems.values()]
    proof = screen.takes(first * (len(systems) + len(composed_systems)))
    ends = time.perf_counter() + left(proving.session) - proof
    added = added_systems(proving, composed_systems, systems, ends)
    systems += [*composed_systems, *added.systems]
    if any(task.has_hops for task in proving.tasks):
        hops = [alone[m].composition for m in ranking.knowers]
        systems.append(System("chain", "chain", chain=tuple(filter(None, hops))))

    def controls(name: str, evidence: Evidence) -> list[System]:
        return finalist_of[name].controls(name, evidence)

    def goes_on(_: Sequence[ItemResult], more: int) -> bool:
        return screen.affords(more)

    asked = SequentialEvaluation(proving, systems, planned, controls, goes_on).ask()
    return Proved(screen, asked, finalists, ranking, added)


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
    scores = [TaskScores.of(task, [s.name for s in systems], results) for task in tasks]
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
        prepared = transform(adapters, options, (), base)
        builder = SystemBuilder(adapters, prepared, options, base)
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
    pace, pairs = measure_pace(evaluator, alone), n * (n - 1) // 2
    keep = own(options).keep
    sets = min(keep, pairs)
    specs = plan_of(options, [next(iter(evaluator.inputs.adapters))] * 2).specs
    texts = 0 if screen.reading is None else len(screen.reading.rows)
    seconds = (units_of(screen.asked, options) + READ * texts) * (pace(0) + n * pace(1))
    seconds += units_of(screen.untried, options) * min(TRIED * keep, pairs) * pace(2)
    singles, compositions = min(n, BEST_SINGLES + 2 * sets), sets * len(specs) + CONTROLS
    made = texts_read(evaluator.plan.sources)
    seconds += READ * sum(made.values()) * pace(1)
    proved = pace(0) + (singles + len(made)) * pace(1) + compositions * pace(2)
    seconds += units_of(parts.left, options) * proved
    seconds += units_of(evaluator.inputs.guards, options) * (pace(0) + pace(1) + pace(2))
    return cost_of(evaluator, [BASE, *screen.members, *made], seconds)
