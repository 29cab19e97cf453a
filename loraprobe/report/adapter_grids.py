"""The tables about adapters and about the run: what they are, findings, pairs, gates, sources."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from loraprobe.records import Audit, Measurement
from loraprobe.report.formatting import count, measured, number, spread
from loraprobe.report.grids import Grid


def adapters(audit: Audit) -> Grid:
    """What each adapter is."""
    lines = [
        [
            row.name,
            row.base_model or "-",
            row.variant,
            " ".join(row.targets) or "-",
            row.license or "-",
            spread(list(row.rank.values())),
            str(row.modules),
            count(row.parameters),
            spread(row.scaling) if row.scaling else "-",
            number(row.norm),
        ]
        for row in audit.adapters
    ]
    columns = "adapter,base,variant,targets,licence,rank,modules,parameters,scaling,norm"
    return Grid("Adapters", columns.split(","), lines, range(5))


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
    return Grid("Modules that repeat in every layer", columns, lines, range(2))


def findings(audit: Audit) -> Grid:
    """What compatibility found, errors first, with the cures."""
    order = ("error", "warning", "note")
    rows = sorted(audit.compatibility.issues, key=lambda issue: order.index(issue.severity))
    lines = [[row.code, row.severity, row.message, row.cure or "-"] for row in rows]
    return Grid("Findings", ["code", "severity", "what it means", "cure"], lines, range(4))


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
    if row.chance and measured(row.value) and row.name != "cosine":
        return f"{text} ({number(row.value / row.chance, 1)}× chance)"
    return f"{text} ± {number(row.stderr, 3)}" if row.stderr else text


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
    return Grid("Mean share of each adapter's gate on the prompts", columns, lines, range(2))


def sources(audit: Audit) -> Grid:
    """Where the adapters and the base come from, with commits and hashes."""
    rows = [(row.name, row.reference, row.commit, row.sha256) for row in audit.adapters]
    if audit.base is not None:
        rows.append(("base", audit.base.reference, audit.base.commit, audit.base.sha256))
    lines = [[*row[:2], row[2] or "-", row[3] or "-"] for row in rows]
    return Grid("Adapters and base", ["name", "reference", "commit", "sha256"], lines, range(4))


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
    return Grid("Adapters before they were composed", columns, lines, range(2))


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
    return Grid("The run", ["what", "value"], [list(row) for row in rows], range(2))
