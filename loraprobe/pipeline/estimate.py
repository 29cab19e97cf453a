"""What an evaluation would take, which `--dry-run` prints.

A few questions are timed, of the base and of adapters, and the others are counted by them: in
units, which are plain answers of the base. Nothing else is counted, such as merges that need new
weights and the statistics. A run that stops early takes less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loraprobe.composition import Composition
from loraprobe.defaults import LEARNING_STEPS, PLAIN_TOKENS
from loraprobe.evaluation.asking import ask
from loraprobe.evaluation.questions import Question, System, questions, spread_sample
from loraprobe.extension import PASSES, installed
from loraprobe.memory import peak_memory
from loraprobe.options import Options
from loraprobe.pipeline.evaluator import Evaluator
from loraprobe.pipeline.plan import Sources, baseline_systems
from loraprobe.routing.constant import ConstantGates
from loraprobe.tasks import Task

READ = 1 / 8  # units of a text that is read and not written
FEWEST, TIMED = 4, 8  # items of a task that are timed: an eighth, but not fewer

Pace = Callable[[float], float]  # the seconds of a unit with so many adapters in the base


@dataclass(frozen=True)
class CostEstimate:
    """The systems that are asked, the items of the tasks, the questions that each system answers
    about them, the seconds of the whole run, and the peak of memory so far, with the base, all
    adapters and a batch in memory, to which comes what extensions make. hints: what extensions say
    beside it."""

    systems: tuple[str, ...]
    items: int
    questions: int
    seconds: float
    memory_bytes: int
    hints: tuple[str, ...] = ()


def units_of(tasks: Sequence[Task], options: Options) -> float:
    """The units of one system's answers to the tasks."""
    units = 0.0
    for question in questions(tasks):
        most = options.max_new_tokens or question.most_tokens
        read = READ * len(question.continuations)
        units += most / PLAIN_TOKENS if question.generated else read
    return units


def measure_pace(evaluator: Evaluator, composition: Composition) -> Pace:
    """The pace of this machine, from a few items of the tasks: of the base, and of adapters."""
    options = evaluator.session.options
    few = [
        spread_sample(task, max(FEWEST, len(task.items) // TIMED), options.seed)
        for task in evaluator.tasks
    ]
    asked, units = questions(few), units_of(few, options)

    def seconds(one: Composition | None, of: Sequence[Question]) -> float:
        with evaluator.scorer.with_composition(one) as scorer:
            start = time.perf_counter()
            ask(scorer, of, System("timing", "base"), options.max_new_tokens)
            return time.perf_counter() - start

    with evaluator.session.stage("estimate"):
        seconds(composition, asked[:1])  # warms up
        base, adapted = seconds(None, asked) / units, seconds(composition, asked) / units
    each = max(0.0, adapted - base) / len(composition.experts)  # it is noise below 0
    return lambda adapters: base + each * adapters


def cost_of(evaluator: Evaluator, systems: Sequence[str], seconds: float) -> CostEstimate:
    """The estimate for systems on the evaluator's tasks. seconds: beside those that have gone."""
    tasks, session = evaluator.tasks, evaluator.session
    seconds += time.perf_counter() - session.begun
    backends = [backend for one in installed() for backend in one.backends]
    hints = [backend.hint(session, seconds) for backend in backends]
    memory, here = peak_memory(), str(session.device) == "cpu"
    made = [source.memory(evaluator.local, parts) for source, parts in evaluator.plan.sources]
    memory += max((needed for needed, _ in made if here), default=0)
    hints += [told for _, told in made]
    return CostEstimate(
        systems=tuple(systems),
        items=sum(len(task.items) for task in tasks),
        questions=len(questions(tasks)),
        seconds=seconds,
        memory_bytes=memory,
        hints=tuple(hint for hint in hints if hint),
    )


def texts_read(sources: Sources) -> dict[str, int]:
    """The systems that extensions add, each with how many texts are read at most to make it."""
    return {name: n for source, own in sources for name, n in source.expected(own).items()}


def estimate_of_plan(evaluator: Evaluator) -> CostEstimate:
    """The estimate of merge-and-eval; nothing is evaluated but a few items, which are timed."""
    inputs, plan, options = evaluator.inputs, evaluator.plan, evaluator.session.options
    adapters = tuple(inputs.adapters)
    pace = measure_pace(evaluator, Composition("all", adapters, ConstantGates.ones(len(adapters))))
    # How many adapters each system puts into the base; a chain puts one at a time.
    sizes = {one.name: int(one.kind == "adapter") for one in baseline_systems(adapters)}
    sizes |= {spec: 1 if spec == "chain" else len(adapters) for spec in plan.specs}
    sizes |= {"shrunk": 1, "random-partner": len(adapters)} if len(plan.specs) else {}
    # The texts that are read to fit something, with so many adapters in the base.
    made = texts_read(plan.sources)
    reading = [(texts, 1) for texts in made.values()]
    if plan.parts is not None and options.learns:
        reading.append((PASSES * LEARNING_STEPS * plan.parts.items[0], len(adapters)))
    sizes |= dict.fromkeys(made, 1)
    seconds = units_of(plan.tasks, options) * sum(map(pace, sizes.values()))
    seconds += units_of(inputs.guards, options) * (pace(0) + pace(1) + pace(len(adapters)))
    seconds += sum(READ * texts * pace(size) for texts, size in reading)
    return cost_of(evaluator, [*sizes], seconds)
