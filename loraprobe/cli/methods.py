"""`loraprobe methods`: every registry, with formula, paper, options, variants and laws."""

from __future__ import annotations

import importlib.resources
import json as json_
import sys
from collections.abc import Sequence
from typing import Annotated, Any

from loraprobe.cli.parameters import argument
from loraprobe.cli.running import options_from
from loraprobe.errors import UsageError
from loraprobe.formatting import nearest

NAME_WIDTH = 22


def _known(incomplete: str) -> list[str]:
    return [row["name"] for row in described() if row["name"].startswith(incomplete)]


NamesArgument = Annotated[
    list[str] | None,
    argument("NAME", "Tell all about these; without names a list.", autocompletion=_known),
]


def described() -> list[dict[str, Any]]:
    """Every entry of every registry as plain data, as `tests/pages.py` wrote it: the members
    themselves need torch, whose import takes longer than all of this command."""
    text = importlib.resources.files("loraprobe.cli").joinpath("methods.json").read_text("utf-8")
    found: list[dict[str, Any]] = json_.loads(text)
    return found


def _named(rows: list[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of these names. Raises UsageError with the nearest one where there is none."""
    known = {row["name"] for row in rows}
    wanted = [name.partition(":")[0].strip().replace("-", "_") for name in names]
    for name in wanted:
        if name not in known:
            hint = nearest(name, known, "see loraprobe methods, which lists all.")
            raise UsageError(f"Nothing is called {name!r}: {hint}")
    return [row for row in rows if row["name"] in wanted]


def methods(
    names: NamesArgument = None,
    *,
    json: bool = False,
) -> None:
    """List every diagnostic, coverage probe, merge method, space and router, one a line, or
    explain those that are named."""
    _, output = options_from(locals())
    rows = _named(described(), names) if names else described()
    if output.document("methods", {"methods": rows}):
        return
    from rich.console import Console

    console = Console(highlight=False)
    for kind in dict.fromkeys(row["kind"] for row in rows):
        console.print(f"[bold]{kind}s[/]")
        for row in (r for r in rows if r["kind"] == kind):
            (_print_all if names else _print_line)(console, row)
    if not names:
        console.print("loraprobe methods NAME tells options, formula, paper and laws.")
    sys.stdout.flush()


def _print_line(console: Any, row: dict[str, Any]) -> None:
    """Name and summary in one line of the console's width."""
    from rich.text import Text

    line = Text.assemble(" ", (row["name"].ljust(NAME_WIDTH), "cyan"), row["summary"])
    console.print(line, no_wrap=True, overflow="ellipsis")


def _print_all(console: Any, row: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.padding import Padding

    options = [f"{k}={v}" for k, v in row.get("options", {}).items()]
    first, *more = _broken(row["name"], options, console.width - 2)
    name = len(row["name"])
    head = "\n".join([f"[cyan]{row['name']}[/]{escape(first[name:])}", *map(escape, more)])
    lines = [escape(row["description"])]
    lines += [escape(row[key]) for key in ("formula", "paper") if row.get(key) not in (None, "-")]
    for name, values in row.get("choices", {}).items():
        lines.append(f"{name}: " + escape(" or ".join(values)))
    if row.get("laws"):
        lines.append("laws: " + ", ".join(row["laws"]))
    if row.get("lossless_in"):
        lines.append("lossless in: " + ", ".join(row["lossless_in"]))
    console.print(Padding(head, (0, 0, 0, 1)))
    console.print(Padding("\n".join(lines), (0, 0, 0, 4)))


def _broken(name: str, options: Sequence[str], width: int) -> list[str]:
    """name:option=value,... in lines that end at a comma, the later ones indented."""
    lines = [name + (":" if options else "")]
    for i, option in enumerate(options):
        piece = option + ("," if i < len(options) - 1 else "")
        if len(lines[-1]) + len(piece) > width and lines[-1].strip():
            lines.append("      ")
        lines[-1] += piece
    return lines
