"""The report of the terminal as one HTML page, with colours for light and dark screens.

The page loads nothing and runs nothing: all text is escaped, and its policy forbids scripts.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from loraprobe.adapters import check_place, staged_file
from loraprobe.errors import OutputError
from loraprobe.records import Audit
from loraprobe.report.formatting import clean
from loraprobe.report.terminal import render

MARK = "<!-- written by loraprobe -->"
WIDTH = 132


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour)
    return red, green, blue


COLOURS = "1c2024 b02028 187838 966800 2054a8 783090 007484 606870"
THEME = TerminalTheme(_rgb("ffffff"), _rgb("1c2024"), [_rgb(one) for one in COLOURS.split()])
PAGE = """<!DOCTYPE html>
{mark}
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{{stylesheet}}
body {{{{ margin: 2rem auto; max-width: max-content; padding: 0 1rem; }}}}
pre {{{{ font: 0.85rem/1.35 ui-monospace, Menlo, Consolas, monospace; overflow-x: auto; }}}}
@media (prefers-color-scheme: dark) {{{{
  html {{{{ filter: invert(0.92) hue-rotate(180deg); }}}}
}}}}
</style></head>
<body><pre><code>{{code}}</code></pre></body></html>
"""


def page(audit: Audit) -> str:
    """The whole audit as one page."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), highlight=False)
    render(audit, console, explain=True)
    decision = f": {audit.verdict.decision}" if audit.verdict is not None else ""
    title = clean(f"loraprobe {audit.command}{decision}")
    form = PAGE.format(mark=MARK, title=title)
    return console.export_html(theme=THEME, code_format=form)


def check_page(file: Path) -> None:
    """Raises OutputError for an existing file, unless it is a page of loraprobe."""
    check_place(file)
    if not os.path.lexists(file):
        return
    if file.is_file():
        with file.open(encoding="utf-8", errors="replace") as stream:
            if MARK in stream.read(200):
                return
    raise OutputError(f"{file} exists and is no report of loraprobe's; choose another name.")


def write_page(audit: Audit, file: Path) -> None:
    """Writes the page, whole or not at all. Raises OutputError."""
    check_page(file)
    with staged_file(file) as staging:
        staging.write_text(page(audit), encoding="utf-8")
