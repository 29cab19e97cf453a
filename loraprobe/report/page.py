"""What a page shows, section by section: headings, sentences, tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loraprobe.records import Audit, Sample
from loraprobe.report import adapter_tables, library_tables, maps, shortlist_tables, system_tables
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

    A page leaves out a section that has nothing but sentences, unless that `says_enough`.
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
        held = self.figures, self.samples, self.tables, self.folded, self.lists
        return self.says_enough or any(held)


def sections(audit: Audit) -> list[Section]:
    """The sections of a page after the verdict, those that have nothing to show left out."""
    return [section for make in SECTIONS if (section := make(audit)).shows]


def _shortlist(audit: Audit) -> Section:
    shown = _filled(shortlist_tables.shortlist(audit))
    told = [SHORTLISTED] if shown else []
    return Section("short-list", "Short list", told, tables=shown)


def _gains(audit: Audit) -> Section:
    looks = audit.rounds
    early = looks is not None and looks.early
    intervals = INTERVALS + (EVERY_LOOK.format(**vars(looks)) if early else "") + "."
    return Section(
        "gains",
        "Gains and scores",
        list(filter(None, (intervals, system_tables.controls(audit)))),
        [_forest(audit)] if audit.gains else [],
        tables=system_tables.scores(audit),
        folded=_filled(system_tables.comparisons(audit)),
    )


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


def _wrong(audit: Audit) -> Section:
    figures = [_causes(audit)] if audit.attribution else []
    return Section("causes", "Where wrong answers went", [MEANINGS], figures)


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


def _examples(audit: Audit) -> Section:
    told = ["--save-samples FILE.jsonl writes every question with every answer."]
    shown = [(sample, system_tables.replies(sample)) for sample in audit.samples]
    return Section("examples", "Examples of wrong answers", told, samples=shown)


def _adapters(audit: Audit) -> Section:
    made = (adapter_tables.adapters, adapter_tables.layers, adapter_tables.singles)
    shown = _filled(*(table(audit) for table in made)) if audit.adapters else []
    return Section("adapters", "Adapters", tables=shown)


def _library(audit: Audit) -> Section:
    shown = _filled(library_tables.unusable(audit), library_tables.families(audit))
    folded = _filled(library_tables.adapters(audit), library_tables.findings(audit))
    told = [] if audit.library is None else [SKETCHED.format(audit.library.cosine_error)]
    figures = list(library_tables.chart(audit))
    return Section("library", "The library", told, figures, tables=shown, folded=folded)


def _findings(audit: Audit) -> Section:
    found = _filled(adapter_tables.findings(audit))
    if not found:
        told = ["Nothing was found that stands in the way."]
        return Section("findings", "Findings", told, says_enough=True)
    return Section("findings", "Findings and cures", tables=found)


def _pairs(audit: Audit) -> Section:
    found = _filled(adapter_tables.pairs(audit))
    figures = maps.cosines(audit) if found else []
    return Section("pairs", "Pairs of adapters", figures=figures, tables=found)


def _modules(audit: Audit) -> Section:
    return Section("modules", "Layers and modules", maps.left_out(audit), list(maps.modules(audit)))


def _coverage(audit: Audit) -> Section:
    shown = _filled(*system_tables.coverage(audit), system_tables.forecasts(audit))
    return Section("coverage", "What base and adapters know alone", tables=shown)


def _gates(audit: Audit) -> Section:
    folded = _filled(system_tables.gates(audit))
    return Section("gates", "Gates of routers", figures=list(maps.gates(audit)), folded=folded)


def _reasons(audit: Audit) -> Section:
    shown = _filled(system_tables.reasons(audit))
    return Section("reasons", "Every reason", tables=shown, lists=audit.notes)


def _provenance(audit: Audit) -> Section:
    made = _filled(adapter_tables.prepared(audit), adapter_tables.weights(audit))
    shown = [adapter_tables.run(audit), adapter_tables.sources(audit), *made]
    return Section("provenance", "Provenance", tables=shown)


def _filled(*made: Table) -> list[Table]:
    return [table for table in made if table.rows]


SECTIONS: Sequence[Callable[[Audit], Section]] = (
    _shortlist,
    _gains,
    _wrong,
    _examples,
    _library,
    _adapters,
    _findings,
    _pairs,
    _modules,
    _coverage,
    _gates,
    _reasons,
    _provenance,
)
