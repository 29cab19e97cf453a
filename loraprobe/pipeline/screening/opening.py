"""What a screen opens before it asks: the library, its base, and an evaluator for both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    take_readings,
)
from loraprobe.options import Options
from loraprobe.pipeline.evaluator import Evaluator, task_notes
from loraprobe.pipeline.inputs import (
    Adapters,
    Given,
    Inputs,
    base_apart,
    check_names,
    check_state,
    open_tasks,
)
from loraprobe.pipeline.results import open_ledger
from loraprobe.pipeline.scorer import open_scorer, with_better_template
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.task_split import TaskSplit, split_for_screening
from loraprobe.pipeline.units import Units
from loraprobe.pipeline.workers import open_units
from loraprobe.routing import ROUTERS
from loraprobe.tasks import Task, check_metrics


def begin(**given: Unpack[Given]) -> tuple[Session, Sequence[Task]]:
    """The session of a call, and its tasks."""
    session = Session.of("screen", **given)
    options = session.options
    check_names(options)
    tasks = open_tasks(given.get("tasks", ()), options)
    check_metrics(tasks, options.metric)
    if tasks:
        check_state(options)
        split_for_screening(tasks, options)  # raises before a long library is read
    return session, tasks


def open_library(
    adapters: Adapters, session: Session, **given: Unpack[Given]
) -> tuple[Arranged, Base | None]:
    """The library, read, checked and compared, and its base: that of most members for "auto"."""
    options = session.options
    for place in options.joined:
        take_readings(place)
    with session.stage("read"):
        members = read_library(adapters, allow=options.allow, progress=session.progress)
    _require_some(members)
    with session.stage("check"):
        named = commonest_base(members) if given.get("base") == "auto" else None
        if named is None and given.get("base") == "auto":
            raise BaseError(
                "No adapter says which base model it was trained on; name it with --base."
            )
        base = base_apart([] if named is None else [named.open()], **given)
        members = fitted(members, base, options.allow)
    with session.stage("compare"):
        return arranged(members), base


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


def require_composable(found: Arranged, options: Options) -> None:
    """Raises UsageError for a router that learns, and where nothing can be composed."""
    for spec in options.routers:
        if ROUTERS.make(spec).needs_prompts:
            raise UsageError(
                f"--router {spec} learns from prompts, which a screen does not set apart; screen "
                "without it, and give it to merge-and-eval with the adapters that were chosen."
            )
    if len(found.usable) < 2:
        raise UsageError(
            f"{len(found.usable)} of {len(found.members)} adapters can be used with this base, and "
            "a screen composes two or more; run screen without --task to see why."
        )


def open_evaluator(
    usable: Sequence[Member], base: Base, tasks: Sequence[Task], parts: TaskSplit, session: Session
) -> Evaluator:
    """Loads the base, chooses the form of the prompts, and opens the results of earlier runs.

    It asks the items that choose. Raises UsageError where a share of a library would have to choose
    the form of the prompts.
    """
    options = session.options
    scorer, notes = open_scorer(base, options.dtype, session)
    has_template = getattr(scorer.tokenizer, "chat_template", None)
    if options.shard is not None and options.chat_template == "auto" and has_template:
        raise UsageError(
            "A share of a library cannot tell whether prompts are better asked with the chat "
            "template: give --chat-template on or off."
        )
    opened = [member.open() for member in usable]
    ledger, kept = open_ledger(opened, base, tasks, session)
    few = opened[:: max(1, len(opened) // TEMPLATE_ADAPTERS)][:TEMPLATE_ADAPTERS]
    scorer, why, template = with_better_template(
        scorer, session, aligned(few, base), parts.apart, options.metric, ledger
    )
    notes += [*why, *task_notes(parts.left, options.metric), kept]
    inputs = Inputs((), (), base, parts.apart)
    return Evaluator(inputs, session, scorer, ledger, parts.apart, None, notes, template)


def units_of(
    adapters: Adapters,
    members: Sequence[Member],
    places: Iterable[int],
    opened: Base,
    session: Session,
    **given: Unpack[Given],
) -> Units:
    """How the parts of a screen are computed. places: of the members among the adapters."""
    records = [member.record for member in members]
    known = {one.name: (at, one.sha256) for at, one in zip(places, records, strict=True)}
    given["base"], given["options"] = opened.path, session.options
    return open_units(adapters, Inputs((), (), opened), known, **given)
