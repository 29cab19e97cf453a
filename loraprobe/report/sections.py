"""The sections of a report, from an audit: the answer first, then everything that it rests on."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loraprobe.extension import audit_parts, commands_behind, finding_owner, installed, summaries
from loraprobe.formatting import (
    bounds,
    clean,
    count,
    decimals,
    digits_beside,
    listing,
    measured,
    number,
    rounded,
    signed,
    size,
    spread,
)
from loraprobe.records import (
    BASELINES,
    COMPOSITIONS,
    FORMS,
    QUESTION,
    STEPS,
    Audit,
    GuardScore,
    Issue,
    ItemPart,
    Measurement,
    Sample,
    Score,
    Verdict,
    by_severity,
    display_name,
    references,
)
from loraprobe.report.answer import answer
from loraprobe.report.limits import LICENCE, first_sentence
from loraprobe.report.parts import (
    EXPLAINED,
    MARKDOWN,
    PAGE,
    SHORT,
    TERMINAL,
    Answer,
    Column,
    Part,
    Section,
    Table,
    View,
    figures,
    tabulated,
    text,
)
from loraprobe.verdict.reasons import CODES

FULL, ALL = (*EXPLAINED, *PAGE), (*TERMINAL, *PAGE)
EVERYWHERE = (*FULL, *MARKDOWN)
MARKS = {"error": "x", "warning": "!", "note": "·"}
AGAINST_CHANCE = ("subspace_overlap", "shared_initialisation")  # read as multiples of chance
COMPARED = ("cosine", "norm_ratio", "subspace_overlap")  # what a reader compares of a pair
MOST_FINDINGS, MOST_PAIRS = 3, 10  # without --explain
MOST_ACROSS = 3  # adapters or pairs that stand side by side
MOST_NAMES = 8  # in a cell
MOST_SOURCES = 6  # of a pull request
CONTROLS = (
    "Controls, which a composition has to beat: the best single adapter, shrunk as in an average, "
    "and a random partner: random adapters as large as the partners."
)
CAUSES = {  # a field of Attribution, and its name
    "solved": "solved",
    "step_by_step": "step by step",
    "said_otherwise": "said otherwise",
    "unknown": "unknown",
    "cut_off": "cut off",
    "interference": "interference",
    "not_composed": "not composed",
}
UNASKED = "not asked"  # of a guard, in the table of scores
WHY_UNASKED = (
    "Guards are asked of what leads, of what it is compared with and of what may be advised; the "
    f"others are {UNASKED}."
)


@dataclass(frozen=True, repr=False)
class ShownAudit(Audit):
    """An audit as Python and notebooks show it: its repr is its answer.

    `places`: a published name -> the references that the caller gave for it, which only the caller
    sees.
    """

    places: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return str(answer(self, self.places))

    def _repr_html_(self) -> str | None:
        """What notebooks show; None for the answer."""
        return next(filter(None, (one.notebook(self) for one in installed())), None)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document as plain data; every number is finite or None."""
        document = super().to_dict()
        del document["places"]
        return document


class JudgedAudit(ShownAudit):
    """An audit of several adapters, which always has a verdict."""

    verdict: Verdict


def sections(audit: Audit, places: Mapping[str, Sequence[str]] = {}) -> list[Section]:
    """The sections of an audit, the answer first.

    places: a published name -> the references of the user that have it, for commands.
    """
    told = answer(audit, places)
    made = [
        section("verdict", "Verdict", ((*ALL, *MARKDOWN), [told]), concludes=True),
        *_of_scores(audit),
        *_of_adapters(audit, told),
        *_of_the_run(audit),
    ]
    before: dict[str, list[Section]] = {}
    for part in audit_parts():
        for name, one in part.sections(audit):
            before.setdefault(name, []).append(one)
    return [one for each in made for one in (*before.get(each.name, ()), each)]


def section(
    name: str,
    title: str,
    *parts: tuple[Sequence[View], Iterable[Part]],
    concludes: bool = False,
    folded: bool = False,
) -> Section:
    flat = [(views, part) for views, some in parts for part in some if part]
    return Section(name, title, flat, concludes, folded)


def heading(audit: Audit) -> str:
    """The command and the base."""
    on = f" on {audit.base.reference}" if audit.base is not None else ""
    return f"loraprobe {audit.command}{on}"


def footer(audit: Audit) -> str:
    """Time, device, dtype, memory and seed of the run."""
    p = audit.provenance
    memory = f", {size(p.peak_memory_bytes)}" if p.peak_memory_bytes else ""
    return f"{sum(p.seconds.values()):.1f} s, {p.device}, {p.dtype}{memory}, seed {p.seed}"


def _brief(audit: Audit) -> Sequence[View]:
    """A terminal without --explain, unless an extension sums up instead."""
    return () if any(one.brief for one in summaries(audit)) else SHORT


def _of_scores(audit: Audit) -> Iterator[Section]:
    """What was asked of systems, and what came of it."""
    brief = _brief(audit)
    yield section(
        "gains",
        "Gains and scores",
        (FULL, [gains(audit)]),
        (EVERYWHERE, evaluations(audit)),
        (brief, [scores(audit)]),
        ((*FULL, *brief), [controls(audit), guards_unasked(audit)]),
        (EVERYWHERE, [guards(audit)]),
    )
    yield section("causes", "Where wrong answers went", (FULL, [causes(audit)]))
    yield section(
        "examples",
        "Examples of wrong answers",
        (FULL, (replies(sample, at > 0) for at, sample in enumerate(audit.samples))),
    )


def _of_adapters(audit: Audit, told: Answer) -> Iterator[Section]:
    """What the adapters are to each other, and alone."""
    fits = audit.compatibility.compatible
    yield section(
        "findings",
        "Findings and cures",
        (SHORT, first_findings(audit, told)),
        (FULL, [findings(audit)]),
    )
    yield section(
        "pairs",
        "Pairs of adapters",
        (SHORT, [nearest_pairs(audit)] if audit.command == "inspect" and fits else []),
        (FULL, [pairs(audit)]),
        folded=True,
    )
    yield section(
        "modules",
        "Layers and modules",
        (EXPLAINED, modules(audit)),
        folded=True,
    )
    alone, brief = not audit.evaluation.scores, _brief(audit)
    yield section(
        "adapters",
        "Adapters",
        ((*FULL, *brief, *(MARKDOWN if alone else ())), [adapters(audit)]),
        ((*EXPLAINED, *brief), targets(audit)),
        ((*FULL, *brief), [layers(audit)]),
        (FULL, [singles(audit)]),
        folded=not alone,
    )


def _of_the_run(audit: Audit) -> Iterator[Section]:
    """What is behind the verdict, and where everything comes from."""
    known = (FULL, coverage(audit))
    yield section("coverage", "What base and adapters know alone", known, folded=True)
    told: list[Part] = [*reasons(audit), *(f"- {note}" for note in audit.notes)]
    yield section("reasons", "Every reason", (FULL, told), concludes=True, folded=True)
    yield section(
        "provenance",
        "Provenance",
        (EVERYWHERE, provenance(audit)),
        (FULL, [prepared(audit)]),
        folded=True,
    )


def gains(audit: Audit) -> Table:
    """What every composition gains over the best of base and single adapters, largest first."""
    margin = audit.verdict.margin if audit.verdict is not None else None
    return tabulated(
        "Gains over the best of base and single adapters",
        sorted(audit.evaluation.gains, key=lambda gain: -gain.difference),
        (text("system"), lambda gain: display_name(gain.system)),
        (text("asked as"), lambda gain: gain.part.words),
        (Column("gain"), lambda gain: signed(gain.difference)),
        (Column("95 %", drop=2), lambda gain: bounds(gain.ci95, threshold=margin)),
        (
            Column("95 % for the choice"),
            lambda gain: bounds(gain.adjusted_ci95, threshold=margin),
        ),
        (text("against", drop=1), lambda gain: gain.against),
        (text("task"), lambda gain: gain.task or "all tasks"),
        (Column("items", drop=3), lambda gain: str(gain.n)),
        (Column("items to decide", drop=4), lambda gain: str(gain.n_needed or "-")),
    ).without("task")


def scores(audit: Audit) -> Table:
    """Systems down; across the forms of the question, or the tasks where there are several."""
    rows = [s for s in audit.evaluation.scores if s.part in FORMS]
    tasks = list(dict.fromkeys(s.task for s in rows))
    forms = [one for one in FORMS if any(s.part == one for s in rows)]
    heads = {}
    for task, form in itertools.product(tasks, forms):
        of_task = task if len(forms) == 1 else f"{task}, {form.words}"
        heads[task, form] = of_task if len(tasks) > 1 else form.words
    of = f" of {tasks[0]}" if len(tasks) == 1 else ""
    table = _by_system(
        f"Scores on {_asked(rows)} questions{of}",
        rows,
        heads,
        lambda row: decimals(row.value),
        audit,
    )
    return _with_guards(table, _in_order(rows), audit.evaluation.guards)


def _with_guards(table: Table, names: Sequence[str], rows: Sequence[GuardScore]) -> Table:
    """The table with what its systems, named in its order, score on each guard.

    The chain has the score of that of its adapters which keeps the guard least.
    """
    by_place, lines = {(row.task, row.system): row for row in rows}, [*table.rows]
    said = {"likely": "", "unlikely": " lost", "inconclusive": " open"}
    columns = [*table.columns]
    for task, base in {row.task: row.base for row in rows}.items():
        columns.append(text(f"guard {task}"))
        for at, name in enumerate(names):
            row = by_place.get((task, name))
            cell = UNASKED if row is None else f"{decimals(row.value)}{said[row.outcome]}"
            lines[at] = [*lines[at], decimals(base) if name == BASELINES[0] else cell]
    return replace(table, columns=columns, rows=lines)


def guards_unasked(audit: Audit) -> str:
    """Why some systems have no score on a guard, where the table of scores says so."""
    asked = {(row.system, row.task) for row in audit.evaluation.guards}
    names = {row.system for row in audit.evaluation.scores} - {BASELINES[0]}
    tasks = {row.task for row in audit.evaluation.guards}
    return WHY_UNASKED if {*itertools.product(names, tasks)} - asked else ""


def evaluations(audit: Audit) -> list[Table]:
    """Systems down, all parts across, with intervals; a table a task."""
    return [
        _evaluation([row for row in audit.evaluation.scores if row.task == task], audit)
        for task in audit.evaluation.tasks
    ]


def _evaluation(rows: Sequence[Score], audit: Audit) -> Table:
    parts = sorted({row.part for row in rows}, key=_part_order)
    metric = min(rows, key=lambda row: _part_order(row.part)).metric  # that of the question
    heads = {(rows[0].task, part): part.words for part in parts}
    caption = f"Evaluation: {rows[0].task} ({_asked(rows)} items, {metric})"
    return _by_system(caption, rows, heads, _score_with_interval, audit)


def _part_order(part: ItemPart) -> tuple[int, str]:
    """The question, then its hops, then the worked form."""
    return {QUESTION: 0, STEPS: 2}.get(part, 1), part


def _by_system(
    caption: str,
    rows: Sequence[Score],
    heads: Mapping[tuple[str, ItemPart], str],
    cell: Callable[[Score], str],
    audit: Audit,
) -> Table:
    """Systems down, scores across, and the smallest retention where one was measured.

    heads: (task, part) -> heading. The system that is advised is marked.
    """
    best = None if audit.verdict is None else audit.verdict.used
    asked = _retention_asked(audit)
    by_place = {(s.system, s.task, s.part): s for s in rows}
    names, columns = _in_order(rows), [text("system")]
    lines = [[display_name(name)] for name in names]
    for key, heading in heads.items():
        scored = [by_place.get((name, *key)) for name in names]
        shares = [s.value if s is not None and not s.is_loss else None for s in scored]
        columns.append(replace(text(heading), bars=shares))
        for line, score in zip(lines, scored, strict=True):
            line.append("-" if score is None else cell(score))
    retained = dict[str, list[float]]()
    for row in rows:
        if row.retention is not None and row.kind in COMPOSITIONS:
            retained.setdefault(row.system, []).append(row.retention)
    if retained:
        columns.append(Column("keeps"))
        for line, name in zip(lines, names, strict=True):
            least = min(retained.get(name, ()), default=None)
            line.append(decimals(least, digits_beside(asked, least or 0.0)))
    return Table(caption, columns, lines, advised=[i for i, n in enumerate(names) if n == best])


def _retention_asked(audit: Audit) -> float | None:
    """The retention that a verdict asked for; None where it asked for none."""
    reasons = audit.verdict.reasons if audit.verdict is not None else ()
    return next((one.threshold for one in reasons if one.code.startswith("retention-")), None)


def _score_with_interval(row: Score) -> str:
    score = decimals(row.value)
    return score if row.part.hop else f"{score} {bounds(row.ci95)}"


def _in_order(rows: Sequence[Score]) -> list[str]:
    """The names of systems: base and single adapters, compositions, chain, references, controls."""
    return [
        system
        for group in (BASELINES, COMPOSITIONS, ("chain",), references(), ("control",))
        for system in dict.fromkeys(s.system for s in rows if s.kind in group)
    ]


def _asked(rows: Sequence[Score]) -> str:
    """How many questions of each task systems were asked, such as 200 + 40 to 100."""
    tasks = dict.fromkeys(s.task for s in rows)
    ranges = (spread(s.n for s in rows if s.task == task) for task in tasks)
    return " + ".join(one.replace("–", " to ") for one in ranges)


def controls(audit: Audit) -> str:
    """What the controls among the scored systems are; "" without controls."""
    return CONTROLS if any(row.kind == "control" for row in audit.evaluation.scores) else ""


def guards(audit: Audit) -> Table:
    """What must not get worse: what each system that was asked makes of it, beside the base."""
    outcomes = {"likely": "kept", "unlikely": "lost", "inconclusive": "open"}
    rows = audit.evaluation.guards
    most = rows[0].margin if rows else 0.0
    return tabulated(
        f"Guards: what must not get worse than the base by more than {most:g}",
        rows,
        (text("guard"), lambda row: row.task),
        (text("system"), lambda row: display_name(row.system)),
        (text("asked as", drop=3), lambda row: row.part.words),
        (text("metric", drop=2), lambda row: row.metric),
        (Column("score"), lambda row: decimals(row.value, 3)),
        (Column("base"), lambda row: decimals(row.base, 3)),
        (Column("difference"), lambda row: signed(row.difference, 3)),
        (Column("95 %", drop=1), lambda row: bounds(row.ci95, 3)),
        (Column("items", drop=4), lambda row: str(row.n)),
        (text("so"), lambda row: outcomes[row.outcome]),
    )


def causes(audit: Audit) -> Table:
    """How many items of each composition fall to which cause."""
    columns = [text("system"), text("task"), *figures(*CAUSES.values())]
    lines = [
        [display_name(row.system), row.task, *(str(getattr(row, cause)) for cause in CAUSES)]
        for row in audit.evaluation.attribution
    ]
    caption = "Where the answers went, by the first cause that fits"
    return Table(caption, columns, lines).without("task")


def replies(sample: Sample, folded: bool) -> Table:
    """What every system answered to a question that a composition got wrong."""
    return tabulated(
        f"{sample.task}, item {sample.item}, {sample.part.words}: {sample.question} "
        f"(right: {' or '.join(sample.gold)})",
        sample.replies,
        (text("system"), lambda reply: display_name(reply.system)),
        (text("answer", prose=True), lambda reply: reply.text or "(nothing)"),
        (text("right or wrong"), lambda reply: "right" if reply.right else "wrong"),
        (text("first cause", drop=1), lambda reply: CAUSES.get(reply.cause or "", "-")),
        folded=folded,
    )


def first_findings(audit: Audit, told: Answer) -> Iterator[str]:
    """The first findings that the answer does not tell, errors first, and how many more there are.

    Of one code there is one.
    """
    by_code = {issue.code: issue for issue in reversed(by_severity(audit.compatibility.issues))}
    said = "\n".join(str(line) for _, line in told.lines)
    left = [
        f"{MARKS[issue.severity]} {issue.code}: {first_sentence(issue)}"
        for issue in reversed(by_code.values())
        if not issue.code.startswith(LICENCE)
        and not (issue.severity == "note" and finding_owner(issue.code))
        and first_sentence(issue) not in said
    ]
    yield from left[:MOST_FINDINGS]
    if len(left) > MOST_FINDINGS:
        yield f"  and {count(len(left) - MOST_FINDINGS, 'more finding')}: --explain"


def findings(audit: Audit) -> Table:
    """What compatibility found, errors first, with the cures."""
    return tabulated(
        "Findings",
        by_severity(audit.compatibility.issues),
        (text("code"), lambda row: row.code),
        (text("severity", drop=1), lambda row: row.severity),
        (text("what it means, and its cure", prose=True), meaning),
    )


def meaning(issue: Issue) -> str:
    """What a finding says, and what to do about it."""
    return f"{issue.message} {issue.cure}".rstrip()


def nearest_pairs(audit: Audit) -> Table:
    """The pairs of adapters with the figures that a reader compares, the nearest first."""
    rows = [
        row
        for row in audit.diagnostics
        if row.module is None
        and len(row.adapters) == 2
        and row.name in COMPARED
        and row.side in (None, "in")
    ]
    cosine = {row.adapters: abs(row.value or 0.0) for row in rows if row.name == "cosine"}
    rows.sort(key=lambda row: (-cosine.get(row.adapters, 0.0), COMPARED.index(row.name)))
    by_distance = list(dict.fromkeys(row.adapters for row in rows))
    caption = f"Pairs (the {MOST_PAIRS} nearest of {len(by_distance)})"
    rows = [row for row in rows if row.adapters in by_distance[:MOST_PAIRS]]
    return _matrix(
        "Pairs" if len(by_distance) <= MOST_PAIRS else caption, rows, _names, "pair", across=0
    )


def singles(audit: Audit) -> Table:
    """Diagnostics of single adapters, or those of a merge and its adapters."""
    rows = [row for row in audit.diagnostics if row.module is None and len(row.adapters) == 1]
    caption = "Adapters and their merge" if audit.command == "merge" else "Single adapters"
    return _matrix(caption, rows, _names, "adapter")


def pairs(audit: Audit) -> Table:
    """Diagnostics of all pairs of adapters."""
    rows = [row for row in audit.diagnostics if row.module is None and len(row.adapters) > 1]
    return _matrix("Between adapters", rows, _names, "pair")


def modules(audit: Audit) -> list[Table]:
    """Diagnostics module by module, a table for each adapter and pair.

    None where the command line did not ask for them, as where they were measured for a page.
    """
    given = {word.partition("=")[0] for word in audit.provenance.arguments}
    if given and "--per-module" not in given:
        return []
    groups: dict[str, list[Measurement]] = {}
    for row in audit.diagnostics:
        if row.module is not None:
            groups.setdefault(_names(row), []).append(row)
    return [
        _matrix(f"Module by module: {names}", rows, lambda row: str(row.module), "module")
        for names, rows in groups.items()
    ]


def _names(row: Measurement) -> str:
    return " × ".join(row.adapters)


def _matrix(
    caption: str,
    rows: Sequence[Measurement],
    key: Callable[[Measurement], str],
    corner: str,
    across: int = MOST_ACROSS,
) -> Table:
    """Diagnostics across, adapters (or pairs) down; the other way round for at most `across`."""
    cells = {(key(row), _label(row)): _figure(row) for row in rows}
    lines = list(dict.fromkeys(line for line, _ in cells))
    heads = list(dict.fromkeys(head for _, head in cells))
    if len(lines) <= across:
        lines, heads, corner = heads, lines, "diagnostic"
        cells = {(head, line): cell for (line, head), cell in cells.items()}
    table = [[line, *(cells.get((line, head), "-") for head in heads)] for line in lines]
    return Table(caption, [text(corner), *figures(*heads)], table)


def _label(row: Measurement) -> str:
    side = f" ({row.side})" if row.side else ""
    rank = f" at rank {row.rank}" if row.rank is not None else ""
    return row.name.replace("_", " ") + side + rank


def _figure(row: Measurement) -> str:
    figure = number(row.value, 1 if row.name == "norm_ratio" else 3)
    if row.name in AGAINST_CHANCE and row.chance and measured(row.value):
        return f"{figure} ({row.value / row.chance:.1f}× chance)"
    return f"{figure} ± {number(row.stderr, 3)}" if row.stderr else figure


def adapters(audit: Audit) -> Table:
    """What each adapter is."""
    return tabulated(
        "Adapters",
        audit.adapters,
        (text("adapter"), lambda row: row.name),
        (text("base", drop=3), lambda row: row.base_model or "-"),
        (text("variant", drop=2), lambda row: row.variant),
        (text("targets", roomy=True), lambda row: " ".join(row.targets) or "-"),
        (Column("rank"), lambda row: spread(row.rank.values())),
        (Column("modules", drop=4), lambda row: str(row.modules)),
        (Column("parameters", roomy=True), lambda row: rounded(row.parameters)),
        (Column("scaling", drop=1), lambda row: spread(row.scaling or ())),
        (Column("norm"), lambda row: number(row.norm)),
        (text("licence", drop=5), lambda row: row.license or "-"),
    )


def targets(audit: Audit) -> list[str]:
    """What the adapters target, a line for each set of modules."""
    adapters_of: dict[str, list[str]] = {}
    for row in audit.adapters:
        if row.targets:
            adapters_of.setdefault(" ".join(row.targets), []).append(row.name)
    if len(adapters_of) == 1:
        return [f"targets: {next(iter(adapters_of))}"]
    return [f"targets of {listing(names)}: {modules}" for modules, names in adapters_of.items()]


def layers(audit: Audit) -> Table:
    """Adapters layer by layer, what repeats in every layer as one line."""
    return tabulated(
        "Layers",
        audit.layers,
        (text("module"), lambda row: row.pattern),
        (text("kind", drop=2), lambda row: row.kind),
        (Column("modules", drop=1), lambda row: str(row.modules)),
        (Column("rank"), lambda row: spread(row.rank)),
        (Column("in", drop=4), lambda row: spread(row.in_features)),
        (Column("out", drop=3), lambda row: spread(row.out_features)),
        (Column("scaling", drop=5), lambda row: spread(row.scaling)),
        (Column("norm"), lambda row: spread(row.norm or ())),
    )


def coverage(audit: Audit) -> list[Table]:
    """What the base and each adapter alone know, a table a task."""
    return [
        tabulated(
            f"Coverage: {task}",
            [row for row in audit.evaluation.coverage if row.task == task],
            (text("probe"), lambda row: row.name.replace("_", " ")),
            (text("of"), lambda row: " → ".join(row.adapters) or "base"),
            (text("part"), lambda row: f"hop {row.hop}" if row.hop else "question"),
            (Column("value"), lambda row: number(row.value)),
            (Column("guess", drop=3), lambda row: number(row.baseline)),
            (Column("95 %", drop=1), lambda row: bounds(row.ci95)),
            (Column("items", drop=2), lambda row: str(row.n)),
        )
        for task in dict.fromkeys(row.task for row in audit.evaluation.coverage)
    ]


def reasons(audit: Audit) -> list[Table]:
    """Every reason of the verdict with its figure, its threshold and where that comes from.

    In three tables: why, what else was measured, how sure it is.
    """
    every = audit.verdict.reasons if audit.verdict is not None else ()
    sure = [r for r in every if r.code in CODES and CODES[r.code].sure]
    why = [r for r in every if r not in sure and r.severity != "info"]
    rest = [r for r in every if r not in sure and r not in why]
    return [
        tabulated(
            title,
            group,
            (text("code"), lambda row: row.code),
            (text("weight", roomy=True), lambda row: row.severity),
            (text("what was measured", prose=True), lambda row: row.message),
            (text("threshold from", roomy=True), lambda row: row.source or "-"),
            (Column("value", roomy=True), lambda row: number(row.value)),
            (Column("threshold", roomy=True), lambda row: number(row.threshold)),
        )
        for title, group in (("Why", why), ("What was measured", rest), ("How sure", sure))
    ]


def provenance(audit: Audit) -> Iterator[str]:
    """What made the document, and where adapters, base and tasks come from, in lines."""
    record = audit.provenance
    yield f"loraprobe {record.loraprobe}, torch {record.torch or '-'}, {footer(audit)}"
    if record.arguments:
        yield f"call: loraprobe {shlex.join(record.arguments)}"
    rows: list[tuple[str, Any]] = [("base", audit.base)] if audit.base is not None else []
    rows += [(f"task {task.name}", task) for task in record.tasks]
    rows += [(f"guard {guard.name}", guard) for guard in record.guards]
    rows += [(adapter.name, adapter) for adapter in audit.adapters[:MOST_SOURCES]]
    more = len(audit.adapters) - MOST_SOURCES
    for name, row in rows:
        pinned = f"commit {row.commit}" if row.commit else f"sha256 {row.sha256}"
        yield f"{name}: {row.reference}{f' {pinned}' if row.commit or row.sha256 else ''}"
    if more > 0:
        yield f"{count(more, 'more adapter')} in the JSON document"


def prepared(audit: Audit) -> Table:
    """What was done to adapters before they were merged or routed."""
    return tabulated(
        "Adapters before they were composed",
        audit.transformations,
        (text("adapter"), lambda row: row.adapter),
        (text("subtracted"), lambda row: ", ".join(row.subtracted) or "-"),
        (Column("factor"), lambda row: number(row.factor)),
        (Column("norm before"), lambda row: number(row.norm_before)),
        (Column("norm after"), lambda row: number(row.norm_after)),
    )


def one_line(audit: Audit) -> str:
    """The result in one line, for --quiet."""
    verdict = audit.verdict
    if verdict is not None and verdict.evidence != "weights":
        decision = "measured" if verdict.compositions_not_asked else verdict.decision
        return clean(f"{decision} {verdict.action}")
    if short := next(filter(None, (one.short for one in summaries(audit))), ""):
        return short
    return "compatible" if audit.compatibility.compatible else "incompatible"


def demo_text(audit: Audit, scenarios: Sequence[str], base: Path) -> str:
    """What the demo showed, and where the other scenarios are. base: the directory of its base."""
    systems = len({row.system for row in audit.evaluation.scores})
    more = (
        f" The base of the commands at the end is on no Hub: give them {base} in its place, and as "
        "DIR what merge-and-eval -o writes."
    )
    return (
        f"You saw {systems} systems answer the same questions: the base, each adapter alone, every "
        "composition, and controls that a composition has to beat. Your own questions stand in a "
        'file with lines such as {"prompt": "Who is the mayor of Ulm?", "answer": "Bo"}. Other '
        f"scenarios: --scenario {', '.join(scenarios)}.{more if commands_behind(audit) else ''}"
    )
