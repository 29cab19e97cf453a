"""`screen --executor`: other processes ask adapters of a library alone.

A worker opens base and tasks once and each adapter when it is asked. It answers into a ledger of
its own, whose rows and hidden states this process keeps as if it had asked itself.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from loraprobe import hub
from loraprobe.base import Base
from loraprobe.compatibility import aligned
from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.evaluation import Ledger, System
from loraprobe.evaluation.ledger import as_plain, changes
from loraprobe.execution import open_pool
from loraprobe.library.stored import weights_hash
from loraprobe.options import Options
from loraprobe.pipeline.asking_alone import ask_one, is_kept, keep, kept_states
from loraprobe.pipeline.evaluator import Evaluator
from loraprobe.pipeline.inputs import Inputs, base_of
from loraprobe.pipeline.opening_tasks import open_tasks
from loraprobe.pipeline.scorer import open_scorer
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.task_split import split_for_screening
from loraprobe.pipeline.units import check_device, for_workers
from loraprobe.probes import ScreenedTexts
from loraprobe.records import ItemResult
from loraprobe.routing.constant import single


class Member(NamedTuple):
    """The adapter at a place of the library; None for the base. chat: by the chat template.

    sha256: of the adapter's weights, as the process that asks read them.
    """

    place: int | None
    sha256: str
    chat: bool
    device: str
    dtype: str


Places = Mapping[str, tuple[int, str]]
Answered = tuple[list[ItemResult], bytes] | None  # None: it cannot be asked


@dataclass(frozen=True)
class LibraryJob:
    """The references and options of a screen. fingerprint: what the base must be."""

    adapters: tuple[str, ...]
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
        tasks = split_for_screening(open_tasks(self.tasks, self.options), self.options).apart
        return OpenedLibrary(self, base, Session("worker", self.options), tasks)


@dataclass
class OpenedLibrary:
    """Asks one system after the other in a worker."""

    job: LibraryJob
    base: Base
    session: Session
    tasks: Sequence[Any]

    @cached_property
    def scorer(self) -> Any:
        return open_scorer(self.base, self.job.options.dtype, self.session)[0]

    def __call__(self, part: Member) -> Answered:
        scorer = self.scorer.with_template(part.chat)
        own = self.session.device.partition(":")[0], self.session.dtype
        check_device(own, part.device, part.dtype)
        system = System("base", "base")
        if part.place is not None:
            ((name, _, found),) = hub.load_each(self.job.adapters, [part.place])
            if isinstance(found, LoraprobeError):
                return None
            if weights_hash(found) != part.sha256:
                raise UsageError(
                    f"A worker reads another {name} than this process: give paths that every "
                    "machine shares, or references with a commit."
                )
            system = System(name, "adapter", single(aligned([found], self.base)[0]))
        reading = ScreenedTexts.of(scorer, self.tasks, self.job.options.metric)
        with tempfile.TemporaryDirectory() as place, contextlib.closing(Ledger(place)) as ledger:
            inputs = Inputs((), (), self.base, self.tasks)
            evaluator = Evaluator(inputs, self.session, scorer, ledger, self.tasks)
            try:
                ask_one(evaluator, system, reading)
            except LoraprobeError:
                return None  # the process that started this one finds the reason again
            return list(ledger), kept_states(evaluator, system.name)


@dataclass(frozen=True)
class Elsewhere:
    """Has workers ask the base and adapters. places: and hashes of the adapters, by name."""

    job: LibraryJob
    places: Places

    def ask(
        self,
        evaluator: Evaluator,
        usable: Sequence[str],
        reading: ScreenedTexts | None,
        goes_on: Callable[[], bool],
    ) -> None:
        """Keeps the answers and states of the base and of usable adapters that have none.

        goes_on: whether a further system may be asked.
        """
        names = [n for n in (None, *usable) if not is_kept(evaluator, n or "base", reading)]
        session, options = evaluator.session, evaluator.session.options
        device = session.device.partition(":")[0]
        chat, dtype = evaluator.chat_template, session.dtype
        places = [self.places.get(name or "") for name in names]  # none of the base
        parts = [
            Member(at[0] if at else None, at[1] if at else "", chat, device, dtype) for at in places
        ]
        base = evaluator.inputs.base
        assert base is not None and options.executor is not None
        here = OpenedLibrary(self.job, base, session, evaluator.tasks)
        here.__dict__["scorer"] = evaluator.scorer  # which is loaded already
        with open_pool(options.executor, self.job, options.threads) as pool:
            for done, (index, found) in enumerate(
                pool.map(parts, lambda index: here(parts[index])), 1
            ):
                if found is not None:
                    keep(evaluator, names[index] or "base", *found)
                if session.progress is not None:
                    session.progress("screen", done, len(parts))
                if not goes_on():
                    break


def elsewhere(
    adapters: Sequence[Any], base: Base, tasks: Any, options: Options, places: Places
) -> Elsewhere | None:
    """None without --executor. places: and hashes of the adapters, by name.

    Raises UsageError for open objects, which another process cannot open.
    """
    if options.executor is None:
        return None
    several = list(tasks) if isinstance(tasks, (list, tuple)) else [tasks]
    alone = for_workers(options, [*adapters, *several])
    job = LibraryJob(
        tuple(map(str, adapters)),
        str(base.path),
        tuple(map(str, several)),
        alone,
        as_plain(base.identity),
    )
    return Elsewhere(job, places)
