"""The command line of `screen`."""

from __future__ import annotations

import sys
from typing import Annotated

from loraprobe.cli.parameters import REFERENCE, Texts, argument
from loraprobe.cli.running import Output, run
from loraprobe.options import Options

STAGES = "loraprobe.extensions.screen.stages"


def screen(
    options: Options,
    output: Output,
    refs: Annotated[
        list[str],
        argument("REF", f"Adapters: {REFERENCE}; @FILE with one a line; or - for standard input."),
    ],
    base: str | None,
    task: Texts,
) -> None:
    """Look through a library of adapters for what can be used, and for what your task needs.

    Every adapter is read once; what is broken, a copy, or of another base is named. With --task
    base and adapters answer a part of your questions, the compositions that look best are proved on
    the others, and the verdict covers the choice. Exit code 0: a composition likely works, or there
    was no task; 1: none does, or no adapter fits --base; 2: no adapter can be read; 3: undecided.

    As one pipe: loraprobe find BASE | loraprobe screen - --task FILE
    """
    from loraprobe.extensions.screen.reading import expand_references

    given = (str(one) for ref in refs for one in expand_references([ref], sys.stdin))
    outcome = run(output, options, "screen", given, base, task or [], module=STAGES)
    output.result(outcome.audit, options)
