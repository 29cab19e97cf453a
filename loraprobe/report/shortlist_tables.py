"""The short list of a screen: which sets of adapters were proved, and what each gained."""

from __future__ import annotations

from loraprobe.formatting import count
from loraprobe.records import Audit, Shortlisted
from loraprobe.report.system_tables import bounds, form, signed
from loraprobe.report.table import Column, Table, tabulated, text

OUTCOMES = {"compose": "compose", "single": "use alone", "none": "no gain", "open": "open"}


def screened(audit: Audit) -> bool:
    """Whether a library was screened for a task."""
    return audit.command == "screen" and bool(audit.shortlist)


def shortlist(audit: Audit) -> Table:
    """The sets that were proved, the best first, each with its best composition."""
    items = {row.task: row.proving for row in audit.library.items} if audit.library else {}
    asked = " and ".join(f"{count(n, 'question')} of {task}" for task, n in items.items())
    return tabulated(
        f"Short list, proved on up to {asked}",
        audit.shortlist,
        (text("adapters"), lambda row: ", ".join(row.adapters)),
        (Column("place", drop=2), lambda row: str(row.place)),
        (Column("forecast", drop=1), _forecast),
        (Column("gain"), lambda row: signed(row.gain.difference) if row.gain else "-"),
        (Column("95 %", drop=3), lambda row: bounds(row.gain.adjusted_ci95) if row.gain else "-"),
        (text("by"), _method),
        (text("so"), lambda row: OUTCOMES[row.outcome]),
    )


def _forecast(row: Shortlisted) -> str:
    return signed(row.forecast.gain) if row.forecast is not None else "-"


def _method(row: Shortlisted) -> str:
    """How the best composition is made, and in which form it is asked."""
    if row.system is None:
        return "-"
    spec = row.system.removesuffix(f"({', '.join(row.adapters)})")
    steps = row.gain is not None and row.gain.part == "steps"
    return f"{spec}, {form('steps')}" if steps else spec
