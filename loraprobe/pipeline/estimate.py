"""What an evaluation will take: the questions of each step, counted in units.

A unit is a plain answer of the base. The line of progress measures the seconds of a unit from the
answers that are made anyway. Only `--dry-run` times a few questions, of the base and of adapters.
Merges that need new weights, and the statistics, are not counted. An evaluator here is an
`evaluator.Evaluator`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraprobe import evaluation
from loraprobe.composition import Composition
from loraprobe.defaults import LEARNING_STEPS, PLAIN_TOKENS, PROBED_ITEMS
from loraprobe.evaluation import Round
from loraprobe.evaluation.asking import ask
from loraprobe.evaluation.plan import Question, questions, spread_sample
from loraprobe.memory import peak_memory
from loraprobe.options import Options
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.systems import Plan, baseline_systems
from loraprobe.records import FORMS, ROUND
from loraprobe.routing.constant import ConstantGates
from loraprobe.servers.engine import installed_vllm
from loraprobe.tasks import Task

READ = 1 / 8  # units of a text that is read and not written
ASK = "evaluate "  # how a step starts that asks one system
GUARD = "guard"  # the step that asks what must not get worse
LONG = 600.0  # seconds of a run on a GPU from which another engine is named
FEWEST, TIMED = 4, 8  # items of a task that are timed: an eighth, but not fewer

# Seconds of a unit with so many adapters in the base; for the progress of a run, units themselves.
Pace = Callable[[float], float]
Steps = dict[str, float]  # by the names under which progress reports them


def unit(adapters: float) -> float:
    """The pace of a run whose seconds are not known yet."""
    return 1.0


def units_of(
    tasks: Sequence[Task], options: Options, parts: Collection[str] | None = None
) -> float:
    """The units of one system's answers to the tasks, or to `parts` of their items."""
    units = 0.0
    for question in questions(tasks, options.metric):
        if parts is not None and question.part not in parts:
            continue
        most = options.max_new_tokens or question.most_tokens
        read = READ * len(question.continuations)
        units += most / PLAIN_TOKENS if question.generated else read
    return units


def steps_of_plan(inputs: Inputs, plan: Plan, options: Options, pace: Pace = unit) -> Steps:
    """The steps of merge-and-eval; a run that stops early takes less."""
    n, steps = len(inputs.adapters), steps_before_asking(inputs, plan, options, pace)
    systems = {
        system.name: int(system.kind == "adapter") for system in baseline_systems(inputs.adapters)
    }
    composed = [spec for spec in plan.specs if spec != "chain"]
    asked = {**systems, **dict.fromkeys(composed, n)}
    steps |= steps_of_rounds(plan.tasks, asked, options, pace, inputs.guards)
    # A chain's hops are answers of the base and the adapters; the last one is asked again.
    last = units_of(plan.tasks, options, ("question",)) * pace(1)
    steps |= {ASK + "chain": last} if "chain" in plan.specs else {}
    if composed:
        every = units_of(plan.tasks, options)
        steps |= {ASK + "shrunk": every * pace(1), ASK + "random-partner": every * pace(n)}
    return {**steps, "cover": probing(plan.tasks, pace)}


def steps_of_sample(inputs: Inputs, plan: Plan, options: Options, first: Round) -> Steps:
    """The steps of `inspect`, which asks a first round."""
    steps = steps_before_asking(inputs, plan, options, unit)
    every, forms = units_of(first.tasks, options), units_of(first.tasks, options, FORMS)
    steps |= {f"{ASK}{system.name}": every for system in baseline_systems(inputs.adapters)}
    return {
        **steps,
        "cover": probing(first.tasks, unit),
        **{ASK + spec: forms for spec in plan.specs},
    }


def steps_before_asking(inputs: Inputs, plan: Plan, options: Options, pace: Pace) -> Steps:
    """The steps that fit routers and learn weights; the choice of a template tells its own time."""
    n, apart, steps = len(inputs.adapters), plan.parts, dict[str, float]()
    if apart is not None and plan.learning:  # answers of each adapter, then the questions
        steps["fit"] = (n + 1) * apart.items[0] * READ * pace(1)
    if apart is not None and options.learns:  # a pass forth, and one back of twice its time
        steps["learn"] = 3 * LEARNING_STEPS * apart.items[0] * READ * pace(n)
    return steps


def steps_of_rounds(
    tasks: Sequence[Task],
    systems: Mapping[str, int],
    options: Options,
    pace: Pace = unit,
    guards: Sequence[Task] = (),
) -> Steps:
    """The steps of systems in each round. systems: how many adapters each puts into the base.

    guards: asked of the base, an adapter and a composition.
    """
    steps, before = dict[str, float](), 0
    each = pace(0) + pace(1) + pace(max(systems.values(), default=0))
    for this in evaluation.rounds(tasks, options.seed, all_items=options.all_items):
        share = (this.items - before) / sum(len(task.items) for task in tasks)
        units = share * units_of(tasks, options)
        for name, adapters in systems.items():
            steps[f"{ASK}{name}{this.suffix}"] = units * pace(adapters)
        if guards:
            steps[f"{GUARD}{this.suffix}"] = share * units_of(guards, options) * each
        before = this.items
    return steps


def probing(tasks: Sequence[Task], pace: Pace) -> float:
    """The coverage probes, which read a few texts of each item that they ask."""
    asked = sum(min(PROBED_ITEMS, len(task.items)) * len(task.parts) for task in tasks)
    return 2 * READ * asked * pace(0)


def timed(evaluator: Any, composition: Composition) -> Pace:
    """The pace of this machine, from a few items of the tasks: of the base, and of adapters."""
    options = evaluator.session.options
    few = [
        spread_sample(task, max(FEWEST, len(task.items) // TIMED), options.seed)
        for task in evaluator.tasks
    ]
    asked, units = questions(few, options.metric), units_of(few, options)

    def seconds(one: Composition | None, of: Sequence[Question]) -> float:
        with evaluator.scorer.with_composition(one) as scorer:
            start = time.perf_counter()
            ask(scorer, of, "timing", options.max_new_tokens)
            return time.perf_counter() - start

    with evaluator.session.stage("estimate"):
        seconds(composition, asked[:1])  # warms up
        base, adapted = seconds(None, asked) / units, seconds(composition, asked) / units
    each = (adapted - base) / len(composition.experts)
    return lambda adapters: base + each * adapters


@dataclass(frozen=True)
class CostEstimate:
    """The expected cost of a command, which `--dry-run` prints.

    `steps` are seconds by stage, in their order; those of `measured` have happened, the others are
    forecast. `questions` is their number for one system, all parts of all items. `memory_bytes` is
    the peak so far, with the base, all adapters and a batch in memory; of `screen` also what it
    takes at most later. vllm: whether --engine vllm may be faster: a long run by transformers on a
    GPU of a machine where vLLM is installed.
    """

    systems: tuple[str, ...]
    items: int
    questions: int
    steps: Mapping[str, float]
    measured: tuple[str, ...]
    memory_bytes: int
    command: str
    vllm: bool = False

    @property
    def seconds(self) -> float:
        """The whole run."""
        return sum(self.steps.values())

    @property
    def plain(self) -> dict[str, Any]:
        """The estimate as `--dry-run --json` prints it."""
        return {
            "systems": self.systems,
            "items": self.items,
            "questions": self.questions,
            "seconds": round(self.seconds, 3),
            "memory_bytes": self.memory_bytes,
            "steps": {name: round(seconds, 3) for name, seconds in self.steps.items()},
            "measured": self.measured,
        }

    @classmethod
    def of(cls, evaluator: Any, systems: Sequence[str], ahead: Steps) -> CostEstimate:
        """The estimate for systems on the evaluator's tasks. ahead: what is forecast."""
        session, tasks = evaluator.session, evaluator.tasks
        done = session.provenance().seconds
        steps = dict(done) | {step: s for step, s in ahead.items() if step not in done}
        slow = session.device.startswith("cuda") and sum(steps.values()) > LONG
        return cls(
            systems=tuple(systems),
            items=sum(len(task.items) for task in tasks),
            questions=len(questions(tasks, session.options.metric)),
            vllm=slow and not session.options.served and installed_vllm() is not None,
            steps=steps,
            measured=tuple(done),
            memory_bytes=peak_memory(),
            command=session.command,
        )


def estimate_of_plan(evaluator: Any) -> CostEstimate:
    """The estimate of merge-and-eval; nothing is evaluated but a few items, which are timed."""
    inputs, options = evaluator.inputs, evaluator.session.options
    adapters, steps = tuple(inputs.adapters), dict[str, float]()
    gates = ConstantGates.ones(len(adapters))
    pace = timed(evaluator, Composition("all", adapters, gates))
    for step, seconds in steps_of_plan(inputs, evaluator.plan, options, pace).items():
        name = step.partition(ROUND)[0]  # all rounds of a system together
        steps[name] = steps.get(name, 0.0) + seconds
    asked = [step_name.removeprefix(ASK) for step_name in steps if step_name.startswith(ASK)]
    return CostEstimate.of(evaluator, asked, steps)
