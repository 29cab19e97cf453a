"""`screen`: a library of adapters, and with a task what of it to use.

Without a task the library is described: what can be used, copies, families, outliers.

With a task one part of each task's items chooses, the other proves. On the first, base and adapters
answer alone, pass by pass, and every set of them is forecast from that (`ranking`). After a pass an
adapter is asked no more if it cannot take part in a finalist any more. On the second, the best few
sets are composed and evaluated by rounds beside the base, the best single adapters and the members
(`evaluate`). The items that prove took no part in the choice, so the choice out of the whole
library needs no correction; the choice among the finalists is covered by the intervals. Where one
adapter leaves no room for a gain, it alone is proved.

Answers go into the ledger and hidden states into a directory beside it, so that --resume asks
nothing twice and memory does not grow with the number of adapters.
"""

from __future__ import annotations

import contextlib
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
from loraprobe.defaults import BEST_SINGLES, SCREENING_SHARE, TEMPLATE_ADAPTERS, WORKED_TOKENS
from loraprobe.errors import LoraprobeError, OutputError, UsageError
from loraprobe.evaluation import System
from loraprobe.evaluation.plan import BASE, questions
from loraprobe.library import Member
from loraprobe.pipeline.estimate import (
    READ,
    CostEstimate,
    Pace,
    Steps,
    steps_of_rounds,
    timed,
    unit,
    units_of,
)
from loraprobe.pipeline.evaluate import Asked, best_system, evaluate, near_ceiling
from loraprobe.pipeline.evaluator import Evaluator, open_evaluator
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.on_ray import open_cluster
from loraprobe.pipeline.ranking import SURE, RankedSet, Ranking, choose, contending, rankings_of
from loraprobe.pipeline.results import STATES
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.systems import Plan, SystemBuilder, passes, plan_of, split_for_screening
from loraprobe.pipeline.transforms import prepare
from loraprobe.probes import (
    KnownAlone,
    PairForecast,
    ScreenedTexts,
    likely_worked,
    with_worked_answers,
)
from loraprobe.records import FORMS, ROUND, SCREENING, EvaluationRecords, ItemResult
from loraprobe.routing.constant import single
from loraprobe.scoring.states import States
from loraprobe.tasks import Task
from loraprobe.verdict import Evidence
from loraprobe.verdict.rules import at_ceiling

SYSTEMS_PAIR = 4.0  # what a finalist costs, in single adapters: its compositions and its members
COMPOSED = 1.5  # the time of a composition for an item, in that of a single adapter
CONTROLS = 2


@dataclass(frozen=True)
class ScreenPass:
    """Items that systems are asked together, and the texts of which states are kept.

    number: from 1. worked: whether the texts are worked answers; then no questions are asked.
    """

    number: int
    tasks: tuple[Task, ...]
    reading: ScreenedTexts | None
    worked: bool = False

    @property
    def kind(self) -> str:
        """What distinguishes its steps and its files from those of other passes."""
        return (", worked" if self.worked else "") + f"{ROUND}{self.number}"

    @property
    def items(self) -> int:
        return sum(len(task.items) for task in self.tasks)

    def step(self, name: str) -> str:
        """The step of asking a system, by the name under which progress reports it."""
        return f"evaluate {name}{SCREENING}{self.kind}"


@dataclass(frozen=True)
class Answered:
    """What systems answered in a pass.

    unasked: adapters that the budget left out. failed: an adapter -> why it cannot be asked.
    seconds: 0 where everything was kept already.
    """

    this: ScreenPass
    names: Sequence[str]
    results: Sequence[ItemResult]
    unasked: Sequence[str]
    failed: Mapping[str, LoraprobeError]
    seconds: float


@dataclass(frozen=True, eq=False)
class RankedSets:
    """What the items that choose said of the adapters that were asked all of them.

    rankings: of pairs and larger sets, one for each form of the question. forecast: of the plain
    questions and hops; worked: of right worked answers.
    """

    members: Sequence[Member]
    known: Sequence[KnownAlone]
    forecast: PairForecast | None
    worked: PairForecast | None
    rankings: Sequence[Ranking]

    @property
    def looked_at(self) -> int:
        """How many sets were compared in a form."""
        return max(ranking.looked_at for ranking in self.rankings)

    @property
    def best(self) -> list[int]:
        """The best single adapters, and of several tasks the best on each."""
        scores = np.mean([one.alone() for one in self.known], 0)
        order = np.argsort(-scores[1:], kind="stable")[:BEST_SINGLES]
        own = [int(known.alone()[1:].argmax()) for known in self.known]
        return list(dict.fromkeys([*order.tolist(), *own]))

    @property
    def leader(self) -> int | None:
        """The adapter that answers most alone, step by step where that is asked.

        None unless it answers more than the base by SURE standard errors.
        """
        forms = ("question" if one.form is None else "steps" for one in self.known)
        parts = [one.parts[form] for one, form in zip(self.known, forms, strict=True)]
        means = np.mean([np.nanmean(part, 1) for part in parts], 0)
        best = int(means[1:].argmax())
        spread = [np.nanvar(part[1 + best]) / part.shape[1] for part in parts]
        error = np.sqrt(np.sum(spread)) / len(parts)
        return best if means[1 + best] - means[0] > SURE * error else None

    @property
    def knowers(self) -> list[int]:
        """The adapter that answers each hop of each task best, where it exceeds the base."""
        found = dict[int, None]()
        for known in self.known:
            for part, values in sorted(known.parts.items()):
                best = int(np.nanmean(values, 1).argmax())
                if part not in FORMS and best:
                    found[best - 1] = None
        return list(found)

    def opened(self, members: Iterable[int], base: Base | None) -> list[Adapter]:
        """Some of the adapters on the base's layout of fused projections."""
        return compatibility.aligned([self.members[m].open() for m in members], base)

    def finalists(self, most: int, evaluator: Evaluator) -> list[RankedSet]:
        """At most so many sets, all of which may be composed by what their headers say."""
        base, allow = evaluator.inputs.base, evaluator.session.options.allow
        families = [member.record.family for member in self.members]
        numbers = [-at - 1 if one is None else one for at, one in enumerate(families)]

        def fits(members: tuple[int, ...]) -> bool:
            adapters = self.opened(members, base)
            contents = compatibility.TensorChecks(adapters)
            return compatibility.check(
                adapters, base, purpose="route", allow=allow, contents=contents
            ).compatible

        return choose(self.rankings, most, numbers, fits, self.leader)

    def contending(self, evaluator: Evaluator) -> set[int]:
        """The adapters that may still take part in a finalist, and the best single ones."""
        chosen = self.finalists(evaluator.session.options.keep, evaluator)
        items = min(len(known.task.items) for known in self.known)
        return {*contending(self.rankings, chosen, items), *self.best, *self.knowers}


@dataclass(frozen=True)
class Screen:
    """Asks base and adapters alone, and forecasts sets of them.

    evaluator: of the items that choose. members: the adapters by name. answered: pass by pass.
    """

    evaluator: Evaluator
    members: Mapping[str, Member]
    answered: list[Answered] = field(default_factory=list)

    def passes(self) -> list[ScreenPass]:
        """The passes over the items that choose."""
        options = self.evaluator.session.options
        return [
            ScreenPass(
                number, tasks, ScreenedTexts.of(self.evaluator.scorer, tasks, options.metric)
            )
            for number, tasks in enumerate(passes(self.evaluator.tasks, options.seed), 1)
        ]

    @property
    def results(self) -> list[ItemResult]:
        return [row for one in self.answered for row in one.results]

    @property
    def failed(self) -> dict[str, LoraprobeError]:
        """An adapter -> why it cannot be asked."""
        return {name: error for one in self.answered for name, error in one.failed.items()}

    @property
    def unasked(self) -> list[str]:
        """Adapters that the budget left out of a pass."""
        return [name for one in self.answered for name in one.unasked]

    @property
    def goes_on(self) -> bool:
        """Whether a further adapter may be asked."""
        return self.evaluator.session.left(SCREENING_SHARE) > 0

    @property
    def spent(self) -> float:
        """Seconds of what was not kept already."""
        return sum(one.seconds for one in self.answered)

    @property
    def pace(self) -> float:
        """Seconds of one system for one item; 0 where nothing was asked."""
        items = sum(len(one.names) * one.this.items for one in self.answered if one.seconds)
        return self.spent / items if items else 0.0

    def counts(self) -> tuple[tuple[int, int], ...]:
        """Of each kind of pass, how many systems were asked how many items."""
        found = dict[str, tuple[int, int]]()
        for one in self.answered:
            if one.names:
                systems = found.get(one.this.kind, (0, 0))[0] + len(one.names)
                found[one.this.kind] = systems, one.this.items
        return tuple(found.values())

    def system(self, name: str) -> System:
        """The base or an adapter, opened, on the base's layout."""
        if name == BASE:
            return System(BASE, "base")
        adapters = compatibility.aligned([self.members[name].open()], self.evaluator.inputs.base)
        return System(name, "adapter", single(adapters[0]), members=(name,))

    def ask(self, names: Sequence[str], this: ScreenPass) -> list[str]:
        """Asks systems, the base always; the names of those that answered."""
        session, ledger = self.evaluator.session, self.evaluator.ledger
        start, before = time.perf_counter(), len(ledger)
        answered, unasked, failed = list[str](), list[str](), dict[str, LoraprobeError]()
        results = list[ItemResult]()
        self._ask_cluster(names, this)
        for name in names:
            if name != BASE and not self.goes_on and not self.is_kept(name, this):
                unasked += [] if this.worked else [name]
                continue
            session.tell(this.step(name), 0, 1)
            try:
                results += self._ask_one(self.system(name), this)
            except LoraprobeError as error:
                if name == BASE or isinstance(error, OutputError):
                    raise
                failed[name] = error
                continue
            answered.append(name)
        seconds = time.perf_counter() - start if len(ledger) > before else 0.0
        self.answered.append(Answered(this, answered, results, unasked, failed, seconds))
        return answered

    def _ask_cluster(self, names: Sequence[str], this: ScreenPass) -> None:
        """Has a cluster ask what is not kept yet; `ask` finds errors of single adapters again."""
        cluster = self.evaluator.session.cluster
        if cluster is None:
            return
        systems = dict[str, System]()
        for name in names:
            if not self.is_kept(name, this):
                with contextlib.suppress(LoraprobeError):
                    systems[name] = self.system(name)
        for name, found in cluster.alone(self.evaluator, systems, this.tasks, this.reading):
            if not isinstance(found, LoraprobeError):
                self._keep(name, this, *found)
            self.evaluator.session.tell(this.step(name), 1, 1)
            if not self.goes_on:
                break

    def _ask_one(self, system: System, this: ScreenPass) -> list[ItemResult]:
        """The results of one system; its hidden states are kept in a file."""
        session = self.evaluator.session
        own = session.renamed(
            lambda told: this.step(system.name) if told == f"evaluate {system.name}" else told
        )
        with session.stage("screen"):
            if this.reading is not None and not self._has_states(system.name, this):
                with self.evaluator.scorer.with_composition(system.composition) as scorer:
                    states, answers = this.reading.read(scorer, system.name)
                self._keep(system.name, this, answers, states)
            asked = replace(self.evaluator, session=replace(own, seconds={}), tasks=this.tasks)
            return asked.run([system])

    def is_kept(self, name: str, this: ScreenPass) -> bool:
        """Whether all answers of a system are kept, and its states if there are any."""
        asked = questions(this.tasks, self.evaluator.session.options.metric)
        known = all(self.evaluator.ledger.get(name, *q.key) for q in asked)
        return known and self._has_states(name, this)

    def _has_states(self, name: str, this: ScreenPass) -> bool:
        """Whether the states of a system are kept, if there are any."""
        reading = this.reading
        return reading is None or States.load(self._states(name, this), reading.mark) is not None

    def _keep(
        self, name: str, this: ScreenPass, rows: Sequence[ItemResult], states: States | None
    ) -> None:
        """Keeps what a system answered and what was read of it. Raises OutputError if it cannot."""
        path = self._states(name, this)
        self.evaluator.ledger.add_missing(rows)  # before the states, which stand for all of it
        if states is not None and this.reading is not None:
            try:
                states.save(path, this.reading.mark)
            except OSError as error:
                raise OutputError(
                    f"{path} cannot be written ({error.strerror or error}): free space there, or "
                    "set LORAPROBE_CACHE to a directory of yours."
                ) from None

    def _states(self, name: str, this: ScreenPass) -> Path:
        """Where the states of a system are kept."""
        assert self.evaluator.ledger.path is not None
        digest = hashlib.sha256((name + this.kind).encode()).hexdigest()[:24]
        return self.evaluator.ledger.path.parent / STATES / f"{digest}.safetensors"

    def known(self, names: Sequence[str], asked: Sequence[ScreenPass]) -> list[KnownAlone]:
        """What systems, the base first, answered alone in these passes, task by task."""
        results, found = self.results, []
        for parts in zip(*(this.tasks for this in asked), strict=True):
            task = replace(parts[0], items=tuple(item for part in parts for item in part.items))
            items = {item.id for item in task.items}
            own = [row for row in results if row.task == task.name and row.item in items]
            found.append(KnownAlone.of(task, names, own))
        return found

    def ranked(
        self, names: Sequence[str], asked: Sequence[ScreenPass], worked: Sequence[ScreenPass]
    ) -> RankedSets:
        """What systems said that were asked all of these passes, the base first."""
        known = self.known(names, asked)
        forecast, of_worked = (self._forecast(names, some) for some in (asked, worked))
        with self.evaluator.session.stage("forecast"):
            rankings = rankings_of(known, forecast, of_worked, len(names) - 1)
        members = [self.members[name] for name in names[1:]]
        return RankedSets(members, known, forecast, of_worked, rankings)

    def _forecast(self, names: Sequence[str], asked: Sequence[ScreenPass]) -> PairForecast | None:
        """The forecast of sets of the adapters; None where nothing can be added."""
        readings = [this.reading for this in asked if this.reading is not None]
        if not readings or len(readings) < len(asked):
            return None

        def load(k: int) -> States:
            found = []
            for this, reading in zip(asked, readings, strict=True):
                path = self._states(names[k], this)
                states = States.load(path, reading.mark)
                if states is None:
                    raise OutputError(f"{path} was removed meanwhile; run the same call again.")
                found.append(states)
            return States.joined(found)

        with self.evaluator.session.stage("forecast"):
            whole = ScreenedTexts.joined(readings)
            return PairForecast.of(self.evaluator.scorer, whole, len(names), load)

    def ask_worked(
        self, names: Sequence[str], this: ScreenPass, known: Sequence[KnownAlone]
    ) -> list[ScreenPass]:
        """Reads right worked answers to the items of a pass with every system.

        They have the form of the adapter whose own are most often of the asked kind. Returns the
        pass, if all systems read it. Nothing is read where no form can be found, and when the
        budget is over.
        """
        if not self.goes_on:
            return []
        made = []
        for one, task in zip(known, this.tasks, strict=True):
            if one.form is not None and one.form.max() > 0:
                texts = self._written(names[int(one.form.argmax())], task)
                made.append(with_worked_answers(task, texts))
        tasks = [task for task in made if task is not None]
        reading = ScreenedTexts.of(self.evaluator.scorer, tasks, None) if tasks else None
        if reading is None:
            return []
        worked = ScreenPass(this.number, (), reading, worked=True)
        return [worked] if self.ask(names, worked) == names else []

    def _written(self, name: str, task: Task) -> dict[str, str]:
        """What one system writes to the items that ask for worked steps, by item."""
        asked = [item for item in task.items if item.cot_prompt is not None]
        most = self.evaluator.session.options.max_new_tokens or WORKED_TOKENS
        with self.evaluator.scorer.with_composition(self.system(name).composition) as scorer:
            prompts = [item.cot_prompt or "" for item in asked]
            texts = scorer.generate(prompts, max_new_tokens=most)
        return {item.id: text for item, text in zip(asked, texts, strict=True)}


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

    @property
    def label(self) -> str:
        return ", ".join(self.names)

    def controls(self, results: Sequence[ItemResult], best: str) -> list[System]:
        """`shrunk:NAME` and `random-partner` for one of its compositions."""
        singles = [System(name, "adapter") for name in self.names]
        alone = best_system(evaluation.score(results, singles), ("adapter",))
        system = self.systems[best]
        made = self.builder.controls(alone or self.names[0], replace(system, name=system.spec))
        return [  # kept by all members, since the gates depend on how many they are
            replace(control, stored=f"{control.key}({self.label})", members=self.names)
            for control in made
        ]


@dataclass(frozen=True, eq=False)
class Proved:
    """What a screen found on both parts of the items.

    looked_at: how many sets were compared. ranked: None where no composition was proved, since
    one adapter leaves no room for a gain.
    """

    screen: Screen
    asked: Asked
    looked_at: int
    finalists: Sequence[Finalist] = ()
    ranked: RankedSets | None = None

    @property
    def adapters(self) -> list[Adapter]:
        """The single adapters that were proved: the best ones and the members of finalists."""
        alone = [s.composition for s in self.asked.systems if s.kind == "adapter"]
        return [one.experts[0] for one in alone if one is not None]


def choose_and_prove(screen: Screen) -> Proved:
    """Asks base and adapters alone, then proves the sets that promise most.

    Where one of them answers so much alone that no composition can gain the margin, only it is
    asked the items that prove.
    """
    assert screen.evaluator.plan.parts is not None
    proving = replace(screen.evaluator, tasks=screen.evaluator.plan.parts.left)
    names, asked, worked = list[str](), list[ScreenPass](), list[ScreenPass]()
    looked_at, tried, margin = 0, set[bool](), proving.session.options.needed_gain

    def alone(answered: Sequence[str]) -> Proved | None:
        """The base or an adapter that leaves no room for a gain, proved."""
        name = near_ceiling(screen.results, answered, len(proving.tasks), margin)
        # The base and one adapter have one attempt each: every attempt may succeed by chance.
        if name is None or (name == BASE) in tried:
            return None
        tried.add(name == BASE)
        found = _ask_at_ceiling(screen, name, proving)
        return None if found is None else Proved(screen, found, looked_at)

    for this in screen.passes():
        if asked and not screen.goes_on and not screen.is_kept(BASE, this):
            screen.answered.append(Answered(this, (), (), names[1:], {}, 0.0))
            break
        others = [*screen.members]
        if asked:
            ranked = screen.ranked(names, asked, worked)
            looked_at = max(looked_at, ranked.looked_at)
            kept = ranked.contending(screen.evaluator)
            others = [name for at, name in enumerate(names[1:]) if at in kept]
        answered = screen.ask([BASE], this)
        if proved := alone(answered):
            return proved
        answered = [*answered, *screen.ask(others, this)]
        if asked and screen.unasked:  # the budget ended, so the passes before choose
            break
        if len(answered) < 3:
            told = f"{len(answered) - 1} adapters"
            raise UsageError(
                f"{told} could be asked within --budget; give it more minutes."
                if screen.unasked
                else f"{told} can be asked: {next(iter(screen.failed.values()))}"
            )
        names, asked = answered, [*asked, this]
        if proved := alone(names):
            return proved
        worked += screen.ask_worked(names, this, screen.known(names, asked))
    ranked = screen.ranked(names, asked, worked)
    return _prove(screen, ranked, max(looked_at, ranked.looked_at), proving)


def _ask_at_ceiling(screen: Screen, name: str, proving: Evaluator) -> Asked | None:
    """Asks a system alone (and the base) all items, if it leaves no room for a gain.

    None as soon as it is not above 1 - margin in any form or the budget is over, and where its
    interval after the last round leaves room. That interval is looked at once, so it needs no
    correction for the rounds.
    """
    options, tasks = proving.session.options, len(proving.tasks)
    systems = [screen.system(one) for one in dict.fromkeys([BASE, name])]

    def goes_on(results: Sequence[ItemResult], more: int) -> bool:
        near = near_ceiling(results, [name], tasks, options.needed_gain)
        return near is not None and _affords(screen, more)

    planned = evaluation.rounds(proving.tasks, options.seed, all_items=options.all_items)
    found = evaluate(proving, systems, planned, lambda *_: [], goes_on=goes_on)
    measured = EvaluationRecords(scores=evaluation.score(found.results, systems))
    evidence = Evidence(measured, tasks=tasks, level="base", margin=options.needed_gain)
    return found if found.round.last and at_ceiling(evidence) is not None else None


def _affords(screen: Screen, more: int) -> bool:
    """Whether so many further answers fit into the time that is left."""
    return screen.evaluator.session.left() > screen.pace * COMPOSED * more


def _prove(screen: Screen, ranked: RankedSets, looked_at: int, proving: Evaluator) -> Proved:
    """Composes the finalists, and evaluates them beside base, best singles, members and a chain."""
    options, base = proving.session.options, proving.inputs.base
    planned = evaluation.rounds(proving.tasks, options.seed, all_items=options.all_items)
    chosen = ranked.finalists(_affordable(screen, planned[0].items), proving)
    built = [_composed(one, ranked.opened(one.members, base), proving) for one in chosen]
    finalists = [one for one in built if one.systems]
    composed = [m for one in finalists for m in one.candidate.members]
    members = list(dict.fromkeys([*ranked.best, *ranked.knowers, *composed]))
    adapters = ranked.opened(members, base)
    systems = [
        System(BASE, "base"),
        *(System(a.name, "adapter", single(a), members=(a.name,)) for a in adapters),
        *(system for one in finalists for system in one.systems.values()),
    ]
    if any(task.has_hops for task in proving.tasks):
        hops = (single(adapters[members.index(m)]) for m in ranked.knowers)
        systems.append(System("chain", "chain", chain=tuple(hops)))
    owner = {name: one for one in finalists for name in one.systems}

    def controls(results: Sequence[ItemResult], systems: Sequence[System]) -> list[System]:
        best = best_system(evaluation.score(results, systems), ("merge", "router"))
        return [] if best is None else owner[best].controls(results, best)

    names = {system.name: len(system.members) for system in systems}
    proving.session.expect(lambda: steps_of_rounds(proving.tasks, names, options))
    found = evaluate(
        proving, systems, planned, controls, goes_on=lambda _, more: _affords(screen, more)
    )
    return Proved(screen, found, looked_at, finalists, ranked)


def _affordable(screen: Screen, items: int) -> int:
    """How many finalists can be asked a first round in the time that is left, at least one."""
    session, pace = screen.evaluator.session, screen.pace
    left, keep = session.left(), session.options.keep
    if not pace or left == float("inf"):
        return keep
    each = pace * items * (SYSTEMS_PAIR * COMPOSED + 2)
    return min(keep, max(1, int((left - pace * items * (1 + BEST_SINGLES)) / each)))


def _composed(candidate: RankedSet, adapters: Sequence[Adapter], evaluator: Evaluator) -> Finalist:
    """A set of adapters, composed by the methods and routers of the options."""
    options, base = evaluator.session.options, evaluator.inputs.base
    names, plan = tuple(adapter.name for adapter in adapters), plan_of(options, adapters)
    with evaluator.session.stage("compose"):
        builder = SystemBuilder(adapters, prepare(adapters, options, (), base), options, base)
        specs = {f"{spec}({', '.join(names)})": spec for spec in plan.specs}
        built, notes = builder.build_each(specs)
    systems = {s.name: replace(s, members=names, spec=specs[s.name]) for s in built}
    return Finalist(candidate, builder, systems, (*plan.left_out, *notes))


@contextmanager
def open_screen(
    members: Iterable[Member], base: Base, tasks: Sequence[Task], session: Session
) -> Iterator[Screen]:
    """Loads the base, on which the usable members are asked the items that choose.

    A few of the members choose the form of the prompts.
    """
    options, parts = session.options, split_for_screening(tasks, session.options)
    usable = {member.record.name: member for member in members if member.usable}
    opened = [member.open() for member in usable.values()]
    few = opened[:: max(1, len(opened) // TEMPLATE_ADAPTERS)][:TEMPLATE_ADAPTERS]
    names = {adapter.name for adapter in few}
    others = [adapter for adapter in opened if adapter.name not in names]
    inputs = Inputs(compatibility.aligned(few, base), few, base, tasks)
    plan = Plan(tasks=parts.apart, parts=parts)
    with (
        open_cluster(options) as session.cluster,
        open_evaluator(inputs, plan, session, others) as evaluator,
    ):
        yield Screen(evaluator, usable)


def steps_of_screen(screen: Screen, pace: Pace = unit) -> Steps:
    """What a screen takes at most: the adapters alone, worked answers read, and the proof."""
    options, parts = screen.evaluator.session.options, screen.evaluator.plan.parts
    assert parts is not None
    scorer, n, steps = screen.evaluator.scorer, len(screen.members), dict[str, float]()
    for this in screen.passes():
        likely = [task for one in this.tasks if (task := likely_worked(one)) is not None]
        worked = ScreenedTexts.of(scorer, likely, None) if likely else None
        for part in (this, ScreenPass(this.number, (), worked, worked=True)):
            texts = 0 if part.reading is None else len(part.reading.rows)
            units = units_of(part.tasks, options) + READ * texts
            for name in (BASE, *screen.members) if units else ():
                steps[part.step(name)] = units * pace(name != BASE)
    adapters = [next(iter(screen.evaluator.inputs.adapters))] * 2
    sets = min(options.keep, n * (n - 1) // 2)
    composed = sets * len(plan_of(options, adapters).specs) + CONTROLS
    singles = min(n, BEST_SINGLES + 2 * sets)
    each = pace(0) + singles * pace(1) + composed * pace(2)
    return {**steps, "prove": units_of(parts.left, options) * each}


def estimate_of_screen(screen: Screen) -> CostEstimate:
    """The estimate of a whole screen; nothing is evaluated but a few items, which are timed."""
    alone, n = screen.system(next(iter(screen.members))).composition, len(screen.members)
    assert alone is not None
    steps = steps_of_screen(screen, timed(screen.evaluator, alone))
    proof, worked = steps.pop("prove"), ", worked" + ROUND
    read = sum(seconds for step, seconds in steps.items() if worked in step)
    ahead = {
        f"ask base and {n} adapters alone, at most": sum(steps.values()) - read,
        "read worked answers with them, at most": read,
        f"prove {screen.evaluator.session.options.keep} sets of them, at most": proof,
    }
    ahead = {step: seconds for step, seconds in ahead.items() if seconds}
    return CostEstimate.of(screen.evaluator, [BASE, *screen.members], ahead)
