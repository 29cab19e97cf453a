"""Runs a command of the pipeline. Outputs are checked before anything is read."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from loraprobe.cli.call import CALL
from loraprobe.cli.output import Output
from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.options import Options, hints

if TYPE_CHECKING:
    from loraprobe.pipeline.conclusion import Outcome


def options_from(parameters: Mapping[str, Any]) -> tuple[Options, Output]:
    """The options that decide a result, and those of printing.

    parameters: of a command, by name: its `locals()` as it begins. None is what was not given. A
    page maps layers and modules.
    """
    given = {name: value for name, value in parameters.items() if value is not None}
    output = Output(**{one.name: given[one.name] for one in fields(Output) if one.name in given})
    decide = {name: given[name] for name in hints() if name in given}
    if output.html is not None:
        decide["per_module"] = True
    return Options.of(decide), output


def run(
    output: Output,
    options: Options,
    command: str,
    refs: Iterable[str],
    base: Any,
    tasks: Sequence[Any] | None,
    *,
    read: Iterable[str] = (),
    **more: Any,
) -> Any:
    """What this function of `pipeline.commands` returns.

    For --dry-run its estimate is printed, and typer.Exit raised. refs: of the adapters; they are
    taken once the options are checked. tasks: None for a function that takes none. read: files that
    are read beside the tasks. more: what else the function takes.
    """
    from loraprobe.pipeline import commands
    from loraprobe.session import Session

    given = {"base": base, **more} if tasks is None else {"base": base, "tasks": tasks, **more}
    adapters = list(refs)
    with output.progress() as progress:
        written = _checked_outputs(output, options, [*adapters, base], [*(tasks or ()), *read])
        begun = time.perf_counter() if CALL.started is None else CALL.started
        session = Session(
            options,
            progress,
            written,
            tuple(CALL.words),
            begun,
            output.resume,
            output.explain,
            target=output.target,
            full_model=output.full_model,
        )
        if not output.dry_run:
            return getattr(commands, command)(adapters, session, **given)
        expected = getattr(commands, f"estimate_{command}")(adapters, session, **given)
    output.estimate(session.command, expected)
    raise typer.Exit()


def _checked_outputs(
    output: Output, options: Options, refs: Iterable[Any], files: Iterable[Any]
) -> list[Path]:
    """Where a command will write, checked before anything is read.

    Raises OutputError for an output that cannot be written, or that is, contains or lies inside
    something that the arguments name: an adapter, the base, a task, a prompt file; UsageError or
    HubError for an upload that cannot be.
    """
    from loraprobe.adapters import check_apart, check_output
    from loraprobe.hub import Reference

    if output.push is not None:
        from loraprobe.hub.upload import check_push

        check_push(output.push)
    elif output.public:
        raise UsageError("--public goes with --push=OWNER/NAME; add that.")
    read = [Path(file) for file in files if file]
    read += [file for _, file in options.router_prompts]
    read += [Path(guard) for guard in options.guards if isinstance(guard, (str, Path))]
    for reference in (*refs, *options.subtract):
        with contextlib.suppress(LoraprobeError):  # reading it raises the error
            if isinstance(reference, str):
                read += filter(None, [Reference.parse(reference, bare=True).path])
    directories = [place for place in (output.target, output.full_model) if place]
    others = output.html, output.save_samples, output.log_to
    written = [*directories, *filter(None, others)]
    for target in written:
        check_apart(target, read)
    for target in directories:
        check_output(target, output.overwrite)
    if output.full_model is not None:
        from loraprobe.merging import check_transformers

        check_transformers()
    real = [place.resolve() for place in directories]
    if len(real) > 1 and (real[0].is_relative_to(real[1]) or real[1].is_relative_to(real[0])):
        raise UsageError("--output and --full-model need two directories, none in the other.")
    return written


def write(outcome: Outcome, output: Output) -> None:
    """Saves what a command made, as adapter or composition and as a full model, and uploads it.

    What cannot be saved is told.
    """
    made, places = outcome.made, [p for p in (output.target, output.full_model) if p is not None]
    if made is None:
        for place in places:
            output.say(f"Nothing was written to {place}: {outcome.why_nothing}")
        return
    if output.target is not None:
        made.save(output.target, overwrite=output.overwrite)
        output.say(f"Wrote {made.name} to {output.target}.")
    if output.full_model is not None:
        _write_full_model(made, output.full_model, output, outcome.why_nothing)
    if output.push is not None:
        from loraprobe.hub.upload import push, summary

        output.say(summary(places[0], output.push, output.public))
        output.say(f"Uploaded: {push(places[0], output.push, output.public)}")


def _write_full_model(made: Any, place: Path, output: Output, why: str) -> None:
    from loraprobe.merging import Merged, notes_on_base

    if not isinstance(made, Merged):
        return output.say(f"Nothing was written to {place}: {why}")
    with output.progress() as progress:
        lost = made.save_full_model(place, output.overwrite, progress)
    told = f"rounding to the base's dtype changes {lost:.1%} of what the merge adds"
    output.say(f"Wrote the base with {made.name} to {place}; {told}.")
    for note in notes_on_base(made):
        output.say(note)
