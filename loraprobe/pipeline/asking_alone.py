"""The base and every adapter of a library alone on the items that choose: one pass each.

Adapters are opened one after the other and put into one base. Answers go into the ledger and hidden
states into a directory beside it, so that --resume asks nothing twice and memory does not grow with
the number of adapters.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from loraprobe.adapters import Adapter
from loraprobe.defaults import WORKED_TOKENS
from loraprobe.errors import LoraprobeError, OutputError
from loraprobe.evaluation import System
from loraprobe.evaluation.questions import questions
from loraprobe.pipeline.evaluator import Evaluator
from loraprobe.pipeline.results import STATES
from loraprobe.probes import KnownAlone, PairForecast, ScreenedTexts, with_worked_answers
from loraprobe.records import SCREENING, ItemResult
from loraprobe.routing.constant import single
from loraprobe.scoring.states import States

WORKED = ", worked"  # a kind of texts


@dataclass(frozen=True)
class Budget:
    """The time that a run may take: `minutes` from `begun` (time.perf_counter); None for no end."""

    minutes: float | None
    begun: float

    def left(self, share: float = 1.0) -> float:
        """Seconds that are left of a share of the time."""
        if self.minutes is None:
            return float("inf")
        return self.begun + share * 60 * self.minutes - time.perf_counter()


@dataclass
class Alone:
    """What the base and the adapters answered alone.

    names: of the systems that were asked, the base first. results: theirs. unasked: adapters that
    the budget left out. failed: an adapter -> why it cannot be asked. pace: seconds of one system
    for one item.
    """

    names: list[str] = field(default_factory=list)
    results: list[ItemResult] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)
    failed: dict[str, LoraprobeError] = field(default_factory=dict)
    pace: float = 0.0


def ask_alone(
    evaluator: Evaluator,
    adapters: Sequence[str],
    opened: Callable[[str], Adapter],
    reading: ScreenedTexts | None,
    goes_on: Callable[[], bool] = lambda: True,
) -> Alone:
    """Asks the base and the adapters the evaluator's tasks.

    adapters: names. opened: opens one. reading: the texts whose hidden states are kept. goes_on:
    whether a further adapter may be asked.
    """
    found, spent = Alone(), 0.0
    items = sum(len(task.items) for task in evaluator.tasks)
    for name in ("base", *adapters):
        alone = name == "base" and not found.names
        if found.names and not goes_on():
            found.unasked.append(name)
            continue
        start, before = time.perf_counter(), len(evaluator.ledger)
        try:
            base = System("base", "base")
            system = base if alone else System(name, "adapter", single(opened(name)))
            found.results += ask_one(evaluator, system, reading)
        except LoraprobeError as error:
            if alone or isinstance(error, OutputError):
                raise
            found.failed[name] = error
            continue
        found.names.append(name)
        if len(evaluator.ledger) > before:
            spent += time.perf_counter() - start
            found.pace = spent / len(found.names) / items
    return found


def ask_one(
    evaluator: Evaluator, system: System, reading: ScreenedTexts | None
) -> list[ItemResult]:
    """The results of one system; its hidden states are kept in a file."""
    session = evaluator.session
    told = session.progress
    progress = None if told is None else lambda s, k, n: told(_named(s), k, n)
    own = replace(session, progress=progress, seconds={})
    with session.stage("screen"):
        if reading is not None:
            _keep_states(evaluator, system, reading)
        return replace(evaluator, session=own).run([system])


def _named(stage: str) -> str:
    return stage + SCREENING if stage.startswith("evaluate ") else stage


def _keep_states(
    evaluator: Evaluator, system: System, reading: ScreenedTexts, kind: str = ""
) -> None:
    """Reads the states unless they are kept, with the answers to questions that are scored.

    kind: of texts, where a system has several.
    """
    if _has_states(evaluator, system.name, reading, kind):
        return
    with evaluator.scorer.with_composition(system.composition):
        states, answers = reading.read(evaluator.scorer, system.name)
    path = states_path(evaluator, system.name + kind)
    with _writing(path):
        states.save(path, reading.mark)
    evaluator.ledger.append(answers)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}): free space there, or set "
            "LORAPROBE_CACHE to a directory of yours."
        ) from None


def _has_states(evaluator: Evaluator, name: str, reading: ScreenedTexts, kind: str = "") -> bool:
    """Whether the states of a system are kept, and its answers to questions that are scored."""
    scored = [q for q in reading.questions if not q.generated]
    asked = all(evaluator.ledger.get(name, *q.key) for q in scored)
    return asked and States.load(states_path(evaluator, name + kind), reading.mark) is not None


def is_kept(evaluator: Evaluator, name: str, reading: ScreenedTexts | None) -> bool:
    """Whether all answers of a system are kept, and its states if there are any."""
    asked = questions(evaluator.tasks, evaluator.session.options.metric)
    known = all(evaluator.ledger.get(name, *q.key) for q in asked)
    return known and (reading is None or _has_states(evaluator, name, reading))


def kept_states(evaluator: Evaluator, name: str) -> bytes:
    """The file of the states of a system; empty where none are kept."""
    path = states_path(evaluator, name)
    return path.read_bytes() if path.is_file() else b""


def keep(evaluator: Evaluator, name: str, rows: Sequence[ItemResult], states: bytes) -> None:
    """Keeps what another process answered and read."""
    path = states_path(evaluator, name)
    if states:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            staging = path.with_suffix(f".{os.getpid()}")
            staging.write_bytes(states)
            staging.replace(path)
    ledger = evaluator.ledger
    ledger.append([r for r in rows if ledger.get(r.system, r.task, r.part, r.item) is None])


def states_path(evaluator: Evaluator, system: str) -> Path:
    """Where the states of a system are kept."""
    assert evaluator.ledger.path is not None
    name = hashlib.sha256(system.encode()).hexdigest()[:24]
    return evaluator.ledger.path.parent / STATES / f"{name}.safetensors"


def forecast_pairs(
    evaluator: Evaluator, alone: Alone, reading: ScreenedTexts | None, kind: str = ""
) -> PairForecast | None:
    """The forecast of sets of the adapters that were asked; None where nothing can be added."""
    if reading is None:
        return None

    def load(k: int) -> States:
        path = states_path(evaluator, alone.names[k] + kind)
        states = States.load(path, reading.mark)
        if states is None:
            raise OutputError(f"{path} was removed meanwhile; run the same call again.")
        return states

    with evaluator.session.stage("forecast"):
        return PairForecast.of(evaluator.scorer, reading, len(alone.names), load)


def forecast_worked(
    evaluator: Evaluator,
    alone: Alone,
    known: Sequence[KnownAlone],
    opened: Callable[[str], Adapter],
) -> PairForecast | None:
    """The same on worked answers, from one more pass of the base and of each adapter.

    The right worked answers have the form of the adapter whose own are most often of the asked
    kind. None where no form can be found.
    """

    def system(name: str) -> System:
        plain = name == alone.names[0]
        return System("base", "base") if plain else System(name, "adapter", single(opened(name)))

    made = []
    for one in known:
        if one.form is not None and one.form.max() > 0:
            writer = system(alone.names[int(one.form.argmax())])
            asked = [item for item in one.task.items if item.cot_prompt is not None]
            with evaluator.scorer.with_composition(writer.composition) as scorer:
                prompts = [item.cot_prompt or "" for item in asked]
                most = evaluator.session.options.max_new_tokens or WORKED_TOKENS
                texts = scorer.generate(prompts, max_new_tokens=most)
            of_item = {item.id: text for item, text in zip(asked, texts, strict=True)}
            made.append(with_worked_answers(one.task, of_item))
    tasks = [task for task in made if task is not None]
    reading = ScreenedTexts.of(evaluator.scorer, tasks, None) if tasks else None
    if reading is not None:
        with evaluator.session.stage("screen"):
            for name in alone.names:
                _keep_states(evaluator, system(name), reading, WORKED)
    return forecast_pairs(evaluator, alone, reading, WORKED)
