"""The parts of a run that shards, processes and the workers of a cluster compute.

These are the statistics of a batch of modules, the answers of a system to a batch of questions, and
what one adapter of a library says alone. They are cut as an undivided run computes them, so the
results are the same bit for bit on one kind of machine. `workers` opens the inputs in another
process and computes a part there. `KeptStatistics` are files of statistics, which shards write and
`combine` reads.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from loraprobe.adapters import staged_file
from loraprobe.diagnostics import BatchStatistics, FigureKey, Plan
from loraprobe.records import ItemResult, Progress

if TYPE_CHECKING:
    from loraprobe.composition import Router
    from loraprobe.evaluation import System
    from loraprobe.evaluation.running import Answers, QuestionBatch
    from loraprobe.execution import Pool


class ModuleBatch(NamedTuple):
    """A batch of modules of adapters that are `compatible` with each other and the base, or not."""

    paths: tuple[str, ...]
    compatible: bool


class Setup(NamedTuple):
    """What the run found before it asked: every worker answers with the same.

    device: "cpu", "cuda" or "mps". routers: those that were fitted, by spec.
    """

    device: str
    dtype: str
    chat_template: bool
    searched: tuple[float, ...] | None
    routers: Mapping[str, Router]


class Questions(NamedTuple):
    """A batch of questions by (task, part, item), and the system that answers them.

    system: without what it is composed of, which a worker builds again from the names.
    """

    setup: Setup
    system: System
    keys: tuple[tuple[str, str, str], ...]


class AskedAlone(NamedTuple):
    """A system of a library, asked alone. look: its number, or one that no worker knows itself."""

    setup: Setup
    name: str
    look: Any


@dataclass
class Units(contextlib.AbstractContextManager["Units"]):
    """Computes the parts of one run: here, by workers, or from the directories of shards."""

    pool: Pool | None = None
    kept: KeptStatistics | None = None

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.__exit__()

    def observe(
        self, made: Plan, compatible: bool, progress: Progress | None = None
    ) -> Iterator[BatchStatistics]:
        """The statistics of all batches of modules, in their order."""
        if self.pool is None and self.kept is None:
            yield from made.observe(made.batches, progress)
            return
        count, known = len(made.batches), dict[int, BatchStatistics]()
        found = self.statistics(made, compatible, range(count))
        for index in range(count):
            while index not in known:
                at, batch = next(found)
                known[at] = batch
            yield known.pop(index)
            if progress is not None:
                progress("diagnose", index + 1, count)

    def statistics(
        self, made: Plan, compatible: bool, indices: Sequence[int]
    ) -> Iterator[tuple[int, BatchStatistics]]:
        """(index of a batch, its statistics), first those that are kept, then as they come."""
        batches, open_ = made.batches, list[int]()
        for index in indices:
            known = self.kept.read(batches[index]) if self.kept is not None else None
            if known is None:
                open_.append(index)
            else:
                yield index, known

        def here(at: int) -> BatchStatistics:
            return next(made.observe([batches[open_[at]]]))

        if self.pool is None:
            yield from ((index, here(at)) for at, index in enumerate(open_))
            return
        parts = [ModuleBatch(batches[index], compatible) for index in open_]
        for at, batch in self.pool.map(parts, here):
            yield open_[at], batch

    def answers(
        self, scorer: Any, setup: Setup, most: int | None, batches: Sequence[QuestionBatch]
    ) -> Answers:
        """The answers to batches of questions, as they come from the workers and from here.

        most: tokens of a reply, None for those of its question.
        """
        from loraprobe.evaluation.asking import ask

        assert self.pool is not None

        def here(index: int) -> list[ItemResult]:
            system, asked = batches[index]
            with scorer.with_composition(system.composition):
                return ask(scorer, asked, system.key, most)

        parts = [
            Questions(
                setup,
                replace(system, composition=None, merged=None),
                tuple(q.key for q in asked),
            )
            for system, asked in batches
        ]
        for index, rows in self.pool.map(parts, here):
            yield batches[index], rows


@dataclass(frozen=True)
class KeptStatistics:
    """The statistics of batches of modules, in files; new ones are written to the first directory.

    A file is named by everything on which it depends: the inputs, the options and the modules. So a
    shard that runs again computes nothing twice, and statistics of other inputs are never read.
    fingerprint: of inputs and options, as plain data.
    """

    places: Sequence[Path]
    fingerprint: Any

    def read(self, paths: Sequence[str]) -> BatchStatistics | None:
        """The statistics of these modules; None where no directory has them whole."""
        torch.serialization.add_safe_globals([BatchStatistics, FigureKey])  # beside tensors
        for file in (place / self._name(paths) for place in self.places):
            if file.is_file():
                try:
                    found = torch.load(file, "cpu", weights_only=True)
                except Exception:  # whatever a damaged file raises: it is computed again
                    continue
                if isinstance(found, BatchStatistics) and vars(found).get("paths") == tuple(paths):
                    return found
        return None

    def write(self, batch: BatchStatistics) -> None:
        """Raises OutputError where the file cannot be written."""
        data = io.BytesIO()  # a full disk has another error in torch
        torch.save(batch, data)
        with staged_file(self.places[0] / self._name(batch.paths)) as file:
            file.write_bytes(data.getvalue())

    def _name(self, paths: Sequence[str]) -> str:
        from loraprobe.evaluation.ledger import digest  # evaluation needs scipy, a merge does not

        return f"modules-{digest([self.fingerprint, list(paths)])}.pt"
