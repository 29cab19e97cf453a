"""What a screen will take, before the first pass, from a few questions that are timed.

A few questions of each kind are asked of the base and of one adapter, and a few texts are read. The
adapters alone take that for all items that choose. What the proof takes at most follows from the
same times for all items that prove; it takes less where sets are dropped after a round.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from loraprobe.compatibility import aligned
from loraprobe.composition import Composition
from loraprobe.defaults import BEST_SINGLES
from loraprobe.evaluation import System
from loraprobe.evaluation.questions import questions
from loraprobe.evaluation.rounds import round_suffix, rounds
from loraprobe.library import Arranged, Member
from loraprobe.pipeline.estimating import CostEstimate, Expecting, kinds_of
from loraprobe.pipeline.evaluator import Evaluator
from loraprobe.pipeline.session import peak_memory
from loraprobe.pipeline.systems import composition_specs
from loraprobe.pipeline.task_split import TaskSplit
from loraprobe.probes import ScreenedTexts
from loraprobe.records import SCREENING
from loraprobe.routing.constant import single

TIMED_ROWS = 16  # texts that are read to time a pass
CONTROLS = 2


@dataclass(frozen=True)
class Cost:
    """Seconds: of the base and of an adapter alone on the items that choose, of the whole proof."""

    base: float
    adapter: float
    proof: float


def announce_screen(
    evaluator: Evaluator, members: Sequence[Member], parts: TaskSplit, reading: ScreenedTexts | None
) -> None:
    """Tells a listener to progress which steps will come and how long each will take."""
    listener = evaluator.session.progress
    if isinstance(listener, Expecting):
        cost = screen_cost(evaluator, members, parts, reading)
        names = [member.record.name for member in members]
        steps = {f"evaluate base{SCREENING}": cost.base}
        steps |= {f"evaluate {name}{SCREENING}": cost.adapter for name in names}
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
        more, told = this.items - before, round_suffix(this)
        steps |= {f"evaluate {system.name}{told}": pace * more for system in systems}
        before = this.items
    listener.expect(steps)


def screen_cost(
    evaluator: Evaluator, members: Sequence[Member], parts: TaskSplit, reading: ScreenedTexts | None
) -> Cost:
    """Times a few questions of the items that choose, the evaluator's tasks."""
    options = evaluator.session.options
    with evaluator.session.stage("estimate"):
        adapter = aligned([members[0].open()], evaluator.inputs.base)[0]
        alone = single(adapter)
        kinds = kinds_of(evaluator, alone)
        read = 0.0 if reading is None else _read(evaluator, alone, reading)
    base, one, two = (sum(kind.seconds(share) for kind in kinds) for share in (0, 1, 2))
    items = [sum(len(task.items) for task in tasks) for tasks in (parts.apart, parts.left)]
    sets = min(options.keep, len(members) * (len(members) - 1) // 2)
    composed = sets * len(composition_specs(options, [adapter])) + CONTROLS
    singles = min(len(members), BEST_SINGLES + 2 * sets)
    proof = (base + singles * one + composed * two) * items[1] / items[0]
    return Cost(base + read, one + read, proof)


def _read(evaluator: Evaluator, composition: Composition, reading: ScreenedTexts) -> float:
    """Seconds of reading all texts once, from the first of them."""
    few = replace(reading, rows=reading.rows[:TIMED_ROWS])
    few = replace(few, texts=tuple(t for t in reading.texts if t.row < TIMED_ROWS))
    start = time.perf_counter()
    with evaluator.scorer.with_composition(composition):
        few.read_rows(evaluator.scorer)
    return (time.perf_counter() - start) * len(reading.rows) / len(few.rows)


def estimate_of_screen(
    found: Arranged,
    evaluator: Evaluator,
    parts: TaskSplit,
    reading: ScreenedTexts | None,
) -> CostEstimate:
    """The estimate of a whole screen; nothing is evaluated."""
    members = found.usable
    cost = screen_cost(evaluator, members, parts, reading)
    done: Mapping[str, float] = evaluator.session.provenance().seconds
    n, sets = len(members), evaluator.session.options.keep
    ahead = {
        f"ask base and {n} adapters alone": cost.base + n * cost.adapter,
        f"prove {sets} sets of them, at most": cost.proof,
    }
    asked = questions(parts.apart, evaluator.session.options.metric)
    return CostEstimate(
        systems=("base", *(member.record.name for member in members)),
        items=sum(len(task.items) for task in parts.apart),
        questions=len(asked),
        steps={**done, **ahead},
        measured=tuple(done),
        memory_bytes=peak_memory(),
        command="screen",
    )
