"""Features of the question itself: how much is to be composed."""

from __future__ import annotations

from loraprobe.verdict.features._shelf import Registry, on
from loraprobe.verdict.features._view import View

SHELF: Registry = {}


@on(SHELF, "number of adapters")
def adapters(view: View) -> float | None:
    return float(len(view.adapters)) if view.adapters else None


@on(SHELF, "number of tasks")
def tasks(view: View) -> float | None:
    return float(len(view.tasks)) if view.tasks else None


@on(SHELF, "number of hops of the question, 0 where none are given")
def hops(view: View) -> float | None:
    return max((float(len(view.hops(task))) for task in view.tasks), default=None)


@on(SHELF, "1 if the question is asked step by step as well")
def asks_steps(view: View) -> float | None:
    return float(any(s.part == "cot" for s in view.evidence.evaluation)) if view.tasks else None


@on(SHELF, "1 if answers are chosen and not written")
def chooses(view: View) -> float | None:
    return (
        float(any(s.metric == "choice" for s in view.evidence.evaluation)) if view.tasks else None
    )
