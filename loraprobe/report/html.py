"""A report as one HTML page without scripts, which loads nothing.

Every text is escaped and its control characters are replaced; the page's policy forbids scripts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from loraprobe.adapters import check_file, staged_file
from loraprobe.formatting import JOINTS, shortened
from loraprobe.records import Audit, Sample
from loraprobe.report import adapter_tables, library, maps, system_tables
from loraprobe.report.answer import COMMANDS, answer
from loraprobe.report.figures import About, check_drawing, forest, stacked
from loraprobe.report.maps import Figure
from loraprobe.report.markdown import templates
from loraprobe.report.system_tables import CAUSES, bounds, form, signed
from loraprobe.report.table import Table

MARK = "<!-- written by loraprobe -->"
# An option, together with its value where that is short: it stays in one line.
OPTION = re.compile(r"(?<!\S)--[a-z][a-z-]*(?: (?!-)\S{1,16}(?!\S))?")
FIRST = 2  # sections after the verdict that a notebook shows
LARGEST = 1_000_000  # bytes of a page
# Rows of a table and characters of a text, from what is usual to what hostile input needs.
SIZES = ((400, 2000), (100, 300), (25, 60), (5, 20))
MEANINGS = (
    "Each item counts once. Step by step: right only in that form. Said otherwise: the answer "
    "stands in the reply, which is not right by the metric. Unknown: neither the base nor a single "
    "adapter knows a hop. Cut off: the reply ended at the limit of tokens. Interference: a hop "
    "that is known alone is lost in the composition. Not composed: every hop is kept, and the "
    "answer is wrong."
)
INTERVALS = "Intervals are 95 %. The wider of two also covers the choice of the best system"
EVERY_LOOK = ", and every look of a run that stopped at look {used} of {planned}"
SKETCHED = (
    "How alike two adapters are is estimated from sketches of their updates, with a standard error "
    "of the cosine of at most {:.3f}; copies are confirmed from the updates themselves."
)
SHORTLISTED = (
    "Sets of adapters that were composed and proved on questions that took no part in the choice. "
    "The place is that by the forecast, which adds the adapters' effects on the next token or, for "
    "worked steps, counts what the members know alone; gains are over the base and every single "
    "adapter that was proved beside them."
)
MOST_LINES = 24  # of a figure; its table has them all


def page(audit: Audit) -> str:
    """The whole audit as one page; of very long texts and tables only the beginning."""
    text = ""
    for rows, characters in SIZES:
        text = _rendered(shortened(audit, characters), rows)
        if len(text.encode()) <= LARGEST:
            break
    return text


def fragment(audit: Audit) -> str:
    """The verdict and the first sections of the page for a notebook, with the page's styles."""
    rows, characters = SIZES[1]
    text = _rendered(shortened(audit, characters), rows, FIRST)
    style, _, rest = text.partition("<style>")[2].partition("</style>")
    main = rest.partition("<main>")[2].partition("</main>")[0].strip()
    return f'<div class="report"><style>{style}</style>\n{main}\n</div>'


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


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; `folded` tables are shown when they are asked for.

    A page leaves out tables without rows, and a section that has nothing but sentences, unless that
    `says_enough`.
    """

    name: str
    title: str
    sentences: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    samples: Sequence[tuple[Sample, Table]] = ()
    tables: Sequence[Table] = ()
    folded: Sequence[Table] = ()
    lists: Sequence[str] = ()
    says_enough: bool = False

    @property
    def shows(self) -> bool:
        """Whether there is anything to show."""
        tables = [table for table in (*self.tables, *self.folded) if table.rows]
        return self.says_enough or any((self.figures, self.samples, tables, self.lists))


def sections(audit: Audit) -> list[Section]:
    """The sections of a page after the verdict, those that have nothing to show left out."""
    made = (*_of_scores(audit), *_of_adapters(audit), *_of_the_run(audit))
    return [section for section in made if section.shows]


def _of_scores(audit: Audit) -> Iterator[Section]:
    """What was asked of systems, and what came of it."""
    yield Section("short-list", "Short list", [SHORTLISTED], tables=[library.shortlist(audit)])
    looks = audit.evaluation.rounds
    early = EVERY_LOOK.format(**vars(looks)) if looks is not None and looks.early else ""
    yield Section(
        "gains",
        "Gains and scores",
        list(filter(None, (f"{INTERVALS}{early}.", system_tables.controls(audit)))),
        [_forest(audit)] if audit.evaluation.gains else [],
        tables=system_tables.scores(audit),
        folded=[system_tables.comparisons(audit)],
    )
    causes = [_causes(audit)] if audit.evaluation.attribution else []
    yield Section("causes", "Where wrong answers went", [MEANINGS], causes)
    yield Section(
        "examples",
        "Examples of wrong answers",
        ["--save-samples FILE.jsonl writes every question with every answer."],
        samples=[(sample, system_tables.replies(sample)) for sample in audit.samples],
    )


def _of_adapters(audit: Audit) -> Iterator[Section]:
    """What the adapters are, alone and to each other."""
    held = audit.library
    yield Section(
        "library",
        "The library",
        [] if held is None else [SKETCHED.format(held.cosine_error)],
        list(maps.library(audit)),
        tables=[library.unusable(audit), library.families(audit)],
        folded=[library.adapters(audit), library.findings(audit)],
    )
    kinds = (adapter_tables.adapters, adapter_tables.layers, adapter_tables.singles)
    yield Section("adapters", "Adapters", tables=[table(audit) for table in kinds])
    found, nothing = adapter_tables.findings(audit), "Nothing was found that stands in the way."
    if found.rows:
        yield Section("findings", "Findings and cures", tables=[found])
    else:
        yield Section("findings", "Findings", [nothing], says_enough=True)
    pairs = [adapter_tables.pairs(audit)]
    yield Section("pairs", "Pairs of adapters", figures=maps.cosines(audit), tables=pairs)
    left_out, drawn = maps.left_out(audit), list(maps.modules(audit))
    yield Section("modules", "Layers and modules", left_out, drawn)


def _of_the_run(audit: Audit) -> Iterator[Section]:
    """What is behind the verdict, and where everything comes from."""
    known = [*system_tables.coverage(audit), system_tables.forecasts(audit)]
    yield Section("coverage", "What base and adapters know alone", tables=known)
    drawn, gates = list(maps.gates(audit)), [system_tables.gates(audit)]
    yield Section("gates", "Gates of routers", figures=drawn, folded=gates)
    reasons = [system_tables.reasons(audit)]
    yield Section("reasons", "Every reason", tables=reasons, lists=audit.notes)
    kinds = (
        adapter_tables.run,
        adapter_tables.sources,
        adapter_tables.prepared,
        adapter_tables.weights,
    )
    yield Section("provenance", "Provenance", tables=[table(audit) for table in kinds])


def _forest(audit: Audit) -> Figure:
    margin = audit.verdict.margin if audit.verdict is not None else None
    rows = sorted(audit.evaluation.gains, key=lambda gain: -gain.difference)
    several = len({gain.task for gain in rows}) > 1
    names = [
        f"{gain.system}, {form(gain.part)}" + (f", {gain.task or 'all'}" if several else "")
        for gain in rows[:MOST_LINES]
    ]
    best = rows[0]
    asked = f"The margin is {margin:g}. " if margin is not None else ""
    description = (
        f"A line for each of {len(names)} gains over the best of base and single adapters. {asked}"
        f"The largest is that of {names[0]}: {signed(best.difference)} "
        f"{bounds(best.adjusted_ci95)} against {best.against} on {best.n} items."
    )
    about = About("gains-figure", "Gains with intervals against the margin", description)
    caption = (
        "Gains over the best of base and single adapters; a filled dot lies above the margin with "
        "its whole interval."
    )
    return Figure(
        forest(about, rows[:MOST_LINES], names, margin), caption, system_tables.gains(audit)
    )


def _causes(audit: Audit) -> Figure:
    several = len({row.task for row in audit.evaluation.attribution}) > 1
    bars = [
        (
            f"{row.system}, {row.task}" if several else row.system,
            [getattr(row, cause) for cause in CAUSES],
        )
        for row in audit.evaluation.attribution[:MOST_LINES]
    ]
    told = []
    for name, counts in bars:
        parts = zip(counts, CAUSES.values(), strict=True)
        told.append(f"{name}: " + ", ".join(f"{n} {cause}" for n, (cause, _) in parts if n))
    title = "Where the answers of each composition went"
    about = About("causes-figure", title, ". ".join(told) + ".")
    caption = "Items of each composition by the first cause that fits."
    return Figure(stacked(about, bars), caption, system_tables.causes(audit))
