"""`loraprobe methods`: every shelf, with formula, paper, options and laws."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from loraprobe.cli import _options as opt


def shelves() -> list[dict[str, Any]]:
    """Every thing of every shelf as plain data."""
    from loraprobe.coverage import PROBES
    from loraprobe.diagnostics import DIAGNOSTICS
    from loraprobe.merging import METHODS
    from loraprobe.routing import ROUTERS
    from loraprobe.shelf import Shelf
    from loraprobe.spaces import SPACES

    rows: list[dict[str, Any]] = []
    shelves_: tuple[Shelf[Any], ...] = (DIAGNOSTICS, PROBES, METHODS, ROUTERS)
    for shelf in shelves_:
        for name in shelf.names():
            cls = shelf.get(name)
            rows.append(
                {
                    "kind": shelf.noun,
                    "name": name,
                    "summary": (cls.__doc__ or "").strip().splitlines()[0],
                    "options": {f.name: _default(f) for f in dataclasses.fields(cls) if f.init},
                    "formula": getattr(cls, "formula", None),
                    "paper": getattr(cls, "paper", None),
                    "laws": sorted(getattr(cls, "laws", ())),
                    "lossless_in": sorted(getattr(cls, "lossless", ())),
                }
            )
    for name, space in SPACES.items():
        summary = (space.__doc__ or "").strip().splitlines()[0]
        rows.append({"kind": "space", "name": name, "summary": summary})
    return rows


def methods(json: opt.Json = False) -> None:
    """List every diagnostic, coverage probe, merge method, space and router."""
    rows = shelves()
    if json:
        import json as json_

        document = {"schema_version": 1, "command": "methods", "methods": rows}
        print(json_.dumps(document, indent=1, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(highlight=False)
    for kind in dict.fromkeys(row["kind"] for row in rows):
        console.print(f"[bold]{kind}s[/]")
        for row in (r for r in rows if r["kind"] == kind):
            _print(console, row)
    sys.stdout.flush()


def _print(console: Any, row: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.padding import Padding

    options = ",".join(f"{k}={v}" for k, v in row.get("options", {}).items())
    head = f"[cyan]{row['name']}[/]" + (f":{escape(options)}" if options else "")
    lines = [escape(row["summary"])]
    lines += [escape(row[key]) for key in ("formula", "paper") if row.get(key) not in (None, "-")]
    if row.get("laws"):
        lines.append("laws: " + ", ".join(row["laws"]))
    if row.get("lossless_in"):
        lines.append("lossless in: " + ", ".join(row["lossless_in"]))
    console.print(Padding(head, (0, 0, 0, 1)))
    console.print(Padding("\n".join(lines), (0, 0, 0, 4)))


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return None
