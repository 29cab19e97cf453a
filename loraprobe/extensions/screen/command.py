"""The command line of `screen`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from loraprobe.cli.parameters import (
    REFERENCE,
    BaseOption,
    IssueCodes,
    MethodSpecs,
    RouterSpecs,
    TaskOption,
    Texts,
    argument,
)
from loraprobe.cli.running import options_from, run
from loraprobe.defaults import MARGIN, RETENTION

COMMANDS = "loraprobe.extensions.screen.commands"


def screen(
    refs: Annotated[
        list[str],
        argument("REF", f"Adapters: {REFERENCE}; @FILE with one a line; or - for standard input."),
    ],
    *,
    base: BaseOption = None,
    balance: str = "none",
    allow: IssueCodes = None,
    task: TaskOption = None,
    fields: Texts = None,
    metric: Texts = None,
    margin: float | None = None,
    guards: Texts = None,
    guard_margin: float = MARGIN,
    retention: float = RETENTION,
    limit: int | None = None,
    all_items: bool = False,
    max_new_tokens: int | None = None,
    chat_template: str = "auto",
    seed: int = 0,
    methods: MethodSpecs = None,
    routers: RouterSpecs = None,
    space: str | None = None,
    rank: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
    device_map: str = "none",
    batch_size: str = "auto",
    threads: int | None = None,
    trust_remote_code: bool = False,
    resume: bool = False,
    json: bool = False,
    html: Path | None = None,
    markdown: bool = False,
    explain: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    exit_zero: bool = False,
    **added: Any,
) -> None:
    """Look through a library of adapters for what can be used, and for what your task needs.

    Every adapter is read once; what is broken, a copy, or of another base is named. With --task
    base and adapters answer a part of your questions, the compositions that look best are proved on
    the others, and the verdict covers the choice. Exit code 0: a composition likely works, or there
    was no task; 1: none does, or no adapter fits --base; 2: no adapter can be read; 3: undecided.

    As one pipe: loraprobe find BASE | loraprobe screen - --task FILE
    """
    options, output = options_from(locals())
    from loraprobe.extensions.screen.reading import expand_references

    given = (str(one) for ref in refs for one in expand_references([ref], sys.stdin))
    outcome = run(output, options, "screen", given, base, task or [], module=COMMANDS)
    output.result(outcome.audit, options)
