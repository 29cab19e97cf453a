"""The commands that write a directory."""

from __future__ import annotations

from typing import Any

from loraprobe.cli.parameters import RefsArgument, Texts
from loraprobe.cli.running import Output, run, write
from loraprobe.errors import UsageError
from loraprobe.extension import installed, output_formats_of
from loraprobe.options import Options


def merge(
    options: Options, output: Output, refs: RefsArgument, base: str | None, task: Texts
) -> None:
    """Merge adapters into one and write a PEFT directory with a model card.

    Needs no base model, except for DoRA, for modules that only some adapters hold whole, to learn
    weights on a task, and for what is written with the base in it; what cannot be merged exactly as
    it stands is refused by name.
    """
    formats = output_formats_of(options)
    if output.target is None and not formats:
        others = [f"{format_.flag} DIR" for one in installed() for format_ in one.output_formats]
        ways = ", ".join(["-o DIR", *others, *(["or both"] if others else [])])
        raise UsageError(f"merge writes a directory; give {ways}.")
    if output.target is None and options.dtype != "auto":
        raise UsageError(
            f"--dtype is that of the adapter; {formats[0][1].name} has its base's. Leave it out."
        )
    save(output, options, "merge", refs, base, task or [])


def route(
    options: Options, output: Output, refs: RefsArgument, base: str | None, task: Texts
) -> None:
    """Save adapters and a router as a composition: a directory that loraprobe.load_composition
    restores, and, where it computes the same, peft's own Arrow.

    Needs no base model, except for a router that learns from prompts, for learned weights, and to
    tell whether peft can express it. Nothing is evaluated: merge-and-eval does that.
    """
    save(output, options, "compose", refs, base, task or [])


def save(output: Output, options: Options, *given: Any, **more: Any) -> None:
    """Runs a command that makes something, writes that and prints the audit."""
    outcome = run(output, options, *given, **more)
    write(outcome, output, options)
    place = output.target or output_formats_of(options)[0][0]
    output.result(outcome.audit, options, line=f"{place}: {outcome.audit.notes[-1]}")
