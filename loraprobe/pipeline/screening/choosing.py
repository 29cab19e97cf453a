"""What of a library is composed and proved: base and adapters alone, look by look.

Adapters are opened one after the other and put into one base, or asked by a Ray cluster. After the
first look an adapter is asked no more if it cannot take part in a finalist any more. The items that
choose prove nothing, so asking an adapter a part of them needs no correction.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from loraprobe import compatibility
from loraprobe.adapters import Adapter
from loraprobe.base import Base
from loraprobe.defaults import BEST_SINGLES, SCREENING_SHARE, WORKED_TOKENS
from loraprobe.errors import LoraprobeError, OutputError, UsageError
from loraprobe.evaluation import System
from loraprobe.evaluation.plan import BASE
from loraprobe.library import Member
from loraprobe.pipeline.asking_alone import (
    Look,
    ask_one,
    forecast_sets,
    is_kept,
    keep,
    step_of,
    system_alone,
)
from loraprobe.pipeline.evaluator import Evaluator
from loraprobe.pipeline.screening.ranking import (
    SURE,
    RankedSet,
    Ranking,
    Subset,
    choose,
    contending,
    rankings_of,
)
from loraprobe.pipeline.task_split import TaskSplit
from loraprobe.probes import KnownAlone, PairForecast, ScreenedTexts, with_worked_answers
from loraprobe.records import FORMS, ItemResult
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

    @property
    def leader(self) -> int | None:
        """The adapter that answers most alone, step by step where that is asked.

        None unless it answers more than the base by SURE standard errors.
        """
        forms = ("question" if one.form is None else "steps" for one in self.known)
        parts = [one.parts[form] for one, form in zip(self.known, forms, strict=True)]
        means = np.mean([np.nanmean(part, 1) for part in parts], 0)
        best = int(means[1:].argmax())
        spread = [np.nanvar(part[1 + best]) / part.shape[1] for part in parts]
        error = np.sqrt(np.sum(spread)) / len(parts)
        return best if means[1 + best] - means[0] > SURE * error else None

    @property
    def knowers(self) -> list[int]:
        """The adapter that answers each hop of each task best, where it exceeds the base."""
        found = dict[int, None]()
        for known in self.known:
            for part, values in sorted(known.parts.items()):
                best = int(np.nanmean(values, 1).argmax())
                if part not in FORMS and best:
                    found[best - 1] = None
        return list(found)

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
    """The way to the finalists, and what it took.

    evaluator: of the items that choose. members: the adapters by name. results: of all systems
    alone. names: of the systems asked so far, the base first. asked, worked: the looks that were
    asked. looked_at: how many sets were compared in a form. unasked: adapters that the budget left
    out of a look. failed: an adapter -> why it cannot be asked. passes: of each kind of look, how
    many systems were asked how many items. spent: seconds and system-items of what was not kept
    already.
    """

    evaluator: Evaluator
    members: Mapping[str, Member]
    looks: Sequence[Look]
    results: list[ItemResult] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    asked: list[Look] = field(default_factory=list)
    worked: list[Look] = field(default_factory=list)
    looked_at: int = 0
    unasked: list[str] = field(default_factory=list)
    failed: dict[str, LoraprobeError] = field(default_factory=dict)
    passes: dict[str, tuple[int, int]] = field(default_factory=dict)
    spent: tuple[float, int] = (0.0, 0)

    @property
    def parts(self) -> TaskSplit:
        """The items that choose, set apart, and those that prove."""
        assert self.evaluator.split is not None
        return self.evaluator.split

    @property
    def goes_on(self) -> bool:
        """Whether a further adapter may be asked."""
        return self.evaluator.session.left(SCREENING_SHARE) > 0

    @property
    def pace(self) -> float:
        """Seconds of one system for one item; 0 where nothing was asked."""
        seconds, items = self.spent
        return seconds / items if items else 0.0

    def system(self, name: str) -> System:
        """The base or an adapter, opened."""
        opened = self.members[name].open if name != BASE else None
        return system_alone(name, opened, self.evaluator.inputs.base)

    def ask(self, names: Sequence[str], look: Look) -> list[str]:
        """Asks systems a look, the base always; the names of those that answered."""
        start, before, answered = time.perf_counter(), len(self.evaluator.ledger), list[str]()
        self._by_cluster(names, look)
        for name in names:
            if name != BASE and not self.goes_on and not is_kept(self.evaluator, name, look):
                self.unasked += [] if look.worked else [name]
                continue
            self._tell(name, look, 0)
            try:
                self.results += ask_one(self.evaluator, self.system(name), look)
            except LoraprobeError as error:
                if name == BASE or isinstance(error, OutputError):
                    raise
                self.failed[name] = error
                continue
            answered.append(name)
        systems = self.passes.get(look.kind, (0, 0))[0] + len(answered)
        self.passes[look.kind] = systems, look.items
        if len(self.evaluator.ledger) > before:
            seconds, items = self.spent
            seconds += time.perf_counter() - start
            self.spent = seconds, items + len(answered) * look.items
        return answered

    def _by_cluster(self, names: Sequence[str], look: Look) -> None:
        """Has a cluster ask what is not kept yet; `ask` finds errors of single adapters again."""
        evaluator, cluster = self.evaluator, self.evaluator.session.cluster
        if cluster is None:
            return
        systems = dict[str, System]()
        for name in names:
            if not is_kept(evaluator, name, look):
                with contextlib.suppress(LoraprobeError):
                    systems[name] = self.system(name)
        for name, found in cluster.alone(evaluator, systems, look):
            if not isinstance(found, LoraprobeError):
                keep(evaluator, name, look, *found)
            self._tell(name, look, 1)
            if not self.goes_on:
                break

    def _tell(self, name: str, look: Look, done: int) -> None:
        self.evaluator.session.tell(step_of(name, look), done, 1)

    def steps(self) -> Iterator[None]:
        """Asks look by look, the base first; between two steps the screen may end."""
        for look in self.looks:
            over = self.asked and not self.goes_on
            if over and not is_kept(self.evaluator, BASE, look):
                self.unasked += self.names[1:]
                return
            before = self.names
            others = self._contending() if before else [*self.members]
            self.asked.append(look)
            self.names = self.ask([BASE], look)
            yield
            self.names += self.ask(others, look)
            if before and self.unasked:  # the budget ended, so the looks before choose
                self.names = before
                self.asked.pop()
                return
            if len(self.names) < 3:
                told = f"{len(self.names) - 1} adapters"
                raise UsageError(
                    f"{told} could be asked within --budget; give it more minutes."
                    if self.unasked
                    else f"{told} can be asked: {next(iter(self.failed.values()))}"
                )
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
        members = [self.members[name] for name in self.names[1:]]
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
        tasks = self._tasks()
        items = {(task.name, item.id) for task in tasks for item in task.items}
        results = [row for row in self.results if (row.task, row.item) in items]
        return [KnownAlone.of(task, self.names, results) for task in tasks]

    def _tasks(self) -> list[Task]:
        """The tasks with the items of all looks so far."""
        by_task = zip(*(look.tasks for look in self.asked), strict=True)
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

        return choose(found.rankings, most, found.families, fits, found.leader)

    def _contending(self) -> list[str]:
        """The adapters that may still take part in a finalist, and the best single ones."""
        found = self.screened()
        chosen = self.finalists(found, self.evaluator.session.options.keep)
        items = min(len(task.items) for task in self._tasks())
        kept = contending(found.rankings, chosen, items) | {*found.best, *found.knowers}
        return [name for at, name in enumerate(self.names[1:]) if at in kept]

    def _ask_worked(self, look: Look) -> None:
        """Reads right worked answers to the items of a look with every system.

        They have the form of the adapter whose own are most often of the asked kind; nothing is
        read where no form can be found, and when the budget is over.
        """
        if not self.goes_on:
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
        answered = self.ask(self.names, worked)
        if answered == self.names:
            self.worked.append(worked)

    def _written(self, name: str, task: Task) -> dict[str, str]:
        """What one system writes to the items that ask for worked steps, by item."""
        asked = [item for item in task.items if item.cot_prompt is not None]
        most = self.evaluator.session.options.max_new_tokens or WORKED_TOKENS
        writer = self.system(name).composition
        with self.evaluator.scorer.with_composition(writer) as scorer:
            prompts = [item.cot_prompt or "" for item in asked]
            texts = scorer.generate(prompts, max_new_tokens=most)
        return {item.id: text for item, text in zip(asked, texts, strict=True)}
