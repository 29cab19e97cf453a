"""`screen`: a library of adapters, and with a task what of it to use.

Without a task the library is described: what can be used, copies, families, outliers.

With a task one part of each task's items chooses, the other proves. On the first, base and adapters
answer alone, and every pair is forecast from that (`choosing`). On the second, the best few are
composed and evaluated by rounds beside the base, the best single adapters and the members
(`proving`). The items that prove took no part in the choice, so the choice out of the whole library
needs no correction; the choice among the finalists is covered by the intervals. Where one adapter
leaves no room for a gain, it alone is proved.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from loraprobe.base import Base
from loraprobe.compatibility import aligned
from loraprobe.defaults import TEMPLATE_ADAPTERS
from loraprobe.errors import AdapterError, BaseError, UsageError
from loraprobe.library import (
    Arranged,
    Member,
    arranged,
    commonest_base,
    fitted,
    read_library,
)
from loraprobe.options import Options
from loraprobe.pipeline.asking_alone import looks_of
from loraprobe.pipeline.audits import audit_of
from loraprobe.pipeline.estimating import CostEstimate
from loraprobe.pipeline.evaluator import Evaluator, open_scorer, task_notes, with_better_template
from loraprobe.pipeline.examination import Examination
from loraprobe.pipeline.inputs import (
    Adapters,
    Given,
    Inputs,
    base_apart,
    check_names,
    check_state,
    open_tasks,
)
from loraprobe.pipeline.on_ray import open_cluster
from loraprobe.pipeline.results import open_ledger
from loraprobe.pipeline.screening.answer import audit_of_screen
from loraprobe.pipeline.screening.choosing import Choosing
from loraprobe.pipeline.screening.cost import estimate_of_screen, expected_alone
from loraprobe.pipeline.screening.proving import ask_alone, prove_sets
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.task_split import split_for_screening
from loraprobe.records import Audit, Compatibility
from loraprobe.routing import ROUTERS
from loraprobe.tasks import Task


def screen(adapters: Adapters, **given: Unpack[Given]) -> Audit:
    """Reads a library of adapters, describes it, and with tasks screens it for them.

    base: "auto", and None with tasks, is the base that most adapters name. An adapter that cannot
    be used is named in the audit's `library`. Raises LoraprobeError if none can be read, or base or
    tasks cannot; for tasks with too few items, and for fewer than two usable adapters.
    """
    session, found, inputs = _opened_library(adapters, **given)
    if not inputs.tasks:
        return audit_of(session, inputs, Examination(Compatibility()), library=found.library)
    with _choosing(found.members, inputs, session) as choosing:
        session.expect(lambda: expected_alone(choosing))
        proving = replace(choosing.evaluator, tasks=choosing.parts.left)
        proved = ask_alone(choosing, proving) or prove_sets(choosing, proving)
        return audit_of_screen(found.library, proving, inputs.tasks, proved)


def estimate_screen(adapters: Adapters, **given: Unpack[Given]) -> CostEstimate:
    """What `screen` of the same would take; nothing is asked but a few questions to time them."""
    if not given.get("tasks"):
        raise UsageError("--dry-run tells what asking the adapters takes; add --task FILE.")
    session, found, inputs = _opened_library(adapters, **given)
    with tempfile.TemporaryDirectory() as place:  # of a ledger that nobody needs
        session.options = replace(session.options, state=Path(place), resume=False, executor=None)
        with _choosing(found.members, inputs, session) as choosing:
            return estimate_of_screen(choosing)


def _begun(**given: Unpack[Given]) -> tuple[Session, Sequence[Task]]:
    """The session of a call, and its tasks."""
    session = Session.of("screen", **given)
    options = session.options
    check_names(options)
    tasks = open_tasks(given.get("tasks", ()), options)
    if tasks:
        check_state(options)
        split_for_screening(tasks, options)  # raises before a long library is read
    return session, tasks


def _opened_library(adapters: Adapters, **given: Unpack[Given]) -> tuple[Session, Arranged, Inputs]:
    """The session, the library, read, checked and compared, and its base and tasks.

    The base is that of most members for "auto". Raises LoraprobeError where no adapter can be used,
    and with tasks where none can be composed.
    """
    session, tasks = _begun(**given)
    options = session.options
    given["base"] = given.get("base") or ("auto" if tasks else None)
    with session.stage("read"):
        members = read_library(adapters, allow=options.allow, progress=session.progress)
    _require_some(members)
    with session.stage("check"):
        named = commonest_base(members) if given["base"] == "auto" else None
        if named is None and given["base"] == "auto":
            raise BaseError(
                "No adapter says which base model it was trained on; name it with --base."
            )
        base = base_apart([] if named is None else [named.open()], **given)
        members = fitted(members, base, options.allow)
    with session.stage("compare"):
        found = arranged(members)
    if tasks:
        _require_composable(found, options)
    return session, found, Inputs((), (), base, tasks)


def _require_some(members: Sequence[Member]) -> None:
    """Raises AdapterError, with the first reason, where no adapter can be used."""
    if any(member.usable for member in members):
        return
    first = members[0].record
    issue = next(issue for issue in first.issues if issue.severity == "error")
    if len(members) == 1:
        raise AdapterError(issue.message, issue.cure)
    raise AdapterError(
        f"None of the {len(members)} adapters can be used; the first, {first.name}: "
        f"{issue.message}",
        issue.cure,
    )


def _require_composable(found: Arranged, options: Options) -> None:
    """Raises UsageError for a router that learns, and where nothing can be composed."""
    for spec in options.routers:
        if ROUTERS.make(spec).needs_prompts:
            raise UsageError(
                f"--router {spec} learns from prompts, which a screen does not set apart; screen "
                "without it, and give it to merge-and-eval with the adapters that were chosen."
            )
    if not options.methods and not options.routers:
        raise UsageError("--method none and --router none leave nothing to compose; give one.")
    if len(found.usable) < 2:
        raise UsageError(
            f"{len(found.usable)} of {len(found.members)} adapters can be used with this base, and "
            "a screen composes two or more; run screen without --task to see why."
        )


@contextmanager
def _choosing(members: Sequence[Member], inputs: Inputs, session: Session) -> Iterator[Choosing]:
    """Loads the base, on which the usable members are asked. inputs: base and tasks."""
    assert inputs.base is not None
    usable = {member.record.name: member for member in members if member.usable}
    with (
        open_cluster(session.options) as session.cluster,
        _open_evaluator(list(usable.values()), inputs.base, inputs.tasks, session) as evaluator,
    ):
        looks = looks_of(evaluator.scorer, evaluator.tasks, session.options)
        yield Choosing(evaluator, usable, looks)


def _open_evaluator(
    usable: Sequence[Member], base: Base, tasks: Sequence[Task], session: Session
) -> Evaluator:
    """Loads the base, chooses the form of the prompts, and opens the results of earlier runs.

    It asks the items that choose.
    """
    options, parts = session.options, split_for_screening(tasks, session.options)
    told = task_notes(parts.left, options.metric)
    scorer, notes = open_scorer(base, options.dtype, session)
    opened = [member.open() for member in usable]
    ledger, kept = open_ledger(opened, base, tasks, session)
    few = opened[:: max(1, len(opened) // TEMPLATE_ADAPTERS)][:TEMPLATE_ADAPTERS]
    scorer, why, template = with_better_template(
        scorer, session, aligned(few, base), parts.apart, options.metric, ledger, base
    )
    notes += [*why, *told, kept]
    inputs = Inputs((), (), base, parts.apart)
    return Evaluator(inputs, session, scorer, ledger, parts.apart, parts, notes, template)
