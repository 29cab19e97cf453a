"""A result as Markdown for a pull request."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from loraprobe.extensions.reports.page import viewed
from loraprobe.records import Audit, Sample
from loraprobe.report.markdown import filled
from loraprobe.report.parts import Answer, Table
from loraprobe.report.sections import heading, sections

MOST_ROWS, MOST_TABLES = 18, 2
LONGEST = 300  # characters of one text


def markdown(audit: Audit) -> str:
    """The answer, at most two tables, and where it comes from: about 50 lines and a program."""
    shown = viewed(sections(audit), "markdown", LONGEST)
    parts = [part for section in shown for part in section.shown("markdown")]
    tables = [part for part in parts if isinstance(part, Table)][:MOST_TABLES]
    return filled(
        Path(__file__).with_name("result.md.jinja"),
        title=heading(audit),
        told=next(part for part in parts if isinstance(part, Answer)),
        tables=tables,
        most=MOST_ROWS // max(1, len(tables)),
        sentences=[part for part in parts if isinstance(part, str)],
    ).rstrip("\n")


def write(audit: Audit, samples: Iterable[Sample], place: Path) -> None:
    """Prints it."""
    print(markdown(audit))
