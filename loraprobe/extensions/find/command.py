"""The command line of `find`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from rich.console import Console

from loraprobe.cli.parameters import argument, setting
from loraprobe.cli.running import Output
from loraprobe.formatting import clean, rounded

if TYPE_CHECKING:
    from loraprobe.extensions.find.search import FoundAdapter


def find(
    output: Output,
    base: Annotated[str, argument("BASE", "Base model on the Hub.")],
    limit: Annotated[int, setting("N", "At most so many.", min=1, max=1000)] = 30,
) -> None:
    """List PEFT adapters of a base model and its proven copies on the Hub, most downloaded first.

    A table on a terminal; into a pipe, or with --quiet, one reference a line:
    loraprobe inspect $(loraprobe find BASE --limit 2 --quiet)
    """
    from loraprobe.extensions.find.search import find_adapters

    adapters = find_adapters(base, limit)
    if output.document("find", {"base": base, "adapters": adapters}):
        return
    if output.quiet or not sys.stdout.isatty():
        for adapter in adapters:
            print(clean(adapter.reference))
    else:
        show_adapters(base, adapters)
    sys.stdout.flush()


def show_adapters(base: str, adapters: Sequence[FoundAdapter]) -> None:
    """A row an adapter; where there is none, what that may mean."""
    from loraprobe.report.parts import Column, tabulated, text
    from loraprobe.report.terminal import print_table

    console = Console(highlight=False)
    if not adapters:
        nothing = f"No PEFT adapter on the Hub names {clean(base)} as its base model."
        console.print(nothing, markup=False)
        return
    table = tabulated(
        f"Adapters of {base}",
        adapters,
        (text("reference"), lambda one: one.reference),
        (Column("downloads", drop=1), lambda one: rounded(one.downloads)),
        (Column("likes", drop=2), lambda one: rounded(one.likes)),
        (text("updated", drop=4), lambda one: one.updated or "-"),
        (text("licence", drop=3), lambda one: one.license or "-"),
        (text("base", drop=5), lambda one: one.base),
    )
    print_table(console, table)
