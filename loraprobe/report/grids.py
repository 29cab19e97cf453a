"""The tables of a page and of a pull request: plain cells, one function a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from loraprobe.records import Audit, Coverage, Measurement, Score
from loraprobe.report.figures import CAUSES
from loraprobe.report.formatting import count, interval, number, spread

FORMS = {"steps": "step by step"}
GROUPS = (("base", "adapter"), ("merge", "router"), ("chain",), ("control",))


@dataclass(frozen=True)
class Grid:
    """A table: a caption, headings, rows. The first `texts` columns hold text, the rest figures.

    The first column names its row.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1


def form(part: str) -> str:
    """The part of a task in the words of every report."""
    return FORMS.get(part, part.replace("hop", "hop "))


def signed(value: float | None) -> str:
    """A difference with its sign."""
    if value is None or not math.isfinite(value):
        return "-"
    return number(value) if value < 0 else f"+{number(value)}"


def scores(audit: Audit, intervals: bool = True) -> list[Grid]:
    """Systems down, forms of the question across, a table a task."""
    made = []
    for task in dict.fromkeys(row.task for row in audit.evaluation):
        rows = [row for row in audit.evaluation if row.task == task]
        parts = sorted({row.part for row in rows}, key=_place)
        retained = any(row.retention is not None for row in rows)
        systems = [
            name
            for kinds in GROUPS
            for name in dict.fromkeys(row.system for row in rows if row.kind in kinds)
        ]
        cells = {(row.system, row.part): row for row in rows}
        lines = []
        for system in systems:
            own = [cells.get((system, part)) for part in parts]
            line = [system, *(_score(row, intervals) for row in own)]
            kept = next((row.retention for row in own if row and row.retention is not None), None)
            lines.append([*line, number(kept)] if retained else line)
        columns = ["system", *map(form, parts), *(["retention"] if retained else [])]
        items, metric = (
            max(row.n for row in rows),
            min(rows, key=lambda row: _place(row.part)).metric,
        )
        made.append(Grid(f"{task}: {items} items, {metric}", columns, lines))
    return made


def _place(part: str) -> tuple[int, str]:
    """The question, then its hops, then the worked form."""
    return {"question": 0, "steps": 2}.get(part, 1), part


def _score(row: Score | None, intervals: bool) -> str:
    if row is None:
        return "-"
    bounds = interval(row.ci95) if intervals and not row.part.startswith("hop") else ""
    return f"{number(row.value)} {bounds}".strip()


def gains(audit: Audit) -> Grid:
    """What every composition gains over the best of base and single adapters, largest first."""
    rows = sorted(audit.gains, key=lambda gain: -gain.difference)
    lines = [
        [
            gain.system,
            gain.task or "all tasks",
            form(gain.part),
            gain.against,
            signed(gain.difference),
            interval(gain.ci95),
            interval(gain.adjusted_ci95),
            str(gain.n),
            str(gain.n_needed or "-"),
        ]
        for gain in rows
    ]
    columns = "system,task,asked as,against,gain,95 %,95 % for the choice,items,items to decide"
    return Grid("Gains over the best of base and single adapters", columns.split(","), lines, 4)


def comparisons(audit: Audit) -> Grid:
    """The paired difference of every composition to every other system."""
    lines = [
        [
            row.system,
            row.against,
            row.task,
            form(row.part),
            signed(row.difference),
            interval(row.ci95),
            interval(row.adjusted_ci95),
            str(row.n),
        ]
        for row in audit.comparisons
    ]
    columns = "system,against,task,asked as,difference,95 %,95 % for the choice,items"
    return Grid("Paired differences between systems", columns.split(","), lines, 4)


def causes(audit: Audit) -> Grid:
    """How many items of each composition fall to which cause."""
    names = [name for name, _ in CAUSES.values()]
    lines = [
        [row.system, row.task, *(str(getattr(row, cause)) for cause in CAUSES)]
        for row in audit.attribution
    ]
    return Grid("Items by the first cause that fits", ["system", "task", *names], lines, 2)


def adapters(audit: Audit) -> Grid:
    """What each adapter is."""
    lines = [
        [
            row.name,
            row.base_model or "-",
            row.license or "-",
            spread(list(row.rank.values())),
            str(row.modules),
            count(row.parameters),
            number(row.norm),
        ]
        for row in audit.adapters
    ]
    columns = ["adapter", "base model", "licence", "rank", "modules", "parameters", "norm"]
    return Grid("Adapters", columns, lines, 3)


def layers(audit: Audit) -> Grid:
    """Adapters layer by layer, what repeats in every layer as one line."""
    lines = [
        [
            row.pattern,
            row.kind,
            str(row.modules),
            *map(spread, (row.rank, row.in_features, row.out_features, row.scaling)),
            spread(row.norm) if row.norm else "-",
        ]
        for row in audit.layers
    ]
    columns = "module,kind,modules,rank,in,out,scaling,norm".split(",")
    return Grid("Modules that repeat in every layer", columns, lines, 2)


def findings(audit: Audit) -> Grid:
    """What compatibility found, errors first, with the cures."""
    order = ("error", "warning", "note")
    rows = sorted(audit.compatibility.issues, key=lambda issue: order.index(issue.severity))
    lines = [[row.code, row.severity, row.message, row.cure or "-"] for row in rows]
    return Grid("Findings", ["code", "severity", "what it means", "cure"], lines, 4)


def pairs(audit: Audit) -> Grid:
    """Diagnostics down, pairs of adapters across; the other way round where pairs are many."""
    rows = [row for row in audit.diagnostics if row.module is None and len(row.adapters) > 1]
    return _matrix("Pairs of adapters", rows, lambda row: " × ".join(row.adapters))


def singles(audit: Audit) -> Grid:
    """Diagnostics down, adapters across."""
    rows = [row for row in audit.diagnostics if row.module is None and len(row.adapters) == 1]
    return _matrix("Single adapters", rows, lambda row: row.adapters[0])


def _matrix(caption: str, rows: Sequence[Measurement], key: Callable[[Measurement], str]) -> Grid:
    cells = {(_diagnostic(row), key(row)): _figure(row) for row in rows}
    lines = list(dict.fromkeys(line for line, _ in cells))
    heads = list(dict.fromkeys(head for _, head in cells))
    corner = "diagnostic"
    if len(heads) > len(lines):
        lines, heads, corner = heads, lines, "adapters"
        cells = {(head, line): text for (line, head), text in cells.items()}
    table = [[line, *(cells.get((line, head), "-") for head in heads)] for line in lines]
    return Grid(caption, [corner, *heads], table)


def _diagnostic(row: Measurement) -> str:
    side = {"in": " (input side)", "out": " (output side)", None: ""}[row.side]
    rank = f" at rank {row.rank}" if row.rank is not None else ""
    return row.name.replace("_", " ") + side + rank


def _figure(row: Measurement) -> str:
    text = number(row.value, 3)
    if row.chance and row.value is not None and row.name != "cosine":
        return f"{text} ({number(row.value / row.chance, 1)}× chance)"
    return f"{text} ± {number(row.stderr, 3)}" if row.stderr else text


def coverage(audit: Audit) -> Grid:
    """What the base and each adapter alone know."""
    lines = [
        [
            row.name.replace("_", " "),
            row.task,
            " → ".join(row.adapters) or "base",
            f"hop {row.hop}" if row.hop else "question",
            number(row.value),
            number(row.baseline),
            interval(row.ci95),
            str(row.n),
        ]
        for row in sorted(audit.coverage, key=_coverage_place)
    ]
    columns = "probe,task,of,part,value,guess,95 %,items".split(",")
    return Grid("What base and adapters know alone", columns, lines, 4)


def _coverage_place(row: Coverage) -> tuple[str, str]:
    return row.task, row.name


def forecasts(audit: Audit) -> Grid:
    """What was forecast before anything was composed."""
    lines = [
        [
            row.system,
            form(row.part),
            row.against,
            signed(row.gain),
            interval(row.ci95),
            str(row.n),
        ]
        for row in audit.forecasts
    ]
    columns = "system,asked as,against,forecast gain,95 %,items".split(",")
    caption = "Forecast gains, if the adapters' effects on the next token simply added"
    return Grid(caption, columns, lines, 3)


def gates(audit: Audit) -> Grid:
    """How each token router shared its gates, over all layers and layer by layer."""
    names = list(dict.fromkeys(name for row in audit.gates for name in row.share))
    lines = [
        [
            row.system,
            row.layer or "all layers",
            *(number(row.share.get(name)) for name in names),
            f"{number(row.entropy)} ({number(row.entropy_share)})",
        ]
        for row in audit.gates
    ]
    columns = ["router", "layer", *names, "entropy in nats (share of the largest)"]
    return Grid("Mean share of each adapter's gate on the prompts", columns, lines, 2)


def reasons(audit: Audit) -> Grid:
    """Every reason of the verdict with its figure, its threshold and where that comes from."""
    found = audit.verdict.reasons if audit.verdict is not None else ()
    lines = [
        [
            row.code,
            row.severity,
            row.message,
            row.source or "-",
            number(row.value),
            number(row.threshold),
        ]
        for row in found
    ]
    columns = "code,weight,what was measured,where the threshold comes from,value,threshold"
    return Grid("Reasons", columns.split(","), lines, 4)


def sources(audit: Audit) -> Grid:
    """Where the adapters and the base come from, with commits and hashes."""
    rows = [(row.name, row.reference, row.commit, row.sha256) for row in audit.adapters]
    if audit.base is not None:
        rows.append(("base", audit.base.reference, audit.base.commit, audit.base.sha256))
    lines = [[*row[:2], row[2] or "-", row[3] or "-"] for row in rows]
    return Grid("Adapters and base", ["name", "reference", "commit", "sha256"], lines, 4)


def prepared(audit: Audit) -> Grid:
    """What was done to adapters before they were merged or routed."""
    lines = [
        [
            row.adapter,
            ", ".join(row.subtracted) or "-",
            number(row.factor),
            number(row.norm_before),
            number(row.norm_after),
        ]
        for row in audit.transformations
    ]
    columns = "adapter,subtracted,factor,norm before,norm after".split(",")
    return Grid("Adapters before they were composed", columns, lines, 2)


def weights(audit: Audit) -> Grid:
    """Weights that were searched."""
    held: Mapping[str, float] = audit.search.weights if audit.search is not None else {}
    lines = [[name, number(weight, 3)] for name, weight in held.items()]
    return Grid("Weights found by --weights search", ["adapter", "weight"], lines)


def run(audit: Audit) -> Grid:
    """What made the document: versions, the call, the machine, seconds of each stage."""
    made = audit.provenance
    rows: Iterable[tuple[str, str]] = (
        ("loraprobe", made.loraprobe),
        ("torch", made.torch or "-"),
        ("call", " ".join(made.arguments) or "-"),
        ("device", made.device),
        ("dtype", made.dtype),
        ("seed", str(made.seed)),
        ("peak memory", f"{made.peak_memory_bytes / 2**20:,.0f} MiB"),
        *((f"seconds: {stage}", number(taken)) for stage, taken in made.seconds.items()),
    )
    return Grid("The run", ["what", "value"], [list(row) for row in rows], 2)
