"""The tables about adapters and about the run: what they are, findings, pairs, sources."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from loraprobe.formatting import measured, number, rounded, spread
from loraprobe.records import Audit, Issue, Measurement
from loraprobe.report.table import Column, Table, figures, tabulated, text

SEVERITY_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
MOST_PAIRS = 10  # pairs that are shown without --explain
MOST_ACROSS = 3  # adapters or pairs that stand side by side


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


def by_severity(issues: Iterable[Issue]) -> list[Issue]:
    """Findings, errors first."""
    return sorted(issues, key=lambda issue: list(SEVERITY_STYLES).index(issue.severity))


def first_sentence(issue: Issue) -> str:
    """What a finding says, without what follows from it."""
    return re.split(r"(?<=\.)\s|;\s(?=an\s)", issue.message, maxsplit=1)[0]


def findings(audit: Audit) -> Table:
    """What compatibility found, errors first, with the cures."""
    return tabulated(
        "Findings",
        by_severity(audit.compatibility.issues),
        (text("code"), lambda row: row.code),
        (replace(text("severity", drop=1), styles=SEVERITY_STYLES), lambda row: row.severity),
        (text("what it means", prose=True), lambda row: row.message),
        (text("cure", prose=True), lambda row: row.cure or "-"),
    )


PAIR_FIGURES = {  # diagnostics that a reader compares, as columns
    "cosine": Column("cosine"),
    "norm_ratio": Column("norm ratio", drop=1),
    "subspace_overlap": Column("overlap", drop=2),
}


def nearest_pairs(audit: Audit) -> Table:
    """The pairs of adapters with the figures that a reader compares, the nearest first."""
    cells: dict[tuple[str, ...], dict[str, Measurement]] = {}
    for m in audit.diagnostics:
        if m.module is None and len(m.adapters) == 2 and m.side in (None, "in"):
            cells.setdefault(m.adapters, {}).setdefault(m.name, m)
    present = [one for one in PAIR_FIGURES if any(one in row for row in cells.values())]
    lines = [
        [" x ".join(pair), *(_figure(row[one]) if one in row else "-" for one in present)]
        for pair, row in sorted(cells.items(), key=lambda pair: _nearness(pair[1]))
    ]
    many = f" (the {MOST_PAIRS} nearest of {len(lines)})" if len(lines) > MOST_PAIRS else ""
    columns = [text("pair"), *(PAIR_FIGURES[one] for one in present)]
    return Table(f"Pairs{many}", columns, lines[:MOST_PAIRS])


def _nearness(row: Mapping[str, Measurement]) -> float:
    cosine = row.get("cosine")
    return -abs(cosine.value) if cosine is not None and cosine.value is not None else 0.0


def singles(audit: Audit) -> Table:
    """Diagnostics of single adapters, or those of a merge and its adapters."""
    rows = [row for row in audit.diagnostics if row.module is None and len(row.adapters) == 1]
    caption = "Adapters and their merge" if audit.command == "merge" else "Single adapters"
    return _matrix(caption, rows, lambda row: row.adapters[0], "adapter")


def pairs(audit: Audit) -> Table:
    """Diagnostics of all pairs of adapters."""
    rows = [row for row in audit.diagnostics if row.module is None and len(row.adapters) > 1]
    return _matrix("Between adapters", rows, lambda row: " × ".join(row.adapters), "pair")


def modules(audit: Audit) -> Table:
    """Diagnostics module by module."""
    rows = [row for row in audit.diagnostics if row.module is not None]
    return _matrix(
        "Module by module", rows, lambda row: f"{row.module} ({' × '.join(row.adapters)})", "module"
    )


def _matrix(
    caption: str, rows: Sequence[Measurement], key: Callable[[Measurement], str], corner: str
) -> Table:
    """Diagnostics across, adapters (or pairs) down; the other way round where these are few."""
    cells = {(key(row), _label(row)): _figure(row) for row in rows}
    lines = list(dict.fromkeys(line for line, _ in cells))
    heads = list(dict.fromkeys(head for _, head in cells))
    if len(lines) <= MOST_ACROSS:
        lines, heads, corner = heads, lines, "diagnostic"
        cells = {(head, line): cell for (line, head), cell in cells.items()}
    table = [[line, *(cells.get((line, head), "-") for head in heads)] for line in lines]
    return Table(caption, [text(corner), *figures(*heads)], table)


def _label(row: Measurement) -> str:
    side = f" ({row.side})" if row.side else ""
    rank = f" at rank {row.rank}" if row.rank is not None else ""
    return row.name.replace("_", " ") + side + rank


AGAINST_CHANCE = ("subspace_overlap", "shared_initialisation")  # read as multiples of chance


def _figure(row: Measurement) -> str:
    told = number(row.value, 1 if row.name == "norm_ratio" else 3)
    if row.name in AGAINST_CHANCE and row.chance and measured(row.value):
        return f"{told} ({row.value / row.chance:.1f}× chance)"
    return f"{told} ± {number(row.stderr, 3)}" if row.stderr else told


def sources(audit: Audit) -> Table:
    """Where the adapters, the base and the tasks come from, with commits and hashes."""
    rows = [(row.name, row.reference, row.commit, row.sha256) for row in audit.adapters]
    if audit.base is not None:
        rows.append(("base", audit.base.reference, audit.base.commit, audit.base.sha256))
    for task in audit.provenance.tasks:
        rows.append((f"task {task.name}", task.reference, task.commit, task.sha256))
    columns = [*map(text, ("name", "reference", "commit", "sha256"))]
    cells = [[cell or "-" for cell in row] for row in rows]
    return Table("Adapters, base and tasks", columns, cells)


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


def weights(audit: Audit) -> Table:
    """Weights that were learned; of several layers their means."""
    held: Mapping[str, float] = audit.search.weights if audit.search is not None else {}
    lines = [[name, number(weight, 3)] for name, weight in held.items()]
    return Table("Weights found by --weights learn", [text("adapter"), Column("weight")], lines)


def run(audit: Audit) -> Table:
    """What made the document: versions, the call, the machine, seconds of each stage."""
    made = audit.provenance
    rows: Iterable[tuple[str, str]] = (
        ("loraprobe", made.loraprobe),
        ("torch", made.torch or "-"),
        ("call", shlex.join(made.arguments) or "-"),
        ("device", made.device),
        ("dtype", made.dtype),
        ("seed", str(made.seed)),
        ("peak memory", f"{made.peak_memory_bytes / 2**20:,.0f} MiB"),
        *((f"seconds: {stage}", number(taken)) for stage, taken in made.seconds.items()),
    )
    return Table("The run", [text("what"), text("value")], [list(row) for row in rows])
