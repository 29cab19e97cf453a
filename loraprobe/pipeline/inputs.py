"""What a command is given: refused before anything is loaded, else opened.

References and paths as a user gives them become adapters, a base model and tasks (`open_inputs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraprobe import compatibility, hub
from loraprobe.adapters import Adapter, check_apart, check_place
from loraprobe.base import Base, open_base, pick_device, pick_dtype
from loraprobe.cache import cache_directory
from loraprobe.diagnostics import DIAGNOSTICS
from loraprobe.errors import BadReference, HubError, UsageError
from loraprobe.extension import backend_of, engine_of
from loraprobe.lora.spaces import space_named
from loraprobe.merging import METHODS, MergeMethod
from loraprobe.options import Options
from loraprobe.session import Adapters, Ref, Session, Tasks

if TYPE_CHECKING:  # a merge needs none of them
    from loraprobe.tasks import Task


@dataclass(frozen=True)
class Inputs:
    """The opened inputs of a command.

    `adapters` have one layout, the base's if there is one; `given` are the
    same adapters in the layout of their files. `guards` are what must not get worse.
    """

    adapters: Sequence[Adapter]
    given: Sequence[Adapter]
    base: Base | None = None
    tasks: Sequence[Task] = ()
    guards: Sequence[Task] = ()


def open_inputs(
    adapters: Adapters, session: Session, base: Base | Ref | None = None, tasks: Tasks = ()
) -> Inputs:
    """Reads the tasks, then the adapters, then finds the base.

    Each may be open already, or a reference. base: "auto" is the one that the adapters name. Raises
    LoraprobeError, also if an output is, contains or lies inside the base model's directory.
    """
    options = session.options
    check_names(options)
    read: tuple[Sequence[Task], Sequence[Task]] = (), ()
    if tasks or options.metric != "auto":  # which is checked with the tasks
        from loraprobe.pipeline.task_files import open_tasks_and_guards

        read = open_tasks_and_guards(tasks, options)
    else:
        options.for_each((), ())  # some need tasks
    loaded = hub.one_base(hub.load_all(adapters), _hub_name(base))
    if not loaded:
        raise UsageError("No adapter was given; give at least one.")
    options.check_count(len(loaded))
    found = base_apart(loaded, session, base)
    return Inputs(compatibility.aligned(loaded, found, options), loaded, found, *read)


def _hub_name(base: Base | Ref | None) -> str | None:
    """The name on the Hub of a base that was given; None without one, and for a directory."""
    text = base.reference if isinstance(base, Base) else str(base or "")
    try:
        return None if text == "auto" else hub.Reference.parse(text, bare=True).repo or None
    except BadReference:
        return None


def base_of(base: Base | Ref, adapters: Sequence[Adapter], *, code: bool = False) -> Base:
    """The base of a reference; "auto" is the one that the adapters' configs agree on.

    A Base object is returned as it is. `code` also downloads the repository's model code. Raises
    LoraprobeError if the base is not found.
    """
    if isinstance(base, Base):
        return base
    reference = hub.common_base(adapters) if base == "auto" else str(base)
    try:
        snapshot = hub.resolve_base(reference, code=code)
    except HubError as error:
        if base != "auto":
            raise
        told = str(error).rstrip(".")
        raise HubError(f"{told}, or give the adapters' base, {reference}, as --base=DIR.") from None
    return open_base(snapshot.path, snapshot.reference, snapshot.commit)


def base_apart(
    adapters: Sequence[Adapter], session: Session, base: Base | Ref | None
) -> Base | None:
    """The base of a command, in which none of its outputs may lie; None without one."""
    if not base:
        return None
    opened = base_of(base, adapters, code=session.options.trust_remote_code)
    for target in session.written:
        check_apart(target, [opened.path])
    return opened


def check_names(options: Options) -> None:
    """Raises UsageError for a method, router, diagnostic, space, metric, device or dtype that does
    not exist, and for two backends, before anything is loaded."""
    backend_of(options)
    for method in options.methods:
        METHODS.make(method)
    for diagnostic in options.diagnostics:
        DIAGNOSTICS.make(diagnostic)
    if options.routers not in ((), Options().routers):
        from loraprobe.routing import ROUTERS  # a merge needs none of them

        for router in options.routers:
            ROUTERS.make(router)
    if options.space is not None:
        space_named(options.space)
    if options.device != "auto":
        pick_device(options.device)
    if options.dtype != "auto":
        pick_dtype(options.dtype)
    if options.metric != Options().metric:
        from loraprobe.tasks import named_metrics

        named_metrics(options.metric)


def check_state(session: Session) -> None:
    """Raises OutputError if results cannot be stored; called before a model is loaded."""
    cure = "set LORAPROBE_CACHE to a directory of yours"
    check_place(session.state or cache_directory() / "runs" / "results", cure)


def check_engine(options: Options, tasks: Tasks) -> None:
    """Raises UsageError for an engine that is asked no questions."""
    engine = engine_of(options)
    if engine is not None and not tasks:
        raise UsageError(
            f"{engine.flag} answers the questions of --task; add one, or leave it out."
        )


def check_task_use(
    given: bool, options: Options, command: str, method: MergeMethod | None = None
) -> None:
    """Raises UsageError for a task that a command would not use, for learned weights that the
    method of a merge would not take, and for a limit without a task."""
    if given and not options.learns:
        raise UsageError(
            f"--task serves {command} only to learn weights on; add --weights=learn, or use "
            "merge-and-eval."
        )
    if method is not None and options.learns and not method.takes_weights:
        raise UsageError(
            f"{options.methods[0]} has weights of its own, so there are none to learn; use "
            "--method=task_arithmetic."
        )
    if options.limit is not None and not given:
        raise UsageError("--limit goes with --task, whose items it counts; add one.")
