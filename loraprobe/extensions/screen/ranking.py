"""Which sets of adapters are composed and proved: ranks all pairs and some sets of three.

It takes three steps, each a class or a function of this file:

1. `TaskScores`: what systems answered, the base and the adapters alone above all, as tables
   [systems, items].
2. `Ranking`: what a set is expected to answer. It is forecast where effects can be added; else it
   follows from what the members answer alone. `rank` orders the sets by that for each form of the
   question.
3. `choose` takes finalists from these rankings in turn, different enough that one good adapter and
   its relatives do not fill the list.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from loraprobe.defaults import MARGIN
from loraprobe.evaluation.questions import questions
from loraprobe.extensions.screen.defaults import (
    BEST_SINGLES,
    BETTER_THAN_MEMBER,
    BETTER_THAN_PAIR,
    DISTINCT_ANSWERS,
    SURELY_DIFFERENT,
)
from loraprobe.extensions.screen.forecasting import AdditiveForecast
from loraprobe.records import FORMS, QUESTION, STEPS, ItemResult
from loraprobe.tasks import Task, normalize_answer

LARGEST = 3  # adapters of a set
EXTENDED = 24  # of the best pairs, which are tried with every third adapter
KEPT = 10_000  # of the best sets of a ranking
TURNS = 3  # of a ranking that promises a gain, for each of one that does not, see `choose`
AT_ONCE = 4096  # sets that are scored together, which bounds the memory
Subset = tuple[int, ...]
Placed = tuple[int, Subset]  # a set of adapters with its place in a ranking, from 1
# Sets [m, j] of adapters -> scores [m] in each form of the question.
SetScores = Callable[[np.ndarray], Sequence[np.ndarray]]


@dataclass(frozen=True)
class TaskScores:
    """Results of systems on the items of one task, by part: [systems, items].

    Those of the base and n adapters alone, [1 + n, items], tell what sets would answer if each
    question went to the member that answers it. This ranks sets where no text can be read to add
    effects: an upper bound that compositions seldom reach, which names the sets that have something
    to gain. For worked answers a set needs adapters that know each hop, and one that writes answers
    of the asked kind.

    More is better; NaN where an item lacks the part. `form` [systems] says of each how often
    its worked answers are of the asked kind; None where no worked answer came to its end.
    """

    task: Task
    parts: dict[str, np.ndarray]
    form: np.ndarray | None

    @classmethod
    def of(
        cls,
        task: Task,
        systems: Sequence[str],
        results: Sequence[ItemResult],
        alike: Task | None = None,
    ) -> TaskScores:
        """From the results of the systems, the base first; those on other items are left out.

        alike: the task with more items, whose right answers show what worked answers should name.
        """
        row = {name: k for k, name in enumerate(systems)}
        column = {item.id: k for k, item in enumerate(task.items)}
        shape = len(systems), len(task.items)
        parts: dict[str, np.ndarray] = defaultdict(lambda: np.full(shape, np.nan, np.float32))
        worked: dict[str, list[str]] = defaultdict(list)
        for result in results:
            if result.task == task.name and result.system in row and result.item in column:
                parts[result.part][row[result.system], column[result.item]] = result.merit
                if result.part == STEPS and not result.cut:
                    worked[result.system].append(result.text)
        shares = [_form_share(task, worked[name], alike or task) for name in systems if worked]
        form = np.array(shares) if worked else None
        return cls(task, dict(parts), form)

    @property
    def hops(self) -> list[np.ndarray]:
        return [values for part, values in sorted(self.parts.items()) if part not in FORMS]

    def alone(self) -> np.ndarray:
        """The score [1 + n] of each in the form of the question that suits it better."""
        best: np.ndarray = np.max(
            [np.nanmean(self.parts[part], 1) for part in FORMS if part in self.parts], 0
        )
        return best

    def question(self, subsets: np.ndarray) -> np.ndarray:
        """Results [m, items] of sets [m, j] of adapters on the plain question.

        Halfway between the best member and the members together.
        """
        values = self.parts[QUESTION]
        alone = np.nanmean(values, 1)
        best = 1 + subsets[np.arange(len(subsets)), alone[1:][subsets].argmax(1)]
        best[alone[best] < alone[0]] = 0
        halfway: np.ndarray = (values[best] + _together(values, subsets)) / 2
        return halfway

    def steps(self, subsets: np.ndarray, covered: np.ndarray) -> np.ndarray:
        """Results [m, items] of sets [m, j] of adapters on the question with worked steps.

        covered [m, items]: how far a set knows what an item takes.
        """
        assert self.form is not None
        form = np.maximum(self.form[0], self.form[1:][subsets].max(1))
        right, unasked = _together(self.parts[STEPS], subsets), np.isnan(self.parts[STEPS][0])
        written = np.where(unasked, np.nan, covered * form[:, None])
        better = np.nanmean(right, 1) > np.nanmean(written, 1)
        results: np.ndarray = np.where(better[:, None], right, written)
        return results

    def covered(self, subsets: np.ndarray) -> np.ndarray:
        """Whether [m, items] the members or the base know every hop, or the answer without hops."""
        covered = np.ones((len(subsets), len(self.task.items)), np.float32)
        for values in self.hops or [self.parts[QUESTION]]:
            covered *= np.nan_to_num(_together(values, subsets), nan=1.0)
        return covered


def best_alone(alone: Sequence[TaskScores]) -> float:
    """The best mean score over the tasks of the base and the single adapters."""
    return float(np.mean([scores.alone() for scores in alone], 0).max())


def _together(values: np.ndarray, subsets: np.ndarray) -> np.ndarray:
    """Results [m, items] of the best of the base and the members."""
    best = np.maximum(values[1:][subsets[:, 0]], values[0])
    for member in subsets.T[1:]:
        np.maximum(best, values[1:][member], out=best)
    return best


def _form_share(task: Task, texts: Sequence[str], alike: Task) -> float:
    """How often worked answers are of the asked kind, and how far they depend on the question.

    texts: those that did not end at the limit of tokens. They are of the asked kind if they name a
    right answer of some item of `alike`, where right answers repeat; else if they say anything.
    """
    asked, similar = (
        [item for item in one.items if item.cot_prompt is not None] for one in (task, alike)
    )
    golds = {normalize_answer(answer) for item in similar for answer in item.answers}
    if len(golds) <= DISTINCT_ANSWERS * len(similar):
        said = [f" {normalize_answer(text)} " for text in texts]
        named = [{gold for gold in golds if f" {gold} " in text} for text in said]
        different = len(set().union(*named)) / len(golds)
        return sum(map(bool, named)) / len(asked) * different
    whole = [text for text in texts if text.strip()]
    return len(whole) / len(asked) * len(set(whole)) / max(1, len(whole))


@dataclass(frozen=True)
class FormRanking:
    """The sets of adapters in one form of the question, the best first, and how many there were.

    promises: whether the best of them is expected to exceed base and single adapters.
    """

    order: tuple[tuple[Subset, float], ...]
    looked_at: int
    promises: bool


@dataclass(frozen=True, eq=False)
class Ranking:
    """Sets of adapters, ranked by what they are expected to answer to the items that choose.

    names: the adapters. alone: the results of base and adapters on each task. forecast: of plain
    questions and hops, None where no effects can be added; a question that it lacks is expected to
    be answered as the members answer it alone. forms: a ranking for the plain question and, where
    worked steps are asked, one for these.
    """

    names: Sequence[str]
    alone: Sequence[TaskScores]
    forecast: AdditiveForecast | None
    forms: Sequence[FormRanking] = ()

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        alone: Sequence[TaskScores],
        forecast: AdditiveForecast | None,
    ) -> Ranking:
        """Ranks the sets in each form of the question by their mean score over the tasks."""
        unranked = cls(names, alone, forecast)
        return replace(unranked, forms=rank(len(names), unranked.scores, best_alone(alone)))

    def answers(self, subsets: np.ndarray, smooth: float = 0.0) -> dict[str, list[np.ndarray]]:
        """Form of the question -> the results [m, items] of sets [m, j] of adapters on each task.

        NaN where an item is not forecast and others are. A task without worked steps counts by its
        plain question in both forms. smooth: the weight of the smooth version of results.
        """
        forecast = self.forecast_parts(subsets, smooth)
        plain, worked = list[np.ndarray](), list[np.ndarray]()
        for scores in self.alone:
            of_part = forecast[scores.task.name]
            question = of_part.pop(QUESTION, None)
            plain.append(scores.question(subsets) if question is None else question)
            if scores.form is None:
                worked.append(plain[-1])
                continue
            hops, known = [*of_part.values()], scores.covered(subsets)
            # Added effects see what members do to each other's hops, and not what they do to worked
            # answers; what some member knows sees neither.
            added = np.prod(np.nan_to_num(hops, nan=1.0), 0) if hops else known
            worked.append(scores.steps(subsets, (added + known) / 2))
        steps = any(scores.form is not None for scores in self.alone)
        return {QUESTION: plain, STEPS: worked} if steps else {QUESTION: plain}

    def forecast_parts(
        self, subsets: np.ndarray, smooth: float
    ) -> dict[str, dict[str, np.ndarray]]:
        """Task -> part -> results [m, items] of sets with effects added."""
        results: dict[str, dict[str, np.ndarray]] = {scores.task.name: {} for scores in self.alone}
        if self.forecast is None:
            return results
        places = {
            scores.task.name: {item.id: k for k, item in enumerate(scores.task.items)}
            for scores in self.alone
        }
        hard, soft = self.forecast.values(subsets)
        columns = ((1 - smooth) * hard + smooth * soft).T
        for question, values in zip(self.forecast.reading.questions, columns, strict=True):
            place = places[question.task]
            empty = np.full((len(subsets), len(place)), np.nan, np.float32)
            of_part = results[question.task].setdefault(question.part, empty)
            of_part[:, place[question.item.id]] = values
        return results

    def scores(self, subsets: np.ndarray) -> list[np.ndarray]:
        """The mean [m] over items and tasks of what sets [m, j] answer, in each form.

        Half of it is smooth, so that sets are told apart that answer as many questions.
        """
        parts = []
        for some in np.array_split(subsets, math.ceil(len(subsets) / AT_ONCE)):
            forms = self.answers(some, smooth=0.5).values()
            means = [[np.nanmean(task, 1, dtype=np.float64) for task in form] for form in forms]
            parts.append(np.mean(means, 1))
        return list(np.concatenate(parts, 1))

    def results(self, subset: Subset, name: str) -> list[ItemResult]:
        """What a set is expected to answer as the results of a system of that name.

        There are none without a forecast.
        """
        if self.forecast is None:
            return []
        rows = []
        for form, tasks in self.answers(np.array([subset])).items():
            for scores, (values,) in zip(self.alone, tasks, strict=True):
                items = (item.id for item in scores.task.items)
                value_of = dict(zip(items, map(float, values), strict=True))
                rows += [
                    question.result(name, abs(value_of[question.item.id]), "")
                    for question in questions([scores.task])
                    if question.part == form and not math.isnan(value_of[question.item.id])
                ]
        return rows

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
        results = [one.parts[QUESTION if one.form is None else STEPS] for one in self.alone]
        means = np.mean([np.nanmean(values, 1) for values in results], 0)
        best = int(means[1:].argmax())
        # Items without worked steps are NaN there.
        asked = [values[1 + best][~np.isnan(values[1 + best])] for values in results]
        error = np.sqrt(sum(answers.var() / len(answers) for answers in asked)) / len(results)
        return best if means[1 + best] - means[0] > SURELY_DIFFERENT * error else None

    @property
    def knowers(self) -> list[int]:
        """The adapter that answers each hop of each task best, where it exceeds the base."""
        best = [int(np.nanmean(hop, 1).argmax()) for scores in self.alone for hop in scores.hops]
        return list(dict.fromkeys(place - 1 for place in best if place))

    def tried(self, sets: Sequence[Subset], values: Sequence[np.ndarray]) -> list[FormRanking]:
        """Some of the sets by what their sums answered: values [m] in each form."""
        found, enough = [], best_alone(self.alone) + MARGIN
        for form, of_sets in zip(self.forms, values, strict=True):
            order = np.argsort(-of_sets, kind="stable").tolist()
            rows = tuple((sets[k], float(of_sets[k])) for k in order)
            found.append(FormRanking(rows, form.looked_at, rows[0][1] > enough))
        return found


def rank(adapters: int, score: SetScores, alone: float = 0.0) -> list[FormRanking]:
    """A ranking for each form: of all pairs, and of the best pairs with each third adapter.

    Pairs that do not exceed the better member by BETTER_THAN_MEMBER come after all others. A set of
    three is ranked only if it exceeds each pair in it by BETTER_THAN_PAIR. alone: the best score of
    base and single adapters.
    """
    pairs = np.stack(np.triu_indices(adapters, 1), 1)
    singles, forms = score(np.arange(adapters)[:, None]), score(pairs)
    idle = [
        of_pairs <= of_singles[pairs].max(1) + BETTER_THAN_MEMBER
        for of_singles, of_pairs in zip(singles, forms, strict=True)
    ]
    orders = [
        np.lexsort((-of_pairs, last)).tolist() for of_pairs, last in zip(forms, idle, strict=True)
    ]
    best = {k for order in orders for k in order[:EXTENDED]}
    larger = sorted(
        {
            tuple(sorted((*pairs[k].tolist(), third)))
            for k in best
            for third in set(range(adapters)) - set(pairs[k].tolist())
        }
    )
    more = score(np.array(larger)) if larger else [np.zeros(0)] * len(forms)
    looked_at = len(pairs) + len(larger)
    rankings = []
    for order, last, of_pairs, of_larger in zip(orders, idle, forms, more, strict=True):
        of_pair = np.full((adapters, adapters), -np.inf)
        of_pair[*pairs.T] = of_pairs
        rows = [
            (bool(last[k]), -round(float(of_pairs[k]), 9), 2, tuple(pairs[k].tolist()))
            for k in order[:KEPT]
        ]
        for members, value in zip(larger, of_larger.tolist(), strict=True):
            if value > of_pair[np.ix_(members, members)].max() + BETTER_THAN_PAIR:
                rows.append((False, -round(value, 9), len(members), members))
        kept = tuple((members, -value) for _, value, _, members in sorted(rows)[:KEPT])
        rankings.append(FormRanking(kept, looked_at, kept[0][1] > alone + MARGIN))
    return rankings


def choose(
    rankings: Sequence[FormRanking],
    keep: int,
    families: Sequence[int],
    fits: Callable[[Subset], bool] = lambda _: True,
    leader: int | None = None,
) -> list[Placed]:
    """At most `keep` sets, taken from the rankings in turn.

    A ranking is a forecast and may be wrong in one way for many sets, so the chosen ones are to
    fail apart. Each share is a convention, and says how many proofs one mistake may cost:

    - A quarter is for the best sets with the `leader` in the last ranking: what one adapter was
      measured to answer is surer than what a set is forecast to.
    - A ranking that promises no gain has one turn in TURNS + 1 where another one does: its form of
      the question is the less likely one, and the promise may be wrong.
    - No two sets consist of the same families, which would be one proof made twice.
    - No family is in more than half of the sets: if the forecast overrates one adapter, the other
      half is left.
    - No more than a quarter are larger than pairs: of many more sets of three the best is overrated
      more, and each has pairs that may do as well.

    Shares are rounded up, and hold as long as others are left. families [adapters]: a number each.
    leader: an adapter. fits: whether a set may be composed.
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
            admitted = rows if only is None else (row for row in rows if only in row[1][0])
            sources += [iter(admitted)] * (TURNS if differ and ranking.promises else 1)
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
