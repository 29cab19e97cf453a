"""Scores of sets of adapters in both forms of the question, and their rankings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from loraprobe.pipeline.shortlisting import Ranking, rank
from loraprobe.probes import KnownAlone, PairForecast


def rankings_of(
    known: Sequence[KnownAlone],
    forecast: PairForecast | None,
    worked: PairForecast | None,
    adapters: int,
) -> list[Ranking]:
    """The rankings by the plain question and, where there is one, by worked steps.

    forecast: of plain questions and hops. worked: of right worked answers.
    """
    best = float(np.mean([one.alone() for one in known], 0).max())
    plain = None if forecast is None else forecast.only(plain=True)
    hops = None if forecast is None else forecast.only(plain=False)
    found = [rank("question", adapters, partial(_plain, known, plain), best)]
    if any(one.form is not None for one in known):
        found.append(rank("steps", adapters, partial(_steps, known, plain, hops, worked), best))
    return found


def _plain(
    known: Sequence[KnownAlone], forecast: PairForecast | None, subsets: np.ndarray
) -> np.ndarray:
    """The scores [m] of sets on the plain question, the mean over tasks."""
    parts = {} if forecast is None else forecast.by_part(subsets)
    found = []
    for one in known:
        values = parts.get((one.task.name, "question"))
        if values is None or forecast is None:
            found.append(one.question(subsets))
        else:
            mean, linear = np.mean(list(values.values()), 0), forecast.added(subsets)
            found.append(mean if linear.all() else np.where(linear, mean, one.question(subsets)))
    mean_of_tasks: np.ndarray = np.mean(found, 0)
    return mean_of_tasks


def _steps(
    known: Sequence[KnownAlone],
    plain: PairForecast | None,
    hops: PairForecast | None,
    worked: PairForecast | None,
    subsets: np.ndarray,
) -> np.ndarray:
    """The scores [m] of sets on the question with worked steps, the mean over tasks.

    A task without worked steps counts by its plain question. Where effects can be added, whether a
    set keeps the hops is forecast, and the score is the mean with the forecast of worked answers.
    """
    parts = {} if hops is None else hops.by_part(subsets)
    texts = {} if worked is None else worked.by_part(subsets)
    found = []
    for one in known:
        if one.form is None:
            found.append(_plain([one], plain, subsets))
            continue
        covered = one.covered(subsets)
        if hops is not None:
            linear = hops.added(subsets)
            added = _kept(one, parts, len(subsets))
            covered = covered if added is None else np.where(linear[:, None], added, covered)
        steps = one.steps(subsets, covered)
        values = texts.get((one.task.name, "question"))
        if worked is not None and values is not None:
            both = (steps + np.mean(list(values.values()), 0)) / 2
            steps = np.where(worked.added(subsets), both, steps)
        found.append(steps)
    mean_of_tasks: np.ndarray = np.mean(found, 0)
    return mean_of_tasks


def _kept(
    one: KnownAlone, parts: dict[tuple[str, str], dict[str, np.ndarray]], sets: int
) -> np.ndarray | None:
    """How well [m, items] every hop of a task is answered with effects added; None without hops."""
    own = [values for (task, _), values in parts.items() if task == one.task.name]
    if not own:
        return None
    kept = np.ones((sets, len(one.task.items)), np.float32)
    for column, item in enumerate(one.task.items):
        for values in own:
            if item.id in values:
                kept[:, column] *= values[item.id]
    return kept
