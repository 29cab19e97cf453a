"""What `find` found, on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loraprobe.report.formatting import clean, count


def render(base: str, found: Sequence[Any]) -> None:
    """A row an adapter; where there is none, what that may mean."""
    console = Console(highlight=False)
    if not found:
        console.print(f"No PEFT adapter on the Hub names {escape(clean(base))} as its base model.")
        return
    table = Table(title=f"Adapters of {escape(clean(base))}", title_justify="left")
    for heading in ("reference", "downloads", "likes", "updated", "licence"):
        table.add_column(heading, justify="right" if heading in ("downloads", "likes") else "left")
    for one in found:
        numbers = ["-" if n is None else count(n) for n in (one.downloads, one.likes)]
        rest = (clean(one.updated or "-"), clean(one.license or "-"))
        table.add_row(escape(clean(one.reference)), *numbers, *map(escape, rest))
    console.print(table)
