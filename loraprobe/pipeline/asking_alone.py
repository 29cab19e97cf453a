"""The base or an adapter of a library alone on items that choose.

Answers go into the ledger and hidden states into a directory beside it, so that --resume asks
nothing twice and memory does not grow with the number of adapters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loraprobe.adapters import Adapter
from loraprobe.base import Base
from loraprobe.compatibility import aligned
from loraprobe.errors import OutputError
from loraprobe.evaluation import System
from loraprobe.evaluation.plan import BASE, questions
from loraprobe.options import Options
from loraprobe.pipeline.evaluator import Evaluator
from loraprobe.pipeline.results import STATES
from loraprobe.pipeline.task_split import looks
from loraprobe.probes import PairForecast, ScreenedTexts
from loraprobe.records import ROUND, SCREENING, ItemResult
from loraprobe.routing.constant import single
from loraprobe.scoring.states import States
from loraprobe.tasks import Task


@dataclass(frozen=True)
class Look:
    """Items that systems are asked together, and the texts of which states are kept.

    number: from 1. worked: whether the texts are worked answers; then no questions are asked.
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
            states, answers = read_states(evaluator, system, look.reading)
            keep(evaluator, system.name, look, answers, states)
        return replace(evaluator, session=replace(own, seconds={}), tasks=look.tasks).run([system])


def read_states(
    evaluator: Evaluator, system: System, reading: ScreenedTexts
) -> tuple[States, list[ItemResult]]:
    """The hidden states of a system, and its answers to the questions that are scored."""
    with evaluator.scorer.with_composition(system.composition):
        return reading.read(evaluator.scorer, system.name)


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
