"""`loraprobe cache`: what runs keep, listed or deleted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from loraprobe.cli.options import with_options
from loraprobe.cli.output import Output
from loraprobe.formatting import count

if TYPE_CHECKING:
    from loraprobe.pipeline.results import KeptRun

DAY = 86_400.0


@with_options("json")
def cache(
    output: Output,
    clear: Annotated[bool, typer.Option("--clear", metavar=" ", help="Delete it all.")] = False,
    older: Annotated[
        int, typer.Option(metavar="DAYS", min=0, help="Only runs not used for so many days.")
    ] = 0,
) -> None:
    """List what runs keep for --resume, or delete it with --clear.

    It lies in LORAPROBE_CACHE, or in loraprobe of the user's cache. What the Hub's client
    downloads is its own: hf cache.
    """
    from loraprobe.pipeline.results import clear_kept, kept_runs, readings_size

    now = time.time()
    runs = [run for run in kept_runs() if now - run.used >= older * DAY]
    readings = readings_size()
    used = clear_kept(runs, readings=older == 0) if clear else []
    if output.json:
        rows = [_as_plain(run) for run in (used if clear else runs)]
        from loraprobe.records import document

        print(document("cache", {"cleared": clear, "runs": rows}))
    elif clear:
        kept_back = f" What is in use stays: {count(len(used), 'run')}." if used else ""
        output.say(f"Deleted {count(len(runs) - len(used), 'run')}.{kept_back}")
    else:
        _show(runs, readings, now)


def _as_plain(run: KeptRun) -> dict[str, object]:
    used = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run.used))
    return {
        "name": run.place.name,
        "adapters": list(run.adapters),
        "tasks": list(run.tasks),
        "bytes": run.size,
        "used": used,
    }


def _show(runs: list[KeptRun], readings: int, now: float) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from loraprobe.report.formatting import clean, size

    table = Table("adapters", "tasks", "size", "last used", box=None)
    for run in runs:
        unread = ("(of another version)",)  # its adapters and tasks are not known
        names = (", ".join(map(clean, held)) for held in (run.adapters or unread, run.tasks))
        days = int((now - run.used) / DAY)
        when = "today" if days == 0 else f"{days} days ago"
        table.add_row(*map(escape, names), size(run.size), when)
    console = Console(highlight=False)
    if runs:
        console.print(table)
    total = sum(run.size for run in runs)
    cure = " loraprobe cache --clear deletes them." if runs or readings else ""
    files = f"hashes and readings of files, {size(readings)}."
    kept_there = f"{count(len(runs), 'run')}, {size(total)}; {files}"
    console.print(kept_there + cure)
