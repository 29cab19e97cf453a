"""What a screen will take, before the first pass, from a few questions that are timed.

A few questions of each kind are asked of the base and of one adapter, and a few texts are read. The
adapters alone take that for all items that choose, and less where some are asked a part of them.
What the proof takes at most follows from the same times for all items that prove; it takes less
where sets are dropped after a round.
"""

from __future__ import annotations

from dataclasses import replace

from loraprobe.composition import Composition
from loraprobe.defaults import BEST_SINGLES
from loraprobe.evaluation.plan import BASE
from loraprobe.pipeline.asking_alone import step_of
from loraprobe.pipeline.estimating import CostEstimate, kinds_of, seconds_of
from loraprobe.pipeline.evaluator import Evaluator
from loraprobe.pipeline.portfolio import Selection
from loraprobe.pipeline.screening.choosing import Choosing
from loraprobe.probes import ScreenedTexts, likely_worked

TIMED_ROWS = 16  # texts that are read to time a pass
CONTROLS = 2


def expected_alone(choosing: Choosing) -> dict[str, float]:
    """Seconds of each step to come, by the names under which progress reports them."""
    (base, adapter, worked, proof), steps = screen_cost(choosing), dict[str, float]()
    items = sum(look.items for look in choosing.looks)
    names = [BASE, *choosing.members]
    for look in choosing.looks:
        share = look.items / items
        for name in names:
            steps[step_of(name, look)] = share * (base if name == BASE else adapter)
        if worked:
            again = replace(look, worked=True)
            steps |= {step_of(name, again): share * worked for name in names}
    return {**steps, "prove": proof}


def screen_cost(choosing: Choosing) -> tuple[float, float, float, float]:
    """Times a few questions of the items that choose, the evaluator's tasks.

    Seconds of the base and of an adapter alone on these items, of reading worked answers to them
    with one system, and of the whole proof.
    """
    evaluator, members, parts = choosing.evaluator, choosing.members, choosing.parts
    options = evaluator.session.options
    with evaluator.session.stage("estimate"):
        alone = choosing.system(next(iter(members))).composition
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
    return base + read, one + read, worked, proof


def _read(evaluator: Evaluator, composition: Composition, reading: ScreenedTexts | None) -> float:
    """Seconds of reading all texts once, from the first of them; 0 where there are none."""
    if reading is None:
        return 0.0
    texts = tuple(text for text in reading.texts if text.row < TIMED_ROWS)
    few = replace(reading, rows=reading.rows[:TIMED_ROWS], texts=texts)
    with evaluator.scorer.with_composition(composition) as scorer:
        return seconds_of(lambda: few.read_rows(scorer)) * len(reading.rows) / len(few.rows)


def estimate_of_screen(choosing: Choosing) -> CostEstimate:
    """The estimate of a whole screen; nothing is evaluated."""
    (base, adapter, worked, proof), members = screen_cost(choosing), choosing.members
    n, sets = len(members), choosing.evaluator.session.options.keep
    ahead = {
        f"ask base and {n} adapters alone, at most": base + n * adapter,
        "read worked answers with them, at most": (n + 1) * worked,
        f"prove {sets} sets of them, at most": proof,
    }
    steps = {step: seconds for step, seconds in ahead.items() if seconds}
    return CostEstimate.of(choosing.evaluator, [BASE, *members], steps)
