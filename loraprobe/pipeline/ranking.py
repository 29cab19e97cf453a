"""Which sets of adapters are composed and proved: ranks all pairs and some sets of three.

Each form of the question has a ranking of its own, by what is forecast where effects can be added,
and else by what the members answer alone. Finalists are taken from the rankings in turn,
different enough that one good adapter and its relatives do not fill the list.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from loraprobe.defaults import MARGIN
from loraprobe.probes import KnownAlone, PairForecast

EXTENDED = 24  # of the best pairs, which are tried with every third adapter
BETTER = 0.1  # by which a set of three has to exceed the best pair in it
KEPT = 10_000  # of the best sets of a ranking
TURNS = 3  # of a ranking that promises a gain, for each one of a ranking that does not
SURE = 2.0  # standard errors by which an adapter has to be worse, to be asked no more, or better
Subset = tuple[int, ...]
Parts = dict[tuple[str, str], dict[str, np.ndarray]]  # (task, part) -> item -> results [m]
SetScores = Callable[[np.ndarray], np.ndarray]  # sets [m, j] of adapters -> scores [m]


class RankedSet(NamedTuple):
    """A set of adapters, and its place in a ranking from 1."""

    members: Subset
    place: int


@dataclass(frozen=True)
class Ranking:
    """The sets of adapters in one form of the question, the best first, and how many there were.

    promises: whether the best of them is expected to exceed base and single adapters. highest: of
    each adapter the score of the best set with it.
    """

    order: tuple[tuple[Subset, float], ...]
    looked_at: int
    promises: bool
    highest: tuple[float, ...]


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
    scores = _Scores(known, forecast, worked)
    forms = [scores.plain]
    if any(one.form is not None for one in known):
        forms.append(scores.steps)
    return [rank(adapters, form, best) for form in forms]


@dataclass(frozen=True)
class _Scores:
    """Scores of sets of adapters [m, j] in both forms of the question, the mean over tasks: [m].

    kept: the forecasts of plain questions and hops by set, since both forms need them.
    """

    known: Sequence[KnownAlone]
    forecast: PairForecast | None
    worked: PairForecast | None
    kept: dict[bytes, Parts] = field(default_factory=dict)

    def plain(self, subsets: np.ndarray) -> np.ndarray:
        """Of the plain question: as forecast where effects can be added."""
        return _mean([self._plain(one, subsets) for one in self.known])

    def steps(self, subsets: np.ndarray) -> np.ndarray:
        """Of the question with worked steps.

        A task without worked steps counts by its plain question. Where effects can be added,
        whether a set keeps the hops is forecast, and the score is the mean with the forecast of
        worked answers.
        """
        parts, found = self._parts(subsets), []
        texts = {} if self.worked is None else self.worked.by_part(subsets)
        for one in self.known:
            if one.form is None:
                found.append(self._plain(one, subsets))
                continue
            covered = one.covered(subsets)
            kept = _kept(one, parts, len(subsets))
            if self.forecast is not None and kept is not None:
                covered = np.where(self.forecast.added(subsets)[:, None], kept, covered)
            steps = one.steps(subsets, covered)
            values = texts.get((one.task.name, "question"))
            if self.worked is not None and values is not None:
                both = (steps + _mean(values.values())) / 2
                steps = np.where(self.worked.added(subsets), both, steps)
            found.append(steps)
        return _mean(found)

    def _plain(self, one: KnownAlone, subsets: np.ndarray) -> np.ndarray:
        values = self._parts(subsets).get((one.task.name, "question"))
        if values is None or self.forecast is None:
            return one.question(subsets)
        mean, linear = _mean(values.values()), self.forecast.added(subsets)
        return mean if linear.all() else np.where(linear, mean, one.question(subsets))

    def _parts(self, subsets: np.ndarray) -> Parts:
        key = subsets.tobytes()
        if self.forecast is not None and key not in self.kept:
            self.kept[key] = self.forecast.by_part(subsets)
        return self.kept.get(key, {})


def _mean(scores: Iterable[np.ndarray]) -> np.ndarray:
    found: np.ndarray = np.mean(list(scores), 0)
    return found


def _kept(one: KnownAlone, parts: Parts, sets: int) -> np.ndarray | None:
    """How well [m, items] every hop of a task is answered with effects added; None without hops."""
    own = [parts[t, part] for t, part in parts if t == one.task.name and part != "question"]
    if not own:
        return None
    kept = np.ones((sets, len(one.task.items)), np.float32)
    for column, item in enumerate(one.task.items):
        for values in own:
            if item.id in values:
                kept[:, column] *= values[item.id]
    return kept


def rank(adapters: int, score: SetScores, alone: float = 0.0) -> Ranking:
    """All pairs, and the best pairs with each third adapter, by score.

    A set of three is ranked only if it exceeds each pair in it by BETTER. alone: the best score of
    base and single adapters.
    """
    pairs = np.stack(np.triu_indices(adapters, 1), 1)
    found = score(pairs) if len(pairs) else np.zeros(0)
    of_pair = np.full((adapters, adapters), -np.inf)
    of_pair[*pairs.T] = found
    order = np.argsort(-found, kind="stable")
    rows = [(tuple(pairs[k].tolist()), float(found[k])) for k in order[:KEPT]]
    larger = sorted(
        {
            tuple(sorted((*pair, third)))
            for pair, _ in rows[:EXTENDED]
            for third in range(adapters)
            if third not in pair
        }
    )
    if larger:
        for members, value in zip(larger, score(np.array(larger)).tolist(), strict=True):
            if value > of_pair[np.ix_(members, members)].max() + BETTER:
                rows.append((members, value))
    rows.sort(key=lambda row: (-round(row[1], 9), len(row[0]), row[0]))
    promises = bool(rows) and rows[0][1] > alone + MARGIN
    highest = np.maximum(of_pair.max(0), of_pair.max(1))
    looked_at = len(pairs) + len(larger)
    return Ranking(tuple(rows[:KEPT]), looked_at, promises, tuple(highest.tolist()))


def choose(
    rankings: Sequence[Ranking],
    keep: int,
    families: Sequence[int],
    fits: Callable[[Subset], bool] = lambda _: True,
    leader: int | None = None,
) -> list[RankedSet]:
    """At most `keep` candidates, taken from the rankings in turn.

    A quarter is for the best sets with the `leader` in the last ranking: what one adapter was
    measured to answer is surer than what a set is forecast to. Where one ranking promises a gain,
    one that does not has fewer turns. families [adapters]: a number each; no two candidates consist
    of the same families, and no family has part in more than half of them, and no more than a
    quarter are larger than pairs, as long as others are left.
    fits: whether a set may be composed.
    """
    chosen: list[RankedSet] = []
    differ = len({ranking.promises for ranking in rankings}) > 1

    def take(source: Iterator[tuple[int, tuple[Subset, float]]], strict: bool) -> bool:
        """Takes the next candidate that is different enough from the chosen ones, if one is."""
        taken = {one.members for one in chosen}
        kinds = [frozenset(families[m] for m in one.members) for one in chosen]
        times = Counter(family for kind in kinds for family in kind)
        large = sum(len(one.members) > 2 for one in chosen) >= math.ceil(keep / 4)
        for place, (members, _) in source:
            kind = frozenset(families[m] for m in members)
            like = kind in kinds or any(times[family] >= math.ceil(keep / 2) for family in kind)
            like = like or (large and len(members) > 2)
            if members not in taken and not (strict and like) and fits(members):
                chosen.append(RankedSet(members, place))
                return True
        return False

    def fill(most: int, strict: bool) -> None:
        sources = [
            (TURNS if differ and one.promises else 1, enumerate(one.order, 1)) for one in rankings
        ]
        while sources and len(chosen) < most:
            for turns, source in list(sources):
                if not all(take(source, strict) for _ in range(min(turns, most - len(chosen)))):
                    sources.remove((turns, source))

    if leader is not None:
        fill(keep - keep // 4, strict=True)
        with_leader = (one for one in enumerate(rankings[-1].order, 1) if leader in one[1][0])
        while len(chosen) < keep and take(with_leader, True):
            pass
    for strict in (True, False):
        fill(keep, strict)
    return chosen


def contending(
    rankings: Sequence[Ranking], chosen: Sequence[RankedSet], items: int
) -> frozenset[int]:
    """The adapters that may still matter after so many items of each task, and those of `chosen`.

    An adapter is left out if its best set, in every form of the question, is worse than the best of
    all sets by more than SURE standard errors of a difference of two shares. A success and a
    failure are added to each share, so that none is certain. No adapter is left out where scores
    are losses.
    """
    highest = np.max([ranking.highest for ranking in rankings], 0)
    best = highest.max()
    shares = (items * np.stack([highest, np.full_like(highest, best)]) + 1) / (items + 2)
    error = np.sqrt((shares * (1 - shares)).clip(0).sum(0) / items)
    near = (best - highest <= SURE * error) | (highest.min() < 0)
    return frozenset({*np.flatnonzero(near).tolist(), *(m for one in chosen for m in one.members)})
