"""The audit's tables for a terminal, one function each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from rich.text import Text

from loraprobe.formatting import listing
from loraprobe.records import AdapterSummary, Audit, Coverage, Measurement
from loraprobe.report.formatting import clean, interval, number, spread
from loraprobe.report.grids import replies
from loraprobe.report.layout import GAP, Column, Part, fitted, name

SEVERITY_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
MOST_PAIRS = 10  # pairs that are shown without --explain


def adapters(audit: Audit, width: int) -> Part | None:
    """What each adapter is."""
    columns = (
        name("adapter"),
        Column("base", figure=False, drop=3),
        Column("variant", figure=False, drop=2),
        Column("rank"),
        Column("modules", drop=4),
        Column("scaling", drop=1),
        Column("norm"),
        Column("licence", figure=False, drop=5),
    )
    return fitted("Adapters", columns, map(_adapter, audit.adapters), width)


def _adapter(row: AdapterSummary) -> list[str]:
    return [
        row.name,
        row.base_model or "-",
        row.variant,
        spread((row.rank["min"], row.rank["max"])),
        str(row.modules),
        spread(row.scaling) if row.scaling else "-",
        number(row.norm),
        row.license or "-",
    ]


def targets(audit: Audit) -> list[str]:
    """What the adapters target, a line for each set of modules."""
    found: dict[str, list[str]] = {}
    for row in audit.adapters:
        if row.targets:
            found.setdefault(" ".join(row.targets), []).append(row.name)
    if len(found) == 1:
        return [f"targets: {next(iter(found))}"]
    return [f"targets of {listing(names)}: {text}" for text, names in found.items()]


def issues(audit: Audit, width: int) -> Part | None:
    """What compatibility found, errors first."""
    columns = (
        Column("severity", figure=False, drop=1),
        Column("code", figure=False),
        Column("what it means, and the cure", figure=False, prose=True),
    )
    order = list(SEVERITY_STYLES)
    found = sorted(audit.compatibility.issues, key=lambda i: order.index(i.severity))
    rows = [
        (Text(i.severity, SEVERITY_STYLES[i.severity]), i.code, f"{i.message} {i.cure}".strip())
        for i in found
    ]
    return fitted("Findings", columns, rows, width)


PAIR_FIGURES = {"cosine": "cosine", "norm_ratio": "norm ratio", "subspace_overlap": "overlap"}


def pairs(audit: Audit, width: int) -> Part | None:
    """Every pair of adapters with the figures that a reader compares, the nearest pairs first."""
    cells: dict[tuple[str, ...], dict[str, Measurement]] = {}
    for m in audit.diagnostics:
        if m.module is None and len(m.adapters) == 2 and m.side in (None, "in"):
            cells.setdefault(m.adapters, {}).setdefault(m.name, m)
    present = [one for one in PAIR_FIGURES if any(one in row for row in cells.values())]
    rows = [
        (" x ".join(pair), *(_figure(row[one]) if one in row else "-" for one in present))
        for pair, row in sorted(cells.items(), key=_nearness)
    ]
    title = (
        f"Pairs (the {MOST_PAIRS} nearest of {len(rows)})" if len(rows) > MOST_PAIRS else "Pairs"
    )
    drops = {"subspace_overlap": 2, "norm_ratio": 1}
    columns = [Column(PAIR_FIGURES[one], drop=drops.get(one, 0)) for one in present]
    return fitted(title, [name("pair"), *columns], rows[:MOST_PAIRS], width)


def _nearness(item: tuple[tuple[str, ...], Mapping[str, Measurement]]) -> float:
    cosine = item[1].get("cosine")
    return -abs(cosine.value) if cosine is not None and cosine.value is not None else 0.0


def diagnostics(audit: Audit, width: int) -> Iterator[Part | None]:
    """Figures of single adapters, then of every pair, then module by module if asked for."""
    whole = [m for m in audit.diagnostics if m.module is None]
    singles = [m for m in whole if len(m.adapters) == 1]
    several = [m for m in whole if len(m.adapters) > 1]
    modules = [m for m in audit.diagnostics if m.module is not None]
    title = "Adapters and their merge" if audit.command == "merge" else "Single adapters"
    yield from _grid(title, singles, lambda m: m.adapters[0], "adapter", width)
    yield from _grid("Between adapters", several, lambda m: " × ".join(m.adapters), "pair", width)
    yield from _grid(
        "Module by module", modules, lambda m: f"{m.module} ({' × '.join(m.adapters)})", "", width
    )


def _grid(
    title: str,
    rows: Sequence[Measurement],
    key: Callable[[Measurement], str],
    heading: str,
    width: int,
) -> Iterator[Part | None]:
    """Diagnostics down, adapters (or pairs) across where few; else the other way round.

    As many tables as it takes for each to fit the width with its figures in one piece.
    """
    cells = {(key(m), _label(m)): _figure(m) for m in rows}
    lines = list(dict.fromkeys(line for line, _ in cells))
    heads = list(dict.fromkeys(head for _, head in cells))
    if len(lines) <= 3:
        lines, heads, heading = heads, lines, ""
        cells = {(line, head): text for (head, line), text in cells.items()}
    groups: list[list[str]] = []
    left = 0
    for head in heads:
        figures = max(len(cells.get((line, head), "-")) for line in lines)
        need = GAP + max(figures, *map(len, head.split(" ")))
        if not groups or need > left:
            groups.append([])
            left = width - min(max(map(len, lines)), width // 2)
        groups[-1].append(head)
        left -= need
    for at, group in enumerate(groups):
        shown = [(line, *(cells.get((line, head), "-") for head in group)) for line in lines]
        columns = [name(heading), *map(Column, group)]
        yield fitted(f"{title} (continued)" if at else title, columns, shown, width)


AGAINST_CHANCE = ("subspace_overlap", "shared_initialisation")  # read as multiples of chance


def _label(m: Measurement) -> str:
    label = m.name.replace("_", " ")
    if m.side:
        label += f" ({m.side})"
    if m.rank is not None:
        label += f" at rank {m.rank}"
    return label


def _figure(m: Measurement) -> str:
    text = number(m.value, 1 if m.name == "norm_ratio" else 3)
    if m.name in AGAINST_CHANCE and m.chance and m.value is not None:
        text += f" ({m.value / m.chance:.1f}× chance)"
    elif m.stderr:
        text += f" ± {number(m.stderr, 3)}"
    return text


def coverage(audit: Audit, width: int) -> Iterable[Part | None]:
    """What the base and each adapter alone know."""
    columns = (
        name("probe"),
        Column("of", figure=False),
        Column("part", figure=False),
        Column("value"),
        Column("guess", drop=3),
        Column("95 %", drop=1),
        Column("n", drop=2),
    )
    for task in dict.fromkeys(c.task for c in audit.coverage):
        rows = [_coverage(row) for row in audit.coverage if row.task == task]
        yield fitted(f"Coverage: {task}", columns, rows, width)


def _coverage(row: Coverage) -> list[str]:
    return [
        row.name.replace("_", " "),
        " → ".join(row.adapters) or "base",
        f"hop {row.hop}" if row.hop else "question",
        number(row.value),
        number(row.baseline) if row.baseline is not None else "",
        interval(row.ci95),
        str(row.n),
    ]


def wrong_answers(audit: Audit, width: int) -> Iterator[Part | str | None]:
    """A few questions that a composition got wrong, with what every system answered."""
    columns = (
        name("system"),
        Column("answer", figure=False, prose=True),
        Column("", figure=False),
        Column("first cause", figure=False, drop=1),
    )
    for sample in audit.samples:
        gold = f"right: {clean(' or '.join(sample.gold))}"
        title = f"{sample.task}, item {sample.item}: {sample.question} ({gold})"
        yield fitted(" ".join(title.split()), columns, replies(sample).rows, width)


HEAT = "▁▂▃▄▅▆▇█"  # from no share to all of it
MOST_BARS = 40


def gates(audit: Audit, width: int) -> Part | None:
    """How each token router shared the prompts among adapters, a bar a layer."""
    columns = (
        name("router"),
        Column("adapter", figure=False),
        Column("by layer, first to last", figure=False, drop=1),
        Column("share"),
        Column("evenness"),
    )
    rows = []
    for whole in (row for row in audit.gates if row.layer is None):
        of = [r for r in audit.gates if r.system == whole.system and r.layer is not None]
        for position, (adapter, share) in enumerate(whole.share.items()):
            first = position == 0
            rows.append(
                (
                    whole.system if first else "",
                    adapter,
                    _heat([row.share[adapter] for row in of]),
                    number(share),
                    f"{whole.entropy_share:.0%}" if first else "",
                )
            )
    return fitted("Gates of routers: shares on the prompts", columns, rows, width)


def _heat(shares: Sequence[float]) -> str:
    """One sign a layer; neighbours are averaged where there are more than MOST_BARS."""
    count = min(len(shares), MOST_BARS)
    bars = ""
    for i in range(count):
        own = shares[i * len(shares) // count : (i + 1) * len(shares) // count]
        bars += HEAT[min(int(sum(own) / len(own) * len(HEAT)), len(HEAT) - 1)]
    return bars


def layers(audit: Audit, width: int) -> Part | None:
    """One adapter layer by layer, what repeats in every layer as one line."""
    columns = (
        name("module"),
        Column("kind", figure=False, drop=2),
        Column("modules", drop=1),
        Column("rank"),
        Column("in", drop=4),
        Column("out", drop=3),
        Column("scaling", drop=5),
        Column("norm"),
    )
    rows = [
        (
            row.pattern,
            row.kind,
            str(row.modules),
            spread(row.rank),
            spread(row.in_features),
            spread(row.out_features),
            spread(row.scaling),
            spread(row.norm) if row.norm else "-",
        )
        for row in audit.layers
    ]
    return fitted("Layers", columns, rows, width)
