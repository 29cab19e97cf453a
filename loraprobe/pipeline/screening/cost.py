"""What a screen will take, before the first pass, from a few questions that are timed.

A few questions of each kind are asked of the base and of one adapter, and a few texts are read. The
adapters alone take that for all items that choose, and less where some are asked a part of them.
What the proof takes at most follows from the same times for all items that prove; it takes less
where sets are dropped after a round.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from loraprobe.composition import Composition
from loraprobe.defaults import BEST_SINGLES
from loraprobe.evaluation import System
from loraprobe.evaluation.chain import BASE
from loraprobe.evaluation.questions import questions
from loraprobe.evaluation.rounds import rounds
from loraprobe.pipeline.asking_alone import step_of
from loraprobe.pipeline.estimating import CostEstimate, Expecting, kinds_of
from loraprobe.pipeline.evaluator import Evaluator
from loraprobe.pipeline.portfolio import Selection
from loraprobe.pipeline.screening.choosing import Choosing
from loraprobe.pipeline.session import peak_memory
from loraprobe.pipeline.task_split import TaskSplit
from loraprobe.probes import ScreenedTexts, likely_worked

TIMED_ROWS = 16  # texts that are read to time a pass
CONTROLS = 2


@dataclass(frozen=True)
class Cost:
    """Seconds: of the base and of an adapter alone on the items that choose, of reading worked
    answers to them with one system, of the whole proof.
    """

    base: float
    adapter: float
    worked: float
    proof: float


def announce_screen(choosing: Choosing, parts: TaskSplit) -> None:
    """Tells a listener to progress which steps will come and how long each will take."""
    listener = choosing.evaluator.session.progress
    if not isinstance(listener, Expecting):
        return
    cost, steps = screen_cost(choosing, parts), dict[str, float]()
    items = sum(look.items for look in choosing.looks)
    names = [BASE, *choosing.asker.members]
    for look in choosing.looks:
        share = look.items / items
        alone = {name: share * (cost.base if name == BASE else cost.adapter) for name in names}
        steps |= {step_of(name, look): seconds for name, seconds in alone.items()}
        if cost.worked:
            worked = replace(look, worked=True)
            steps |= {step_of(name, worked): share * cost.worked for name in names}
    listener.expect({**steps, "prove": cost.proof})


def announce_proof(
    evaluator: Evaluator, systems: Sequence[System], spent: float, pace: float
) -> None:
    """The same for the proof. spent: seconds so far. pace: of one system for one item."""
    listener = evaluator.session.progress
    if not isinstance(listener, Expecting):
        return
    options, steps, before = evaluator.session.options, {"screen": spent}, 0
    for this in rounds(evaluator.tasks, options.seed, all_items=options.all_items):
        more, told = this.items - before, this.suffix
        steps |= {f"evaluate {system.name}{told}": pace * more for system in systems}
        before = this.items
    listener.expect(steps)


def screen_cost(choosing: Choosing, parts: TaskSplit) -> Cost:
    """Times a few questions of the items that choose, the evaluator's tasks."""
    evaluator, members = choosing.evaluator, choosing.asker.members
    options = evaluator.session.options
    with evaluator.session.stage("estimate"):
        alone = choosing.asker.system(next(iter(members))).composition
        assert alone is not None
        kinds = kinds_of(evaluator, alone)
        read = sum(_read(evaluator, alone, look.reading) for look in choosing.looks)
        likely = [task for one in parts.apart if (task := likely_worked(one)) is not None]
        reading = ScreenedTexts.of(evaluator.scorer, likely, None) if likely else None
        worked = _read(evaluator, alone, reading)
    base, one, two = (sum(kind.seconds(share) for kind in kinds) for share in (0, 1, 2))
    items = [sum(len(task.items) for task in tasks) for tasks in (parts.apart, parts.left)]
    sets = min(options.keep, len(members) * (len(members) - 1) // 2)
    composed = sets * len(Selection(options, alone.experts).specs) + CONTROLS
    singles = min(len(members), BEST_SINGLES + 2 * sets)
    proof = (base + singles * one + composed * two) * items[1] / items[0]
    return Cost(base + read, one + read, worked, proof)


def _read(evaluator: Evaluator, composition: Composition, reading: ScreenedTexts | None) -> float:
    """Seconds of reading all texts once, from the first of them; 0 where there are none."""
    if reading is None:
        return 0.0
    few = replace(reading, rows=reading.rows[:TIMED_ROWS])
    few = replace(few, texts=tuple(t for t in reading.texts if t.row < TIMED_ROWS))
    start = time.perf_counter()
    with evaluator.scorer.with_composition(composition):
        few.read_rows(evaluator.scorer)
    return (time.perf_counter() - start) * len(reading.rows) / len(few.rows)


def estimate_of_screen(choosing: Choosing, parts: TaskSplit) -> CostEstimate:
    """The estimate of a whole screen; nothing is evaluated."""
    cost, session = screen_cost(choosing, parts), choosing.evaluator.session
    done: Mapping[str, float] = session.provenance().seconds
    n, sets = len(choosing.asker.members), session.options.keep
    ahead = {
        f"ask base and {n} adapters alone, at most": cost.base + n * cost.adapter,
        "read worked answers with them, at most": (n + 1) * cost.worked,
        f"prove {sets} sets of them, at most": cost.proof,
    }
    asked = questions(parts.apart, session.options.metric)
    return CostEstimate(
        systems=(BASE, *choosing.asker.members),
        items=sum(len(task.items) for task in parts.apart),
        questions=len(asked),
        steps={**done, **{step: seconds for step, seconds in ahead.items() if seconds}},
        measured=tuple(done),
        memory_bytes=peak_memory(),
        command="screen",
    )
