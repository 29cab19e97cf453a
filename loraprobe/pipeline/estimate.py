"""What an evaluation will cost, before the first pass: a short timing, scaled to all questions.

One full batch of each kind of question is asked of the base and of all adapters together, and the
coverage probes are run on a few items. A system then costs the number of its batches times the
measured time of one. Reading, comparing and loading are measured as they happen. Merges that need
new weights, and the statistics, are not in the estimate.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loraprobe import compatibility, evaluation
from loraprobe.composition import Composition
from loraprobe.defaults import LEARNING_STEPS
from loraprobe.evaluation.asking import ask
from loraprobe.evaluation.plan import Question, questions
from loraprobe.pipeline.evaluator import Evaluator, open_evaluator
from loraprobe.pipeline.examination import examine
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.session import Session, peak_memory
from loraprobe.pipeline.systems import Plan, baseline_systems
from loraprobe.pipeline.transforms import prepare_inputs
from loraprobe.probes import cover
from loraprobe.records import ROUND
from loraprobe.routing.constant import ConstantGates

FEWEST, TIMED = 4, 8  # questions of a kind that are timed: an eighth, but not fewer
PROBED = (4, 16)  # items of each task on which the coverage probes are timed


@dataclass(frozen=True)
class CostEstimate:
    """The expected cost of a command.

    `steps` are seconds by stage, in their order; those of `measured` have happened, the others are
    forecast. `questions` is their number for one system, all parts of all items. `memory_bytes` is
    the peak so far, with the base, all adapters and a full batch in memory.
    """

    systems: tuple[str, ...]
    items: int
    questions: int
    steps: Mapping[str, float]
    measured: tuple[str, ...]
    memory_bytes: int
    command: str

    @property
    def seconds(self) -> float:
        """The whole run."""
        return sum(self.steps.values())

    @classmethod
    def of(
        cls, evaluator: Evaluator, systems: Sequence[str], ahead: Mapping[str, float]
    ) -> CostEstimate:
        """The estimate for systems on the evaluator's tasks. ahead: seconds that are forecast."""
        session, tasks = evaluator.session, evaluator.tasks
        done = session.provenance().seconds
        return cls(
            systems=tuple(systems),
            items=sum(len(task.items) for task in tasks),
            questions=len(questions(tasks, session.options.metric)),
            steps={**done, **ahead},
            measured=tuple(done),
            memory_bytes=peak_memory(),
            command=session.command,
        )


def estimate(inputs: Inputs, plan: Plan, session: Session) -> CostEstimate:
    """Loads the base, times a few questions and forecasts the rest; nothing is evaluated.

    Raises CompatibilityError where the adapters do not fit together.
    """
    examined = examine(inputs.adapters, inputs.base, "route", session)
    compatibility.require(examined.compatibility)
    prepare_inputs(inputs, "route", session)  # raises what the run would raise
    with tempfile.TemporaryDirectory() as place:  # of a ledger that nobody needs
        session = replace(session, state=Path(place), resume=False)
        with open_evaluator(inputs, plan, session) as evaluator:
            steps: dict[str, float] = {}
            for step, seconds in expected_steps(evaluator).items():
                name = step.partition(ROUND)[0]  # all rounds of a system together
                steps[name] = steps.get(name, 0.0) + seconds
    asked = [step.removeprefix("evaluate ") for step in steps if step.startswith("evaluate ")]
    return CostEstimate.of(evaluator, asked, steps)


def expected_steps(evaluator: Evaluator) -> dict[str, float]:
    """Seconds of each stage to come, by the names under which progress reports them."""
    session, adapters = evaluator.session, evaluator.inputs.adapters
    options, tasks, n = session.options, evaluator.tasks, len(evaluator.inputs.adapters)
    specs, parts = evaluator.plan.specs, evaluator.plan.parts
    with session.stage("estimate"):
        together = Composition("all", tuple(adapters), ConstantGates.ones(n))
        kinds, probing, pair = kinds_of(evaluator, together), _probing(evaluator), 0.0
        if parts is not None:  # one pair of prompt and answer of the items set apart
            items = [item for task in parts.apart for item in task.items]
            pairs = [(item.prompt, item.answers[0]) for item in _spread(items, PROBED[1])]
            with evaluator.scorer.with_composition(together) as scorer:
                pair = seconds_of(lambda: scorer.loglikelihood(pairs)) / len(pairs)

    def system(experts: int) -> float:
        return sum(kind.seconds(experts / n) for kind in kinds)

    asked = {s.name: system(0 if s.kind == "base" else 1) for s in baseline_systems(adapters)}
    asked |= {spec: system(n) for spec in specs if spec != "chain"}
    steps = {}
    if parts is not None and evaluator.plan.learning:
        steps["fit"] = (n + 1) * parts.items[0] * pair  # answers of each, then the questions
    if parts is not None and options.learns:  # a pass forth, and one back of twice its time
        steps["learn"] = 3 * LEARNING_STEPS * parts.items[0] * pair
    steps |= by_round(asked, evaluator)
    if "chain" in specs:
        hops = sum(len(item.hops) for task in tasks for item in task.items)
        plain = kinds[0]  # a hop is asked of a single adapter, which costs no less than the base
        steps["evaluate chain"] = hops / plain.questions * plain.seconds(1 / n)
    if specs not in ((), ("chain",)):
        steps |= {"evaluate shrunk": system(1), "evaluate random-partner": system(n)}
    steps["cover"] = probing
    return steps


def by_round(seconds: Mapping[str, float], evaluator: Evaluator) -> dict[str, float]:
    """The seconds of each system in each round; a run that stops early takes less."""
    options, steps, before = evaluator.session.options, dict[str, float](), 0
    for this in evaluation.rounds(evaluator.tasks, options.seed, all_items=options.all_items):
        told = this.suffix
        share = (this.items - before) / sum(len(task.items) for task in evaluator.tasks)
        steps |= {f"evaluate {name}{told}": share * spent for name, spent in seconds.items()}
        before = this.items
    return steps


@dataclass(frozen=True)
class TimedKind:
    """Questions of one kind, and the seconds of all of them: base, and all adapters together."""

    questions: int
    base: float
    together: float

    def seconds(self, share: float) -> float:
        """The same for a system of this share of the adapters."""
        return self.base + (self.together - self.base) * share


def kinds_of(evaluator: Evaluator, together: Composition) -> list[TimedKind]:
    """The kinds of questions of the tasks, timed.

    One batch is asked, a full one if that is at most an eighth of the questions. The time of a
    smaller one is taken as proportional to the questions.
    """
    scorer, most = evaluator.scorer, evaluator.session.options.max_new_tokens

    def timed(composition: Composition | None, asked: Sequence[Question]) -> float:
        with scorer.with_composition(composition):
            return seconds_of(lambda: ask(scorer, asked, "timing", most))

    every = questions(evaluator.tasks, evaluator.session.options.metric)
    timed(together, every[:1])  # warms up
    groups: dict[tuple[str, bool], list[Question]] = {}
    for question in every:
        groups.setdefault((question.metric, question.worked), []).append(question)
    found = []
    for group in groups.values():
        distinct = list({question.prompt: question for question in group}.values())
        limit, whole = most or group[0].most_tokens, len(distinct)
        prompts = scorer.encoder.prompts([question.prompt for question in distinct])
        full = len(next(scorer.batcher.split([len(ids) + limit for ids in prompts])))
        sample = _spread(distinct, min(full, max(FEWEST, whole // TIMED)))
        batches = math.ceil(whole / full) if len(sample) == full else whole / len(sample)
        base, all_of_them = batches * timed(None, sample), batches * timed(together, sample)
        found.append(TimedKind(len(group), base, all_of_them))
    return found


def _probing(evaluator: Evaluator) -> float:
    """Seconds of the coverage probes on all items, on a line through two small numbers of items."""
    every, seed = sum(len(task.items) for task in evaluator.tasks), evaluator.session.options.seed
    scorer, adapters = evaluator.scorer, evaluator.inputs.adapters

    def timed(most: int) -> tuple[int, float]:
        few = [replace(task, items=tuple(_spread(task.items, most))) for task in evaluator.tasks]
        spent = seconds_of(lambda: cover(scorer, adapters, few, seed=seed))
        return sum(len(task.items) for task in few), spent

    (few, least), (some, spent) = map(timed, PROBED)
    slope = max(0.0, spent - least) / (some - few) if some > few else 0.0
    return spent + slope * (every - some)


def _spread(things: Sequence[Any], most: int) -> list[Any]:
    """At most so many, evenly distributed."""
    n = min(most, len(things))
    return [things[i * len(things) // n] for i in range(n)]


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
