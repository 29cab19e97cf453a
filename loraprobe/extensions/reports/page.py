"""The sections of an audit, with what only a page shows, as one HTML page without scripts, which
loads nothing.

Every text is escaped and its control characters are replaced; the page's policy forbids scripts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from loraprobe.adapters import check_file, staged_file
from loraprobe.extension import summaries
from loraprobe.extensions.reports import figures
from loraprobe.formatting import (
    JOINTS,
    clean,
    count,
    decimals,
    first_names,
    gained,
    number,
    probability,
    spread,
)
from loraprobe.records import Audit, Command, Sample, display_name
from loraprobe.report.parts import PAGE, Answer, Figure, Part, Section, View
from loraprobe.report.sections import MOST_NAMES, sections
from loraprobe.secrets import map_texts
from loraprobe.verdict.advice import basis_of

MARK = "<!-- written by loraprobe -->"
FIRST = 3  # sections that a notebook shows, the answer among them
LARGEST = 1_000_000  # bytes of a page
# Rows of a table and characters of a text, from what is usual to what hostile input needs.
SIZES = ((400, 2000), (100, 300), (25, 60), (5, 20))
LONGEST = 300  # characters of a text in a figure
MEANINGS = (
    "Each item counts once. Step by step: right only in that form. Said otherwise: the answer "
    "stands in the reply, which is not right by the metric. Unknown: neither the base nor a single "
    "adapter knows a hop. Cut off: the reply ended at the limit of tokens. Interference: a hop "
    "that is known alone is lost in the composition. Not composed: every hop is kept, and the "
    "answer is wrong."
)
INTERVALS = "Intervals are 95 %. The wider of two also covers the choice of the best system"
EVERY_ROUND = ", and every round of a run that stopped after round {used} of {planned}"
WHOLE = "--save-samples FILE.jsonl writes every question with every answer."
NOTHING = "Nothing was found that stands in the way."


@dataclass(frozen=True)
class Card:
    """What to do, and the figures that a reader of a page sees first, each with what it is."""

    action: str
    figures: Sequence[tuple[str, str]]


def page_sections(audit: Audit) -> list[Section]:
    """The sections of every report, each behind the sentences and figures that a page adds."""
    made, rounds = sections(audit), audit.evaluation.rounds
    shown: dict[str, list[Any]] = {one.name: one.shown("page") for one in made}
    early = EVERY_ROUND.format(**vars(rounds)) if rounds and rounds.early else ""
    before: dict[str, Iterable[Any]] = {
        "verdict": [card(audit, shown["verdict"][0])],
        "gains": [f"{INTERVALS}{early}."] if audit.evaluation.scores else [],
        "causes": [MEANINGS] if shown["causes"] else [],
        "examples": [WHOLE] if audit.samples else [],
        "findings": [] if shown["findings"] else [NOTHING],
        "pairs": figures.cosines(audit),
        "modules": figures.modules(audit),
    }
    for name, draw in (("gains", figures.gains), ("causes", figures.causes)):
        shown[name][:1] = map(partial(draw, audit), shown[name][:1])
    parts = {name: [*before.get(name, ()), *own] for name, own in shown.items()}
    return [replace(one, parts=[(PAGE, part) for part in parts[one.name]]) for one in made]


def title(audit: Audit) -> str:
    """What a page is about: the adapters and their base."""
    names = [row.name for row in audit.adapters]
    what = first_names(names, MOST_NAMES) or count(_apart(audit), "adapter")
    on = audit.base.reference if audit.base is not None else ""
    return f"{what} on {on}" if on else what


def card(audit: Audit, told: Answer) -> Card:
    """What a page says first: what to use, and three figures."""
    uses = [content for label, content in told.lines if label == "use" and isinstance(content, str)]
    verdict = audit.verdict
    if verdict is None or verdict.gain is None:
        return Card("".join(uses), _figures_of_files(audit))
    gain, used = verdict.gain, basis_of(verdict, audit.evaluation).used
    gap, ends = gained(gain.difference, gain.ci95, threshold=verdict.margin).split(" ", 1)
    over = f"gain of {display_name(gain.system)} over {display_name(gain.against)}, 95 % {ends}"
    figures_ = (
        (gap, over),
        used and (decimals(used.shown), f"{display_name(used.system)}, {used.form}"),
        verdict.probability is not None
        and (probability(verdict.probability), "probability of this verdict"),
        (str(gain.n), "questions asked"),
    )
    return Card("".join(uses), [one for one in figures_ if one][:3])


def _figures_of_files(audit: Audit) -> Sequence[tuple[str, str]]:
    """The figures of a page where no gain was measured: of one adapter, or of several."""
    rows, found = audit.adapters, Counter(issue.severity for issue in audit.compatibility.issues)
    if len(rows) == 1:
        of_one = spread(rows[0].rank.values()), str(rows[0].modules), number(rows[0].norm)
        return [*zip(of_one, ("rank", "modules", "norm of the update"), strict=True)]
    known = str(len(rows) or _apart(audit)), str(found["error"]), str(found["warning"])
    return [*zip(known, ("adapters", "errors", "warnings"), strict=True)]


def _apart(audit: Audit) -> int:
    """How many adapters extensions tell of."""
    return sum(one.adapters for one in summaries(audit))


def viewed(sections: Sequence[Section], view: View, characters: int) -> list[Section]:
    """The sections with what a view shows, without control characters and with texts cut.

    characters: the longest text that stays whole; commands always do.
    """
    shown = []
    for section in sections:
        parts = [((view,), _cut(part, characters)) for part in section.shown(view)]
        shown += [replace(section, parts=parts)] if parts else []
    return shown


def _cut(part: Part, characters: int) -> Part:
    def cut(text: str) -> str:
        plain = clean(text)
        return plain if len(plain) <= characters else plain[: characters - 1] + "…"

    if not isinstance(part, Answer):
        return map_texts(part, cut)
    lines = [
        (label, content if isinstance(content, Command) else cut(content))
        for label, content in part.lines
    ]
    return replace(part, headline=cut(part.headline), lines=tuple(lines))


def page(audit: Audit, day: str = "") -> str:
    """All sections of an audit as a page; of very long texts and tables only the beginning.

    day: when it was written.
    """
    shown = page_sections(audit)
    text, svgs = "", _drawings(shown)
    for rows, characters in SIZES:
        text = _rendered(title(audit), viewed(shown, "page", characters), rows, svgs, day)
        if len(text.encode()) <= LARGEST:
            break
    return text


def _drawings(sections: Sequence[Section]) -> dict[str, str]:
    """The SVG text of each figure by its name, for as many as a page has room for."""
    svgs, room = dict[str, str](), LARGEST // 2
    for section in viewed(sections, "page", LONGEST):
        for part in section.shown("page"):
            if isinstance(part, Figure) and room > 0:
                svg = figures.drawn(part)
                room -= len(svg.encode())
                svgs |= {part.name: svg} if room > 0 else {}
    return svgs


def fragment(audit: Audit) -> str:
    """The answer and the first sections of the page for a notebook, with the page's styles."""
    rows, characters = SIZES[1]
    first = viewed(page_sections(audit), "page", characters)[:FIRST]
    text = _rendered(title(audit), first, rows, _drawings(first))
    style, _, rest = text.partition("<style>")[2].partition("</style>")
    main = rest.partition("<main>")[2].partition("</main>")[0].strip()
    return f'<div class="report"><style>{style}</style>\n{main}\n</div>'


def _rendered(
    title: str, shown: Sequence[Section], rows: int, svgs: Mapping[str, str], day: str = ""
) -> str:
    """Sections, the answer first, with `rows` rows of each table. svgs: of figures, by name."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        autoescape=True,
    )
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


def check(file: Path) -> None:
    """Raises OutputError for an existing file, unless it is a page of loraprobe."""
    check_file(file, lambda stream: MARK in stream.read(200), "is no report of loraprobe's")


def write(audit: Audit, samples: Iterable[Sample], file: Path) -> None:
    """Writes the page, whole or not at all. Raises OutputError."""
    check(file)
    with staged_file(file) as staging:
        staging.write_text(page(audit, f"{date.today()}"), encoding="utf-8")
