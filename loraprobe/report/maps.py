"""Figures of adapters, each with its table: pairs, layers and modules, gates, a library."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from loraprobe.formatting import count, measured, neighbours, number
from loraprobe.records import Audit, Measurement
from loraprobe.report.figures import About, heat, scatter
from loraprobe.report.table import Column, Table, figures, tabulated, text

Cells = Mapping[tuple[str, str], float]  # (row, column) -> value

MOST_ROWS, MOST_COLUMNS, MOST_MAPS = 40, 12, 6
MOST_TEXTS = 8  # columns in which a number fits into a cell
MOST_ADAPTERS = 20
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption and the table of what it shows."""

    svg: str
    caption: str
    table: Table


def cosines(audit: Audit) -> list[Figure]:
    """The cosine of every pair of three adapters or more."""
    names = [row.name for row in audit.adapters][:MOST_ADAPTERS]
    found = {
        row.adapters: row.value
        for row in audit.diagnostics
        if row.name == "cosine" and row.module is None and measured(row.value)
    }
    if len(names) < 3 or not found:
        return []
    known = {(a, b): value for pair, value in found.items() for a, b in (pair, pair[::-1])}
    (a, b), most = max(found.items(), key=lambda one: abs(one[1]))
    description = (
        f"All pairs of {len(names)} adapters. The cosine furthest from zero is {number(most)}, "
        f"between {a} and {b}."
    )
    about = About("pairs-figure", "Cosine of the updates of every pair", description)
    return [_drawn(about, "further from zero", "adapter", names, names, known, 1.0)]


def modules(audit: Audit) -> Iterator[Figure]:
    """Layers down, modules across: the norm of each adapter, then the cosine of each pair."""
    for name, size, what in (("norm", 1, "Norm of the update"), ("cosine", 2, "Cosine")):
        rows = [
            row
            for row in audit.diagnostics
            if row.name == name and row.module is not None and len(row.adapters) == size
        ]
        values = [abs(row.value) for row in rows if measured(row.value)]
        most = max(values, default=0.0) or 1.0
        for position, group in enumerate(list(dict.fromkeys(r.adapters for r in rows))[:MOST_MAPS]):
            of = " × ".join(group)
            title = f"{what} of {of} by layer and module"
            cells = _by_layer(row for row in rows if row.adapters == group)
            if cells:
                yield _module_map(f"{name}-map-{position}", title, cells, most)


def _module_map(name: str, title: str, cells: Cells, darkest: float) -> Figure:
    layers = _joined(list(dict.fromkeys(layer for layer, _ in cells)))
    columns = list(dict.fromkeys(column for _, column in cells))[:MOST_COLUMNS]
    shown = {
        (label, column): sum(known) / len(known)
        for label, held in layers.items()
        for column in columns
        if (known := [cells[layer, column] for layer in held if (layer, column) in cells])
    }
    (row, column), most = max(shown.items(), key=lambda one: abs(one[1]))
    description = f"The largest in size is {number(most)}, in layer {row}, {column}."
    about = About(name, title, description)
    return _drawn(about, "larger in size", "layer", list(layers), columns, shown, darkest)


def left_out(audit: Audit) -> list[str]:
    """What the maps do not show, if anything."""
    rows = [row for row in audit.diagnostics if row.module is not None]
    groups = {(row.name, row.adapters) for row in rows if row.name in ("norm", "cosine")}
    kinds = {_place(row.module or "")[1] for row in rows}
    if len(groups) <= 2 * MOST_MAPS and len(kinds) <= MOST_COLUMNS:
        return []
    return ["Only the first adapters, pairs and modules are drawn; --json holds every figure."]


def gates(audit: Audit) -> Iterator[Figure]:
    """Adapters down, layers across: the mean share of each adapter's gate."""
    routers = list(dict.fromkeys(row.system for row in audit.gates))
    for position, system in enumerate(routers[:MOST_MAPS]):
        whole = [row for row in audit.gates if row.system == system and row.layer is None]
        rows = [row for row in audit.gates if row.system == system and row.layer is not None]
        adapters = list((whole or rows)[0].share)
        layers = _joined([row.layer or "" for row in rows])
        share = {row.layer: row.share for row in rows}
        cells = {(name, "all"): row.share.get(name, 0.0) for row in whole for name in adapters}
        for label, held in layers.items():
            for name in adapters:
                known = [share[layer].get(name, 0.0) for layer in held]
                cells[name, label] = sum(known) / len(known)
        columns = ["all", *layers] if whole else list(layers)
        told = ", ".join(f"{name} {number(cells[name, columns[0]])}" for name in adapters)
        title = f"Share of the gates of {system} by layer"
        tokens = (whole or rows)[0].n
        about = About(f"gates-map-{position}", title, f"Means over {tokens} tokens: {told}.")
        yield _drawn(about, "more", "adapter", adapters, columns, cells, 1.0)


def _drawn(
    about: About,
    darker: str,
    corner: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Cells,
    most: float,
) -> Figure:
    """The figure, its caption and its table. Shades go by the size of a value, without its sign.

    darker: what a darker cell means. corner: the heading of the rows' names.
    """
    values = [[cells.get((row, column)) for column in columns] for row in rows]
    digits = 3 if most < 1 else 2
    texts = [["" if value is None else number(value, digits) for value in line] for line in values]
    sizes = [[None if value is None else abs(value) for value in line] for line in values]
    inside = texts if len(columns) <= MOST_TEXTS else None
    svg = heat(about, sizes, rows, columns, inside, most)
    lines = [[row, *(text or "-" for text in line)] for row, line in zip(rows, texts, strict=True)]
    caption = f"{about.title}; darker is {darker}."
    return Figure(svg, caption, Table(about.title, [text(corner), *figures(*columns)], lines))


def _by_layer(rows: Iterable[Measurement]) -> Cells:
    """(layer, module) -> the mean over modules such as experts, which repeat in a layer."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if measured(row.value):
            found.setdefault(_place(row.module or ""), []).append(row.value)
    return {place: sum(values) / len(values) for place, values in found.items()}


def _place(module: str) -> tuple[str, str]:
    """The layer of a module and its name there: model.layers.3.mlp.up_proj -> 3, mlp.up_proj.

    A module outside of layers stands in row "-".
    """
    found = _NUMBER.search(f".{module}.")
    if found is None:
        return "-", module
    rest = f".{module}."[found.end() :].strip(".")
    return found[0], _NUMBER.sub("*", f".{rest}.").strip(".")


def _joined(layers: Sequence[str]) -> dict[str, Sequence[str]]:
    """A label -> its layers: one each, or neighbours together where there are too many."""
    groups = neighbours(layers, MOST_ROWS)
    return {g[0] if len(g) == 1 else f"{g[0]}–{g[-1]}": g for g in groups}


def library(audit: Audit) -> Iterator[Figure]:
    """The map of the library, where at least three adapters have a place on it."""
    rows = audit.library.adapters if audit.library is not None else ()
    placed = [row for row in rows if row.place is not None]
    if len(placed) < 3 or audit.library is None:
        return
    families = {row.family for row in rows if row.family is not None}
    alone = sum(row.family is None for row in placed)
    share = audit.library.map_share
    shown = f" The map shows {share:.0%} of the squared distances." if share is not None else ""
    description = (
        f"{count(len(placed), 'adapter')} by how alike their updates are: those that lie together "
        f"point the same way. {count(len(families), 'group')} of at least two; {alone} stand alone."
        f"{shown}"
    )
    about = About("library-map", "The map of the library", description)
    caption = (
        "A dot for each adapter; filled dots belong to a family, the largest are numbered, a ring "
        "marks an extreme norm. Only distances mean something."
    )
    table = tabulated(
        about.title,
        placed,
        (text("adapter"), lambda row: row.name),
        (Column("family"), lambda row: str(row.family or "-")),
        (Column("across"), lambda row: number(row.place[0]) if row.place else "-"),
        (Column("up"), lambda row: number(row.place[1]) if row.place else "-"),
    )
    yield Figure(scatter(about, placed), caption, table)
