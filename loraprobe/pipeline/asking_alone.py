"""The base and adapters of a library alone on the items that choose, look by look.

Adapters are opened one after the other and put into one base. Answers go into the ledger and hidden
states into a directory beside it, so that --resume asks nothing twice and memory does not grow with
the number of adapters. Workers ask other systems at the same time, if there are any.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from loraprobe.adapters import Adapter
from loraprobe.base import Base
from loraprobe.compatibility import aligned
from loraprobe.defaults import SCREENING_SHARE
from loraprobe.errors import LoraprobeError, OutputError
from loraprobe.evaluation import System
from loraprobe.evaluation.chain import BASE
from loraprobe.evaluation.questions import questions
from loraprobe.library import Member
from loraprobe.options import Options
from loraprobe.pipeline.evaluator import Evaluator
from loraprobe.pipeline.results import STATES
from loraprobe.pipeline.task_split import looks
from loraprobe.pipeline.units import AskedAlone
from loraprobe.probes import PairForecast, ScreenedTexts
from loraprobe.records import ROUND, SCREENING, ItemResult
from loraprobe.routing.constant import single
from loraprobe.scoring.states import States
from loraprobe.tasks import Task


@dataclass(frozen=True)
class Look:
    """Items that systems are asked together, and the texts of which states are kept.

    number: from 1. worked: whether the texts are worked answers, beside which nothing is asked.
    """

    number: int
    tasks: tuple[Task, ...]
    reading: ScreenedTexts | None
    worked: bool = False

    @property
    def kind(self) -> str:
        """What distinguishes its steps and its files from those of other looks."""
        return (", worked" if self.worked else "") + f"{ROUND}{self.number}"

    @property
    def items(self) -> int:
        return sum(len(task.items) for task in self.tasks)


def looks_of(scorer: object, tasks: Sequence[Task], options: Options) -> list[Look]:
    """The looks at the items that choose."""
    return [
        Look(number, part, ScreenedTexts.of(scorer, part, options.metric))
        for number, part in enumerate(looks(tasks, options.seed), 1)
    ]


@dataclass
class Asker:
    """Asks systems alone, and counts what that took.

    members: the adapters by name. results: of all systems. unasked: adapters that the budget left
    out of a look. failed: an adapter -> why it cannot be asked. passes: of each kind of look, how
    many systems were asked how many items. spent: seconds and system-items of what was not kept
    already.
    """

    evaluator: Evaluator
    members: Mapping[str, Member]
    results: list[ItemResult] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)
    failed: dict[str, LoraprobeError] = field(default_factory=dict)
    passes: dict[str, tuple[int, int]] = field(default_factory=dict)
    spent: tuple[float, int] = (0.0, 0)

    @property
    def goes_on(self) -> bool:
        """Whether a further adapter may be asked."""
        return self.evaluator.session.left(SCREENING_SHARE) > 0

    @property
    def pace(self) -> float:
        """Seconds of one system for one item; 0 where nothing was asked."""
        seconds, items = self.spent
        return seconds / items if items else 0.0

    def system(self, name: str) -> System:
        """The base or an adapter, opened."""
        opened = self.members[name].open if name != BASE else None
        return system_alone(name, opened, self.evaluator.inputs.base)

    def ask(self, names: Sequence[str], look: Look) -> list[str]:
        """Asks systems a look, the base always; the names of those that answered."""
        start, before, answered = time.perf_counter(), len(self.evaluator.ledger), list[str]()
        self._elsewhere(names, look)
        for name in names:
            if name != BASE and not self.goes_on and not is_kept(self.evaluator, name, look):
                self.unasked += [] if look.worked else [name]
                continue
            self._tell(name, look, 0)
            try:
                self.results += ask_one(self.evaluator, self.system(name), look)
            except LoraprobeError as error:
                if name == BASE or isinstance(error, OutputError):
                    raise
                self.failed[name] = error
                continue
            answered.append(name)
        systems = self.passes.get(look.kind, (0, 0))[0] + len(answered)
        self.passes[look.kind] = systems, look.items
        if len(self.evaluator.ledger) > before:
            seconds, items = self.spent
            seconds += time.perf_counter() - start
            self.spent = seconds, items + len(answered) * look.items
        return answered

    def _elsewhere(self, names: Sequence[str], look: Look) -> None:
        """Has workers ask what is not kept yet; this process asks too."""
        evaluator, session = self.evaluator, self.evaluator.session
        pool, setup = session.units.pool, evaluator.with_setup().setup
        if pool is None or setup is None:
            return
        open_ = [name for name in names if not is_kept(evaluator, name, look)]

        def here(index: int) -> None:
            with contextlib.suppress(LoraprobeError):  # which `ask` finds again
                ask_one(evaluator, self.system(open_[index]), look)

        parts = [AskedAlone(setup, name, look if look.worked else look.number) for name in open_]
        for index, found in pool.map(parts, here):
            if found is not None:
                keep(evaluator, open_[index], look, *found)
            self._tell(open_[index], look, 1)
            if not self.goes_on:
                break

    def _tell(self, name: str, look: Look, done: int) -> None:
        self.evaluator.session.tell(step_of(name, look), done, 1)


def system_alone(name: str, opened: Callable[[], Adapter] | None, base: Base | None) -> System:
    """One adapter of a library on the base's layout; the base itself where none is opened."""
    if opened is None:
        return System(BASE, "base")
    return System(name, "adapter", single(aligned([opened()], base)[0]), members=(name,))


def step_of(name: str, look: Look) -> str:
    """The step of asking a system a look, by the name under which progress reports it."""
    return f"evaluate {name}{SCREENING}{look.kind}"


def ask_one(evaluator: Evaluator, system: System, look: Look) -> list[ItemResult]:
    """The results of one system; its hidden states are kept in a file."""
    session, step = evaluator.session, step_of(system.name, look)
    own = session.renamed(lambda told: step if told == f"evaluate {system.name}" else told)
    with session.stage("screen"):
        if look.reading is not None and not _has_states(evaluator, system.name, look):
            with evaluator.scorer.with_composition(system.composition):
                states, answers = look.reading.read(evaluator.scorer, system.name)
            keep(evaluator, system.name, look, answers, states)
        return replace(evaluator, session=replace(own, seconds={}), tasks=look.tasks).run([system])


def _has_states(evaluator: Evaluator, name: str, look: Look) -> bool:
    """Whether the states of a system are kept, and its answers to questions that are scored."""
    if look.reading is None:
        return True
    scored = [q for q in look.reading.questions if not q.generated]
    asked = all(evaluator.ledger.get(name, *q.key) for q in scored)
    return asked and kept_states(evaluator, name, look) is not None


def is_kept(evaluator: Evaluator, name: str, look: Look) -> bool:
    """Whether all answers of a system to a look are kept, and its states if there are any."""
    asked = questions(look.tasks, evaluator.session.options.metric)
    known = all(evaluator.ledger.get(name, *q.key) for q in asked)
    return known and _has_states(evaluator, name, look)


def kept_states(evaluator: Evaluator, name: str, look: Look) -> States | None:
    """The states of a system; None where none are kept."""
    path = states_path(evaluator, name, look)
    return None if look.reading is None else States.load(path, look.reading.mark)


def keep(
    evaluator: Evaluator, name: str, look: Look, rows: Sequence[ItemResult], states: States | None
) -> None:
    """Keeps what a system answered and what was read of it. Raises OutputError if it cannot."""
    path = states_path(evaluator, name, look)
    if states is not None and look.reading is not None:
        try:
            states.save(path, look.reading.mark)
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written ({error.strerror or error}): free space there, or set "
                "LORAPROBE_CACHE to a directory of yours."
            ) from None
    evaluator.ledger.add_missing(rows)


def states_path(evaluator: Evaluator, system: str, look: Look) -> Path:
    """Where the states of a system are kept."""
    assert evaluator.ledger.path is not None
    name = hashlib.sha256((system + look.kind).encode()).hexdigest()[:24]
    return evaluator.ledger.path.parent / STATES / f"{name}.safetensors"


def forecast_sets(
    evaluator: Evaluator, names: Sequence[str], asked: Sequence[Look]
) -> PairForecast | None:
    """The forecast of sets of the adapters that were asked; None where nothing can be added.

    names: of the systems, the base first, that were asked all of these looks.
    """
    readings = [look.reading for look in asked if look.reading is not None]
    if not readings or len(readings) < len(asked):
        return None

    def load(k: int) -> States:
        found = []
        for look in asked:
            states = kept_states(evaluator, names[k], look)
            if states is None:
                path = states_path(evaluator, names[k], look)
                raise OutputError(f"{path} was removed meanwhile; run the same call again.")
            found.append(states)
        return States.joined(found)

    with evaluator.session.stage("forecast"):
        whole = ScreenedTexts.joined(readings)
        return PairForecast.of(evaluator.scorer, whole, len(names), load)
