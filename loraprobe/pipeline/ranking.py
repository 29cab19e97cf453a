"""Which sets of adapters are composed and proved: ranks all pairs and some sets of three.

Each form of the question has a ranking of its own, by what is forecast where effects can be added,
and else by what the members answer alone. Finalists are taken from the rankings in turn, different
enough that one good adapter and its relatives do not fill the list.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from loraprobe.defaults import (
    BEST_SINGLES,
    BETTER_THAN_PAIR,
    DISTINCT_ANSWERS,
    MARGIN,
    SURELY_DIFFERENT,
)
from loraprobe.probes import AdditiveForecast
from loraprobe.records import FORMS, ItemResult
from loraprobe.tasks import Task, normalize_answer

EXTENDED = 24  # of the best pairs, which are tried with every third adapter
KEPT = 10_000  # of the best sets of a ranking
TURNS = 3  # of a ranking that promises a gain, for each one of a ranking that does not
Subset = tuple[int, ...]
Placed = tuple[int, Subset]  # a set of adapters with its place in a ranking, from 1
SetScores = Callable[[np.ndarray], np.ndarray]  # sets [m, j] of adapters -> scores [m]


@dataclass(frozen=True)
class BaselineScores:
    """Results of the base and n adapters alone on the items of one task, by part: [1 + n, items].

    They tell what sets would answer if each question went to the member that answers it. This ranks
    sets where effects on the next token cannot be added: worked answers have no given text, and
    some heads are not linear. It is an upper bound that compositions seldom reach, and it names the
    sets that have something to gain. For worked answers a set needs an adapter that knows each hop,
    and one that writes answers of the asked kind.

    More is better; NaN where an item lacks the part. `form` [1 + n] says of each how often its
    worked answers are of the asked kind; None for a task without worked answers.
    """

    task: Task
    parts: dict[str, np.ndarray]
    form: np.ndarray | None

    @classmethod
    def of(
        cls, task: Task, systems: Sequence[str], results: Sequence[ItemResult]
    ) -> BaselineScores:
        """From the results of the systems, the base first; those on other items are left out."""
        row = {name: k for k, name in enumerate(systems)}
        column = {item.id: k for k, item in enumerate(task.items)}
        shape = len(systems), len(task.items)
        parts: dict[str, np.ndarray] = defaultdict(lambda: np.full(shape, np.nan, np.float32))
        worked: dict[str, list[str]] = defaultdict(list)
        for one in results:
            if one.task == task.name and one.system in row and one.item in column:
                value = -one.value if one.metric == "answer_loss" else one.value
                parts[one.part][row[one.system], column[one.item]] = value
                if one.part == "steps" and not one.cut:
                    worked[one.system].append(one.text)
        form = np.array([_form_share(task, worked[name]) for name in systems]) if worked else None
        return cls(task, dict(parts), form)

    @property
    def own_form(self) -> np.ndarray:
        """The results in the form that is asked: step by step where there are worked answers."""
        return self.parts["question" if self.form is None else "steps"]

    @property
    def hops(self) -> list[np.ndarray]:
        return [values for part, values in sorted(self.parts.items()) if part not in FORMS]

    def alone(self) -> np.ndarray:
        """The score [1 + n] of each in the form of the question that suits it better."""
        found: np.ndarray = np.max(
            [np.nanmean(self.parts[part], 1) for part in FORMS if part in self.parts], 0
        )
        return found

    def question(self, subsets: np.ndarray) -> np.ndarray:
        """Scores [m] of sets [m, j] of adapters on the plain question.

        Halfway between the best member and the members together.
        """
        values = self.parts["question"]
        alone = np.nanmean(values, 1)
        best = np.maximum(alone[0], alone[1:][subsets].max(1))
        together: np.ndarray = (best + np.nanmean(_together(values, subsets), 1)) / 2
        return together

    def steps(self, subsets: np.ndarray, covered: np.ndarray) -> np.ndarray:
        """Scores [m] of sets [m, j] of adapters on the question with worked steps.

        covered [m, items]: whether a set knows what an item takes.
        """
        assert self.form is not None
        form = np.maximum(self.form[0], self.form[1:][subsets].max(1))
        right = np.nanmean(_together(self.parts["steps"], subsets), 1)
        found: np.ndarray = np.maximum(covered.mean(1) * form, right)
        return found

    def covered(self, subsets: np.ndarray) -> np.ndarray:
        """Whether [m, items] the members or the base know every hop, or the answer without hops."""
        covered = np.ones((len(subsets), len(self.task.items)), np.float32)
        for values in self.hops or [self.parts["question"]]:
            covered *= np.nan_to_num(_together(values, subsets), nan=1.0)
        return covered


def _together(values: np.ndarray, subsets: np.ndarray) -> np.ndarray:
    """Results [m, items] of the best of the base and the members."""
    found = np.maximum(values[1:][subsets[:, 0]], values[0])
    for member in subsets.T[1:]:
        np.maximum(found, values[1:][member], out=found)
    return found


def _form_share(task: Task, texts: Sequence[str]) -> float:
    """How often worked answers are of the asked kind, and how far they depend on the question.

    texts: those that did not end at the limit of tokens. They are of the asked kind if they name a
    right answer of some item, where right answers repeat; else if they say anything.
    """
    golds = {normalize_answer(answer) for item in task.items for answer in item.answers}
    if len(golds) <= DISTINCT_ANSWERS * len(task.items):
        said = [f" {normalize_answer(text)} " for text in texts]
        named = [{gold for gold in golds if f" {gold} " in text} for text in said]
        different = len(set().union(*named)) / len(golds)
        return sum(map(bool, named)) / len(task.items) * different
    whole = [text for text in texts if text.strip()]
    return len(whole) / len(task.items) * len(set(whole)) / max(1, len(whole))


@dataclass(frozen=True)
class FormRanking:
    """The sets of adapters in one form of the question, the best first, and how many there were.

    promises: whether the best of them is expected to exceed base and single adapters. highest: of
    each adapter the score of the best set with it.
    """

    order: tuple[tuple[Subset, float], ...]
    looked_at: int
    promises: bool
    highest: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Ranking:
    """Sets of adapters, ranked by what the items that choose say.

    names: the adapters. alone: the scores of base and adapters on each task. forecast: of the plain
    questions and hops; worked: of right worked answers; None where nothing can be added. forms: a
    ranking for the plain question and, where worked steps are asked, one for these.
    """

    names: Sequence[str]
    alone: Sequence[BaselineScores]
    forecast: AdditiveForecast | None
    worked: AdditiveForecast | None
    forms: Sequence[FormRanking]

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        alone: Sequence[BaselineScores],
        forecast: AdditiveForecast | None,
        worked: AdditiveForecast | None,
    ) -> Ranking:
        """Ranks the sets in each form of the question by their mean score over the tasks."""
        best = float(np.mean([one.alone() for one in alone], 0).max())
        scores = _Scores(alone, forecast, worked)
        forms = [scores.plain]
        if any(one.form is not None for one in alone):
            forms.append(scores.steps)
        ranked = [rank(len(names), form, best) for form in forms]
        return cls(names, alone, forecast, worked, ranked)

    @property
    def best(self) -> list[int]:
        """The best single adapters, and of several tasks the best on each."""
        scores = [one.alone()[1:] for one in self.alone]
        order = np.argsort(-np.mean(scores, 0), kind="stable")[:BEST_SINGLES]
        return list(dict.fromkeys([*order.tolist(), *(int(own.argmax()) for own in scores)]))

    @property
    def leader(self) -> int | None:
        """The adapter that answers most alone, step by step where that is asked.

        None unless it answers more than the base by SURELY_DIFFERENT standard errors.
        """
        results = [one.own_form for one in self.alone]
        means = np.mean([np.nanmean(values, 1) for values in results], 0)
        best = int(means[1:].argmax())
        spread = [np.nanvar(values[1 + best]) / values.shape[1] for values in results]
        error = np.sqrt(np.sum(spread)) / len(results)
        return best if means[1 + best] - means[0] > SURELY_DIFFERENT * error else None

    @property
    def knowers(self) -> list[int]:
        """The adapter that answers each hop of each task best, where it exceeds the base."""
        best = [int(np.nanmean(hop, 1).argmax()) for one in self.alone for hop in one.hops]
        return list(dict.fromkeys(place - 1 for place in best if place))

    def asked_further(self, finalists: Sequence[Placed]) -> set[int]:
        """The adapters that may still matter, the best single ones and those of the finalists.

        An adapter does not matter if its best set, in every form of the question, is worse than the
        best of all sets by more than SURELY_DIFFERENT standard errors of a difference of two
        shares. A success and a failure are added to each share, so that none is certain. Every
        adapter matters where scores are losses.
        """
        items = min(len(one.task.items) for one in self.alone)
        highest = np.max([form.highest for form in self.forms], 0)
        best = highest.max()
        shares = (items * np.stack([highest, np.full_like(highest, best)]) + 1) / (items + 2)
        error = np.sqrt((shares * (1 - shares)).clip(0).sum(0) / items)
        near = (best - highest <= SURELY_DIFFERENT * error) | (highest.min() < 0)
        members = (m for _, subset in finalists for m in subset)
        return {*np.flatnonzero(near).tolist(), *members, *self.best, *self.knowers}


class _Scores:
    """Scores of sets of adapters [m, j] in both forms of the question, the mean over tasks: [m]."""

    def __init__(
        self,
        alone: Sequence[BaselineScores],
        forecast: AdditiveForecast | None,
        worked: AdditiveForecast | None,
    ) -> None:
        self.alone, self.forecast, self.worked = alone, forecast, worked
        self.kept: dict[bytes, np.ndarray] = {}  # the forecasts by set: both forms need them

    def plain(self, subsets: np.ndarray) -> np.ndarray:
        """Of the plain question: as forecast where effects can be added."""
        return _mean([self._plain(one, subsets) for one in self.alone])

    def steps(self, subsets: np.ndarray) -> np.ndarray:
        """Of the question with worked steps.

        A task without worked steps counts by its plain question. Where effects can be added,
        whether a set keeps the hops is forecast, and the score is the mean with the forecast of
        worked answers.
        """
        of_worked = None if self.worked is None else self.worked.scores(subsets)
        return _mean(
            [
                self._plain(one, subsets)
                if one.form is None
                else self._steps(one, subsets, of_worked)
                for one in self.alone
            ]
        )

    def _plain(self, one: BaselineScores, subsets: np.ndarray) -> np.ndarray:
        scores, asked = one.question(subsets), _columns(self.forecast, one.task, hops=False)
        if self.forecast is None or not asked:
            return scores
        mean = self._forecasts(subsets)[:, list(asked)].mean(1, dtype=np.float64)
        return np.where(self.forecast.added(subsets), mean, scores)

    def _steps(
        self, one: BaselineScores, subsets: np.ndarray, of_worked: np.ndarray | None
    ) -> np.ndarray:
        covered, hops = one.covered(subsets), _columns(self.forecast, one.task, hops=True)
        if self.forecast is not None and hops:
            place = {item.id: k for k, item in enumerate(one.task.items)}
            kept, found = np.ones_like(covered), self._forecasts(subsets)
            for column, item in hops.items():
                kept[:, place[item]] *= found[:, column]
            covered = np.where(self.forecast.added(subsets)[:, None], kept, covered)
        scores, read = one.steps(subsets, covered), _columns(self.worked, one.task, hops=False)
        if self.worked is None or of_worked is None or not read:
            return scores
        both = (scores + of_worked[:, list(read)].mean(1, dtype=np.float64)) / 2
        return np.where(self.worked.added(subsets), both, scores)

    def _forecasts(self, subsets: np.ndarray) -> np.ndarray:
        assert self.forecast is not None
        key = subsets.tobytes()
        if key not in self.kept:
            self.kept[key] = self.forecast.scores(subsets)
        return self.kept[key]


def _columns(forecast: AdditiveForecast | None, task: Task, hops: bool) -> dict[int, str]:
    """The columns of a forecast that are a task's plain questions, or its hops, and their items."""
    asked = () if forecast is None else forecast.questions
    own = ((k, q) for k, q in enumerate(asked) if q.task == task.name)
    return {k: q.item.id for k, q in own if (q.part not in FORMS) is hops}


def _mean(scores: Sequence[np.ndarray]) -> np.ndarray:
    found: np.ndarray = np.mean(scores, 0)
    return found


def rank(adapters: int, score: SetScores, alone: float = 0.0) -> FormRanking:
    """All pairs, and the best pairs with each third adapter, by score.

    A set of three is ranked only if it exceeds each pair in it by BETTER_THAN_PAIR. alone: the best
    score of base and single adapters.
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
            if value > of_pair[np.ix_(members, members)].max() + BETTER_THAN_PAIR:
                rows.append((members, value))
    rows.sort(key=lambda row: (-round(row[1], 9), len(row[0]), row[0]))
    promises = bool(rows) and rows[0][1] > alone + MARGIN
    highest = np.maximum(of_pair.max(0), of_pair.max(1))
    looked_at = len(pairs) + len(larger)
    return FormRanking(tuple(rows[:KEPT]), looked_at, promises, tuple(highest.tolist()))


def choose(
    rankings: Sequence[FormRanking],
    keep: int,
    families: Sequence[int],
    fits: Callable[[Subset], bool] = lambda _: True,
    leader: int | None = None,
) -> list[Placed]:
    """At most `keep` sets, taken from the rankings in turn.

    A quarter is for the best sets with the `leader` in the last ranking: what one adapter was
    measured to answer is surer than what a set is forecast to. Where one ranking promises a gain,
    one that does not has fewer turns. families [adapters]: a number each; no two sets consist of
    the same families, and no family has part in more than half of them, and no more than a quarter
    are larger than pairs, as long as others are left. fits: whether a set may be composed.
    """
    chosen: list[Placed] = []
    differ = len({ranking.promises for ranking in rankings}) > 1

    def take(source: Iterator[tuple[int, tuple[Subset, float]]], strict: bool) -> bool:
        """Takes the next set that is different enough from the chosen ones, if one is."""
        taken = [members for _, members in chosen]
        kinds = [frozenset(families[m] for m in members) for members in taken]
        times = Counter(family for kind in kinds for family in kind)
        large = sum(len(members) > 2 for members in taken) >= math.ceil(keep / 4)
        for place, (members, _) in source:
            kind = frozenset(families[m] for m in members)
            like = kind in kinds or any(times[family] >= math.ceil(keep / 2) for family in kind)
            like = like or (large and len(members) > 2)
            if members not in taken and not (strict and like) and fits(members):
                chosen.append((place, members))
                return True
        return False

    def fill(most: int, strict: bool = True, only: int | None = None) -> None:
        """Takes sets in turn until there are so many. only: an adapter that has to be in them."""
        sources = []
        for ranking in rankings if only is None else rankings[-1:]:
            rows = enumerate(ranking.order, 1)
            own = rows if only is None else (row for row in rows if only in row[1][0])
            sources += [iter(own)] * (TURNS if differ and ranking.promises else 1)
        while sources and len(chosen) < most:
            for source in list(sources):
                if len(chosen) < most and not take(source, strict):
                    sources.remove(source)

    if leader is not None:
        fill(keep - keep // 4)
        fill(keep, only=leader)
    fill(keep)
    fill(keep, strict=False)
    return chosen
