"""A report as one HTML page without scripts, which loads nothing.

Every text is escaped and its control characters are replaced; the page's policy forbids scripts.
"""

from __future__ import annotations

import re
from pathlib import Path

from markupsafe import Markup, escape

from loraprobe.adapters import check_file, staged_file
from loraprobe.records import Audit
from loraprobe.report.answer import COMMANDS, answer
from loraprobe.report.escaping import templates
from loraprobe.report.figures import check_drawing
from loraprobe.report.formatting import JOINTS, shortened
from loraprobe.report.page import sections
from loraprobe.report.system_tables import form

MARK = "<!-- written by loraprobe -->"
# An option, together with its value where that is short: it stays in one line.
OPTION = re.compile(r"(?<!\S)--[a-z][a-z-]*(?: (?!-)\S{1,16}(?!\S))?")
FIRST = 2  # sections after the verdict that a notebook shows
LARGEST = 1_000_000  # bytes of a page
# Rows of a table and characters of a text, from what is usual to what hostile input needs.
SIZES = ((400, 2000), (100, 300), (25, 60), (5, 20))


def page(audit: Audit) -> str:
    """The whole audit as one page; of very long texts and tables only the beginning."""
    text = ""
    for rows, characters in SIZES:
        text = _rendered(shortened(audit, characters), rows)
        if len(text.encode()) <= LARGEST:
            break
    return text


def fragment(audit: Audit) -> str:
    """The verdict and the first sections of the page, as a notebook shows them in its own style."""
    rows, characters = SIZES[1]
    text = _rendered(shortened(audit, characters), rows, FIRST)
    return text.partition("<main>")[2].partition("</main>")[0].strip()


def _unbroken(text: str) -> Markup:
    """A sentence in which no option is broken."""
    opened = str(escape(OPTION.sub("\0\\g<0>\1", text))).replace("\0", '<span class="option">')
    return Markup(opened.replace("\1", "</span>"))


def _joints(text: str) -> Markup:
    """A name that may break at its joints; a sentence as it is, where 0.5 stays in one piece."""
    if " " in text:
        return _unbroken(text)
    return Markup(str(escape(JOINTS.sub("\0", text))).replace("\0", "<wbr>"))


def _rendered(audit: Audit, rows: int, most: int | None = None) -> str:
    """The page with `rows` rows of each table, and its first `most` sections."""
    environment = templates(autoescape=True)
    environment.filters.update(joints=_joints, unbroken=_unbroken, form=form)
    found = answer(audit)
    base = f" on {audit.base.reference}" if audit.base is not None else ""
    decision = f": {found.decision}" if found.decision else ""
    return environment.get_template("page.html.jinja").render(
        mark=Markup(MARK),
        title=f"loraprobe {audit.command}{decision}",
        heading=f"loraprobe {audit.command}{base}",
        answer=found,
        commands=COMMANDS,
        sections=sections(audit)[:most],
        most=rows,
    )


def check_page(file: Path) -> None:
    """Raises OutputError for an existing file, unless it is a page of loraprobe, and UsageError
    where pages cannot be drawn."""
    check_drawing()
    check_file(file, lambda stream: MARK in stream.read(200), "is no report of loraprobe's")


def write_page(audit: Audit, file: Path) -> None:
    """Writes the page, whole or not at all. Raises OutputError."""
    check_page(file)
    with staged_file(file) as staging:
        staging.write_text(page(audit), encoding="utf-8")
