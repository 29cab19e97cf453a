"""The result as Markdown for a pull request: verdict, scores, three reasons, provenance."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from loraprobe.formatting import shortened, size
from loraprobe.records import Audit
from loraprobe.report import (
    adapter_tables,
    escaping,
    library,
    system_tables,
)
from loraprobe.report.answer import COMMANDS, answer
from loraprobe.report.table import Table

MOST_ROWS, MOST_TABLES, MOST_REASONS, MOST_SOURCES = 18, 2, 3, 6
LONGEST = 300  # characters of one text
WHY = ("why", "watch", "lacks")  # the lines of the answer that are reasons


def markdown(audit: Audit) -> str:
    """At most 60 lines; texts of other people are escaped."""
    audit = shortened(audit, LONGEST)
    found = answer(audit)
    why = [text for label, text in found.lines if label in WHY]
    why = why or [reason.message for reason in (audit.verdict.reasons if audit.verdict else ())]
    lines = [(label, text) for label, text in found.lines if label not in WHY]
    tables = _tables(audit)
    return escaping.markdown(
        "result.md.jinja",
        command=audit.command,
        headline=found.headline,
        lines=lines,
        commands=COMMANDS,
        tables=tables,
        most=MOST_ROWS // max(1, len(tables)),
        reasons=why[:MOST_REASONS],
        provenance=list(_provenance(audit)),
    ).rstrip("\n")


def _tables(audit: Audit) -> list[Table]:
    """The short list and scores; without them what a library holds, or what the adapters are."""
    found = [library.shortlist(audit), *system_tables.scores(audit)]
    if not any(table.rows for table in found):
        found = [library.unusable(audit), library.families(audit)]
    if audit.library is None and not any(table.rows for table in found):
        found = [adapter_tables.adapters(audit)]
    return [table for table in found if table.rows][:MOST_TABLES]


def _provenance(audit: Audit) -> Iterator[str]:
    made = audit.provenance
    torch = f", torch {made.torch}" if made.torch else ""
    yield f"loraprobe {made.loraprobe}{torch}, {made.device}, {made.dtype}, seed {made.seed}"
    taken = sum(made.seconds.values())
    yield f"{taken:.0f} s, {size(made.peak_memory_bytes)} peak memory"
    if made.arguments:
        yield f"call: loraprobe {shlex.join(made.arguments)}"
    if audit.base is not None:
        yield f"base: {audit.base.reference} {_pinned(audit.base.commit, audit.base.sha256)}"
    for task in made.tasks:
        yield f"task {task.name}: {task.reference} {_pinned(task.commit, task.sha256)}"
    for row in audit.adapters[:MOST_SOURCES]:
        yield f"{row.name}: {row.reference} {_pinned(row.commit, row.sha256)}"
    if len(audit.adapters) > MOST_SOURCES:
        yield f"{len(audit.adapters) - MOST_SOURCES} more adapters in the JSON document"


def _pinned(commit: str | None, sha256: str | None) -> str:
    return f"commit {commit}" if commit else f"sha256 {sha256}" if sha256 else ""
