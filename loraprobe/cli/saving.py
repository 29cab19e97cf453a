"""Checks of outputs, and the saving of a merge or a composition."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprobe.cli.output import Output
from loraprobe.errors import UsageError
from loraprobe.options import Options

if TYPE_CHECKING:
    from loraprobe.records import Audit


def check_outputs(
    output: Output,
    options: Options,
    refs: Iterable[str],
    base: str | None,
    files: Iterable[str] | None = None,
) -> list[Path]:
    """Where a command will write, checked before anything is read.

    Raises OutputError for an output that cannot be written, or that is, contains or lies inside
    something that the arguments name: an adapter, the base, a task, a prompt file; UsageError or
    HubError for an upload that cannot be.
    """
    from loraprobe.adapters import check_apart, check_output
    from loraprobe.errors import LoraprobeError
    from loraprobe.hub import Reference, check_push

    if output.push is not None:
        if output.target is None:
            raise UsageError("--push uploads what --output writes; add --output DIR.")
        check_push(output.push)
    elif output.public:
        raise UsageError("--public goes with --push OWNER/NAME; add that.")
    read = [Path(file) for file in (*(files or ()), options.calibration) if file]
    read += [file for _, file in options.router_prompts]
    for reference in (*refs, *options.subtract, base):
        with contextlib.suppress(LoraprobeError):  # reading it raises the error
            if isinstance(reference, str):
                read += filter(None, [Reference.parse(reference, bare=True).path])
    targets = (output.target, output.html, output.save_samples)
    written = [target for target in targets if target is not None]
    for target in written:
        check_apart(target, read)
    if output.target is not None and options.shard is None:  # a shard goes on in its directory
        check_output(output.target, output.overwrite)
    return written


def checked_shard(output: Output, options: Options, always: bool = False) -> Path | None:
    """The directory of a shard, None for a whole run. always: whether a whole run may have one.

    Raises UsageError for a shard without --output, or that uploads it, and for --output alone.
    """
    if options.shard is None:
        if output.target is not None and not always:
            raise UsageError("--output goes with --shard I/N in this command; add that.")
        return None
    if output.target is None:
        raise UsageError("--shard writes its share into a directory: add --output DIR.")
    if output.push is not None:
        raise UsageError("--push uploads a result, not a share: give it to combine.")
    return output.target


def save(
    make: Callable[..., Any],
    refs: list[str],
    base: str | None,
    tasks: list[str] | None,
    options: Options,
    output: Output,
) -> None:
    """Runs `merge` or `compose` of the pipeline, writes what it made and prints the audit."""
    with output.progress() as progress:
        written = check_outputs(output, options, refs, base, tasks)
        found = make(
            refs,
            base=base,
            tasks=tasks or (),
            options=options,
            progress=progress,
            written=written,
        )
    write(found.made, output)
    output.result(found.audit, line=f"{output.target}: {found.audit.notes[-1]}")


def write(made: Any, output: Output) -> None:
    """Saves a merge, a composition or a converted adapter, and uploads it where that is asked."""
    from loraprobe import hub

    assert output.target is not None
    made.save(output.target, overwrite=output.overwrite)
    output.say(f"Wrote {made.name} to {output.target}.")
    if output.push is not None:
        output.say(hub.summary(output.target, output.push, output.public))
        output.say(f"Uploaded: {hub.push(output.target, output.push, output.public)}")


def with_loading(audit: Audit, made: Any, target: Path) -> Audit:
    """The audit whose next step is the line of Python that loads what was written.

    The verdict's own step would write it a second time.
    """
    from loraprobe.adapters import local_name
    from loraprobe.merging import Merged

    place = repr(local_name(str(target)))
    line = f"loraprobe.load_composition({place}).into(model)"
    if isinstance(made, Merged):
        line = f"PeftModel.from_pretrained(base, {place})"
    return replace(audit, verdict=audit.verdict and replace(audit.verdict, next=line))
