"""Sections as one HTML page without scripts, which loads nothing.

Every text is escaped and its control characters are replaced; the page's policy forbids scripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

from markupsafe import Markup, escape

from loraprobe.adapters import check_file, staged_file
from loraprobe.formatting import JOINTS, clean
from loraprobe.report.figures import drawn
from loraprobe.report.markdown import templates
from loraprobe.report.parts import Answer, Figure, Section, viewed

MARK = "<!-- written by loraprobe -->"
FIRST = 3  # sections that a notebook shows, the answer among them
LARGEST = 1_000_000  # bytes of a page
# Rows of a table and characters of a text, from what is usual to what hostile input needs.
SIZES = ((400, 2000), (100, 300), (25, 60), (5, 20))
LONGEST = 300  # characters of a text in a figure


def page(title: str, sections: Sequence[Section], day: str = "") -> str:
    """All sections as a page; of very long texts and tables only the beginning.

    title: what it is about. day: when it was written.
    """
    text, svgs = "", _drawings(sections)
    for rows, characters in SIZES:
        text = _rendered(title, viewed(sections, "page", characters), rows, svgs, day)
        if len(text.encode()) <= LARGEST:
            break
    return text


def _drawings(sections: Sequence[Section]) -> dict[str, str]:
    """The SVG text of each figure by its name, for as many as a page has room for."""
    svgs, room = dict[str, str](), LARGEST // 2
    for section in viewed(sections, "page", LONGEST):
        for part in section.shown("page"):
            if isinstance(part, Figure) and room > 0:
                svg = drawn(part)
                room -= len(svg.encode())
                svgs |= {part.name: svg} if room > 0 else {}
    return svgs


def fragment(title: str, sections: Sequence[Section]) -> str:
    """The answer and the first sections of the page for a notebook, with the page's styles."""
    rows, characters = SIZES[1]
    first = viewed(sections, "page", characters)[:FIRST]
    text = _rendered(title, first, rows, _drawings(first))
    style, _, rest = text.partition("<style>")[2].partition("</style>")
    main = rest.partition("<main>")[2].partition("</main>")[0].strip()
    return f'<div class="report"><style>{style}</style>\n{main}\n</div>'


def _rendered(
    title: str, shown: Sequence[Section], rows: int, svgs: Mapping[str, str], day: str = ""
) -> str:
    """Sections, the answer first, with `rows` rows of each table. svgs: of figures, by name."""
    environment = templates(autoescape=True)
    environment.filters.update(joints=_joints, clean=clean)
    decisions = [part.decision for part in shown[0].shown("page") if isinstance(part, Answer)]
    return environment.get_template("page.html.jinja").render(
        mark=Markup(MARK),
        title=clean(title),
        decision=decisions[0],
        day=day,
        sections=shown,
        most=rows,
        svgs={name: Markup(svg) for name, svg in svgs.items()},
    )


def _joints(text: str) -> Markup:
    """A name that may break at its joints; a sentence as it is, where 0.5 stays in one piece."""
    broken = text if " " in text else JOINTS.sub("\0", text)
    return Markup(str(escape(broken)).replace("\0", "<wbr>"))


def check_page(file: Path) -> None:
    """Raises OutputError for an existing file, unless it is a page of loraprobe."""
    check_file(file, lambda stream: MARK in stream.read(200), "is no report of loraprobe's")


def write_page(file: Path, title: str, sections: Sequence[Section]) -> None:
    """Writes the page, whole or not at all. Raises OutputError."""
    check_page(file)
    with staged_file(file) as staging:
        staging.write_text(page(title, sections, f"{date.today()}"), encoding="utf-8")
