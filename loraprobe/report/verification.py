"""A verification on a terminal and as JSON."""

from __future__ import annotations

import json

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loraprobe.adapters import local_name
from loraprobe.records import Verification
from loraprobe.report.formatting import clean
from loraprobe.secrets import public_text


def as_json(found: Verification) -> str:
    """One document: each check with whether it passed and what was seen."""
    return json.dumps(
        {
            "schema_version": 1,
            "command": "verify",
            "directory": clean(local_name(found.directory)),
            "verified": found.passed,
            "checks": [
                {
                    "name": clean(c.name),
                    "passed": c.passed,
                    "message": clean(public_text(c.message)),
                }
                for c in found.checks
            ],
        },
        ensure_ascii=False,
        indent=1,
    )


def render(found: Verification) -> None:
    """A row a check, then the conclusion."""
    console = Console(highlight=False)
    table = Table(title=escape(clean(found.directory)), title_justify="left")
    for heading in ("check", "", "what was seen"):
        table.add_column(heading)
    for check in found.checks:
        mark = "[green]ok[/]" if check.passed else "[bold red]failed[/]"
        table.add_row(escape(clean(check.name)), mark, escape(clean(check.message)))
    console.print(table)
    if found.passed:
        console.print("[bold green]verified[/]: this is what its card describes.")
    else:
        console.print("[bold red]not verified[/]: do not use it as what its card says.")
