"""`screen`: a library of adapters, and with a task what of it to use.

Without a task the library is described: what can be used, copies, families, outliers. With a task
`screening_task` asks base and adapters, and proves the compositions that look best.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from loraprobe.adapters import Adapter, check_apart
from loraprobe.base import Base
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
from loraprobe.pipeline.audits import audit_of
from loraprobe.pipeline.examination import Examination
from loraprobe.pipeline.inputs import (
    Inputs,
    Reference,
    base_of,
    check_names,
    check_state,
    open_tasks,
)
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.task_split import split_for_screening
from loraprobe.records import Audit, Compatibility, Progress
from loraprobe.tasks import Task, check_metrics

if TYPE_CHECKING:
    from loraprobe.pipeline.estimating import CostEstimate


class Given(TypedDict, total=False):
    """What a library is screened with.

    base: what the adapters have to fit; "auto", and None with a task, is the base that most of them
    name. written: files that the command writes, which may not lie in the base.
    """

    base: Base | Reference | None
    tasks: Sequence[Task | Reference] | Task | Reference
    options: Options
    progress: Progress | None
    written: Sequence[Path]


def screen(adapters: Sequence[Adapter | Reference], **given: Unpack[Given]) -> Audit:
    """Reads a library of adapters, describes it, and with tasks screens it for them.

    An adapter that cannot be used is named in the audit's `library`. Raises LoraprobeError if none
    can be read, or base or tasks cannot.
    """
    session, read, found, opened = _opened(adapters, given)
    if not read:
        inputs = Inputs((), (), opened)
        return audit_of(session, inputs, Examination(Compatibility()), library=found.library)
    from loraprobe.pipeline.screening_task import screen_task
    from loraprobe.pipeline.screening_workers import open_library_units

    assert opened is not None
    records = [member.record for member in found.members]
    places = {one.name: (place, one.sha256) for place, one in enumerate(records)}
    tasks = given.get("tasks", ())
    with open_library_units(adapters, opened, tasks, session.options, places) as session.units:
        return screen_task(found, opened, read, session)


def estimate_screen(
    adapters: Sequence[Adapter | Reference], **given: Unpack[Given]
) -> CostEstimate:
    """What `screen` of the same would take; nothing is asked but a few questions to time them."""
    from loraprobe.pipeline.screening_task import estimate_task

    if not given.get("tasks"):
        raise UsageError("--dry-run tells what asking the adapters takes; add --task FILE.")
    session, read, found, opened = _opened(adapters, given)
    assert opened is not None
    return estimate_task(found, opened, read, session)


def _opened(
    adapters: Sequence[Adapter | Reference], given: Given
) -> tuple[Session, Sequence[Task], Arranged, Base | None]:
    """The session, tasks, library and base of a call."""
    session, read = begun(given)
    base = given.get("base") or ("auto" if read else None)
    found, opened = open_library(adapters, base, session, given.get("written", ()))
    return session, read, found, opened


def begun(given: Given) -> tuple[Session, Sequence[Task]]:
    """The session of a call, and its tasks."""
    options = given.get("options", Options())
    check_names(options)
    read = open_tasks(given.get("tasks", ()), options)
    check_metrics(read, options.metric)
    if read:
        check_state(options)
        split_for_screening(read, options)  # raises before a long library is read
    return Session("screen", options, given.get("progress")), read


def open_library(
    adapters: Sequence[Adapter | Reference],
    base: Base | Reference | None,
    session: Session,
    written: Sequence[Path] = (),
) -> tuple[Arranged, Base | None]:
    """The library, read, checked and compared, and its base if one was asked for."""

    def told(done: int, total: int) -> None:
        if session.progress is not None:
            session.progress("read", done, total)

    options = session.options
    for place in options.joined:
        take_readings(place)
    with session.stage("read"):
        members = read_library(adapters, allow=options.allow, progress=told)
    _require_some(members)
    with session.stage("check"):
        opened = None if base is None else _base(base, members, options)
        if opened is not None:
            for target in written:
                check_apart(target, [opened.path])
        members = fitted(members, opened, options.allow)
    with session.stage("compare"):
        return arranged(members), opened


def _base(base: Base | Reference, members: Sequence[Member], options: Options) -> Base:
    """The base that was given; "auto" is that of most members."""
    if base != "auto":
        return base_of(base, (), code=options.trust_remote_code)
    named = commonest_base(members)
    if named is None:
        raise BaseError("No adapter says which base model it was trained on; name it with --base.")
    return base_of("auto", [named.open()], code=options.trust_remote_code)


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
