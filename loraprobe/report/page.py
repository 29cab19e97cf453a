"""What a page shows, section by section: headings, sentences, tables and figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loraprobe.records import Audit, Sample
from loraprobe.report import adapter_tables, library_tables, maps, system_tables
from loraprobe.report.figures import CAUSES, About, Dot, forest, stacked
from loraprobe.report.maps import Figure
from loraprobe.report.system_tables import bounds, form, signed
from loraprobe.report.table import Table

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
    yield Section(
        "short-list", "Short list", [SHORTLISTED], tables=[library_tables.shortlist(audit)]
    )
    looks = audit.rounds
    early = EVERY_LOOK.format(**vars(looks)) if looks is not None and looks.early else ""
    yield Section(
        "gains",
        "Gains and scores",
        list(filter(None, (f"{INTERVALS}{early}.", system_tables.controls(audit)))),
        [_forest(audit)] if audit.gains else [],
        tables=system_tables.scores(audit),
        folded=[system_tables.comparisons(audit)],
    )
    causes = [_causes(audit)] if audit.attribution else []
    yield Section("causes", "Where wrong answers went", [MEANINGS], causes)
    yield Section(
        "examples",
        "Examples of wrong answers",
        ["--save-samples FILE.jsonl writes every question with every answer."],
        samples=[(sample, system_tables.replies(sample)) for sample in audit.samples],
    )


def _of_adapters(audit: Audit) -> Iterator[Section]:
    """What the adapters are, alone and to each other."""
    library = audit.library
    yield Section(
        "library",
        "The library",
        [] if library is None else [SKETCHED.format(library.cosine_error)],
        list(library_tables.chart(audit)),
        tables=[library_tables.unusable(audit), library_tables.families(audit)],
        folded=[library_tables.adapters(audit), library_tables.findings(audit)],
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
    rows = sorted(audit.gains, key=lambda gain: -gain.difference)
    several = len({gain.task for gain in rows}) > 1
    dots = [
        Dot(
            f"{gain.system}, {form(gain.part)}" + (f", {gain.task or 'all'}" if several else ""),
            gain.difference,
            gain.ci95,
            gain.adjusted_ci95,
            margin is not None and gain.adjusted_ci95[0] > margin,
        )
        for gain in rows[:MOST_LINES]
    ]
    best, dot = rows[0], dots[0]
    asked = f"The margin is {margin:g}. " if margin is not None else ""
    description = (
        f"A line for each of {len(dots)} gains over the best of base and single adapters. {asked}"
        f"The largest is that of {dot.label}: {signed(best.difference)} "
        f"{bounds(best.adjusted_ci95)} against {best.against} on {best.n} items."
    )
    about = About("gains-figure", "Gains with intervals against the margin", description)
    caption = (
        "Gains over the best of base and single adapters; a filled dot lies above the margin with "
        "its whole interval."
    )
    return Figure(forest(about, dots, margin), caption, system_tables.gains(audit))


def _causes(audit: Audit) -> Figure:
    several = len({row.task for row in audit.attribution}) > 1
    bars = [
        (
            f"{row.system}, {row.task}" if several else row.system,
            [getattr(row, cause) for cause in CAUSES],
        )
        for row in audit.attribution[:MOST_LINES]
    ]
    told = []
    for name, counts in bars:
        parts = zip(counts, CAUSES.values(), strict=True)
        told.append(f"{name}: " + ", ".join(f"{n} {cause}" for n, (cause, _) in parts if n))
    title = "Where the answers of each composition went"
    about = About("causes-figure", title, ". ".join(told) + ".")
    caption = "Items of each composition by the first cause that fits."
    return Figure(stacked(about, bars), caption, system_tables.causes(audit))
