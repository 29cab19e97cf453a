"""`loraprobe lab reproduce`: the paper's matrix, a figure, and whether each claim held.

The matrix has one cell for every size, set of questions, template and library. The adapter sets of
its worlds have the axes `template`, `library` (2 or 3), `form` (of the question to compositions:
"question" or "steps") and `joint`, the adapter that was trained on both hops, for comparison.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from loraprobe.defaults import ALPHA, MARGIN
from loraprobe.errors import UsageError
from loraprobe.evaluation import System, measure_gains
from loraprobe.evaluation.statistics import wilson
from loraprobe.options import Options
from loraprobe.pipeline.plan import SystemBuilder, baseline_systems
from loraprobe.pipeline.transforms import PreparedAdapters
from loraprobe.records import Estimate, Gain, Interval, ItemPart, ItemResult
from loraprobe.records.measurements import Z95, items_needed
from loraprobe_lab.experiments.pages import DARK, GREEN, GREY, RED, Pages, as_svg, drawing, render
from loraprobe_lab.experiments.runner import (
    BaseInfo,
    Bases,
    ExperimentRun,
    Shape,
    WorldEvaluator,
    WorldResults,
    small_base,
)
from loraprobe_lab.training import BaseRecipe
from loraprobe_lab.world import Scenario
from loraprobe_lab.worlds.facts import table
from loraprobe_lab.worlds.math import BASE, math_matrix
from loraprobe_lab.worlds.name_sets import english_matrix, two_hop_matrix
from loraprobe_lab.worlds.spec import WorldSpec

METHODS = ("uniform", "sum", "arrow")  # compositions of weights; the chain is evaluated too
ALL = "all sizes"  # in place of one


def system_name(scenario: Scenario, method: str) -> str:
    """The name of a composition of an adapter set, unique in its world."""
    return f"{scenario.name}:{method}"


def system_names(scenario: Scenario, methods: Sequence[str] = METHODS) -> list[str]:
    return [system_name(scenario, method) for method in methods]


def evaluate_world(evaluator: WorldEvaluator, base: BaseInfo) -> WorldResults:
    """Evaluates base, singles, joint adapters and every composition; known results are kept.

    A world without worked steps is asked at once only. A chain needs no worked steps. If
    compositions are asked step by step, it has to beat the single adapters in either form, as they
    do: its answer counts under the form of its set.
    """
    scenarios = tuple(evaluator.world.scenarios.values())
    tasks = evaluator.tasks(path for scenario in scenarios for path in scenario.tasks)
    systems = _systems(evaluator, scenarios)
    results = evaluator.evaluate_all(
        base.name, [(system, tasks, parts) for system, parts in systems]
    )
    forms = {system_name(s, "chain"): ItemPart(str(s.axes["form"])) for s in scenarios}
    counted = [
        replace(row, part=forms[row.system])
        if row.system in forms and row.part == "question"
        else row
        for row in results
    ]
    return WorldResults(base, scenarios, tuple(counted))


def _systems(
    evaluator: WorldEvaluator, scenarios: Sequence[Scenario]
) -> list[tuple[System, frozenset[str]]]:
    """Every system with the forms in which it is asked; a chain asks the hops.

    No router is fitted here, so none that learns takes part. The target adapter is no part of a
    chain, so that only the library of the two hops has one.
    """
    names = [name for scenario in scenarios for name in scenario.adapters]
    joint = {str(scenario.axes.get("joint")) for scenario in scenarios}
    names += sorted(joint & set(evaluator.world.adapters))
    adapters = evaluator.adapters(names)
    forms = frozenset({"question", *(str(s.axes["form"]) for s in scenarios)})
    found = [(system, forms) for system in baseline_systems(list(adapters.values()))]
    for scenario in scenarios:
        chosen = tuple(adapters[name] for name in scenario.adapters)
        builder = SystemBuilder(chosen, PreparedAdapters(chosen), Options())
        own = forms if scenario.axes["form"] == "question" else frozenset({"steps"})
        chain = ("chain",) if scenario.axes["library"] == 2 else ()
        for method in (*METHODS, *chain):
            system = builder.build(method)
            found.append((replace(system, name=system_name(scenario, method)), own))
    return found


def groups_of(scenario: Scenario) -> dict[str, str]:
    """Task -> its set of questions: the axis `group`, else the task's name.

    Templates may ask the same questions in their own wording; their tasks are then one group.
    """
    group = scenario.axes.get("group")
    return {path.stem: str(group) if group else path.stem for path in scenario.tasks}


Cell = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Matrix:
    """All worlds of one run. Pools the worlds of a size; each world is a stratum."""

    worlds: tuple[WorldResults, ...]
    margin: float = MARGIN
    _pooled: dict[Any, list[ItemResult]] = field(default_factory=dict, init=False, repr=False)

    @property
    def sizes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(world.base.size for world in self.worlds))

    @property
    def scenarios(self) -> tuple[Scenario, ...]:
        """The adapter sets, which all worlds share."""
        return self.worlds[0].scenarios

    @property
    def groups(self) -> tuple[str, ...]:
        """The sets of questions, in order."""
        return tuple(dict.fromkeys(g for s in self.scenarios for g in groups_of(s).values()))

    @property
    def templates(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(s.axes["template"]) for s in self.scenarios))

    def scenario(self, template: str, library: int) -> Scenario:
        """The adapter set of that template and library."""
        return next(
            scenario
            for scenario in self.scenarios
            if (scenario.axes["template"], scenario.axes["library"]) == (template, library)
        )

    def of_size(self, size: str) -> list[WorldResults]:
        return [world for world in self.worlds if size in (ALL, world.base.size)]

    def results(self, size: str, group: str, *scenarios: Scenario) -> list[ItemResult]:
        """The results of a size on a set of questions, in the tasks of these adapter sets."""
        key = (size, group, frozenset(path for s in scenarios for path in s.tasks))
        if key not in self._pooled:
            tasks = {t for s in scenarios for t, its in groups_of(s).items() if its == group}
            self._pooled[key] = [
                replace(row, task=f"{group}@{world.base.name}")
                for world in self.of_size(size)
                for row in world.results
                if row.task in tasks
            ]
        return self._pooled[key]

    def gain(
        self,
        size: str,
        group: str,
        scenarios: Sequence[Scenario],
        against: Sequence[str],
        methods: Sequence[str] = METHODS,
        form: str | None = None,
        alpha: float = ALPHA,
    ) -> Gain | None:
        """The gain of the best of these methods, on the first set, over the best of `against`."""
        first = scenarios[0]
        return best_gain(
            self.results(size, group, *scenarios),
            system_names(first, methods),
            against,
            form or str(first.axes["form"]),
            self.margin,
            alpha,
        )

    def cells(self) -> list[Cell]:
        """Every cell, in the order of sizes, groups, adapter sets, systems.

        It has the results of one system on one set of questions, over all worlds of a size. `score`
        is exact match in the form in which the adapter set is asked, with Wilson's interval over
        persons. `gain` is over the best of base and singles in their better form, paired, with its
        interval; `against` names that baseline. Base and singles (role "baseline") and the joint
        adapter ("reference") have no gain.
        """
        return [
            cell
            for size in self.sizes
            for group in self.groups
            for scenario in self.scenarios
            for cell in self._cells(size, group, scenario)
        ]

    def _cells(self, size: str, group: str, scenario: Scenario) -> Iterator[Cell]:
        results, axes = self.results(size, group, scenario), scenario.axes
        form, present = str(axes["form"]), {row.system for row in results}
        rows = [(name, "baseline") for name in ("base", *scenario.adapters)]
        rows += [(str(axes.get("joint")), "reference")]
        rows += [(method, "composition") for method in (*METHODS, "chain")]
        for system, role in rows:
            name = system_name(scenario, system) if role == "composition" else system
            if name not in present:
                continue
            found = None
            if role == "composition":
                against = ["base", *scenario.adapters]
                found = self.gain(size, group, [scenario], against, (system,))
            value, interval, n = share(results, [name], form)
            yield {
                "size": size,
                "group": group,
                "template": str(axes["template"]),
                "library": int(axes["library"]),
                "system": system,
                "role": role,
                "form": form,
                "score": value,
                "score_ci95": interval,
                "n": n,
                "worlds": len(self.of_size(size)),
                "gain": found.difference if found else None,
                "gain_ci95": found.ci95 if found else None,
                "against": found.against if found else "",
            }


def best_gain(
    results: Sequence[ItemResult],
    compositions: Sequence[str],
    baselines: Sequence[str],
    form: str,
    margin: float,
    alpha: float = ALPHA,
) -> Gain | None:
    """The gain of the best composition in this form over the best baseline in its better form.

    The lower end of `adjusted_ci95` is that of the named system, the upper end covers all
    compositions, both at the level 1 - alpha. None if nothing comparable was measured.
    """
    rows = [row for row in results if row.system not in compositions or row.part == form]
    systems = [System(name, "merge") for name in compositions]
    systems += [System(name, "adapter") for name in baselines]
    found = measure_gains(rows, systems, margin=margin, alpha=alpha)
    if not found:
        return None
    top = max(row.adjusted_ci95[1] for row in found)
    return replace(found[0], adjusted_ci95=(found[0].adjusted_ci95[0], top))


def share(
    results: Sequence[ItemResult], systems: Sequence[str], form: str, alpha: float = ALPHA
) -> tuple[float, Interval, int]:
    """Share of right answers of a system, or the mean of it over several, with Wilson's interval of
    the level 1 - alpha.

    Items of one person in one world are one cluster; several systems' answers to one item are
    averaged first, so that they do not count as independent. Raises ValueError without results.
    """
    values: dict[tuple[str, str], list[float]] = {}
    groups: dict[tuple[str, str], tuple[str, str]] = {}
    for row in results:
        if row.system in systems and row.part == form:
            values.setdefault((row.task, row.item), []).append(row.value)
            groups[row.task, row.item] = (row.task, row.group)
    if not values:
        raise ValueError(f"{', '.join(systems)} gave no answers in the form {form}")
    means = np.array([np.mean(found) for found in values.values()])
    _, clusters = np.unique([str(groups[key]) for key in values], return_inverse=True)
    return float(means.mean()), wilson(means, clusters, 1 - alpha), len(means)


# The paper's qualitative claims (arXiv 2506.13479), each with the rule that decides it here.
#
# "Succeeds" and "fails" are said of the gain of the best of uniform, sum and arrow over the best of
# base and single adapters, which may answer in their better form: the interval covers the choice of
# the best among compositions and baselines.


CLAIMS, READINGS = (table("claims")[key] for key in ("claims", "readings"))
Outcome = Literal["yes", "no", "undecided"]
Side = Literal["above", "below"]
Standing = Literal["holds", "does not hold", "not decided"]
FORMS = {"question": "at once", "steps": "step by step"}


@dataclass(frozen=True)
class ClaimTest:
    """A difference with its 95 % interval; `side` is the claimed side of the margin.

    Claimed "above": the outcome is yes if the lower end lies above the margin, no if the upper end
    of `shared` lies below it. Claimed "below": the other way round. `shared` is the interval whose
    error all differences share of which a single "no" overturns the claim.
    """

    where: str
    value: float
    low: float
    high: float
    n: int
    side: Side
    margin: float
    shared: Interval
    note: str = ""

    @property
    def outcome(self) -> Outcome:
        above, below = self.low > self.margin, self.high < self.margin
        if above if self.side == "above" else below:
            return "yes"
        overturned = self.shared[1] < self.margin, self.shared[0] > self.margin
        return "no" if overturned[self.side == "below"] else "undecided"

    @property
    def needed(self) -> int | None:
        """The people that would decide an open difference, if this one is the true one."""
        if self.outcome != "undecided":
            return None
        se, distance = (self.high - self.low) / 2 / Z95, self.value - self.margin
        agrees = (distance > 0) == (self.side == "above")
        low, high = (self.low, self.high) if agrees else self.shared
        return items_needed(self.n, distance, se, (high - low) / 2 / se)


@dataclass(frozen=True)
class Claim:
    """A qualitative claim, and whether it held here. `where`: the questions it is about.

    overall: its differences over all sizes. tests: at each size, where there are several. It holds
    if every difference over all sizes says so and no size says the opposite; it does not hold if
    any difference says the opposite; else it is not decided. differs: what was seen where a
    difference says the opposite.
    """

    code: str
    claim: str
    where: str
    rule: str
    overall: tuple[ClaimTest, ...]
    tests: tuple[ClaimTest, ...] = ()
    differs: Mapping[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many sizes say yes, no, undecided."""
        found = Counter(test.outcome for test in self.tests)
        return {key: found.get(key, 0) for key in ("yes", "no", "undecided")}

    @property
    def standing(self) -> Standing:
        if any(test.outcome == "no" for test in (*self.overall, *self.tests)):
            return "does not hold"
        holds = self.overall and all(test.outcome == "yes" for test in self.overall)
        return "holds" if holds else "not decided"


@dataclass(frozen=True)
class Subject:
    """The subjects of one experiment's claims.

    shared: template -> its name in a claim. familiar: the name set that the base knows best and the
    one that it knows least, if the experiment has them. disjoint: name sets whose facts no base has
    read.
    """

    title: str
    shared: Mapping[str, str]
    names: Mapping[str, str] = field(default_factory=dict)
    familiar: Sequence[str] = ()
    disjoint: tuple[str, ...] = ()


Measured = tuple[float, Interval, int, str]  # a difference, its interval, items, what is compared
Measure = Callable[[str, float], Measured | None]  # of a size, at a level 1 - alpha


def claims(matrix: Matrix, subject: Subject) -> list[Claim]:
    """Every claim of the paper for each of its sets of questions."""
    found = list[Claim]()

    def add(
        name: str,
        where: str,
        tests: Sequence[ClaimTest],
        differs: Mapping[str, str],
        code: str = "",
        **words: str,
    ) -> None:
        """Adds the claim of this name in `data/claims.json`; `words` fill its gaps."""
        row = CLAIMS[name]
        overall = tuple(test for test in tests if test.where.startswith(ALL))
        each = tuple(test for test in tests if test not in overall)
        claim = row["claim"].format(**words)
        found.append(Claim(code or name, claim, where, row["rule"], overall, each, differs))

    def over_singles(group: str, scenario: Scenario, **how: Any) -> Measure:
        return _gains(matrix, group, [scenario], ["base", *scenario.adapters], **how)

    plain = matrix.scenario("plain", 2)
    for group in matrix.groups:
        tests = _tests(matrix, over_singles(group, plain), "below")
        add("plain-fails", group, tests, _readings(matrix, group, plain, tests))
        three = matrix.scenario("plain", 3)
        against = system_names(plain)
        tests = _tests(matrix, _gains(matrix, group, [three, plain], against), "above")
        add("target-rescues", group, tests, _diluted(matrix, group, three, tests))
        for template, called in subject.shared.items():
            if template in matrix.templates:
                scenario = matrix.scenario(template, 2)
                tests = _tests(matrix, over_singles(group, scenario), "above")
                differs = _readings(matrix, group, scenario, tests)
                add("succeeds", group, tests, differs, f"{template}-succeeds", called=called)
    for group in subject.disjoint:  # each method for itself, asked in both forms
        tests = []
        for method, (form, called) in product(("uniform", "arrow"), FORMS.items()):
            alone = over_singles(group, plain, methods=(method,), form=form)
            tests += [
                replace(test, where=f"{test.where}, {method}, {called}")
                for test in _tests(matrix, alone, "below", 4)
            ]
        add("both-fail", group, tests, _readings(matrix, group, plain, tests))
    for template in matrix.templates if subject.familiar else ():
        tests = _tests(matrix, _of_familiarity(matrix, subject.familiar, template), "above")
        differs = {test.where: test.note for test in tests if test.outcome == "no"}
        where = " - ".join(subject.familiar)
        add("familiarity-helps", where, tests, differs, template=template)
    return found


def _tests(matrix: Matrix, measure: Measure, side: Side, among: int = 1) -> list[ClaimTest]:
    """The differences over all sizes, then at each of several, as far as they were measured.

    Sizes share the error of a "no". among: the differences at each place, which share it too.
    """
    several = matrix.sizes if len(matrix.sizes) > 1 else ()
    alphas = {ALL: ALPHA / among} | {size: ALPHA / among / len(several) for size in several}
    tests = []
    for size, alpha in alphas.items():
        found, shared = measure(size, ALPHA), measure(size, alpha)
        if found is not None and shared is not None:
            value, (low, high), n, note = found
            test = ClaimTest(size, value, low, high, n, side, matrix.margin, shared[1], note)
            tests.append(test)
    return tests


def _gains(
    matrix: Matrix, group: str, scenarios: Sequence[Scenario], against: Sequence[str], **how: Any
) -> Measure:
    """The gains of `Matrix.gain`, which `how` has options of."""

    def measure(size: str, alpha: float) -> Measured | None:
        gain = matrix.gain(size, group, scenarios, against, alpha=alpha, **how)
        if gain is None:
            return None
        rows = matrix.results(size, group, *scenarios)
        scores = [
            f"{system.rpartition(':')[2]} {share(rows, [system], part)[0]:.2f}"
            for system, part in ((gain.system, gain.part), (gain.against, gain.against_part))
        ]
        return gain.difference, gain.adjusted_ci95, gain.n, " against ".join(scores)

    return measure


def _of_familiarity(matrix: Matrix, groups: Sequence[str], template: str) -> Measure:
    """Unpaired difference of two name sets, Newcombe's interval from two of Wilson's."""
    scenario = matrix.scenario(template, 2)
    names, form = system_names(scenario), str(scenario.axes["form"])

    def measure(size: str, alpha: float) -> Measured:
        shares = [
            share(matrix.results(size, group, scenario), names, form, alpha) for group in groups
        ]
        known, unknown = (Estimate(value, *ends, n, n) for value, ends, n in shares)
        difference = known - unknown  # which is Newcombe's (1998, method 10)
        note = f"{groups[0]} {known.value:.2f}, {groups[1]} {unknown.value:.2f}"
        ends = difference.low, difference.high
        return difference.value, ends, known.n + unknown.n, note

    return measure


def _readings(
    matrix: Matrix, group: str, scenario: Scenario, tests: Sequence[ClaimTest]
) -> dict[str, str]:
    """What was seen where a difference overturns its claim: its scores, and that of the chain.

    The words are those of `data/claims.json`: a composition gains that was to fail; one adapter
    alone answers more than half, so that little is left to gain; the chain answers more than half,
    so that the hops are known and the composition loses them; or the hops are not known.
    """
    found = {}
    two = matrix.scenario(str(scenario.axes["template"]), 2)
    for test in (test for test in tests if test.outcome == "no"):
        rows = matrix.results(test.where.partition(",")[0], group, two)
        known = share(rows, [system_name(two, "chain")], str(scenario.axes["form"]))[0]
        alone = float(test.note.rpartition(" ")[2]) > 0.5
        reading = "alone" if alone else "lost" if known > 0.5 else "unknown"
        told = READINGS["gains" if test.side == "below" else reading]
        found[test.where] = f"{test.note}, chain {known:.2f}: {told}"
    return found


def _diluted(
    matrix: Matrix, group: str, scenario: Scenario, tests: Sequence[ClaimTest]
) -> dict[str, str]:
    """Where an adapter of the target relation does not help a composition: what the best adapter
    of the set answers alone."""
    found, form = {}, str(scenario.axes["form"])
    for test in (test for test in tests if test.outcome == "no"):
        rows = matrix.results(test.where, group, scenario)
        alone = max(share(rows, [name], form)[0] for name in scenario.adapters)
        found[test.where] = f"{test.note}, alone {alone:.2f}: {READINGS['diluted']}"
    return found


# of the page's table: which system, None for the best of all, in which role
COLUMNS = {
    "best single": (None, "baseline"),
    **{method: (method, "composition") for method in (*METHODS, "chain")},
    "joint": (None, "reference"),
}
TWO_HOP, MATH = (Subject(**table("claims")["subjects"][kind]) for kind in ("two-hop", "math"))


@dataclass(frozen=True)
class Experiment:
    """One of the paper's experiments: its claims, its world on a small base, and on a given one.

    `shape` makes the recipe of a small base from its architecture and width.
    """

    subject: Subject
    small: Callable[[int, BaseRecipe], WorldSpec]
    given: Callable[[int], WorldSpec]
    shape: Shape


def _longer(architecture: str, hidden: int) -> BaseRecipe:  # these bases read more couples
    return replace(small_base(architecture, hidden), steps=800)


def _of_problems(architecture: str, hidden: int) -> BaseRecipe:
    width = {"hidden": hidden, "intermediate": 5 * hidden // 2}
    return replace(BASE, architecture=architecture, **width)


EXPERIMENTS = {
    "two-hop": Experiment(TWO_HOP, two_hop_matrix, english_matrix, _longer),
    "math": Experiment(MATH, math_matrix, math_matrix, _of_problems),
}


def reproduce(
    kind: str,
    run: ExperimentRun,
    bases: Bases,
    base: Path | None = None,
    templates: Sequence[str] = (),
    made: Experiment | None = None,
) -> Pages:
    """Runs the matrix of an experiment: KIND.md, KIND.json, KIND.svg.

    It runs on small bases, or on the causal model in the directory `base`, once for each seed. If
    any of `templates` is named, only these are trained and asked. Raises UsageError for a missing
    directory, before anything is trained.
    """
    chosen = made or EXPERIMENTS[kind]
    if base is None:
        small = partial(_of_templates, templates, chosen.small)
        worlds = run.small_worlds(bases, small, chosen.shape)
    else:
        if not base.is_dir():
            raise UsageError(f"--base {base} is no directory; give a downloaded model.")
        name = base.resolve().name
        infos = [BaseInfo(f"{name}-seed{seed}", name, seed) for seed in dict.fromkeys(bases.seeds)]
        given = partial(_of_templates, templates, chosen.given)
        worlds = [(one, partial(run.build, one, partial(given, one.seed), base)) for one in infos]
    pages = partial(matrix_pages, kind, chosen.subject, run.command)
    return run.run_worlds(worlds, evaluate_world, pages)


def _of_templates(
    templates: Sequence[str], make: Callable[..., WorldSpec], *args: Any
) -> WorldSpec:
    """The world, or with these templates alone: without the others' sets, adapters, joint ones."""
    spec = make(*args)
    if not templates:
        return spec
    sets = tuple(one for one in spec.adapter_sets if one.axes["template"] in templates)
    names = {name for one in sets for name in one.adapters}
    training = tuple(one for one in spec.training if one.name in names)
    return replace(spec, training=training, adapter_sets=sets)


def matrix_pages(
    kind: str,
    subject: Subject,
    command: str,
    worlds: Sequence[WorldResults],
) -> Pages:
    """The pages of these worlds."""
    matrix = Matrix(tuple(worlds))
    cells, findings = matrix.cells(), claims(matrix, subject)
    rows: dict[str, dict[tuple[Any, ...], list[Cell]]] = {g: {} for g in matrix.groups}
    for cell in cells:
        place = tuple(cell[key] for key in ("size", "template", "library"))
        rows[cell["group"]].setdefault(place, []).append(cell)
    markdown = render(
        "matrix",
        subject=subject,
        matrix=matrix,
        command=command,
        figure=f"{kind}.svg",
        findings=findings,
        columns=COLUMNS,
        groups={subject.names.get(group, group): found for group, found in rows.items()},
    )
    document = {
        "format": 1,
        "experiment": kind,
        "command": command,
        "margin": matrix.margin,
        "worlds": [dataclasses.asdict(world.base) for world in matrix.worlds],
        "cells": cells,
        "claims": [
            {
                **dataclasses.asdict(f),
                "standing": f.standing,
                "counts": dict(f.counts),
                "tests": [{**dataclasses.asdict(t), "outcome": t.outcome} for t in f.tests],
            }
            for f in findings
        ],
    }
    figure = partial(claims_figure, findings, subject.title, matrix.margin)
    return Pages(kind, document, markdown, figure)


COLOURS = {"holds": GREEN, "does not hold": RED, "not decided": GREY}


def claims_figure(findings: Sequence[Claim], title: str, margin: float) -> str:
    """SVG: the differences of every claim over all sizes, with their intervals."""
    rows = [(f, test) for f in reversed(findings) for test in f.overall]
    with drawing() as Figure:
        figure = Figure(figsize=(10, 0.28 * len(rows) + 1.4), layout="constrained")
        panel = figure.subplots()
        for y, (claim, test) in enumerate(rows):
            colour = COLOURS[claim.standing]
            panel.plot((test.low, test.high), (y, y), color=colour, linewidth=1.5)
            panel.plot(test.value, y, "o", color=colour, markersize=4)
        panel.axvline(margin, color=DARK, linewidth=0.8, linestyle=":")
        names = [f"{f.claim} ({f.where}{test.where.removeprefix(ALL)})" for f, test in rows]
        panel.set_yticks(range(len(rows)), names)
        panel.tick_params(axis="y", labelsize=7)
        for standing, colour in COLOURS.items():
            panel.plot([], [], color=colour, label=standing)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(title)
        return as_svg(figure)
