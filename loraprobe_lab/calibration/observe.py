"""Evaluates one adapter set of a world: the audit before composing, and the measured gains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loraprobe.errors import LoraprobeError
from loraprobe.options import Options
from loraprobe.records import Audit, ItemResult
from loraprobe.tasks import Task, load_task
from loraprobe_lab.calibration.cases import METHODS

if TYPE_CHECKING:
    from loraprobe.base import Base
    from loraprobe.evaluation import System
    from loraprobe.pipeline.evaluator import Evaluator
    from loraprobe.pipeline.examination import Examination
    from loraprobe_lab.world import Scenario

# A small base's step costs the same for one prompt or hundreds: wider than --batch-size auto,
# which plans for the longest answers that are allowed.
SMALL_BATCH = 256
BatchSize = int | Literal["auto"]


@dataclass(frozen=True)
class SampleSizes:
    """`limit`: items per task for the audit; `most_items`: items for the measured gain.

    dtype: in which the model computes, as in `--dtype`.
    """

    limit: int = 200
    most_items: int = 2000
    max_new_tokens: int = 40
    seed: int = 0
    dtype: str = "auto"


@dataclass(frozen=True)
class Observation:
    """The audit before any composition was run, and all results of all systems."""

    audit: Audit
    results: tuple[ItemResult, ...]
    kinds: Mapping[str, str]  # system -> kind


@dataclass
class BaselineResults:
    """Results of base and single adapters, shared by the adapter sets of one world."""

    rows: dict[tuple[str, str], list[ItemResult]] = field(default_factory=dict)

    def of(self, systems: Iterable[str], tasks: Iterable[Task]) -> list[ItemResult]:
        """The known results of these systems on the items of these tasks."""
        wanted = {(task.name, item.id) for task in tasks for item in task.items}
        keys = [(system, task.name) for system in systems for task in tasks]
        return [r for key in keys for r in self.rows.get(key, ()) if (r.task, r.item) in wanted]

    def keep(self, results: Iterable[ItemResult], systems: Iterable[str]) -> None:
        """Stores the results of these systems in place of earlier ones."""
        wanted, new = set(systems), dict[tuple[str, str], list[ItemResult]]()
        for row in results:
            if row.system in wanted:
                new.setdefault((row.system, row.task), []).append(row)
        self.rows.update(new)


def observe(
    scenario: Scenario,
    base: Base,
    state: Path,
    sizes: SampleSizes,
    known: BaselineResults,
    batch_size: BatchSize,
) -> Observation:
    """Evaluates one adapter set; results are written to the directory `state` as they come.

    The audit uses the first `limit` items alone. Then base, single adapters and the compositions
    of METHODS answer the composed question, in both forms, on `most_items` items. Hops are not
    asked and no coverage probe runs, because no case needs them; prompts carry no chat template,
    as in the training of the lab's adapters. Raises LoraprobeError if adapters and base do not fit.
    """
    from loraprobe import compatibility, hub
    from loraprobe.pipeline.evaluator import open_evaluator
    from loraprobe.pipeline.examination import examine
    from loraprobe.pipeline.inputs import Inputs
    from loraprobe.pipeline.session import Session
    from loraprobe.pipeline.systems import SystemBuilder, baseline_systems
    from loraprobe.pipeline.transforms import Prepared

    session = Session("inspect", _options(sizes, state, batch_size))
    adapters = hub.load_all([f"{name}={path}" for name, path in scenario.adapters.items()])
    tasks = [_without_hops(load_task(path, sizes.limit)) for path in scenario.tasks]
    inputs = Inputs(compatibility.aligned(adapters, base), adapters, base, tasks)
    examined = examine(inputs.adapters, base, "route", session)
    if not examined.compatibility.compatible:
        raise LoraprobeError(f"The adapters of {scenario.name} do not fit together or to the base.")
    baselines = baseline_systems(inputs.adapters)
    built = SystemBuilder(inputs.adapters, Prepared(tuple(inputs.adapters)), session.options, base)
    systems = [*baselines, *built.compositions()]
    with open_evaluator(inputs, (), session) as evaluator:
        audit = _audit_before(evaluator, examined, baselines, known)
        asked = [_without_hops(load_task(path, sizes.most_items)) for path in scenario.tasks]
        results = _answers(replace(evaluator, tasks=asked), systems, known)
        known.keep(evaluator.ledger, [system.name for system in baselines])
    kept = tuple(row for row in results if row.part in ("question", "steps"))
    return Observation(audit, kept, {s.name: s.kind for s in systems})


def _options(sizes: SampleSizes, state: Path, batch_size: BatchSize) -> Options:
    return Options(
        methods=METHODS[:2],
        routers=METHODS[2:],
        max_new_tokens=sizes.max_new_tokens,
        seed=sizes.seed,
        state=state,
        resume=True,
        batch_size=batch_size,
        chat_template="off",
        dtype=sizes.dtype,
    )


def _audit_before(
    evaluator: Evaluator, examined: Examination, baselines: Sequence[System], known: BaselineResults
) -> Audit:
    """The audit before any composition is run."""
    from loraprobe.evaluation import score
    from loraprobe.pipeline.audits import audit_of
    from loraprobe.pipeline.conclusion import conclude
    from loraprobe_lab.calibration.forecast import forecast, forecastable
    from loraprobe_lab.calibration.shared_layers import shared_layers

    inputs, session = evaluator.inputs, evaluator.session
    results = _answers(evaluator, baselines, known)
    with session.stage("forecast"), shared_layers(evaluator.scorer.model, inputs.adapters):
        forecasts = forecast(
            evaluator.scorer,
            inputs.adapters,
            evaluator.tasks,
            forecastable(session.options, inputs.adapters),
            results=results,
            max_new_tokens=session.options.max_new_tokens,
            seed=session.options.seed,
            progress=session.progress,
        )
    evidence: dict[str, Any] = {
        "forecasts": forecasts,
        "evaluation": score(results, baselines),
    }
    verdict = conclude(session.options, inputs, examined, level="base", **evidence)
    return audit_of(session, inputs, examined, evaluator.notes, verdict=verdict, **evidence)


def _answers(
    evaluator: Evaluator, systems: Sequence[System], known: BaselineResults
) -> Sequence[ItemResult]:
    """All results of these systems; known results are not computed again."""
    names = [system.name for system in systems]
    evaluator.ledger.append(known.of(names, evaluator.tasks))
    return evaluator.run(systems)


def _without_hops(task: Task) -> Task:
    """The task without its hops: only the composed question is asked."""
    return replace(task, items=tuple(replace(item, hops=()) for item in task.items))
