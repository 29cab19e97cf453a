"""A verification on a terminal and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace

from rich.console import Console

from loraprobe.adapters import local_name
from loraprobe.records import Verification
from loraprobe.report.formatting import clean
from loraprobe.report.layout import fitted, show
from loraprobe.report.table import Table, text
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


COLUMNS = (
    text("check"),
    replace(text("result"), styles={"^ok$": "green", "^failed$": "bold red"}),
    text("what was seen", prose=True),
)


def render(found: Verification) -> None:
    """A row a check, then the conclusion."""
    console = Console(highlight=False)
    lines = [[c.name, "ok" if c.passed else "failed", c.message] for c in found.checks]
    show(console, fitted(Table(found.directory, COLUMNS, lines), console.width))
    if found.passed:
        console.print("[bold green]verified[/]: this is what its card describes.")
    else:
        console.print("[bold red]not verified[/]: do not use it as what its card says.")
