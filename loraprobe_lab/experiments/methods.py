"""`loraprobe lab methods`: every merge method, space and router in one table, on small worlds.

Small worlds are trained, or worlds that exist are read. Every scenario that asks one of the three
questions of the table is a case; every system is evaluated on it, and results are stored as they
come. From the table follows what `merge-and-eval` evaluates by default (portfolio.md).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import statistics
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from loraprobe.adapters import Adapter
from loraprobe.defaults import ALPHA, MARGIN
from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.evaluation import System
from loraprobe.evaluation.gains import tabulate
from loraprobe.evaluation.questions import questions
from loraprobe.evaluation.statistics import Array, fieller, quantile
from loraprobe.lora.spaces import SPACES
from loraprobe.merging import METHODS, FactorMethod, LinearMethod, MergeMethod
from loraprobe.options import Options
from loraprobe.pipeline.plan import (
    Fitted,
    SystemBuilder,
    TaskSplit,
    baseline_systems,
    random_partner,
)
from loraprobe.pipeline.transforms import transform
from loraprobe.records import QUESTION, STEPS, Interval, ItemPart, ItemResult
from loraprobe.registry import name_of
from loraprobe.routing import ROUTERS
from loraprobe.routing._learned import fit_weights
from loraprobe.tasks import Task, load_task
from loraprobe_lab.experiments.pages import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    RED,
    Pages,
    as_svg,
    drawing,
    grid_lines,
    render,
)
from loraprobe_lab.experiments.runner import (
    BaseInfo,
    Bases,
    ExperimentRun,
    Shape,
    WorldEvaluator,
    Worlds,
    small_base,
)
from loraprobe_lab.training import BaseRecipe
from loraprobe_lab.world import Scenario, World, versions, worlds_in
from loraprobe_lab.worlds.couples import methods_world
from loraprobe_lab.worlds.spec import WorldSpec

Family = Literal["linear", "merge", "router", "chain", "control"]
Learned = Literal["learn", "learn:per=layer"]  # values of --weights
N = 2  # adapters in every case
STRENGTHS = (None, 1.0)  # weight of each adapter, None for a method's own default


@dataclass(frozen=True)
class ComparedSystem:
    """One way of composing two adapters.

    spec: method or router as on the command line, or "chain". space: None where the method runs in
    its default space, in which it gives what it gives in the spaces listed in `same`. strength:
    weight of each adapter; None for the method's default, 1/n. balanced: norms made equal first.
    learned: `--weights`, learned from questions that are not asked. A control is a method whose
    second adapter is a random one of the same norms.
    """

    label: str
    family: Family
    spec: str
    space: str | None = None
    strength: float | None = None
    same: tuple[str, ...] = ()
    balanced: bool = False
    learned: Learned | None = None

    def builder(self, adapters: Sequence[Adapter]) -> SystemBuilder:
        """What builds the system, as in `merge-and-eval`."""
        given = None if self.strength is None else (self.strength,) * len(adapters)
        settings = Options(
            routers=(self.spec,) if self.family == "router" else (),
            space=self.space,
            weights=self.learned or given,
            balance="norm" if self.balanced else "none",
            rank=whole_rank(adapters) if self.family in ("merge", "control") else "auto",
        )
        if self.family == "control":
            adapters = [adapters[0], random_partner(adapters[1])]
        return SystemBuilder(adapters, transform(adapters, settings), settings)


def whole_rank(adapters: Sequence[Adapter]) -> int:
    """A rank that cuts nothing, because the method is compared and not its compression."""
    infos = [info for adapter in adapters for info in adapter.layout.values()]
    return max(min(info.in_features, info.out_features) for info in infos)


def all_systems() -> list[ComparedSystem]:
    """Every system.

    A method is one system for all spaces in which it is lossless, and one for every other space; a
    method that takes weights is one system at each strength. Linear methods whose coefficients
    agree are one system, and a second one with norms made equal first. Every method as it is by
    default has a control.
    """
    learned = [
        ComparedSystem(f"task_arithmetic {how}", "linear", "task_arithmetic", learned=how)
        for how in typing.get_args(Learned)
    ]
    methods = [*_linear(), *learned, *_merges()]
    controls = (
        replace(one, label=f"{one.label}, random partner", family="control")
        for one in methods
        if one.strength is None and not one.balanced and one.space in (None, "full")
    )
    routers = (ComparedSystem(spec, "router", spec) for spec in _routers())
    return [*methods, *controls, *routers, ComparedSystem("chain", "chain", "chain")]


def _linear() -> Iterator[ComparedSystem]:
    groups: dict[tuple[float, ...], list[ComparedSystem]] = {}
    for spec in METHODS.names():
        method = METHODS.make(spec)
        if isinstance(method, LinearMethod):
            for strength in _strengths(method):
                weights = method.default_weights(N) if strength is None else (strength,) * N
                gates = tuple(method.coefficients(weights))
                one = ComparedSystem(_label(spec, strength), "linear", spec, strength=strength)
                groups.setdefault(gates, []).append(one)
    for same in groups.values():
        plain = sorted(same, key=lambda e: (e.strength is not None, e.spec == "task_arithmetic"))
        label = " = ".join(one.label for one in plain)
        yield replace(plain[0], label=label)
        yield replace(plain[0], label=f"{plain[0].label} balanced", balanced=True)


def _merges() -> Iterator[ComparedSystem]:
    for spec in METHODS.names():
        method = METHODS.make(spec)
        if isinstance(method, LinearMethod):
            continue
        lossless = tuple(space for space in SPACES if space in method.lossless)
        spaces: list[tuple[str | None, tuple[str, ...]]] = [
            ("full", ()) if lossless == ("full",) else (None, lossless),
            *((space, ()) for space in SPACES if space not in lossless),
        ]
        if isinstance(method, FactorMethod):  # on factors there is no space at all
            spaces = [(None, ())]
        for (space, same), strength in itertools.product(spaces, _strengths(method)):
            label = _label(spec, strength, space)
            yield ComparedSystem(label, "merge", spec, space, strength, same)


def _strengths(method: MergeMethod) -> Sequence[float | None]:
    """STRENGTHS without one that the default equals; None alone for a method without weights."""
    if not method.takes_weights:
        return (None,)
    ones = method.default_weights(N)
    return [s for s in STRENGTHS if s is None or (s,) * N != ones]


def _label(spec: str, strength: float | None, space: str | None = None) -> str:
    weights = f" x{strength:g}" if strength is not None else ""
    return spec + (f" in {space}" if space else "") + weights


def _routers() -> Iterator[str]:
    """Every token router with default options, and with other values of its Literal options.

    Each other value is used alone and with one other value of a second option.
    """
    for cls in (cls for cls in ROUTERS if not cls.constant):
        hints = typing.get_type_hints(cls)
        named = [
            [f"{field.name}={v}" for v in typing.get_args(hints[field.name]) if v != field.default]
            for field in dataclasses.fields(cls)
            if field.init and typing.get_origin(hints[field.name]) is Literal
        ]
        choices = [(choice,) for options in named for choice in options]
        pairs = [itertools.product(*two) for two in itertools.combinations(named, 2)]
        yield name_of(cls)
        for choice in itertools.chain(choices, *pairs):
            yield f"{name_of(cls)}:{','.join(choice)}"


CaseKind = Literal["two-hop", "keep-both", "step-by-step"]
KINDS: tuple[CaseKind, ...] = ("two-hop", "keep-both", "step-by-step")
FORM: Mapping[CaseKind, ItemPart] = {
    "two-hop": QUESTION,
    "keep-both": QUESTION,
    "step-by-step": STEPS,
}
ROLES: Mapping[CaseKind, tuple[str, str]] = {
    "two-hop": ("hop 1", "hop 2"),
    "keep-both": ("skill 1", "skill 2"),
    "step-by-step": ("facts", "steps"),
}
FITTED_ON = 20  # prompts of each adapter to which a router is fitted


@dataclass(frozen=True)
class MethodsCase:
    """One question in one world: two adapters and their tasks.

    `roles`: adapter -> its role in the question (`ROLES`), the same in every world.
    """

    kind: CaseKind
    world: World = field(repr=False)
    scenario: Scenario = field(repr=False)
    roles: Mapping[str, str]

    @property
    def name(self) -> str:
        """A name that is unique among the worlds of a run, and fit for a file."""
        return f"{self.world.path.resolve().name}.{self.scenario.name}"

    def left(self, limit: int | None) -> list[Task]:
        """The tasks with at most `FITTED_ON` items beyond `limit`; none if one has no such item."""
        whole = [] if limit is None else [load_task(path) for path in self.scenario.tasks]
        tasks = [replace(t, items=t.items[limit : (limit or 0) + FITTED_ON]) for t in whole]
        return tasks if all(task.items for task in tasks) else []

    def prompts(self, limit: int | None) -> dict[str, list[str]]:
        """Adapter -> prompts of its kind, from items beyond `limit`, which are not evaluated.

        At most `FITTED_ON` each; {} if there are none. They contain no answer; a hop's prompt
        contains the answers of earlier hops, as another adapter would give them.
        """
        left = [task.items for task in self.left(limit)]
        if not left:
            return {}
        hops = [[item.hop_prompt(k) for item in left[0] if item.hops] for k in (0, 1)]
        of: dict[str, list[str]] = {
            "skill 1": [item.prompt for item in left[0]],
            "skill 2": [item.prompt for item in left[-1]],
            "hop 1": hops[0],
            "hop 2": hops[1],
            "facts": hops[0],
            "steps": [item.cot_prompt for item in left[0] if item.cot_prompt],
        }
        return {name: of[role] for name, role in self.roles.items()}


def cases_of(world: World) -> list[MethodsCase]:
    """The scenarios of a world that ask one of the questions, recognised by their tasks.

    keep-both: two adapters and two tasks without hops. two-hop: two adapters and one task, whose
    hops name one adapter each. step-by-step: two adapters and one task that is also asked in worked
    steps, whose first hop names one adapter and whose second names none. Excluded are scenarios
    whose second hop is unknown to the base or whose couples of the steps are invented: the
    literature predicts no success there (see the success map).
    """
    return [
        MethodsCase(kind, world, scenario, dict(zip(names, ROLES[kind], strict=True)))
        for scenario in world.scenarios.values()
        for kind, names in _questions(scenario)
    ]


def _questions(scenario: Scenario) -> Iterator[tuple[CaseKind, list[str]]]:
    """The question that a scenario asks, and its adapters in the order of `ROLES`, if any."""
    names = list(scenario.adapters)
    if len(names) != 2 or not all(path.is_file() for path in scenario.tasks):
        return
    tasks = [load_task(path, 1) for path in scenario.tasks]
    if len(tasks) == 2 and not any(task.has_hops for task in tasks):
        yield "keep-both", names
    elif len(tasks) == 1 and len(tasks[0].items[0].hops) == 2:
        item = tasks[0].items[0]
        first, second = (hop.adapter for hop in item.hops)
        promising = all(scenario.axes.get(k, v) == v for k, v in (("familiar", 1), ("invented", 0)))
        if {first, second} == set(names):
            yield "two-hop", [str(first), str(second)]
        elif first in names and second is None and item.cot_prompt and promising:
            names.remove(first)
            yield "step-by-step", [first, *names]


def open_worlds(directories: Sequence[Path]) -> list[World]:
    """The worlds in these directories, or right below them.

    Raises UsageError for two worlds of one name, and for one that asks none of the questions;
    WorldError where there is no world.
    """
    found = [world for directory in directories for world in worlds_in(directory)]
    names = [world.path.resolve().name for world in found]
    for world, name in zip(found, names, strict=True):
        if names.count(name) > 1:
            raise UsageError(
                f"Two worlds are called {name}:", "give their directories other names."
            )
        if not cases_of(world):
            raise UsageError(
                f"{world.path} holds no scenario of two adapters that asks for two hops, for two "
                "skills or for new facts in worked steps; leave it out."
            )
    return found


@dataclass(frozen=True)
class CaseResults:
    """The results of one case.

    `results` name the base, singles by their role, and every system by its label; all in the form
    of the case's question. `refused`: label -> why it could not be built.
    """

    case: MethodsCase
    results: tuple[ItemResult, ...] = field(repr=False)
    refused: Mapping[str, str] = field(default_factory=dict)


def evaluate_case(
    evaluator: WorldEvaluator, case: MethodsCase, systems: Sequence[ComparedSystem]
) -> CaseResults:
    """The results of every system; those in the response cache are not computed again.

    A chain needs no worked steps, but counts under the form in which the others are asked.
    """
    tasks, responses, form = (
        evaluator.tasks(case.scenario.tasks),
        evaluator.responses(case.name),
        FORM[case.kind],
    )
    adapters = list(evaluator.adapters(case.roles).values())
    results, refused = list[ItemResult | None](), dict[str, str]()
    for baseline in baseline_systems(adapters):
        results += evaluator.evaluate(responses, baseline, tasks, {"question", form})
    asker = evaluator.asker(responses, {form})
    for at, system in enumerate(systems, 1):
        known = System(system.label, "merge", content=system.label)
        rows = [asker.get(known, q) for q in questions(tasks) if q.part == form]
        if None in rows and (system.family != "chain" or tasks[0].has_hops):
            try:
                builder = system.builder(adapters)
                left, experts = case.left(evaluator.limit), builder.prepared.adapters
                router = ROUTERS.make(system.spec) if system.family == "router" else None
                needs = router is not None and router.needs_prompts
                if (needs or system.learned) and not left:
                    raise UsageError(f"No items of {case.name} are left to learn from.")
                if router is not None and needs:
                    prompts = case.prompts(evaluator.limit)
                    router = router.fit(evaluator.scorer, experts, prompts)
                    builder = replace(builder, fitted=Fitted(routers={system.spec: router}))
                if system.learned:
                    parts = TaskSplit(tuple(left), tuple(tasks))
                    per_layer = builder.options.learns_layers
                    weights = fit_weights(evaluator.scorer, experts, parts, per_layer)
                    builder = replace(builder, fitted=Fitted(weights))
                built = builder.build(system.spec, name=system.label)
                built = replace(built, content=known.content)
                rows = [*evaluator.evaluate(responses, built, tasks, {form})]
            except LoraprobeError as error:
                refused[system.label] = str(error)
        results += rows
        evaluator.progress(f"ask {case.name}", at, len(systems))
    asked = {system.label for system in systems} - set(refused)
    return CaseResults(case, tuple(_results(case, filter(None, results), asked)), refused)


def _results(
    case: MethodsCase, results: Iterable[ItemResult], asked: set[str]
) -> Iterator[ItemResult]:
    """The results in the form of the question, singles under their roles."""
    for row in results:
        if row.system == "chain":
            if row.part == "question" and "chain" in asked:
                yield replace(row, part=FORM[case.kind])
        elif row.system in case.roles:
            yield replace(row, system=case.roles[row.system])
        elif row.system == "base" or row.system in asked:
            yield row


# The table: what each system gains at two hops, keeps of two skills, and gains step by step.
#
# Every world gives one figure of a system, the mean over its cases; figures are plain means over
# worlds with Student's interval, so they speak of worlds of this kind. The standard error is never
# below that of two items more in every world, one gained and one lost. That of a single world is
# the largest that its items allow. The adjusted intervals hold for all figures of a column
# (Bonferroni).


Cell = dict[str, Any]  # a figure, or what a system has in a column; as in methods.json
Scores = Mapping[tuple[str, str], Mapping[str, float]]  # (system, part) -> task -> exact match


def pooled(values: Array, items: int, figures: int) -> Cell:
    """One figure over worlds: `values` [k], of `items` items each; `figures` are in the column.

    `value` is the mean over worlds, `ci95` its interval, `adjusted_ci95` one for all of its column
    at once; `each` holds the worlds' own figures, in their order.
    """
    k, mean = len(values), float(values.mean())
    spread = values.std(ddof=1) / math.sqrt(k) if k > 1 else 1 / math.sqrt(items + 2)
    error = max(float(spread), math.sqrt(2 / k) / (items + 2))

    def interval(alpha: float) -> Interval:
        reach = quantile(1 - alpha / 2, k - 1 if k > 1 else math.inf) * error
        return mean - reach, mean + reach

    ends = {"ci95": interval(ALPHA), "adjusted_ci95": interval(ALPHA / figures)}
    return {"value": mean, **ends, "worlds": k, "each": values.tolist()}


def tabulated(answered: Sequence[CaseResults], systems: Sequence[ComparedSystem]) -> Cell:
    """The table of these cases, as methods.json has it. A case is averaged with the others of its
    world and question.

    counts: question -> its worlds, cases, items, and the scores of base and single adapters.
    refused: label -> why the system could not be built. cells: a row for each system, in which
    two_hop, keep_both and step_by_step are None where it took no part.
    """
    by: dict[CaseKind, list[CaseResults]] = {}
    for one in answered:
        by.setdefault(one.case.kind, []).append(one)
    columns = {
        "two_hop": _gains(by.get("two-hop", ()), systems),
        "keep_both": _kept(by.get("keep-both", ()), systems),
        "step_by_step": _gains(by.get("step-by-step", ()), systems),
    }
    return {
        "counts": {kind: _count(kind, cases) for kind, cases in by.items()},
        "refused": {label: why for one in answered for label, why in one.refused.items()},
        "cells": [
            {**asdict(one), **{name: found.get(one.label) for name, found in columns.items()}}
            for one in systems
        ],
    }


def _count(kind: CaseKind, cases: Sequence[CaseResults]) -> Cell:
    rows = [row for case in cases for row in case.results if row.part == FORM[kind]]
    scores = {
        name: float(np.mean([row.value for row in rows if row.system == name]))
        for name in ("base", *ROLES[kind])
    }
    items = sum(row.system == "base" for row in rows)
    found = {"worlds": len(_worlds(cases)), "cases": len(cases), "items": items}
    return {**found, "baselines": scores}


def _worlds(cases: Sequence[CaseResults]) -> list[list[CaseResults]]:
    """The cases by the world that they lie in."""
    found: dict[object, list[CaseResults]] = {}
    for case in cases:
        found.setdefault(case.case.world.path, []).append(case)
    return list(found.values())


def _everywhere(cases: Sequence[CaseResults], systems: Iterable[ComparedSystem]) -> list[str]:
    """Labels of the systems with results in every case."""
    present = [{row.system for row in case.results} for case in cases]
    return [one.label for one in systems if all(one.label in names for names in present)]


def _scores(case: CaseResults) -> Scores:
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in case.results:
        tasks = values.setdefault((row.system, row.part), {})
        tasks.setdefault(row.task, []).append(row.value)
    return {
        key: {task: float(np.mean(own)) for task, own in tasks.items()}
        for key, tasks in values.items()
    }


def _items(cases: Sequence[CaseResults]) -> int:
    """The fewest items of a case."""
    return min(len({(row.task, row.item) for row in case.results}) for case in cases)


def _gains(cases: Sequence[CaseResults], systems: Sequence[ComparedSystem]) -> dict[str, Cell]:
    """Systems against base and singles, in either form where the question is in worked steps.

    `score` is the system's own mean over worlds, `gain` that minus the best baseline, `against`.
    """
    if not cases:
        return {}
    kind = cases[0].case.kind
    form, names = FORM[kind], _everywhere(cases, systems)
    worlds = [[_scores(case) for case in world] for world in _worlds(cases)]

    def each(system: str, part: str) -> Array:
        own = [[np.mean(list(s[system, part].values())) for s in world] for world in worlds]
        return np.array([np.mean(found) for found in own])

    forms = dict.fromkeys((form, "question"))
    second = {(b, f): each(b, f) for b in ("base", *ROLES[kind]) for f in forms}
    against, best = max(second.items(), key=lambda row: float(row[1].mean()))
    items, found = _items(cases), dict[str, Cell]()
    for name in names:
        own = each(name, form)
        gain = pooled(own - best, items, len(names))
        low, high = gain["adjusted_ci95"]
        standing = "gains" if low > MARGIN else "does not gain" if high < MARGIN else "undecided"
        found[name] = {"score": float(own.mean()), "against": against[0]}
        found[name] |= {"gain": gain, "standing": standing}
    return found


def _kept(cases: Sequence[CaseResults], systems: Sequence[ComparedSystem]) -> dict[str, Cell]:
    """Retentions, without cases in which a specialist is not better than the base.

    The retention of a skill is (score - base) / (specialist - base). `worse` is the mean over
    worlds of the worse of the two skills, `both` that of their mean, `skills` those of each.
    `behind` is the best system's `worse` minus this one's, paired by world.
    """
    told = [case for case in cases if all(_stands_out(case, skill) for skill in (0, 1))]
    names = _everywhere(cases, systems)
    if not told or not names:
        return {}
    worlds = [[(case, _scores(case)) for case in world] for world in _worlds(told)]
    # [worlds, systems, (skill 1, skill 2, worse, both)]
    shares = np.array(
        [
            np.mean([[_retained(*case, name) for name in names] for case in world], axis=0)
            for world in worlds
        ]
    )
    best, items = int(shares[:, :, 2].mean(0).argmax()), _items(told)
    found = {}
    for s, name in enumerate(names):
        worse, both = (pooled(shares[:, s, k], items, len(names)) for k in (2, 3))
        gap = shares[:, best, 2] - shares[:, s, 2]
        behind = None if s == best else pooled(gap, items, len(names) - 1)
        skills = shares[:, s, :2].mean(0).tolist()
        found[name] = {"worse": worse, "both": both, "skills": skills, "behind": behind}
    return found


def _retained(case: CaseResults, scores: Scores, name: str) -> tuple[float, float, float, float]:
    """What a system keeps of both skills in one case, of the worse one, and of both on average."""
    kept = []
    for role, task in zip(ROLES["keep-both"], case.case.scenario.tasks, strict=True):
        own, base, expert = (scores[s, "question"][task.stem] for s in (name, "base", role))
        kept.append((own - base) / (expert - base))
    return kept[0], kept[1], min(kept), sum(kept) / 2


def _stands_out(case: CaseResults, skill: int) -> bool:
    """Whether the specialist of a skill is shown to be better than the base."""
    role, task = ROLES["keep-both"][skill], case.case.scenario.tasks[skill].stem
    table = tabulate(case.results, [("base", QUESTION), (role, QUESTION)], task)
    gained = table.column(role, QUESTION) - table.column("base", QUESTION)
    return fieller(gained, gained, table.clusters) is not None


# Chooses from the table of methods what merge-and-eval evaluates beside its fixed systems.
#
# merge-and-eval evaluates several compositions and reports the best of them. So a system is worth
# its cost if the best of all gets better with it, on worlds on which it was not chosen. In every
# world the figure of a set is that of its best system: the gain, or the retention of the worse
# skill. Half of the worlds, drawn again and again, choose the system that adds most to the mean
# figure; the other half says what it adds there. A system joins if that is at least `LEAST` on
# average, up to `MOST` for each kind of question. Only systems that a spec alone describes can
# join.
#
# A maximum over equally good systems also grows by chance, a little; `LEAST` lies above that.


QuestionKind = Literal["one task", "one task, worked steps", "several tasks"]
Figures = Mapping[str, Sequence[float]]  # label -> the figure of each world
LEAST, MOST = 0.02, 2
FEWEST = 4  # worlds that can be halved
SPLITS, SEED = 500, 0
LISTED = 3  # candidates that the page lists
COLUMNS: Mapping[QuestionKind, tuple[str, str]] = {
    "one task": ("two_hop", "gain"),
    "one task, worked steps": ("step_by_step", "gain"),
    "several tasks": ("keep_both", "worse"),
}


def choices(document: Mapping[str, Any]) -> list[Cell]:
    """The steps for every kind of question, from the document of `lab methods`.

    `beside` is the mean figure of the best of the systems before a step, `figure` that of the
    system that it adds. `chosen` is the share of the halves that chose it, `added` what the halves'
    own choices added on the other halves (mean, and 95 % of the halves).

    The last step of a kind is the one that was refused, unless `MOST` systems joined.
    """
    cells = {
        cell["label"]: cell
        for cell in document["cells"]
        if cell["family"] not in ("chain", "control")
    }
    fixed = [label for label, cell in cells.items() if _spec(cell) in _fixed()]
    found = []
    for kind, (column, key) in COLUMNS.items():
        taking_part = {label: cell for label, cell in cells.items() if cell.get(column)}
        figures = {label: cell[column][key]["each"] for label, cell in taking_part.items()}
        chosen = [label for label in fixed if label in figures]
        while chosen and len(chosen) < min(len(figures), len(fixed) + MOST):
            if len(figures[chosen[0]]) < FEWEST:
                break
            step = _choice(kind, figures, chosen, taking_part)
            found.append(step)
            if not step["joins"]:
                break
            chosen.append(step["label"])
    return found


def portfolio_page(found: Sequence[Cell]) -> str:
    """The page of what is evaluated by default, from `choices`."""
    return render("portfolio", choices=found, fixed=_fixed(), least=LEAST, splits=SPLITS)


def _fixed() -> tuple[str, ...]:
    """The systems that every evaluation has."""
    return (*Options().methods, *Options().routers)


def _spec(cell: Mapping[str, Any]) -> str | None:
    """The spec that describes a system, None where that takes weights, a space or --balance."""
    spec, registry = cell["spec"], ROUTERS if cell["family"] == "router" else METHODS
    if cell["balanced"] or cell.get("learned") or cell["strength"] is not None:
        return None
    try:
        made: Any = registry.make(spec)
    except UsageError:  # an option that was measured and has left the package since
        return None
    default = None if cell["space"] is None else made.default_space()
    return spec if cell["space"] == default else None


def _choice(
    kind: QuestionKind, figures: Figures, chosen: Sequence[str], cells: Mapping[str, Any]
) -> Cell:
    """The system that adds most to those chosen, and what halves of the worlds say of it."""
    worlds = range(len(figures[chosen[0]]))
    best = [max(figures[label][w] for label in chosen) for w in worlds]
    over = {
        label: [max(0.0, each[w] - best[w]) for w in worlds]
        for label, each in figures.items()
        if label not in chosen
    }

    def most(among: Sequence[int]) -> str:
        """What adds most on these worlds; "" where nothing adds anything."""
        top = max(over, key=lambda label: statistics.mean(over[label][w] for w in among))
        return top if any(over[top][w] for w in among) else ""

    draw, picked, added = random.Random(SEED), [], []
    for _ in range(SPLITS):
        drawn = draw.sample(worlds, len(worlds))
        half = len(worlds) // 2
        picked.append(most(drawn[:half]))
        gained = over.get(picked[-1], [0.0] * len(worlds))
        added.append(statistics.mean(gained[w] for w in drawn[half:]))
    ranked = sorted(over, key=lambda label: -statistics.mean(over[label]))
    top, cuts = ranked[0], statistics.quantiles(added, n=40, method="inclusive")
    column, key = COLUMNS[kind]
    spec, on_others = _spec(cells[top]), statistics.mean(added)
    return {
        "kind": kind,
        "label": top,
        "spec": spec,
        "figure": cells[top][column][key]["value"],
        "beside": statistics.mean(best),
        "chosen": picked.count(top) / SPLITS,
        "added": (on_others, cuts[0], cuts[-1]),
        "others": [(label, statistics.mean(over[label])) for label in ranked[1 : 1 + LISTED]],
        "worlds": len(worlds),
        "joins": spec is not None and on_others >= LEAST,
    }


BASES = Bases(architectures=("llama", "gpt2"), hidden=(96,), seeds=(0, 1, 2, 3))


def try_methods(
    run: ExperimentRun,
    worlds: Sequence[Path] = (),
    bases: Bases = BASES,
    spec: Callable[[int, BaseRecipe], WorldSpec] = methods_world,
    shape: Shape = small_base,
    systems: Sequence[ComparedSystem] | None = None,
) -> Pages:
    """Makes the table (methods.md, methods.json, methods.svg), and from it the default systems of
    merge-and-eval (portfolio.md).

    worlds: directories of existing worlds; without any, those of `spec` are trained on `bases`.
    systems: all unless given. The run's limit cuts the tasks; routers that need prompts are fitted
    to the items beyond it. Raises UsageError for an unfit world, before anything is trained.
    """
    compared = all_systems() if systems is None else systems
    opened: Worlds = [
        (BaseInfo(world.path.resolve().name, "", world.seed), partial(World.load, world.path))
        for world in open_worlds(worlds)
    ]

    def answer(
        evaluator: WorldEvaluator, base: BaseInfo
    ) -> tuple[dict[str, Any], list[CaseResults]]:
        about = {
            "name": base.name,
            "kind": evaluator.world.manifest["kind"],
            "architecture": evaluator.scorer.model.config.model_type,
            "parameters": base.parameters,
            "seed": base.seed,
        }
        return about, [evaluate_case(evaluator, c, compared) for c in cases_of(evaluator.world)]

    def pages(found: Sequence[tuple[dict[str, Any], list[CaseResults]]]) -> Pages:
        answers = [one for _, answered in found for one in answered]
        cases = [
            {"case": one.case.name, "question": one.case.kind, "roles": dict(one.case.roles)}
            for one in answers
        ]
        made = methods_pages(
            {
                "format": 1,
                "command": run.command,
                "versions": versions(),
                "margin": MARGIN,
                "worlds": [about for about, _ in found],
                "cases": cases,
                **tabulated(answers, compared),
            }
        )
        portfolio = portfolio_page(choices(json.loads(made.json)))
        return replace(made, more={"portfolio.md": portfolio})

    return run.run_worlds(opened or run.small_worlds(bases, spec, shape), answer, pages)


def methods_pages(document: dict[str, Any]) -> Pages:
    """The pages of everything measured."""
    cells = document["cells"]
    same = {cell["spec"]: cell["same"] for cell in cells if len(cell["same"]) > 1}
    markdown = render(
        "methods",
        document=document,
        roles=ROLES,
        same=[f"{spec}: {', '.join(spaces)}" for spec, spaces in same.items()],
    )
    return Pages("methods", document, markdown, lambda: methods_figure(cells))


FAMILIES = {
    "linear": (DARK, "constant gates"),
    "merge": (RED, "merge into new weights"),
    "router": (BLUE, "router"),
    "chain": (GREEN, "chain of adapters"),
    "control": (GREY, "random partner"),
}
# column and figure of each panel, its title, the line that counts, and its span
METHOD_PANELS = (
    ("two_hop", "gain", "two hops, asked at once\ngain over base and singles", 0.05, (-0.3, 1.02)),
    ("keep_both", "worse", "keep both\nretention of the worse skill", 0.8, (-0.15, 1.05)),
    (
        "step_by_step",
        "gain",
        "new facts, step by step\ngain over base and singles",
        0.05,
        (-0.3, 1.02),
    ),
)


def methods_figure(cells: Sequence[Cell]) -> str:
    """SVG. The thick line is each figure's own 95 % interval, the thin one holds for all of its
    panel; the dashed line is the margin, or the retention that counts as keeping."""
    from matplotlib.lines import Line2D

    with drawing() as Figure:
        figure = Figure(figsize=(10.5, 0.165 * len(cells) + 1.6), layout="constrained")
        panels = figure.subplots(1, len(METHOD_PANELS), sharey=True, squeeze=False)[0]
        for panel, (column, key, title, line, span) in zip(panels, METHOD_PANELS, strict=True):
            panel.set_title(title, fontsize=9)
            panel.set(xlim=span, xlabel="thick: 95 %, thin: 95 % for the whole panel")
            panel.axvline(line, color=DARK, linewidth=0.8, linestyle="--")
            grid_lines(panel)
            for y, cell in enumerate(cells):
                colour = FAMILIES[cell["family"]][0]
                if cell[column] is not None:
                    found = cell[column][key]
                    panel.plot(found["adjusted_ci95"], [y, y], color=colour, lw=0.7, alpha=0.6)
                    panel.plot(found["ci95"], [y, y], color=colour, lw=2.0, alpha=0.7)
                    panel.plot(found["value"], y, "o", color=colour, markersize=3.2)
        panels[0].set_yticks(range(len(cells)), [cell["label"] for cell in cells], fontsize=7)
        panels[0].set_ylim(len(cells) - 0.4, -0.6)
        handles = [Line2D([], [], marker="o", color=c, label=text) for c, text in FAMILIES.values()]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
        return as_svg(figure)
