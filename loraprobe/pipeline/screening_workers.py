"""What a worker of `screen --executor` does: it asks adapters of a library, alone and composed.

A worker opens base and tasks once and each adapter when it is asked. Alone it answers into a ledger
of its own, whose rows and hidden states the process that asks keeps as if it had asked itself.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from loraprobe import hub
from loraprobe.adapters import Adapter
from loraprobe.base import Base
from loraprobe.compatibility import aligned
from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.evaluation import Ledger, System
from loraprobe.evaluation.ledger import as_plain, changes
from loraprobe.evaluation.questions import questions
from loraprobe.execution import open_pool
from loraprobe.library.stored import weights_hash
from loraprobe.options import Options
from loraprobe.pipeline.asking_alone import Look, ask_one, kept_states, looks_of, system_alone
from loraprobe.pipeline.evaluator import Evaluator
from loraprobe.pipeline.inputs import Inputs, base_of, open_tasks
from loraprobe.pipeline.scorer import open_scorer
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.systems import SystemBuilder
from loraprobe.pipeline.task_split import split_for_screening
from loraprobe.pipeline.transforms import Prepared, prepare
from loraprobe.pipeline.units import AskedAlone, Questions, Units, for_workers
from loraprobe.pipeline.workers import Known, answer_part, scorer_for
from loraprobe.records import ItemResult
from loraprobe.tasks import Task

Places = Mapping[str, tuple[int, str]]  # name -> place in the library, and hash of its weights
Answered = tuple[list[ItemResult], bytes] | None  # None: it cannot be asked


@dataclass(frozen=True)
class LibraryJob:
    """The references and options of a screen. fingerprint: what the base must be."""

    adapters: tuple[str, ...]
    places: Places
    base: str
    tasks: tuple[str, ...]
    options: Options
    fingerprint: Any

    def open(self) -> OpenedLibrary:
        """Raises UsageError where the base is not that of the screen."""
        base = base_of(self.base, (), code=self.options.trust_remote_code)
        if differs := changes(self.fingerprint, as_plain(base.identity)):
            raise UsageError(
                f"A worker reads another base than this process ({'; '.join(differs[:3])}): give a "
                "path that every machine shares, or a reference with a commit."
            )
        tasks = open_tasks(self.tasks, self.options)
        return OpenedLibrary(self, base, Session("worker", self.options), tasks)


@dataclass
class OpenedLibrary:
    """Asks one system after the other in a worker."""

    job: LibraryJob
    base: Base
    session: Session
    tasks: Sequence[Task]
    built: tuple[Any, System] | None = None  # the last composed system
    looks: dict[bool, list[Look]] = field(default_factory=dict)  # with and without chat template

    def __call__(self, part: AskedAlone | Questions) -> Answered | list[ItemResult]:
        scorer = scorer_for(part.setup, self.scorer, self.session)
        if isinstance(part, Questions):
            system = self._composed(part)
            return answer_part(part, scorer, system, self._known, self.job.options)
        look = part.look if isinstance(part.look, Look) else self._looks(scorer)[part.look - 1]
        return self._alone(part.name, look, scorer)

    @cached_property
    def scorer(self) -> Any:
        return open_scorer(self.base, self.job.options.dtype, self.session)[0]

    def _looks(self, scorer: Any) -> list[Look]:
        """The looks at the items that choose, in the scorer's form of prompts."""
        chat = scorer.chat_template
        if chat not in self.looks:
            parts = split_for_screening(self.tasks, self.job.options)
            self.looks[chat] = looks_of(scorer, parts.apart, self.job.options)
        return self.looks[chat]

    @cached_property
    def _known(self) -> Known:
        return {q.key: q for q in questions(self.tasks, self.job.options.metric)}

    def _loaded(self, name: str) -> Adapter:
        """Raises UsageError for other weights than the process that asks read."""
        place, sha256 = self.job.places[name]
        ((_, _, found),) = hub.load_each(self.job.adapters, [place])
        if isinstance(found, LoraprobeError):
            raise found
        if weights_hash(found) != sha256:
            raise UsageError(
                f"A worker reads another {name} than this process: give paths that every machine "
                "shares, or references with a commit."
            )
        return found

    def _alone(self, name: str, look: Look, scorer: Any) -> Answered:
        try:
            system = system_alone(name, self._loaded, self.base)
        except UsageError:
            raise
        except LoraprobeError:
            return None
        with tempfile.TemporaryDirectory() as place, contextlib.closing(Ledger(place)) as ledger:
            inputs = Inputs((), (), self.base, self.tasks)
            evaluator = Evaluator(inputs, self.session, scorer, ledger, look.tasks)
            try:
                ask_one(evaluator, system, look)
            except LoraprobeError:
                return None  # the process that started this one finds the reason again
            return list(ledger), kept_states(evaluator, name, look)

    def _composed(self, part: Questions) -> System:
        if self.built is None or self.built[0] != part.composed:
            options = self.job.options
            adapters = aligned([self._loaded(name) for name in part.members], self.base)
            several = len(adapters) > 1  # base and single adapters are asked as they are
            prepared = (
                prepare(adapters, options, (), self.base) if several else Prepared(tuple(adapters))
            )
            builder = SystemBuilder(adapters, prepared, options, self.base)
            self.built = part.composed, builder.named(part.system, part.of)
        return self.built[1]


def open_library_units(
    adapters: Sequence[Any], base: Base, tasks: Any, options: Options, places: Places
) -> Units:
    """How the parts of a screen are computed.

    Raises UsageError for open objects with --executor, which another process cannot open.
    """
    if options.executor is None:
        return Units()
    several = list(tasks) if isinstance(tasks, (list, tuple)) else [tasks]
    alone = for_workers(options, [*adapters, *several])
    given, texts = tuple(map(str, adapters)), tuple(map(str, several))
    identity = as_plain(base.identity)
    job = LibraryJob(given, dict(places), str(base.path), texts, alone, identity)
    return Units(open_pool(options.executor, job, options.threads))
