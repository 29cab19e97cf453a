"""The stages of `screen` in order, and of its estimate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loraprobe.base import Base
from loraprobe.errors import AdapterError, BaseError, UsageError
from loraprobe.extension import system_sources
from loraprobe.extensions.screen import ScreenOptions
from loraprobe.extensions.screen.records import Screened
from loraprobe.options import Options
from loraprobe.pipeline.commands import asking, nothing_kept
from loraprobe.pipeline.inputs import Inputs, base_apart, check_engine, check_names, check_state
from loraprobe.pipeline.outcome import Outcome, audit_of
from loraprobe.pipeline.preflight import PreflightReport
from loraprobe.records import Compatibility
from loraprobe.session import Adapters, Ref, Session, Tasks

if TYPE_CHECKING:
    from loraprobe.extensions.screen.comparing import ComparedLibrary
    from loraprobe.pipeline.estimate import CostEstimate
    from loraprobe.tasks import Task


def screen(
    adapters: Adapters,
    session: Session,
    *,
    base: Base | Ref | None = None,
    tasks: Tasks = (),
) -> Outcome:
    """Reads a library of adapters, describes it, and with tasks screens it for them.

    base: "auto", and None with tasks, is the base that most adapters name. An adapter that cannot
    be used is named in the audit's `library`. Where the options have `own` tasks, it tells which
    adapters keep their skills in one merge. Raises LoraprobeError if none can be read, or base or
    tasks cannot; for tasks with too few items, and for fewer than two usable adapters.
    """
    if session.options.of_extension(ScreenOptions).together:
        from loraprobe.extensions.screen.together.stages import screen_own

        return screen_own(adapters, session, base=base, tasks=tasks)
    found, opened, read, guards = _opened_library(adapters, session, base, tasks)
    if not read:
        inputs = Inputs((), (), opened)
        audit = audit_of(
            session, inputs, PreflightReport(Compatibility()), added=(Screened(found.library),)
        )
        return Outcome(audit)
    from loraprobe.extensions.screen.audit import audit_of_screen
    from loraprobe.extensions.screen.screening import choose_and_prove, open_screen

    assert opened is not None
    given = found.members, opened, read, session, guards
    with asking(session), open_screen(*given) as screening:
        return Outcome(audit_of_screen(found.library, read, choose_and_prove(screening)))


def estimate_screen(
    adapters: Adapters,
    session: Session,
    *,
    base: Base | Ref | None = None,
    tasks: Tasks = (),
) -> CostEstimate:
    """What `screen` of the same would take; nothing is asked but a few questions to time them."""
    if session.options.of_extension(ScreenOptions).together:
        from loraprobe.extensions.screen.together.stages import estimate_own

        return estimate_own(adapters, session, base=base, tasks=tasks)
    from loraprobe.extensions.screen.screening import estimate_of_screen, open_screen

    if not tasks:
        raise UsageError("--dry-run tells what asking the adapters takes; add --task=FILE.")
    found, opened, read, guards = _opened_library(adapters, session, base, tasks)
    assert opened is not None
    given = found.members, opened, read, session, guards
    with nothing_kept(session), open_screen(*given) as screening:
        return estimate_of_screen(screening)


def _opened_library(
    adapters: Adapters, session: Session, base: Base | Ref | None, given: Tasks
) -> tuple[ComparedLibrary, Base | None, Sequence[Task], Sequence[Task]]:
    """The library, read, checked and compared, its base, its tasks and its guards.

    The base is that of most members for "auto". Raises LoraprobeError where no adapter can be used,
    and with tasks where none can be composed.
    """
    from loraprobe.extensions.screen.comparing import commonest_base, compare_members, mark_unfit
    from loraprobe.extensions.screen.reading import read_library
    from loraprobe.extensions.screen.splits import split_for_screening
    from loraprobe.pipeline.task_files import open_tasks_and_guards

    session.command, options = "screen", session.options
    check_names(options)
    tasks, guards = open_tasks_and_guards(given, options)
    check_engine(options, tasks)
    if tasks:
        check_state(session)
        split_for_screening(tasks, options)  # raises before a long library is read
    elif options.of_extension(ScreenOptions).budget is not None:
        raise UsageError("--budget limits how long the adapters are asked --task; add one.")
    elif sources := system_sources(options):
        raise UsageError(f"{sources[0].flag} takes questions of --task=FILE; add one.")
    wanted = base or ("auto" if tasks else None)
    with session.stage("read"):
        members = read_library(adapters, allow=options.allow, progress=session.progress)
    if not any(member.usable for member in members):
        first = members[0].record
        issue = next(issue for issue in first.issues if issue.severity == "error")
        all_of_them = f"None of the {len(members)} adapters can be used; the first, {first.name}: "
        raise AdapterError((all_of_them if len(members) > 1 else "") + issue.message, issue.cure)
    with session.stage("check"):
        named = commonest_base(members) if wanted == "auto" else None
        if named is None and wanted == "auto":
            raise BaseError(
                "No adapter says which base model it was trained on; name it with --base."
            )
        found_base = base_apart([] if named is None else [named.open()], session, wanted)
        members = mark_unfit(members, found_base, options.allow)
    with session.stage("compare"):
        found = compare_members(members)
    if tasks:
        _require_composable(found, options)
    return found, found_base, tasks, guards


def _require_composable(found: ComparedLibrary, options: Options) -> None:
    """Raises UsageError for a router that learns, and where nothing can be composed."""
    from loraprobe.pipeline.plan import plan_of
    from loraprobe.routing import ROUTERS

    for spec in options.routers:
        if ROUTERS.make(spec).needs_prompts:
            raise UsageError(
                f"--router={spec} learns from prompts, which a screen does not set apart; screen "
                "without it, and give it to merge-and-eval with the adapters that were chosen."
            )
    if not options.methods and not options.routers:
        raise UsageError("--method=none and --router=none leave nothing to compose; give one.")
    if len(found.usable) < 2:
        raise UsageError(
            f"{len(found.usable)} of {len(found.members)} adapters can be used with this base, and "
            "a screen composes two or more; run screen without --task to see why."
        )
    plan_of(
        options, [member.open() for member in found.usable[:2]]
    )  # raises before anything is asked
