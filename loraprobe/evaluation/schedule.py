"""Evaluation by rounds: how many items each round asks, with which alpha, and who continues.

A round adds whole clusters in a seeded order, so that its items are a random sample. After each
round the decision may be made. The chance of a wrong one is spent over these rounds: by the round
with the share t of the clusters t^2 of alpha is spent (Kim and DeMets 1987). The alpha of a round
follows from Armitage, McPherson and Rowe's recursion (1969) for a Brownian motion. A decision at
the last round then needs intervals that are 2 to 4 % wider than those of a single round
(examples/calibration/rule-simulated.md compares the two).
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from loraprobe.defaults import ALPHA, FIRST_ROUND, ROUNDS_FROM
from loraprobe.evaluation.gains import tabulate
from loraprobe.records import FORMS, ROUND, ItemResult
from loraprobe.tasks import Task

EXPONENT = 2.0  # of the share of alpha that is spent by a share of the clusters
FEW_EXPONENT = 4.0  # the same where the first round has more than half of the clusters
GRID = 801  # points of the recursion
WIDEST = 8.0  # standard errors that the grid covers


@dataclass(frozen=True)
class Round:
    """Round `number` of `planned`: the tasks with all items asked by then, and the round's alpha.

    alpha: both sides together; intervals of level 1 - alpha decide after this round.
    """

    number: int
    planned: int
    tasks: tuple[Task, ...]
    alpha: float

    @property
    def last(self) -> bool:
        return self.number == self.planned

    @property
    def items(self) -> int:
        return sum(len(task.items) for task in self.tasks)

    @property
    def suffix(self) -> str:
        """What the name of a step ends in, so that progress knows the round; "" if there is one."""
        return f"{ROUND}{self.number}" if self.planned > 1 else ""


def rounds(tasks: Sequence[Task], seed: int, *, all_items: bool = False) -> tuple[Round, ...]:
    """The rounds of these tasks, the last one with all items.

    The first has FIRST_ROUND clusters of the smallest task, each further one about twice as many as
    the one before; every task gives the same share of its clusters. There is one round if the
    smallest task has fewer than ROUNDS_FROM clusters, and with `all_items`.
    """
    orders = [clusters_in_order(task, seed) for task in tasks]
    fewest = min(map(len, orders))
    shares = (1.0,) if all_items or fewest < ROUNDS_FROM else round_shares(fewest)
    return tuple(
        Round(
            number,
            len(shares),
            tuple(
                _part(task, order[: math.ceil(share * len(order) - 1e-9)])
                for task, order in zip(tasks, orders, strict=True)
            ),
            alpha,
        )
        for number, (share, alpha) in enumerate(
            zip(shares, round_alphas(shares), strict=True), start=1
        )
    )


def pilot(tasks: Sequence[Task], items: int, seed: int) -> Round:
    """A first round of an evaluation of all items that asks so many items of each task.

    It spends only the part of alpha that belongs to the smallest share of a task's clusters that it
    asks, so that it decides nothing that an evaluation would leave open.
    """
    few, shares, planned = [], [], 1
    for task in tasks:
        part = spread_sample(task, items, seed)
        few.append(part)
        shares.append(len(clusters_in_order(part, seed)) / len(clusters_in_order(task, seed)))
        if len(part.items) < len(task.items):
            planned = max(2, rounds(tasks, seed)[0].planned)
    share = min(shares)
    return Round(1, planned, tuple(few), spent_by(share, share))


def clusters_in_order(task: Task, seed: int) -> list[str]:
    """The task's clusters in a random order, the same for the same seed and task name."""
    order = list(dict.fromkeys(item.cluster for item in task.items))
    random.Random(f"{seed}:{task.name}:sample").shuffle(order)
    return order


def spread_sample(task: Task, items: int, seed: int) -> Task:
    """At most `items` items from as many clusters as possible, in the file's order.

    Clusters give an item each in turn, because items of one cluster tell less than items of
    several. The order is that of the rounds, the first of which then asks the same items.
    """
    order = clusters_in_order(task, seed)
    held = {cluster: [i for i in task.items if i.cluster == cluster] for cluster in order}
    draw = random.Random(f"{seed}:{task.name}:items")
    turns = [
        (turn, place, item.id)
        for place, cluster in enumerate(order)
        for turn, item in enumerate(draw.sample(held[cluster], len(held[cluster])))
    ]
    chosen = {item for _, _, item in sorted(turns)[:items]}
    return replace(task, items=tuple(item for item in task.items if item.id in chosen))


def round_shares(clusters: int) -> tuple[float, ...]:
    """The share of the clusters in each round: from FIRST_ROUND to all, nearly doubling."""
    steps = max(1, round(math.log2(clusters / FIRST_ROUND)))
    return tuple((FIRST_ROUND / clusters) ** (1 - k / steps) for k in range(steps + 1))


def _part(task: Task, clusters: Collection[str]) -> Task:
    chosen = set(clusters)
    return replace(task, items=tuple(item for item in task.items if item.cluster in chosen))


@functools.cache
def round_alphas(shares: tuple[float, ...]) -> tuple[float, ...]:
    """The alpha of each round at these shares of the information; the last share is 1."""
    return boundaries(shares, tuple(spent_by(share, shares[0]) for share in shares))


def spent_by(share: float, first: float) -> float:
    """The part of ALPHA that is spent by this share of the information. first: that of round 1."""
    return ALPHA * share ** (EXPONENT if first <= 0.5 else FEW_EXPONENT)


def boundaries(shares: Sequence[float], spent: Sequence[float]) -> tuple[float, ...]:
    """The two-sided alpha of each round, so that `spent` is spent by each.

    A Brownian motion leaves the boundaries of either side by share t with the probability spent.
    """
    grid = np.linspace(-WIDEST, WIDEST, GRID)
    step, found = grid[1] - grid[0], [float(spent[0])]
    bound = -special.ndtri(spent[0] / 2) * math.sqrt(shares[0])
    density = np.exp(-(grid**2) / shares[0] / 2) / math.sqrt(2 * math.pi * shares[0])
    density = np.where(np.abs(grid) < bound, density, 0.0)
    for share, length, part in zip(shares[1:], np.diff(shares), np.diff(spent), strict=True):
        spread = math.sqrt(length)
        moves = np.exp(-(((grid[:, None] - grid) / spread) ** 2) / 2) * step
        density = moves @ density / (spread * math.sqrt(2 * math.pi))
        beyond = np.cumsum(density[::-1])[::-1] * step  # probability at this point or above
        bound = np.interp(part / 2, beyond[::-1], grid[::-1] - step / 2)
        density = np.where(np.abs(grid) < bound, density, 0.0)
        found.append(2 * float(special.ndtr(-bound / math.sqrt(share))))
    return tuple(found)


def beaten(results: Sequence[ItemResult], names: Sequence[str], alpha: float) -> set[str]:
    """The systems that are shown to be worse than the best of them, in every form they answered.

    With several tasks the plain means over tasks are compared. alpha: that of the round, divided
    among the comparisons.
    """
    shown: dict[str, list[bool]] = {}
    for part in FORMS:
        present = {r.system for r in results if r.part == part}
        columns = [(name, part) for name in names if name in present]
        if not columns:
            continue
        table = tabulate(results, columns)
        columns = table.comparable(columns, columns[:1])
        mean = table.differences(columns, columns[:1]).difference
        found = table.differences(columns, [columns[int(mean.argmax())]])
        high = found.interval(found.critical(1 - alpha / max(1, len(columns) - 1)))[1]
        for (name, _), worse in zip(columns, (high < 0).tolist(), strict=True):
            shown.setdefault(name, []).append(worse)
    return {name for name, worse in shown.items() if all(worse)}
