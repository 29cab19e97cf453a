"""What a worker of --executor does: it opens the inputs of the run itself, and computes parts.

A worker is told names and settings only. It checks that it reads the same inputs and computes on
the same kind of device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from loraprobe.adapters import Adapter
from loraprobe.base import Base
from loraprobe.diagnostics import BatchStatistics, Plan
from loraprobe.errors import UsageError
from loraprobe.evaluation import System
from loraprobe.evaluation.asking import ask
from loraprobe.evaluation.ledger import as_plain, changes
from loraprobe.evaluation.questions import Question, TokenLimits, questions
from loraprobe.execution import open_pool
from loraprobe.options import Options
from loraprobe.pipeline.examination import planned
from loraprobe.pipeline.inputs import Inputs, open_inputs
from loraprobe.pipeline.results import weights_identity
from loraprobe.pipeline.scorer import open_scorer
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.shard_files import check_inputs
from loraprobe.pipeline.systems import SystemBuilder
from loraprobe.pipeline.transforms import Prepared, prepare_inputs
from loraprobe.pipeline.units import (
    KeptStatistics,
    ModuleBatch,
    Questions,
    Setup,
    Units,
    check_device,
    for_workers,
)
from loraprobe.records import ItemResult

Known = Mapping[tuple[str, str, str], Question]


@dataclass(frozen=True)
class Job:
    """The references and options of a run. fingerprint: what its inputs must be."""

    adapters: tuple[str, ...]
    base: str | None
    tasks: tuple[str, ...]
    options: Options
    fingerprint: Any

    def open(self) -> OpenedJob:
        """Opens the inputs. Raises UsageError where they are not those of the run."""
        inputs = open_inputs(self.adapters, self.base, self.tasks, self.options)
        found = as_plain(weights_identity(inputs.adapters, inputs.base, self.options))
        if differs := changes(self.fingerprint, found):
            raise UsageError(
                f"A worker reads other inputs than this process ({'; '.join(differs[:3])}): give "
                "paths that every machine shares, or references with a commit."
            )
        return OpenedJob(self, inputs, Session("worker", self.options))


@dataclass
class OpenedJob:
    """Computes parts in a worker, whose base is loaded with the first question."""

    job: Job
    inputs: Inputs
    session: Session
    plans: dict[bool, Plan] = field(default_factory=dict)
    built: tuple[Any, System] | None = None  # the last system

    def __call__(self, part: ModuleBatch | Questions) -> BatchStatistics | list[ItemResult]:
        if isinstance(part, Questions):
            return self._answers(part)
        if part.compatible not in self.plans:
            base = self.inputs.base if part.compatible else None
            adapters, options = self.inputs.adapters, self.job.options
            self.plans[part.compatible] = planned(adapters, base, options, part.compatible)
        (found,) = self.plans[part.compatible].observe([part.paths])
        return found

    @cached_property
    def scorer(self) -> Any:
        assert self.inputs.base is not None
        return open_scorer(self.inputs.base, self.job.options.dtype, self.session)[0]

    @cached_property
    def prepared(self) -> Prepared:
        return prepare_inputs(self.inputs, "route", self.session)

    def _answers(self, part: Questions) -> list[ItemResult]:
        scorer = scorer_for(part.setup, self.scorer, self.session)
        return answer_part(part, scorer, self._system(part), self._known, self.job.options)

    @cached_property
    def _known(self) -> Known:
        return {q.key: q for q in questions(self.inputs.tasks, self.job.options.metric)}

    def _system(self, part: Questions) -> System:
        if self.built is None or self.built[0] != part.composed:
            inputs, setup = self.inputs, part.setup
            builder = SystemBuilder(
                inputs.adapters,
                self.prepared,
                self.job.options,
                inputs.base,
                setup.searched,
                setup.routers,
            )
            self.built = part.composed, builder.named(part.system, part.of)
        return self.built[1]


def scorer_for(setup: Setup, scorer: Any, session: Session) -> Any:
    """The scorer with the form of prompts of the run. Raises UsageError on another device."""
    own = session.device.partition(":")[0], session.dtype
    check_device(own, setup.device, setup.dtype)
    return scorer.with_template(setup.chat_template)


def answer_part(
    part: Questions, scorer: Any, system: System, known: Known, options: Options
) -> list[ItemResult]:
    """The answers of a system to a batch of the known questions."""
    asked = [known[key] for key in part.keys]
    with scorer.with_composition(system.composition):
        return ask(scorer, asked, part.stored, TokenLimits.of(options.max_new_tokens))


def open_units(
    adapters: Sequence[Adapter | str | Path],
    base: Base | str | Path | None,
    tasks: Any,
    inputs: Inputs,
    options: Options,
) -> Units:
    """How the parts of a run are computed. adapters, base, tasks: as they were given.

    Raises UsageError for open objects with --executor, and for shards of other inputs.
    """
    identity = as_plain(weights_identity(inputs.adapters, inputs.base, options))
    check_inputs(options.joined, identity)
    kept = KeptStatistics(options.joined, identity) if options.joined else None
    if options.executor is None:
        return Units(None, kept)
    several = list(tasks) if isinstance(tasks, (list, tuple)) else [tasks]
    given = [*adapters, *several, *([] if base is None else [base]), *options.subtract]
    alone = for_workers(options, given)
    job = Job(
        tuple(map(str, adapters)),
        None if base is None else str(base),
        tuple(map(str, several)),
        alone,
        identity,
    )
    return Units(open_pool(options.executor, job, options.threads, stateless=not several), kept)
