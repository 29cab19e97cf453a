"""What of a library is composed and proved: base and adapters alone, look by look.

After the first look an adapter is asked no more if it cannot take part in a finalist any more. The
items that choose prove nothing, so it costs no correction who is asked how many of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from loraprobe import compatibility
from loraprobe.adapters import Adapter
from loraprobe.base import Base
from loraprobe.defaults import BEST_SINGLES, WORKED_TOKENS
from loraprobe.errors import UsageError
from loraprobe.evaluation.chain import BASE
from loraprobe.library import Member
from loraprobe.pipeline.asking_alone import Asker, Look, forecast_sets, is_kept, looks_of
from loraprobe.pipeline.evaluator import Evaluator
from loraprobe.pipeline.screening.ranking import (
    RankedSet,
    Ranking,
    Subset,
    choose,
    contending,
    rankings_of,
)
from loraprobe.pipeline.task_split import TaskSplit
from loraprobe.probes import KnownAlone, PairForecast, ScreenedTexts, with_worked_answers
from loraprobe.records import FORMS
from loraprobe.tasks import Task


@dataclass(frozen=True, eq=False)
class Screened:
    """What the items that choose said of the adapters that were asked all of them.

    rankings: of pairs and larger sets, one for each form of the question. forecast: of the plain
    questions and hops; worked: of right worked answers. scores [1 + n]: of the base and each
    adapter alone, the mean over tasks.
    """

    members: Sequence[Member]
    known: Sequence[KnownAlone]
    forecast: PairForecast | None
    worked: PairForecast | None
    rankings: Sequence[Ranking]
    scores: np.ndarray

    @property
    def best(self) -> list[int]:
        """The best single adapters, and of several tasks the best on each."""
        order = np.argsort(-self.scores[1:], kind="stable")[:BEST_SINGLES]
        own = [int(known.alone()[1:].argmax()) for known in self.known]
        return list(dict.fromkeys([*order.tolist(), *own]))

    def opened(self, members: Iterable[int], base: Base | None) -> list[Adapter]:
        """Some of the adapters on the base's layout of fused projections."""
        return compatibility.aligned([self.members[m].open() for m in members], base)

    @property
    def families(self) -> list[int]:
        """A number for the family of each adapter."""
        found = [member.record.family for member in self.members]
        return [-at - 1 if family is None else family for at, family in enumerate(found)]


@dataclass
class Choosing:
    """The way to the finalists. names: of the systems asked so far, the base first.

    asked, worked: the looks that were asked. looked_at: how many sets were compared in a form.
    """

    asker: Asker
    looks: Sequence[Look]
    names: list[str] = field(default_factory=list)
    asked: list[Look] = field(default_factory=list)
    worked: list[Look] = field(default_factory=list)
    looked_at: int = 0

    @classmethod
    def of(cls, usable: Mapping[str, Member], evaluator: Evaluator) -> Choosing:
        """The start. usable: the adapters by name."""
        looks = looks_of(evaluator.scorer, evaluator.tasks, evaluator.session.options)
        return cls(Asker(evaluator, usable), looks)

    @property
    def evaluator(self) -> Evaluator:
        """Of the items that choose."""
        return self.asker.evaluator

    @property
    def parts(self) -> TaskSplit:
        """The items that choose, set apart, and those that prove."""
        assert self.evaluator.split is not None
        return self.evaluator.split

    def steps(self) -> Iterator[None]:
        """Asks look by look, the base first; between two steps the screen may end."""
        for look in self.looks:
            over = self.asked and not self.asker.goes_on
            if over and not is_kept(self.evaluator, BASE, look):
                self.asker.unasked += self.names[1:]
                return
            before = self.names
            others = self._contending() if before else [*self.asker.members]
            self.asked.append(look)
            self.names = self.asker.ask([BASE], look)
            yield
            self.names += self.asker.ask(others, look)
            if before and self.asker.unasked:  # the budget ended, so the looks before choose
                self.names = before
                self.asked.pop()
                return
            self._require_two()
            yield
            self._ask_worked(look)

    def screened(self) -> Screened:
        """What all looks so far said."""
        known = self._known()
        forecast = forecast_sets(self.evaluator, self.names, self.asked)
        worked = forecast_sets(self.evaluator, self.names, self.worked)
        with self.evaluator.session.stage("forecast"):
            rankings = rankings_of(known, forecast, worked, len(self.names) - 1)
        self.looked_at = max(self.looked_at, *(ranking.looked_at for ranking in rankings))
        members = [self.asker.members[name] for name in self.names[1:]]
        scores = np.mean([one.alone() for one in known], 0)
        return Screened(members, known, forecast, worked, rankings, scores)

    def at_ceiling(self) -> str | None:
        """The base or adapter that leaves no room for a gain on the items so far, of every task."""
        known, margin = self._known(), self.evaluator.session.options.needed_gain
        best = np.max(
            [
                np.min([np.nanmean(one.parts[part], 1) for one in known], 0)
                for part in FORMS
                if all(part in one.parts for one in known)
            ],
            0,
        )
        first = int(best.argmax())
        return self.names[first] if best[first] > 1 - margin else None

    def _known(self) -> list[KnownAlone]:
        tasks = self._tasks(self.asked)
        items = {(task.name, item.id) for task in tasks for item in task.items}
        results = [row for row in self.asker.results if (row.task, row.item) in items]
        return [KnownAlone.of(task, self.names, results) for task in tasks]

    def _tasks(self, asked: Sequence[Look]) -> list[Task]:
        """The tasks with the items of these looks."""
        by_task = zip(*(look.tasks for look in asked), strict=True)
        return [
            replace(parts[0], items=tuple(item for part in parts for item in part.items))
            for parts in by_task
        ]

    def finalists(self, found: Screened, most: int) -> list[RankedSet]:
        """At most so many sets, all of which may be composed by what their headers say."""
        base, allow = self.evaluator.inputs.base, self.evaluator.session.options.allow

        def fits(members: Subset) -> bool:
            adapters = found.opened(members, base)
            contents = compatibility.TensorChecks(adapters)
            return compatibility.check(
                adapters, base, purpose="route", allow=allow, contents=contents
            ).compatible

        return choose(found.rankings, most, found.families, fits)

    def _contending(self) -> list[str]:
        """The adapters that may still take part in a finalist, and the best single ones."""
        found = self.screened()
        chosen = self.finalists(found, self.evaluator.session.options.keep)
        items = min(len(task.items) for task in self._tasks(self.asked))
        kept = contending(found.rankings, chosen, items) | {*found.best}
        return [name for at, name in enumerate(self.names[1:]) if at in kept]

    def _require_two(self) -> None:
        if len(self.names) > 2:
            return
        told, failed = len(self.names) - 1, self.asker.failed
        raise UsageError(
            f"{told} adapters could be asked within --budget; give it more minutes."
            if self.asker.unasked
            else f"{told} adapters can be asked: {next(iter(failed.values()))}"
        )

    def _ask_worked(self, look: Look) -> None:
        """Reads right worked answers to the items of a look with every system.

        They have the form of the adapter whose own are most often of the asked kind; nothing is
        read where no form can be found, and when the budget is over.
        """
        if not self.asker.goes_on:
            return
        made = []
        for one, task in zip(self._known(), look.tasks, strict=True):
            if one.form is not None and one.form.max() > 0:
                texts = self._written(self.names[int(one.form.argmax())], task)
                made.append(with_worked_answers(task, texts))
        tasks = [task for task in made if task is not None]
        reading = ScreenedTexts.of(self.evaluator.scorer, tasks, None) if tasks else None
        if reading is None:
            return
        worked = Look(look.number, (), reading, worked=True)
        answered = self.asker.ask(self.names, worked)
        if answered == self.names:
            self.worked.append(worked)

    def _written(self, name: str, task: Task) -> dict[str, str]:
        """What one system writes to the items that ask for worked steps, by item."""
        asked = [item for item in task.items if item.cot_prompt is not None]
        most = self.evaluator.session.options.max_new_tokens or WORKED_TOKENS
        writer = self.asker.system(name).composition
        with self.evaluator.scorer.with_composition(writer) as scorer:
            prompts = [item.cot_prompt or "" for item in asked]
            texts = scorer.generate(prompts, max_new_tokens=most)
        return {item.id: text for item, text in zip(asked, texts, strict=True)}
