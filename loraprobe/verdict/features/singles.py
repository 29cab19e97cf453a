"""Features of base and single adapters on the task: what a composition has to beat.

With several tasks scores are macro means, and the specialists, the best system of each task,
show what one model could gain by keeping all skills.
"""

from __future__ import annotations

from collections.abc import Iterator

from loraprobe.verdict.features._shelf import Registry, on
from loraprobe.verdict.features._view import (
    BASE,
    FORMS,
    View,
    complete_mean,
    highest,
    lowest,
    mean,
    minus,
)

SHELF: Registry = {}


@on(SHELF, "score of the base, on the form of the question that suits it better")
def base_score(view: View) -> float | None:
    return highest(view.best((BASE,), part) for part in FORMS)


@on(SHELF, "score of the base asked plainly")
def base_plain(view: View) -> float | None:
    return view.best((BASE,), "target")


@on(SHELF, "score of the base asked step by step")
def base_steps(view: View) -> float | None:
    return view.best((BASE,), "cot")


@on(SHELF, "score of the best single adapter, on the form that suits it better")
def best_single_score(view: View) -> float | None:
    return highest(view.best(view.adapters, part) for part in FORMS)


@on(SHELF, "score of the best single adapter asked plainly")
def best_single_plain(view: View) -> float | None:
    return view.best(view.adapters, "target")


@on(SHELF, "score of the best single adapter asked step by step")
def best_single_steps(view: View) -> float | None:
    return view.best(view.adapters, "cot")


@on(SHELF, "score of the second best single adapter")
def second_single_score(view: View) -> float | None:
    each = [highest(view.macro(name, part) for part in FORMS) for name in view.adapters]
    known = sorted(value for value in each if value is not None)
    return known[-2] if len(known) > 1 else None


@on(SHELF, "room above the best of base and single adapters")
def ceiling(view: View) -> float | None:
    return minus(1.0, view.baseline())


@on(SHELF, "what the best single adapter gains over the base")
def single_over_base(view: View) -> float | None:
    return minus(best_single_score(view), base_score(view))


@on(SHELF, "what base or the best single adapter gains by worked steps")
def steps_over_plain(view: View) -> float | None:
    return minus(view.best(view.everyone, "cot"), view.best(view.everyone, "target"))


@on(SHELF, "mean score of each task's specialist (several tasks)")
def specialist_score(view: View) -> float | None:
    return highest(_specialists(view, part) for part in FORMS)


@on(SHELF, "how far the specialists lie above the best single adapter on all tasks")
def specialist_gap(view: View) -> float | None:
    return highest(minus(_specialists(view, part), view.baseline(part)) for part in FORMS)


@on(SHELF, "what the weakest task's specialist gains over the base")
def specialist_least_gain(view: View) -> float | None:
    if not view.several:
        return None
    return lowest(
        minus(_best_of(view, view.adapters, task), _best_of(view, (BASE,), task))
        for task in view.tasks
    )


@on(SHELF, "mean change that an adapter makes to the base on tasks that are another's")
def off_task_change(view: View) -> float | None:
    return mean(_off_task(view))


@on(SHELF, "worst change that an adapter makes to the base on tasks that are another's")
def off_task_worst(view: View) -> float | None:
    return lowest(_off_task(view))


@on(SHELF, "lowest score of an adapter on a task that is another's")
def off_task_lowest(view: View) -> float | None:
    return lowest(_best_of(view, (name,), task) for task, name in _strangers(view))


def _specialists(view: View, part: str) -> float | None:
    """The mean over tasks of the best score on this form; None for one task."""
    if not view.several:
        return None
    return complete_mean(
        highest(view.score(system, task, part) for system in view.everyone) for task in view.tasks
    )


def _best_of(view: View, systems: tuple[str, ...], task: str) -> float | None:
    return highest(view.score(system, task, part) for system in systems for part in FORMS)


def _strangers(view: View) -> Iterator[tuple[str, str]]:
    """(task, adapter) for every adapter that is not the task's specialist."""
    if not view.several:
        return
    for task in view.tasks:
        scored = [n for n in view.adapters if _best_of(view, (n,), task) is not None]
        best = max(scored, key=lambda n: _best_of(view, (n,), task) or 0.0, default=None)
        yield from ((task, name) for name in scored if name != best)


def _off_task(view: View) -> list[float | None]:
    return [
        minus(_best_of(view, (name,), task), _best_of(view, (BASE,), task))
        for task, name in _strangers(view)
    ]
