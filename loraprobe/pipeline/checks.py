"""What is refused before anything is loaded: unknown names, options that contradict others."""

from __future__ import annotations

import os

from loraprobe.adapters import check_place
from loraprobe.base import pick_device, pick_dtype
from loraprobe.cache import cache_directory
from loraprobe.diagnostics import DIAGNOSTICS
from loraprobe.errors import UsageError
from loraprobe.lora.spaces import space_named
from loraprobe.merging import METHODS
from loraprobe.options import Options
from loraprobe.servers.rules import servers_named
from loraprobe.session import Session, Tasks
from loraprobe.verdict import Calibration, read_calibration


def check_names(options: Options) -> None:
    """Raises UsageError for a method, router, diagnostic, space, metric, device or dtype that does
    not exist, and for a calibration that cannot be read, before anything is loaded."""
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
    if options.serve:
        servers_named(options.serve)
    if options.device != "auto":
        pick_device(options.device)
    if options.dtype != "auto":
        pick_dtype(options.dtype)
    if options.metric != Options().metric:
        from loraprobe.tasks import named_metrics

        named_metrics(options.metric)
    given_calibration()


def given_calibration() -> Calibration | None:
    """The one that LORAPROBE_CALIBRATION names in place of the shipped one. Raises UsageError."""
    file = os.environ.get("LORAPROBE_CALIBRATION")
    return read_calibration(file) if file else None


def check_state(session: Session) -> None:
    """Raises OutputError if results cannot be stored; called before a model is loaded."""
    cure = "set LORAPROBE_CACHE to a directory of yours"
    check_place(session.state or cache_directory() / "runs" / "results", cure)


def check_engine(options: Options, tasks: Tasks) -> None:
    """Raises UsageError for a server that is asked no questions."""
    if options.served and not tasks:
        raise UsageError("--engine answers the questions of --task; add one, or leave it out.")


def check_task_use(given: bool, options: Options, command: str) -> None:
    """Raises UsageError for a task that a command would not use, for learned weights that a merge
    would not take, and for a limit without a task."""
    if given and not options.learns:
        raise UsageError(
            f"--task serves {command} only to learn weights on; add --weights=learn, or use "
            "merge-and-eval."
        )
    if command == "merge" and options.learns:
        method = options.methods[0]
        if not METHODS.make(method).takes_weights:
            raise UsageError(
                f"{method} has weights of its own, so there are none to learn; use "
                "--method=task_arithmetic."
            )
    if options.limit is not None and not given:
        raise UsageError("--limit goes with --task, whose items it counts; add one.")
