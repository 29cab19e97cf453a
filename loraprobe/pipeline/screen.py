"""`screen`: a library of adapters, and with a task what of it to use.

Without a task the library is described: what can be used, copies, families, outliers.

With a task one part of each task's items chooses, the other proves. On the first, base and adapters
answer alone, in two passes, and every set of them is forecast from that (`ranking`). After one pass
an adapter is asked no more if it cannot take part in a finalist. On the second, the best few sets
are composed and evaluated by rounds beside the base, the best single adapters and the members
(`evaluate`). The items that prove took no part in the choice, so the choice out of the whole
library needs no correction; the choice among the finalists is covered by the intervals. Where one
adapter leaves no room for a gain, it alone is proved.

Answers go into the ledger and next tokens into a directory beside it, so that --resume asks
nothing twice.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from loraprobe import compatibility, evaluation
from loraprobe.adapters import Adapter
from loraprobe.base import Base
from loraprobe.defaults import BEST_SINGLES, SCREENING_SHARE, TEMPLATE_ADAPTERS
from loraprobe.errors import (
    LoraprobeError,
    OutputError,
    ServerError,
    UsageError,
)
from loraprobe.evaluation import System
from loraprobe.evaluation.plan import BASE, questions
from loraprobe.evaluation.statistics import DRAWS
from loraprobe.formatting import count
from loraprobe.library import Member
from loraprobe.merging import METHODS
from loraprobe.pipeline.conclusion import (
    argument_without_folders,
    audit_of,
    evidence_of,
    verdict_on,
    with_next,
)
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
from loraprobe.pipeline.evaluate import Asked, Evaluator, ask_rounds, open_evaluator
from loraprobe.pipeline.examination import Examination, examine
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.opening import NEXT_TOKENS
from loraprobe.pipeline.ranking import LARGEST, BaselineScores, Placed, Ranking, Subset, choose
from loraprobe.pipeline.serving import unserved_systems, with_files, with_serving
from loraprobe.pipeline.session import Here, Session
from loraprobe.pipeline.systems import (
    Plan,
    SystemBuilder,
    constant_gates,
    passes,
    plan_of,
    split_for_screening,
)
from loraprobe.pipeline.transforms import transform
from loraprobe.probes import AdditiveForecast, ForecastTexts, forecast_gains
from loraprobe.records import (
    BASELINES,
    COMPOSITIONS,
    FORMS,
    QUESTION,
    ROUND,
    Audit,
    Command,
    Compatibility,
    EvaluationRecords,
    Forecast,
    Gain,
    ItemPart,
    ItemResult,
    Library,
    LibraryItems,
    LibraryScore,
    Shortlisted,
    ShortlistOutcome,
    Verdict,
)
from loraprobe.results import unwritable
from loraprobe.routing.constant import single
from loraprobe.scoring import NextTokens
from loraprobe.tasks import Task
from loraprobe.verdict import LibraryChoice
from loraprobe.verdict.evidence import Unserved
from loraprobe.verdict.next_command import library_words
from loraprobe.verdict.rules import at_ceiling

FINALIST = 6  # systems that a finalist adds: its compositions and its members
COMPOSED = 1.5  # the time of a composition for an item, in that of a single adapter
CONTROLS = 2
OF_PAIR = 64  # bytes: its members, its scores and their order
OF_DRAW = 40  # bytes of a difference that is drawn, with the copies that are compared
LARGER_BATCH = 48 << 20  # bytes that a batch takes beyond one that is timed
AnsweredAlone = tuple[list[ItemResult], NextTokens | None]  # of one system in one pass


@dataclass(frozen=True)
class ScreeningPass:
    """Items that systems are asked together, and the texts of which next tokens are kept.

    number: from 1. reading: None where no text can be read.
    """

    number: int
    tasks: tuple[Task, ...]
    reading: ForecastTexts | None

    @property
    def items(self) -> int:
        return sum(len(task.items) for task in self.tasks)

    @property
    def step(self) -> str:
        """Its name in the progress of a run."""
        return f"ask base and adapters alone{ROUND}{self.number}"


@dataclass(eq=False)
class Screen:
    """Asks base and adapters alone, and forecasts sets of them.

    evaluator: of the items that choose. members: the adapters by name. results: the answers so far.
    failed: an adapter -> why it cannot be asked. unasked: adapters that the budget left out of a
    pass. counts: (number of a pass, its items) -> how many systems answered. seconds: for so many
    `answers` (a system and an item each) that were not kept already. looked_at: how many sets were
    compared.
    """

    evaluator: Evaluator
    members: Mapping[str, Member]
    results: list[ItemResult] = field(default_factory=list)
    failed: dict[str, LoraprobeError] = field(default_factory=dict)
    unasked: list[str] = field(default_factory=list)
    counts: Counter[tuple[int, int]] = field(default_factory=Counter)
    seconds: float = 0.0
    answers: int = 0
    looked_at: int = 0

    def passes(self) -> list[ScreeningPass]:
        """The passes over the items that choose."""
        scorer, options = self.evaluator.scorer, self.evaluator.session.options
        return [
            ScreeningPass(number, tasks, ForecastTexts.of(scorer, tasks, options.metric))
            for number, tasks in enumerate(passes(self.evaluator.tasks, options.seed), 1)
        ]

    @property
    def goes_on(self) -> bool:
        """Whether a further adapter may be asked."""
        return self.evaluator.session.left(SCREENING_SHARE) > 0

    @property
    def pace(self) -> float:
        """Seconds of one system for one item; 0 where nothing was asked."""
        return self.seconds / self.answers if self.answers else 0.0

    def affords(self, more: int) -> bool:
        """Whether so many further answers of compositions fit into the time that is left."""
        return self.evaluator.session.left() > self.pace * COMPOSED * more

    def opened(self, names: Iterable[str]) -> list[Adapter]:
        """Some of the adapters on the base's layout of fused projections."""
        adapters = [self.members[name].open() for name in names]
        return compatibility.aligned(adapters, self.evaluator.inputs.base)

    def system(self, name: str) -> System:
        """The base or an adapter."""
        if name == BASE:
            return System(BASE, "base")
        return System(name, "adapter", single(*self.opened([name])), members=(name,))

    def _opened(self, name: str) -> System | LoraprobeError:
        """The base or an adapter, or why it cannot be opened any more."""
        try:
            return self.system(name)
        except LoraprobeError as error:
            return error

    def ask(self, names: Sequence[str], this: ScreeningPass) -> list[str]:
        """Asks adapters, or the base, which has no budget; the names of those that answered."""
        session, start = self.evaluator.session, time.perf_counter()
        silent = replace(session, progress=None, seconds={}, workers=Here())
        asking = replace(self.evaluator, session=silent, tasks=this.tasks)
        with session.stage("screen"):
            open_ = [name for name in names if not self.is_kept(name, this)]
            # An adapter is opened when it is asked, and its tensors are gone with it.
            parts = ((self._opened(name), this.reading) for name in open_)
            found = session.workers.map(ask_alone, asking, parts)
            for done in range(len(open_)):
                session.tell(this.step, done, len(open_))
                if BASE not in names and not self.goes_on:
                    break
                at, answered = next(found)
                with self._failing(open_[at]):
                    self._keep(open_[at], this, answered)
                self.answers += this.items
        self.seconds += time.perf_counter() - start if open_ else 0.0
        kept = [name for name in names if self.is_kept(name, this)]
        self.unasked += [name for name in names if name not in {*kept, *self.failed}]
        self.results += asking.run([System(name, "adapter") for name in kept])
        if kept:
            self.counts[this.number, this.items] += len(kept)
        return kept

    @contextmanager
    def _failing(self, name: str) -> Iterator[None]:
        """Keeps the error of one adapter; raises that of the base, a disk or a server."""
        try:
            yield
        except LoraprobeError as error:
            if name == BASE or isinstance(error, (OutputError, ServerError)):
                raise
            self.failed[name] = error

    def is_kept(self, name: str, this: ScreeningPass) -> bool:
        """Whether all answers of a system are kept, and its next tokens if any are read."""
        asked = questions(this.tasks, self.evaluator.session.options.metric)
        known = all(self.evaluator.ledger.get(name, *question.key) for question in asked)
        return known and (this.reading is None or self._stored(name, this.reading) is not None)

    def _keep(self, name: str, this: ScreeningPass, found: AnsweredAlone | LoraprobeError) -> None:
        """Keeps what a system answered. Raises its error, OutputError where the disk fails."""
        if isinstance(found, LoraprobeError):
            raise found
        rows, given = found
        self.evaluator.ledger.add_missing(rows)  # before the tokens, which stand for all of it
        if given is not None and this.reading is not None:
            path = self._place(name, this.reading)
            try:
                given.save(path, this.reading.mark)
            except OSError as error:
                raise unwritable(path, error) from None

    def _place(self, name: str, reading: ForecastTexts) -> Path:
        """Where the next tokens of a system are kept."""
        assert self.evaluator.ledger.path is not None
        digest = hashlib.sha256(f"{name} {reading.mark}".encode()).hexdigest()[:24]
        return self.evaluator.ledger.path.parent / NEXT_TOKENS / f"{digest}.safetensors"

    def _stored(self, name: str, reading: ForecastTexts) -> NextTokens | None:
        return NextTokens.load(self._place(name, reading), reading.mark)

    def alone(self, names: Sequence[str], asked: Sequence[ScreeningPass]) -> list[BaselineScores]:
        """What systems, the base first, answered alone in these passes, task by task."""
        found = []
        for parts in zip(*(this.tasks for this in asked), strict=True):
            task = replace(parts[0], items=tuple(item for part in parts for item in part.items))
            found.append(BaselineScores.of(task, names, self.results))
        return found

    def ranking(self, names: Sequence[str], asked: Sequence[ScreeningPass]) -> Ranking:
        """Ranks sets of the systems, the base first, that were asked all of these passes."""
        scorer, forecasts = self.evaluator.scorer, list[AdditiveForecast]()

        def load(reading: ForecastTexts, k: int) -> NextTokens:
            given = self._stored(names[k], reading)
            if given is None:
                path = self._place(names[k], reading)
                raise OutputError(f"{path} was removed meanwhile; run the same call again.")
            return given

        with self.evaluator.session.stage("forecast"):
            for reading in filter(None, (this.reading for this in asked)):
                own = partial(load, reading)
                forecasts.append(AdditiveForecast.of(scorer, reading, len(names), own))
            found = Ranking.of(names[1:], self.alone(names, asked), forecasts)
        self.looked_at = max(self.looked_at, found.forms[0].looked_at)
        return found

    def finalists(self, ranking: Ranking, most: int) -> list[Placed]:
        """At most so many sets, all of which may be composed by what their headers say."""
        base, allow = self.evaluator.inputs.base, self.evaluator.session.options.allow
        families = [self.members[name].record.family for name in ranking.names]

        def fits(subset: Subset) -> bool:
            adapters = self.opened(ranking.names[m] for m in subset)
            contents = compatibility.TensorChecks(adapters)
            return compatibility.check(
                adapters, base, purpose="route", allow=allow, contents=contents
            ).compatible

        numbers = [-at - 1 if one is None else one for at, one in enumerate(families)]
        return choose(ranking.forms, most, numbers, fits, ranking.leader)


def ask_alone(
    evaluator: Evaluator, system: System | LoraprobeError, reading: ForecastTexts | None
) -> AnsweredAlone:
    """What a system answers, and its next tokens; in any process. Raises its error."""
    if isinstance(system, LoraprobeError):
        raise system
    given = None
    if reading is not None:
        with evaluator.scorer.with_composition(system.composition) as scorer:
            given, answers = reading.read(scorer, system.name)
        evaluator.ledger.add_missing(answers)  # of scored questions, which are not asked again
    return evaluator.run([system]), given


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
        system = self.systems[best]
        made = self.builder.controls(alone or self.names[0], replace(system, name=system.spec))
        return [  # kept by all members, since the gates depend on how many they are
            replace(control, stored=f"{control.key}({self.label})", members=self.names)
            for control in made
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
        alone = [s.composition for s in self.asked.systems if s.kind == "adapter"]
        return [one.experts[0] for one in alone if one is not None]


def choose_and_prove(screen: Screen) -> Proved:
    """Asks base and adapters alone, then proves the sets that promise most.

    Where one of them answers so much alone that no composition can gain the margin, only it is
    asked the items that prove.
    """
    assert screen.evaluator.plan.parts is not None
    proving = replace(screen.evaluator, tasks=screen.evaluator.plan.parts.left)
    options, tried = proving.session.options, set[bool]()
    names, asked = list[str](), list[ScreeningPass]()

    def alone(answered: Sequence[str]) -> Proved | None:
        """The base or an adapter that leaves no room for a gain, proved."""
        tasks, margin = len(proving.tasks), options.needed_gain
        name = evaluation.near_ceiling(screen.results, answered, tasks, margin)
        # The base and one adapter have one attempt each: every attempt may succeed by chance.
        if name is None or (name == BASE) in tried:
            return None
        tried.add(name == BASE)
        found = _ask_at_ceiling(screen, name, proving)
        return None if found is None else Proved(screen, found)

    for this in screen.passes():
        others = [*screen.members]
        if asked:
            ranking = screen.ranking(names, asked)
            further = ranking.asked_further(screen.finalists(ranking, options.keep))
            others = [name for at, name in enumerate(names[1:]) if at in further]
        answered = screen.ask([BASE], this)
        if proved := alone(answered):
            return proved
        answered = [*answered, *screen.ask(others, this)]
        if asked and screen.unasked:  # the budget ended, so the passes before choose
            break
        if len(answered) < 3:
            if not screen.unasked:
                raise _too_few(len(answered) - 1, screen.failed)
            told = count(len(answered) - 1, "adapter")
            raise UsageError(f"{told} could be asked within --budget; give it more minutes.")
        names, asked = answered, [*asked, this]
        if proved := alone(names):
            return proved
    return _prove(screen, screen.ranking(names, asked), proving)


def _too_few(asked: int, failed: Mapping[str, LoraprobeError]) -> UsageError:
    """The error of a library of which fewer than two adapters can be asked."""
    return UsageError(f"{count(asked, 'adapter')} can be asked: {next(iter(failed.values()))}")


def _ask_at_ceiling(screen: Screen, name: str, proving: Evaluator) -> Asked | None:
    """Asks a system alone (and the base) all items, if it leaves no room for a gain.

    None as soon as it is not above 1 - margin in any form or the budget is over, and where its
    interval after the last round leaves room. That interval is looked at once, so it needs no
    correction for the rounds.
    """
    options, tasks = proving.session.options, len(proving.tasks)
    systems = [screen.system(one) for one in dict.fromkeys([BASE, name])]

    def goes_on(results: Sequence[ItemResult], more: int) -> bool:
        near = evaluation.near_ceiling(results, [name], tasks, options.needed_gain)
        return near is not None and screen.affords(more)

    planned = evaluation.rounds(proving.tasks, options.seed, all_items=options.all_items)
    found = ask_rounds(proving, systems, planned, lambda *_: [], goes_on=goes_on)
    measured = EvaluationRecords(scores=evaluation.score(found.results, systems))
    evidence = evidence_of(options, proving.inputs, "base", measured)
    return found if found.round.last and at_ceiling(evidence) is not None else None


def _prove(screen: Screen, ranking: Ranking, proving: Evaluator) -> Proved:
    """Composes the finalists, and evaluates them beside base, best singles, members and a chain."""
    options, names = proving.session.options, ranking.names
    planned = evaluation.rounds(proving.tasks, options.seed, all_items=options.all_items)
    keep, first = options.keep, planned[0].items
    while keep > 1 and not screen.affords(first * (1 + BEST_SINGLES + FINALIST * keep)):
        keep -= 1
    chosen = screen.finalists(ranking, keep)
    built = [_composed(screen, place, subset, names) for place, subset in chosen]
    finalists = [one for one in built if one.systems]
    composed = [m for one in finalists for m in one.subset]
    members = dict.fromkeys([*ranking.best, *ranking.knowers, *composed])
    alone = {m: screen.system(names[m]) for m in members}
    owner = {name: one for one in finalists for name in one.systems}
    systems = [screen.system(BASE), *alone.values()]
    systems += [system for one in finalists for system in one.systems.values()]
    if any(task.has_hops for task in proving.tasks):
        hops = [alone[m].composition for m in ranking.knowers]
        systems.append(System("chain", "chain", chain=tuple(filter(None, hops))))

    def controls(results: Sequence[ItemResult], systems: Sequence[System]) -> list[System]:
        best = evaluation.best_system(evaluation.score(results, systems), COMPOSITIONS)
        return [] if best is None else owner[best].controls(results, best)

    def goes_on(_: Sequence[ItemResult], more: int) -> bool:
        return screen.affords(more)

    sizes = {system.name: len(system.members) for system in systems}
    proving.session.expect(lambda: steps_of_rounds(proving.tasks, sizes, options))
    found = ask_rounds(proving, systems, planned, controls, goes_on=goes_on)
    return Proved(screen, found, finalists, ranking)


def _composed(screen: Screen, place: int, subset: Subset, names: Sequence[str]) -> Finalist:
    """A set of adapters, composed by the methods and routers of the options."""
    evaluator, base = screen.evaluator, screen.evaluator.inputs.base
    adapters, options = screen.opened(names[m] for m in subset), evaluator.session.options
    members, plan = tuple(adapter.name for adapter in adapters), plan_of(options, adapters)
    with evaluator.session.stage("compose"):
        transformed = transform(adapters, options, (), base)
        builder = SystemBuilder(adapters, transformed, options, base, runs=evaluator.scorer.runs)
        specs = {f"{spec}({', '.join(members)})": spec for spec in plan.specs}
        built, notes = builder.build_each(specs)
    run = [system for system in built if builder.runs(system.composition)]
    systems = {s.name: replace(s, members=members, spec=specs[s.name]) for s in run}
    return Finalist(place, subset, builder, systems, (*plan.left_out, *notes))


@contextmanager
def open_screen(
    members: Iterable[Member], base: Base, tasks: Sequence[Task], session: Session
) -> Iterator[Screen]:
    """Loads the base, on which the usable members are asked the items that choose.

    A few of the members choose the form of the prompts. Raises UsageError where the server of
    --engine loads fewer than two of them.
    """
    parts = split_for_screening(tasks, session.options)
    usable = {member.record.name: member for member in members if member.usable}
    every, failed = [member.open() for member in usable.values()], dict[str, LoraprobeError]()
    if session.options.served:
        from loraprobe.pipeline.engine import not_loadable

        failed |= not_loadable(every)
    opened = [adapter for adapter in every if adapter.name not in failed]
    if failed and len(opened) < 2:
        raise _too_few(len(opened), failed)
    few = opened[:: max(1, len(opened) // TEMPLATE_ADAPTERS)][:TEMPLATE_ADAPTERS]
    names = {adapter.name for adapter in few}
    others = [adapter for adapter in opened if adapter.name not in names]
    inputs = Inputs(compatibility.aligned(few, base), few, base, tasks)
    plan = Plan(tasks=parts.apart, parts=parts)
    with open_evaluator(inputs, plan, session, others, LARGEST) as evaluator:
        del every, opened, others  # a thousand of them take memory until the end of the run
        asked = {name: member for name, member in usable.items() if name not in failed}
        yield Screen(evaluator, asked, failed=failed)


def steps_of_screen(screen: Screen, pace: Pace = unit) -> Steps:
    """What a screen takes at most: the adapters alone, and the proof."""
    options, parts = screen.evaluator.session.options, screen.evaluator.plan.parts
    assert parts is not None
    n, steps = len(screen.members), Steps()
    everybody = pace(0) + n * pace(1)
    for this in screen.passes():
        texts = 0 if this.reading is None else len(this.reading.rows)
        steps[this.step] = (units_of(this.tasks, options) + READ * texts) * everybody
    sets, singles, specs = _proved_at_most(screen)
    each = pace(0) + singles * pace(1) + (sets * len(specs) + CONTROLS) * pace(2)
    return {**steps, "prove sets of them": units_of(parts.left, options) * each}


def _proved_at_most(screen: Screen) -> tuple[int, int, Sequence[str]]:
    """How many sets and single adapters are proved at most, and by which methods and routers."""
    options, n = screen.evaluator.session.options, len(screen.members)
    sets = min(options.keep, n * (n - 1) // 2)
    adapters = [next(iter(screen.evaluator.inputs.adapters))] * 2
    return sets, min(n, BEST_SINGLES + 2 * sets), plan_of(options, adapters).specs


def memory_of_screen(screen: Screen) -> int:
    """The bytes that a screen takes at most beyond the base, the library and a small batch.

    These are the forecast, the scores of all pairs, new weights of the sets that are proved, the
    draws behind the intervals, and larger batches.
    """
    sets, singles, specs = _proved_at_most(screen)
    options, n = screen.evaluator.session.options, len(screen.members)
    readings = filter(None, (this.reading for this in screen.passes()))
    forecast = sum(reading.bytes_added(1 + n) for reading in readings)
    merged = [s for s in specs if s in METHODS and constant_gates(s, options, None, 2) is None]
    weights = 2 * 4 * max(member.record.parameters for member in screen.members.values())
    forms = 1 + any(task.has_cot for task in screen.evaluator.tasks)
    differences = forms * (sets * len(specs) + CONTROLS + 1) * (1 + singles)
    return (
        forecast
        + OF_PAIR * n * (n - 1) // 2
        + sets * len(merged) * weights
        + OF_DRAW * DRAWS * differences
        + LARGER_BATCH
    )


def estimate_of_screen(screen: Screen) -> CostEstimate:
    """The estimate of a whole screen; nothing is evaluated but a few items, which are timed."""
    alone = screen.system(next(iter(screen.members))).composition
    assert alone is not None
    steps = steps_of_screen(screen, timed(screen.evaluator, alone))
    found = CostEstimate.of(screen.evaluator, [BASE, *screen.members], steps)
    return replace(found, memory_bytes=found.memory_bytes + memory_of_screen(screen))


# From what was found to the audit: the library with its scores, the short list, the verdict.


def audit_of_screen(library: Library, tasks: Sequence[Task], proved: Proved) -> Audit:
    """The audit of a screen. library: before it was asked. tasks: with all their items."""
    asked, evaluator = proved.asked, proved.asked.evaluator
    session = evaluator.session
    with session.stage("statistics"):
        measured = asked.records()
    given = tuple(proved.adapters)
    inputs = Inputs(given, given, evaluator.inputs.base, tasks)
    verdict, serve, examined = _verdict(library, inputs, proved, measured)
    notes = [*evaluator.notes, *_notes(proved), *asked.notes()]
    notes += [note for one in proved.finalists for note in one.notes]
    return audit_of(
        session,
        inputs,
        examined,
        [*dict.fromkeys(notes), evaluator.scorer.note()],
        evaluation=measured,
        library=_library(library, proved),
        shortlist=_shortlist(proved, measured, verdict),
        verdict=verdict,
        serve=serve,
    )


def _verdict(
    library: Library, inputs: Inputs, proved: Proved, measured: EvaluationRecords
) -> tuple[Verdict, tuple[Command, ...], Examination]:
    """The verdict, what serves it, and what was found about the adapters that it is about."""
    screen, session = proved.screen, proved.asked.evaluator.session
    asked = {row.system for row in screen.results} - {BASE}
    left = sum(len(task.items) for task in proved.asked.evaluator.tasks)
    passes = tuple((systems, items) for (_, items), systems in screen.counts.items())
    choice = LibraryChoice(len(asked), screen.looked_at, len(proved.finalists), passes, left)
    options = session.options
    empty = examined = Examination(Compatibility())
    unserved = _unserved(inputs, proved) if options.serve else {}
    verdict = verdict_on(options, inputs, empty, "evaluation", measured, choice, unserved)
    owner = {name: one for one in proved.finalists for name in one.systems}
    own, spec = owner.get(verdict.system or ""), None
    if own is not None:
        examined = examine(own.builder.trained, inputs.base, "route", session)
        verdict = verdict_on(options, inputs, examined, "evaluation", measured, choice, unserved)
        spec = own.systems[verdict.system or ""].spec
    about = _about(verdict, own, inputs, measured)
    words: list[str] = []
    if own is None and not about.adapters:
        arguments = list(map(argument_without_folders, session.arguments))
        words = library_words(library.adapters, arguments)
    found = empty.compatibility
    verdict = with_next(verdict, options, about, measured, found, spec, words)
    merged = None
    if own is not None and verdict.composes and own.systems[verdict.system or ""].kind == "merge":
        merged = own.builder.merge(spec or "")
    files = replace(about, given=[screen.members[one.name].open() for one in about.given])
    verdict, serve = with_serving(verdict, options, files, measured.chain, merged, None)
    return verdict, serve, examined


def _unserved(inputs: Inputs, proved: Proved) -> dict[str, Unserved]:
    """What the servers of --serve cannot run, of the adapters and compositions that were proved."""
    screen, asked = proved.screen, proved.asked
    files = replace(inputs, given=[screen.members[one.name].open() for one in inputs.given])
    compositions = list[System]()
    for one in proved.finalists:
        left = [system for name, system in one.systems.items() if name not in asked.dropped]
        compositions += with_files(left, one.builder)
    return unserved_systems(asked.evaluator.session.options, files, compositions)


def _about(
    verdict: Verdict, own: Finalist | None, inputs: Inputs, measured: EvaluationRecords
) -> Inputs:
    """The inputs with the adapters that the next command is about.

    These are the one to use alone, those of a chain, the members of the verdict's composition, or,
    where no composition is advised for several tasks, the best adapter on each if these differ;
    none where it is about the whole library.
    """
    wanted = [] if own is None else [*own.names]
    if verdict.action.startswith("use-single:"):
        wanted = [verdict.action.partition(":")[2]]
    elif verdict.action == "chain":
        wanted = [row.adapter for row in measured.chain]
    elif len(inputs.tasks) > 1 and not verdict.composes and own is not None:
        each = list[str]()
        for task in inputs.tasks:
            rows = [row for row in measured.scores if row.task == task.name]
            each += filter(None, [evaluation.best_system(rows, ("adapter",))])
        wanted = each if len(set(each)) > 1 else wanted
    named = [a for a in inputs.given if a.name in wanted]
    return replace(inputs, adapters=named, given=named)


def _notes(proved: Proved) -> list[str]:
    """Which adapters were not asked, and why."""
    screen, ranking = proved.screen, proved.ranking
    notes = [f"{name} was not asked: {error}" for name, error in screen.failed.items()]
    answered = {row.system for row in screen.results}
    left = {True: "without the second pass over the items that choose", False: "unasked"}
    for some, how in left.items():
        if names := [name for name in screen.unasked if (name in answered) is some]:
            notes.append(
                f"--budget left {count(len(names), 'adapter')} {how}, such as {names[0]}; the same "
                "call with --resume and more minutes asks them."
            )
    if ranking is None:
        return notes
    if not ranking.expected.forecasts:
        notes.append(
            "Effects on the next token could not be added (no question has a given text), so sets "
            "are ranked by what their members answer alone."
        )
    return notes


def _library(library: Library, proved: Proved) -> Library:
    """The library's record with the scores of its adapters alone."""
    rows: dict[tuple[str, str, ItemPart], list[float]] = {}
    for result in proved.screen.results:
        rows.setdefault((result.system, result.task, result.part), []).append(result.value)
    scores: dict[str, list[LibraryScore]] = {}
    for (system, task, part), values in rows.items():
        mean = sum(values) / len(values)
        scores.setdefault(system, []).append(LibraryScore(task, part, mean, len(values)))
    return replace(
        library,
        adapters=tuple(
            replace(one, scores=tuple(scores.get(one.name, ()))) for one in library.adapters
        ),
        items=tuple(
            LibraryItems(apart.name, len(apart.items), len(left.items))
            for apart, left in zip(
                proved.screen.evaluator.tasks, proved.asked.evaluator.tasks, strict=True
            )
        ),
    )


def _shortlist(
    proved: Proved, measured: EvaluationRecords, verdict: Verdict
) -> tuple[Shortlisted, ...]:
    """The sets that were proved, the best first, and the best single adapter."""
    forecasts = _forecasts(proved)
    gains = _gains(proved, measured)
    rows = [_row(one, forecasts[one.label], gains, proved, verdict) for one in proved.finalists]
    rows.sort(key=lambda row: -(row.gain.difference if row.gain is not None else -2.0))
    looked_at = proved.screen.looked_at
    if verdict.action.startswith("use-single:"):
        name = verdict.action.partition(":")[2]
        rows.insert(0, Shortlisted((name,), "single", 1, looked_at, outcome="single"))
    if measured.chain:
        names = tuple(dict.fromkeys(r.adapter for r in measured.chain if r.adapter != BASE))
        gain = gains.get("chain")
        outcome = "chain" if verdict.action == "chain" else _outcome(gain, verdict)
        rows.append(Shortlisted(names, "chain", 1, looked_at, None, "chain", gain, outcome))
    return tuple(rows)


def _outcome(gain: Gain | None, verdict: Verdict) -> ShortlistOutcome:
    """Whether a gain that is not used is shown to be too small."""
    return "none" if gain is not None and gain.adjusted_ci95[1] < verdict.margin else "open"


def _gains(proved: Proved, measured: EvaluationRecords) -> dict[str, Gain]:
    """The gain of each composition in its better form, of dropped ones on what they were asked."""
    rows, asked = list(measured.gains), proved.asked
    baselines = [system for system in asked.systems if system.kind in BASELINES]
    for one in proved.finalists:
        if not {row.system for row in rows} & one.systems.keys():
            rows += evaluation.gains(asked.results, [*baselines, *one.systems.values()])
    best: dict[str, Gain] = {}
    for row in sorted(rows, key=lambda row: row.difference):
        best[row.system] = row
    return best


def _row(
    one: Finalist,
    forecasts: Mapping[str, Forecast],
    gains: Mapping[str, Gain],
    proved: Proved,
    verdict: Verdict,
) -> Shortlisted:
    """A finalist with its best composition."""
    best = max(
        (name for name in one.systems if name in gains),
        key=lambda name: gains[name].difference,
        default=None,
    )
    gain = gains.get(best or "")
    advised = verdict.composes and verdict.system in one.systems
    if advised:
        best, gain = verdict.system, gains.get(verdict.system or "", gain)
    forecast = forecasts.get(QUESTION if gain is None else gain.part)
    fails = all(name in proved.asked.dropped for name in one.systems)
    outcome: ShortlistOutcome = "none" if fails else _outcome(gain, verdict)
    return Shortlisted(
        one.names,
        "pair" if len(one.names) == 2 else "subset",
        one.place,
        proved.screen.looked_at,
        forecast,
        best,
        gain,
        "compose" if advised else outcome,
    )


def _forecasts(proved: Proved) -> dict[str, dict[str, Forecast]]:
    """The forecast gain of each finalist over base and best singles, by form of the question."""
    found: dict[str, dict[str, Forecast]] = {one.label: {} for one in proved.finalists}
    if proved.ranking is None:
        return found
    singles = [adapter.name for adapter in proved.adapters]
    options = proved.asked.evaluator.session.options
    own = [row for row in proved.screen.results if row.system in {BASE, *singles}]
    answers = [
        row
        for one in proved.finalists
        for row in proved.ranking.expected.results(one.subset, one.label, options.metric)
    ]
    for part in FORMS:
        of_part = [row for row in answers if row.part == part]
        for row in forecast_gains(of_part, own, singles, list(found), options.seed):
            found[row.system][part] = row
    return found
