"""What `find` found, on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from loraprobe.report.formatting import clean, rounded
from loraprobe.report.layout import fitted, show
from loraprobe.report.table import Column, Table, text

COLUMNS = (
    text("reference"),
    *(Column("downloads", drop=1), Column("likes", drop=2)),
    *(text("updated", drop=4), text("licence", drop=3)),
)


def render(base: str, found: Sequence[Any]) -> None:
    """A row an adapter; where there is none, what that may mean."""
    console = Console(highlight=False)
    if not found:
        told = f"No PEFT adapter on the Hub names {clean(base)} as its base model."
        console.print(told, markup=False)
        return
    lines = []
    for one in found:
        numbers = ["-" if n is None else rounded(n) for n in (one.downloads, one.likes)]
        lines.append([one.reference, *numbers, one.updated or "-", one.license or "-"])
    show(console, fitted(Table(f"Adapters of {base}", COLUMNS, lines), console.width))
