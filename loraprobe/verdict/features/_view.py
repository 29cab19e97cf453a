"""What features may look at: base, single adapters, coverage and diagnostics of one case."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from loraprobe.records import Coverage
from loraprobe.verdict.evidence import BASELINES, Evidence

FAMILIES = ("average", "sum", "router")
FORMS = ("target", "cot")
BASE = "base"


@dataclass(frozen=True)
class View:
    """One case as it stands before any composition is run, and the family that is asked about."""

    evidence: Evidence
    family: str

    @classmethod
    def of(cls, evidence: Evidence, family: str) -> View:
        """Leaves out all that compositions and controls scored. Raises ValueError."""
        if family not in FAMILIES:
            raise ValueError(f"{family!r} is no family of compositions: {', '.join(FAMILIES)}")
        rows = tuple(
            score
            for score in evidence.evaluation
            if score.kind in BASELINES and score.metric != "answer_loss"
        )
        return cls(
            dataclasses.replace(
                evidence, evaluation=rows, comparisons=(), gains=(), attribution=()
            ),
            family,
        )

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that were scored or covered, sorted."""
        covered = {row.task for row in self.evidence.coverage if row.task}
        scored = {score.task for score in self.evidence.evaluation}
        return tuple(sorted(scored or covered))

    @cached_property
    def adapters(self) -> tuple[str, ...]:
        """Names of the single adapters, sorted."""
        scored = set(self.evidence.systems(("adapter",)))
        measured = {name for m in self.evidence.diagnostics for name in m.adapters}
        return tuple(sorted(scored or measured))

    @property
    def several(self) -> bool:
        """Whether the question is if one model keeps several skills."""
        return len(self.tasks) > 1

    @cached_property
    def gates(self) -> tuple[float, ...]:
        """The constant gates that are nearest to what the family does."""
        average = 1 / max(1, len(self.adapters))
        return {"average": (average,), "sum": (1.0,)}.get(self.family, (average, 1.0))

    @cached_property
    def _scores(self) -> dict[tuple[str, str, str], float]:
        return {
            (BASE if s.kind == "base" else s.system, s.task, s.part): s.value
            for s in self.evidence.evaluation
        }

    def score(self, system: str, task: str, part: str) -> float | None:
        """One score of the base (named "base") or of a single adapter."""
        return self._scores.get((system, task, part))

    def macro(self, system: str, part: str) -> float | None:
        """The mean over all tasks; None where one of them lacks the part."""
        return complete_mean(self.score(system, task, part) for task in self.tasks)

    def best(self, systems: Sequence[str], part: str) -> float | None:
        """The best macro mean of these systems on one form of the question."""
        return highest(self.macro(system, part) for system in systems)

    @property
    def everyone(self) -> tuple[str, ...]:
        """Base and single adapters, which a composition has to beat."""
        return (BASE, *self.adapters)

    def baseline(self, part: str | None = None) -> float | None:
        """What a composition has to beat on this form; None: whichever form is better.

        Who is asked step by step has to beat plain answers as well.
        """
        forms = ("target",) if part == "target" else FORMS
        return highest(self.best(self.everyone, form) for form in forms)

    def rows(self, name: str, task: str | None = None) -> list[Coverage]:
        """The rows of one coverage probe that hold a figure."""
        return [
            row
            for row in self.evidence.coverage
            if row.name == name and row.value is not None and task in (None, row.task)
        ]

    def hops(self, task: str) -> dict[int, dict[str, float]]:
        """hop -> system -> how often it answers right, from the probe or from the scores."""
        found: dict[int, dict[str, float]] = {}
        for (system, where, part), value in self._scores.items():
            if where == task and part.startswith("hop"):
                found.setdefault(int(part.removeprefix("hop")), {})[system] = value
        for row in self.rows("hop_accuracy", task):
            if row.hop is not None and row.value is not None:
                system = row.adapters[0] if row.adapters else BASE
                found.setdefault(row.hop, {})[system] = row.value
        return dict(sorted(found.items()))

    def over_tasks(self, figure: Callable[[str], float | None]) -> float | None:
        """The mean of a figure over the tasks that have it."""
        return mean(figure(task) for task in self.tasks)

    def measured(self, name: str, side: str | None = None) -> list[float]:
        """Whole-adapter values of one diagnostic, of every adapter or pair."""
        return [
            float(m.value)
            for m in self.evidence.diagnostics
            if m.name == name and m.module is None and m.side == side and m.value is not None
        ]


def form_of(row: Coverage) -> str:
    """The part that a row is about: "target", "cot", "hop1" ... or "all"."""
    return row.part or (f"hop{row.hop}" if row.hop is not None else "target")


def at_gate(row: Coverage, gate: float) -> bool:
    """Whether adapters stood at this constant gate."""
    return math.isclose(1.0 if row.gate is None else row.gate, gate, rel_tol=0.0, abs_tol=1e-3)


def bounded(share: float) -> float:
    """A share of what may be a small difference, kept within -1 and 2."""
    return min(max(share, -1.0), 2.0)


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what is there; None of nothing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def complete_mean(values: Iterable[float | None]) -> float | None:
    """The mean, None as soon as one is missing."""
    found = list(values)
    return None if None in found else mean(found)


def highest(values: Iterable[float | None]) -> float | None:
    """The largest of what is there; None of nothing."""
    return max((value for value in values if value is not None), default=None)


def lowest(values: Iterable[float | None]) -> float | None:
    """The smallest of what is there; None of nothing."""
    return min((value for value in values if value is not None), default=None)


def minus(value: float | None, other: float | None) -> float | None:
    """A difference, None where a side is missing."""
    return None if value is None or other is None else value - other
