"""What is told of a result: what servers do not read of it, and the commands that serve it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loraprobe.adapters import Adapter, local_name
from loraprobe.errors import UsageError
from loraprobe.extension import Remarks, Result, output_formats_of
from loraprobe.extensions.serve.part import ServeCommands
from loraprobe.extensions.serve.serving import Serving, as_written, serving_issues
from loraprobe.merging import Merged
from loraprobe.records import Command, Issue, Reason
from loraprobe.session import Session

Told = tuple[Sequence[Issue], Sequence[Reason], tuple[Command, ...]]


def remarks_on(session: Session, result: Result, wanted: Sequence[str]) -> Remarks:
    """What servers do with a result. wanted: those of --serve."""
    issues, reasons, commands = _told(session, result, wanted)
    return Remarks(issues, reasons, [ServeCommands(commands)] if commands else [])


def _told(session: Session, result: Result, wanted: Sequence[str]) -> Told:
    """The findings about files, the reasons beside a verdict, and the commands that serve."""
    if session.command == "inspect":
        return _on_file(result, wanted) if wanted else ((), (), ())
    if isinstance(result.made, Adapter):
        return _on_rewritten(result.made, session.target or Path("OUT"), result)
    other = next((place for place, _ in output_formats_of(session.options)), None)
    places = session.target, None if session.target else other
    serving = Serving(wanted, result.adapters, result.base, *places)
    merged = result.made if isinstance(result.made, Merged) else None
    # What was asked for is made where a server cannot read it: that is no failure.
    issues = [] if merged is None else serving.warnings(merged)
    if merged is not None and not (result.verdict and result.verdict.composes):
        return issues, (), serving.of_merge(merged)[1]
    if result.verdict is None:
        return issues, (), ()
    chain = () if result.measured is None else result.measured.chain
    return issues, *serving.advised(result.verdict, chain, merged)


def _on_file(result: Result, wanted: Sequence[str]) -> Told:
    """What the servers of --serve do with the file of one adapter.

    Raises UsageError for several adapters, and where the base is asked.
    """
    if len(result.adapters) > 1 or result.asked:
        raise UsageError(
            "--serve looks at the file of one adapter; give one, without --task and --probe. A "
            "merge is written so that servers read it: inspect its directory."
        )
    serving, (adapter,) = Serving(wanted, result.adapters, result.base), result.adapters
    return serving.issues(adapter), (), serving.of_file(adapter)


def _on_rewritten(adapter: Adapter, place: Path, result: Result) -> Told:
    """What any server does with an adapter that was written again; an error is no failure there."""
    issues = serving_issues(adapter, ["all"], result.base.path if result.base else None)
    told = [replace(i, severity="warning") if i.severity == "error" else i for i in issues]
    written = as_written(adapter, local_name(str(place)))
    return told, (), Serving((), [written], result.base).of_file(written)
