"""The stages of `screen --own` in order.

A part of the items of each adapter's own task is asked of the base and of the adapter alone, whole
and at smaller gates, and of its uniform merges with two others. From these and the inner products
of the updates comes a forecast for every pair and group; the best group is composed and asked the
other items by the stages of `merge-and-eval`, which give the verdict.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from loraprobe.adapters import Adapter
from loraprobe.base import Base
from loraprobe.compatibility import require
from loraprobe.composition import Composition
from loraprobe.defaults import FEWEST_ITEMS
from loraprobe.errors import TaskError, UsageError
from loraprobe.evaluation import System
from loraprobe.evaluation.statistics import Array
from loraprobe.extensions.screen import ScreenOptions
from loraprobe.extensions.screen.defaults import GATES, GROUPS, LEAST_GAIN
from loraprobe.extensions.screen.together.forecast import (
    Curve,
    MeasuredPair,
    MergeForecast,
    cycle,
    inner_products,
    interferences,
    kinship_in,
)
from loraprobe.extensions.screen.together.known import KnownSkill, read_known
from loraprobe.extensions.screen.together.records import (
    RetentionForecast,
    Skill,
    SkillGroup,
    Together,
    together,
)
from loraprobe.formatting import count, listing, nearest
from loraprobe.options import Options, flag_of
from loraprobe.pipeline.commands import asking, merge_and_eval, nothing_kept
from loraprobe.pipeline.estimate import (
    READ,
    CostEstimate,
    cost_of,
    measure_pace,
    texts_read,
    units_of,
)
from loraprobe.pipeline.evaluator import Evaluator, open_evaluator
from loraprobe.pipeline.inputs import Inputs, check_state, open_inputs
from loraprobe.pipeline.outcome import Outcome, audit_of
from loraprobe.pipeline.plan import Plan, plan_of, with_sources
from loraprobe.pipeline.preflight import PreflightReport, check
from loraprobe.records import FORMS, ItemPart
from loraprobe.routing.constant import ConstantGates, single
from loraprobe.session import Adapters, Ref, Session, Tasks
from loraprobe.tasks import Task
from loraprobe.tasks.splits import TaskSplit, drawn, groups_of

KeptBeside = dict[
    tuple[str, str], tuple[float, float]
]  # adapter, partner -> retention and its error
FORM_ADAPTERS = 3  # that choose the form of the prompts


def screen_own(
    adapters: Adapters,
    session: Session,
    *,
    base: Base | Ref | None = None,
    tasks: Tasks = (),
) -> Outcome:
    """The largest group of adapters that is forecast to keep its skills, asked, with its verdict.

    A group with an adapter that is only known from earlier results has no task to be asked: where
    no other one is forecast, nothing is proved, and there is no verdict.

    Raises LoraprobeError for input that cannot be read, for adapters that do not fit together, and
    where fewer than two adapters have a skill.
    """
    library = _read(adapters, session, base, tasks)
    asked, beside = list[AskedAlone](), KeptBeside()
    if to_ask := library.unknown:
        with asking(session), _evaluator(library, session) as evaluator:
            for done, adapter in enumerate(to_ask):
                session.tell("ask the adapters alone", done, len(to_ask))
                asked.append(_ask(evaluator, adapter, library.apart[adapter.name]))
            beside = _ask_pairs(evaluator, library, asked, session)
    found = _forecast(library, asked, beside, session.options)
    best = next((group.adapters for group in found.groups if group.proved), None)
    if best is None:
        return Outcome(audit_of(session, library.inputs, library.preflight, added=(found,)))
    chosen = [adapter for adapter in library.inputs.given if adapter.name in best]
    tasks_left = {library.left[name].name: library.left[name] for name in best}  # some share one
    base = library.inputs.base or "auto"
    outcome = merge_and_eval(chosen, session, base=base, tasks=[*tasks_left.values()])
    audit = outcome.audit
    found = replace(found, keeps=together(audit).keeps)
    others = (one for one in audit.added if not isinstance(one, Together))
    audit = replace(audit, command="screen", added=(*others, found))
    return replace(outcome, audit=audit)


def estimate_own(
    adapters: Adapters,
    session: Session,
    *,
    base: Base | Ref | None = None,
    tasks: Tasks = (),
) -> CostEstimate:
    """What `screen_own` of the same would take, the proof of a group of two included."""
    library = _read(adapters, session, base, tasks)
    options, names = session.options, [*library.apart]
    if len(names) < 2:
        raise UsageError("--dry-run tells what asking takes; give two adapters their --own task.")
    with nothing_kept(session), _evaluator(library, session) as evaluator:
        pace = measure_pace(evaluator, single(library.inputs.adapters[0]))
        alone = [library.apart[adapter.name] for adapter in library.unknown]
        seconds = sum(units_of([task], options) for task in alone)
        seconds *= pace(0) + (1 + len(GATES)) * pace(1) + (2 * pace(2) if len(names) > 2 else 0)
        specs = plan_of(options, library.inputs.adapters[:2], library.inputs.tasks[:2]).specs
        sources, pair = with_sources([library.left[name] for name in names[:2]], None, options)
        made = texts_read(sources)
        seconds += READ * sum(made.values()) * pace(1)
        proof = pace(0) + (3 + len(made)) * pace(1) + (len(specs) + 1) * pace(2)
        seconds += units_of(pair, options) * proof
        asked = replace(evaluator, plan=replace(evaluator.plan, sources=sources))
        return cost_of(asked, ["base", *names, *made], seconds)


# ---- what is read --------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnTasks:
    """Adapters, and by their names the items of their tasks that choose and those that prove.

    known: what earlier results tell, by name.
    """

    inputs: Inputs
    preflight: PreflightReport
    parts: TaskSplit
    apart: Mapping[str, Task]
    left: Mapping[str, Task]
    known: Mapping[str, KnownSkill]

    @property
    def unknown(self) -> list[Adapter]:
        """The adapters that have to be asked alone."""
        return [adapter for adapter in self.inputs.adapters if adapter.name not in self.known]


def _read(adapters: Adapters, session: Session, base: Base | Ref | None, tasks: Tasks) -> OwnTasks:
    """What is given, read and checked; no model is loaded. Raises LoraprobeError."""
    session.command, options = "screen", session.options
    if tasks:
        raise UsageError(
            "--task is a question that needs several adapters, --own and --known are about the "
            "skill of one; give one of the two."
        )
    chosen = options.of_extension(ScreenOptions)
    own = {name: str(file) for name, file in chosen.own}
    check_state(session)
    default = Options()
    for name in ("keep", "budget", "balance"):
        if options.value(name) != default.value(name):
            raise UsageError(f"--own does not take {flag_of(name)}; leave one of the two out.")
    files = [*dict.fromkeys(own.values())]
    inputs = open_inputs(adapters, session, base or "auto", files)
    names = [adapter.name for adapter in inputs.adapters]
    assert inputs.base is not None
    known = read_known(chosen.known, inputs.adapters, inputs.base.summary())
    _check_names(names, own, known)
    parts = drawn(inputs.tasks, [chosen.items] * len(files), options.seed)
    _check_left(inputs.tasks, parts.left, chosen.items)
    compatibility = require(check(inputs.adapters, inputs.base, "route", session))
    apart, left = (
        {name: tasks[files.index(own[name])] for name in names if name in own}
        for tasks in (parts.apart, parts.left)
    )
    return OwnTasks(inputs, PreflightReport(compatibility), parts, apart, left, known)


def _evaluator(library: OwnTasks, session: Session) -> Evaluator:
    """The base, which is asked the items that choose; a few adapters choose the prompts' form."""
    inputs = library.inputs
    first, others = inputs.adapters[:FORM_ADAPTERS], inputs.adapters[FORM_ADAPTERS:]
    plan = Plan(tasks=library.parts.apart, parts=library.parts)
    return open_evaluator(replace(inputs, adapters=first), plan, session, others)


# ---- what is refused -----------------------------------------------------------------------------


def _check_names(names: Sequence[str], own: Mapping[str, str], known: Collection[str]) -> None:
    """Raises UsageError where an adapter has no task of its own and is not known, or a task no
    adapter."""
    if len(names) < 2:
        raise UsageError("--own asks which adapters live together; give at least two.")
    for name in own:
        if name not in names:
            raise UsageError(f"--own names {name!r}, which is no adapter:", nearest(name, names))
    if lacking := [name for name in names if name not in own and name not in known]:
        raise UsageError(
            f"{listing(lacking)} {'has' if len(lacking) == 1 else 'have'} no task; add "
            f"--own={lacking[0]}=FILE, or --known=FILE with an earlier result that has its skill."
        )


def _check_left(tasks: Sequence[Task], left: Sequence[Task], items: int) -> None:
    """Raises TaskError where too few items are left to prove the choice, or they have no scores,
    or two files have one name. items: of each task, that choose."""
    names = [task.name for task in tasks]
    for task, rest in zip(tasks, left, strict=True):
        if names.count(task.name) > 1:
            raise TaskError(f"Two files have the name {task.name}; rename one of them.")
        if groups_of(rest) < FEWEST_ITEMS:
            has, groups = count(len(task.items), "item"), groups_of(task)
            if groups < len(task.items):
                raise TaskError(
                    f"Task {task.name} has {has} in {count(groups, 'group')}: {items} items are "
                    f"needed to choose by, and {FEWEST_ITEMS} other groups to prove the choice.",
                    "Give items of more groups, or fewer --items.",
                )
            raise TaskError(
                f"Task {task.name} has {has}: {items} are needed to choose by, and {FEWEST_ITEMS} "
                "others to prove the choice.",
                f"Give at least {items + FEWEST_ITEMS} items, or fewer --items.",
            )
        if any(item.metric == "answer_loss" for item in task.items):
            raise TaskError(
                f"Task {task.name} is judged by a loss, of which no share is kept; give questions "
                "with answers."
            )


# ---- what is asked -------------------------------------------------------------------------------


@dataclass(frozen=True)
class AskedAlone:
    """What the base and one adapter answered to the adapter's own task, in its better form.

    base, alone: the value of each item, [items]. at: gate -> the values at that gate; empty where
    the adapter gains too little.
    """

    adapter: str
    task: Task
    form: ItemPart
    base: Array
    alone: Array
    at: Mapping[float, Array]

    @property
    def gain(self) -> float:
        return float((self.alone - self.base).mean())


def _values(evaluator: Evaluator, task: Task, system: System, form: ItemPart) -> Array:
    """The value of each item of a task: [items]."""
    rows = {row.item: row.value for row in replace(evaluator, tasks=[task]).run([system], {form})}
    return np.array([rows[item.id] for item in task.items])


def _ask(evaluator: Evaluator, adapter: Adapter, task: Task) -> AskedAlone:
    """Asks the base and an adapter, the adapter also at smaller gates where it has a skill."""
    name = adapter.name
    values = partial(_values, evaluator, task)

    def at_gate(gate: float) -> System:
        composition = Composition(name, (adapter,), ConstantGates((gate,)))
        alone, at = System.alone(composition), f" at {gate:g}" if gate != 1 else ""
        return replace(alone, name=name + at, content=alone.content + at)

    forms = [form for form in FORMS if form in task.parts]
    form = max(forms, key=lambda form: values(at_gate(1), form).mean())
    base, alone = values(System("base", "base"), form), values(at_gate(1), form)
    strong = (alone - base).mean() >= LEAST_GAIN
    at = {gate: values(at_gate(gate), form) for gate in GATES} if strong else {}
    return AskedAlone(name, task, form, base, alone, at)


def _ask_pairs(
    evaluator: Evaluator, library: OwnTasks, asked: Sequence[AskedAlone], session: Session
) -> KeptBeside:
    """Asks each adapter with a skill its own task beside two others, in their uniform merges."""
    alone = {one.adapter: one for one in asked if one.at}
    strong = [a for a in library.inputs.adapters if a.name in alone or a.name in library.known]
    of, beside = {adapter.name: adapter for adapter in strong}, KeptBeside()
    design = cycle([*of], session.options.seed)
    for done, pair in enumerate(design):
        session.tell("ask pairs", done, len(design))
        experts = tuple(of[name] for name in pair)
        merge = Composition(" and ".join(pair), experts, ConstantGates((0.5, 0.5)))
        content = "uniform of " + " ".join(expert.content for expert in experts)
        for name, partner in (pair, pair[::-1]):
            if name in alone:
                one, system = alone[name], System(merge.name, "merge", merge, content=content)
                values = _values(evaluator, one.task, system, one.form)
                kept = Curve.of(one.base, one.alone, {0.5: values})
                beside[name, partner] = kept.at(0.5), kept.error(0.5)
    return beside


# ---- what is told --------------------------------------------------------------------------------


def _forecast(
    library: OwnTasks,
    asked: Sequence[AskedAlone],
    beside: KeptBeside,
    options: Options,
) -> Together:
    """The skills, the forecasts of all pairs, and the largest groups. beside: what was asked.

    Raises TaskError where fewer than two adapters have a skill.
    """
    adapters = library.inputs.adapters
    curves = {name: skill.curve for name, skill in library.known.items()}
    curves |= {one.adapter: Curve.of(one.base, one.alone, one.at) for one in asked if one.at}
    curves = {adapter.name: curves[adapter.name] for adapter in adapters if adapter.name in curves}
    if len(curves) < 2 and asked:
        best = max(asked, key=lambda one: one.gain)
        raise TaskError(
            f"{count(len(curves), 'adapter')} of {len(adapters)} has at least {LEAST_GAIN:g} more "
            f"than the base on its own task ({best.adapter}: {best.alone.mean():.2f}, the base "
            f"{best.base.mean():.2f}); what has no skill cannot keep one. Check the tasks by "
            "loraprobe inspect ADAPTER --task FILE."
        )
    strong = [adapter for adapter in adapters if adapter.name in curves]
    inner = inner_products(strong)
    earlier = {
        (name, partner): kept
        for name in curves
        if name in library.known
        for partner, kept in library.known[name].beside.items()
        if partner in curves
    }
    at, alike = [*curves].index, inner / inner.diagonal()[:, None]
    pairs = [
        MeasuredPair(name, partner, *kept, float(alike[at(name), at(partner)]))
        for (name, partner), kept in {**beside, **earlier}.items()
    ]
    kinship = kinship_in(curves, pairs)
    takes = interferences(curves, pairs, kinship) if pairs else {}
    takes |= {n: k.interference for n, k in library.known.items() if k.interference is not None}
    forecast = MergeForecast(curves, inner, takes, pairs, kinship)
    rows = [
        row
        for at, first in enumerate(curves)
        for second in [*curves][at + 1 :]
        for row in _pair(forecast, (first, second))
    ]
    tasks = {one.adapter: one.task.name for one in asked}
    tasks |= {name: skill.task for name, skill in library.known.items()}
    groups = forecast.groups(options.retention, GROUPS, {name: tasks[name] for name in curves})
    askable = [group for group in groups if all(name in library.left for name in group)]
    alone = {one.adapter: one for one in asked}
    return Together(
        tuple(_skill(one, alone, library.known, forecast, rows) for one in adapters),
        tuple(rows),
        tuple(_group(forecast, group, proved=group in askable[:1]) for group in groups),
    )


def _pair(forecast: MergeForecast, pair: tuple[str, str]) -> Iterable[RetentionForecast]:
    """What both adapters of a pair keep."""
    for name, share, kept in zip(pair, forecast.shares(pair), forecast.of(pair), strict=True):
        (partner,) = {*pair} - {name}
        measured = (name, partner) in forecast.measured
        yield RetentionForecast(name, (partner,), share, kept.value, kept.ci95, measured)


def _group(forecast: MergeForecast, group: tuple[str, ...], proved: bool) -> SkillGroup:
    kept = forecast.of(group)
    least = min(kept, key=lambda one: one.value)
    return SkillGroup(group, least.value, least.ci95, tuple(k.value for k in kept), proved)


def _skill(
    adapter: Adapter,
    asked: Mapping[str, AskedAlone],
    known: Mapping[str, KnownSkill],
    forecast: MergeForecast,
    rows: Sequence[RetentionForecast],
) -> Skill:
    """What is told of one adapter, which was asked or is known."""
    name, sha256 = adapter.name, adapter.sha256 or ""
    own = [row.value for row in rows if row.adapter == name]
    points: tuple[tuple[float, float, float], ...] = ()
    if curve := forecast.curves.get(name):
        values = curve.kept.tolist(), curve.errors.tolist()
        points = tuple(zip(curve.gates, *values, strict=True))
    keeps, interference = sum(own) / len(own) if own else None, forecast.interference.get(name)
    if name in known:
        old = known[name]
        scores = old.base, old.alone
        return Skill(name, old.task, old.n, *scores, points, keeps, interference, sha256, old.file)
    one = asked[name]
    base, alone = float(one.base.mean()), float(one.alone.mean())
    of = one.task.name, len(one.base)
    return Skill(name, *of, base, alone, points, keeps, interference, sha256)
