"""The figures of a page: what they show, and how matplotlib draws it as SVG text.

Text stays text. Ink, grid lines and the accent become CSS variables, so that a figure follows the
colours of the page. No label is read as mathematics.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

from loraprobe.defaults import MARGIN
from loraprobe.formatting import clean, gained, measured, number
from loraprobe.records import Audit, Gain, Measurement, display_name
from loraprobe.report.parts import Figure, Part, Table, figures, text
from loraprobe.report.sections import CAUSES

Cells = Mapping[tuple[str, str], float]  # (row, column) -> value

COLOURS = {  # a field of Attribution -> a colour on which white text is readable
    "solved": "#1a7a4a",
    "step_by_step": "#2f6f9f",
    "said_otherwise": "#4f7a1a",
    "unknown": "#666666",
    "cut_off": "#8a6100",
    "interference": "#b3452c",
    "not_composed": "#7a5aa0",
}
# Inches by the class of a drawing: as wide as the text of a page, and as wide as a phone.
WIDTHS = {"wide": 8.4, "narrow": 3.8}
TALLEST = 5.0  # inches of a map
# Colours that stand for variables of the page, replaced in the SVG text.
INK, LINE, ACCENT = "#010203", "#040506", "#070809"
VARIABLES = {
    INK: "currentColor",
    LINE: "var(--line, #c9d0d8)",  # the second value where a viewer drops the styles
    ACCENT: "var(--accent, #1f5f99)",
}
STYLE = Path(__file__).with_name("page.mplstyle")
LONGEST = 26  # characters of a name in a figure; its table has the whole name
MOST_LINES, MOST_LAYERS = 24, 64  # of a figure; its table has them all
MOST_COLUMNS, MOST_MAPS = 12, 6
MOST_ADAPTERS = 20
SHADES = 13  # an odd number, so that 0 has a shade of its own
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_FONT, _GROUP = re.compile('font-family: [^;"]*;?'), re.compile('<g id="[^"]*"')


def gains(audit: Audit, table: Any) -> Part:
    """Gains with their intervals against the margin. table: has all of them, if there are some."""
    if not audit.evaluation.gains:
        return table
    margin = audit.verdict.margin if audit.verdict is not None else MARGIN
    rows = sorted(audit.evaluation.gains, key=lambda gain: -gain.difference)[:MOST_LINES]
    several = len({gain.task for gain in rows}) > 1
    names = [
        f"{display_name(gain.system)}, {gain.part.words}"
        + (f", {gain.task or 'all'}" if several else "")
        for gain in rows
    ]
    description = (
        "A filled dot lies above the margin with its whole interval. The largest gain is that of "
        f"{names[0]}: {gained(rows[0].difference, rows[0].adjusted_ci95, threshold=margin)}."
    )
    title = "Gains over the best of base and single adapters, and the margin"
    data = {"gains": rows, "names": names, "margin": margin}
    return Figure("gains-figure", title, description, table, "forest", data)


def causes(audit: Audit, table: Any) -> Part:
    """Where the answers of each composition went. table: has all of them."""
    several = len({row.task for row in audit.evaluation.attribution}) > 1
    bars = [
        (
            f"{display_name(row.system)}, {row.task}" if several else display_name(row.system),
            [getattr(row, cause) for cause in CAUSES],
        )
        for row in audit.evaluation.attribution[:MOST_LINES]
    ]
    description = "A bar for each composition; each item counts for the first cause that fits."
    title = "Where the answers of each composition went"
    return Figure("causes-figure", title, description, table, "stacked", {"rows": bars})


def cosines(audit: Audit) -> list[Figure]:
    """The cosine of every pair of three adapters or more."""
    names = [row.name for row in audit.adapters][:MOST_ADAPTERS]
    by_pair = {
        row.adapters: row.value
        for row in audit.diagnostics
        if row.name == "cosine" and row.module is None and measured(row.value)
    }
    if len(names) < 3 or not by_pair:
        return []
    known = {(a, b): value for pair, value in by_pair.items() for a, b in (pair, pair[::-1])}
    (a, b), most = max(by_pair.items(), key=lambda pair_value: abs(pair_value[1]))
    description = (
        f"All pairs of {len(names)} adapters. The cosine furthest from zero is {number(most)}, "
        f"between {a} and {b}."
    )
    title = "Cosine of the updates of every pair"
    return [_heat("pairs-figure", title, description, "adapter", (names, names), known, None)]


def modules(audit: Audit) -> Iterator[Figure]:
    """Layers down, modules across: the norm of each adapter, then the cosine of each pair."""
    for name, size, what in (("norm", 1, "Norm of the update"), ("cosine", 2, "Cosine")):
        groups: dict[tuple[str, ...], list[Measurement]] = {}
        for row in audit.diagnostics:
            if row.name == name and row.module is not None and len(row.adapters) == size:
                groups.setdefault(row.adapters, []).append(row)
        values = [row.value for rows in groups.values() for row in rows if measured(row.value)]
        most = (max(values, default=0.0) or 1.0) if name == "norm" else None
        for position, (group, rows) in enumerate([*groups.items()][:MOST_MAPS]):
            of = " × ".join(group)
            title = f"{what} of {of} by layer and module"
            cells = _by_layer(rows)
            if cells:
                layers = list(dict.fromkeys(layer for layer, _ in cells))
                columns = list(dict.fromkeys(column for _, column in cells))[:MOST_COLUMNS]
                (layer, column), largest = max(cells.items(), key=lambda one: abs(one[1]))
                sentence = f"The largest in size is {number(largest)}, in layer {layer}, {column}."
                names = (layers, columns)
                yield _heat(f"{name}-map-{position}", title, sentence, "layer", names, cells, most)


def _heat(
    name: str,
    title: str,
    description: str,
    corner: str,
    names: tuple[Sequence[str], Sequence[str]],
    cells: Cells,
    most: float | None,
) -> Figure:
    """Cells by their values, with their table.

    corner: the heading of the rows' names. names: of rows and columns. most: of sizes the value of
    the darkest cell; None for cosines, whose scale is always that from -1 to 1.
    """
    rows, columns = names
    values = [[cells.get((row, column)) for column in columns] for row in rows]
    lines = [[row, *(number(v, 3) for v in line)] for row, line in zip(rows, values, strict=True)]
    table = Table(title, [text(corner), *figures(*columns)], lines)
    drawn_rows = rows[:MOST_LAYERS]
    drawn_values = [[math.nan if v is None else v for v in line] for line in values[:MOST_LAYERS]]
    data = {"values": drawn_values, "rows": drawn_rows, "columns": columns, "most": most}
    scale = "Darker is larger." if most else "Blue is towards 1, red towards -1, and white is 0."
    if len(rows) > len(drawn_rows):
        description += f" The first {len(drawn_rows)} of {len(rows)} rows are drawn."
    return Figure(name, title, f"{scale} {description}", table, "heat", data)


def _by_layer(rows: Iterable[Measurement]) -> Cells:
    """(layer, module) -> the mean over modules such as experts, which repeat in a layer."""
    by_place: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if measured(row.value):
            by_place.setdefault(_place(row.module or ""), []).append(row.value)
    return {place: sum(values) / len(values) for place, values in by_place.items()}


def _place(module: str) -> tuple[str, str]:
    """The layer of a module and its name there: model.layers.3.mlp.up_proj -> 3, mlp.up_proj.

    A module outside of layers stands in row "-".
    """
    match = _NUMBER.search(f".{module}.")
    if match is None:
        return "-", module
    rest = f".{module}."[match.end() :].strip(".")
    return match[0], _NUMBER.sub("*", f".{rest}.").strip(".")


@contextmanager
def drawing(name: str = "", width: float = WIDTHS["wide"]) -> Iterator[Any]:
    """Yields a figure of matplotlib in the style of the page, without any window.

    name: from which the ids within its SVG are made, so that each figure of a page has its own.
    width: in inches; `panel_of` sets the height.
    """
    import matplotlib
    from matplotlib.figure import Figure as Sheet

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of fonts that lack a script
    with matplotlib.rc_context({"svg.hashsalt": f"loraprobe {name}"}, STYLE):
        yield Sheet(figsize=(width, width))


def drawn(figure: Figure) -> str:
    """The figure as SVG text, once as wide as a page and once as a phone; the page shows one."""
    return "".join(_drawn(figure, width) for width in WIDTHS)


def _drawn(figure: Figure, width: str) -> str:
    """The figure in one of WIDTHS with title and description; the page sets sizes and fonts."""
    stream, name = StringIO(), f"{figure.name}-{width}"
    with drawing(name, WIDTHS[width]) as sheet:
        DRAWN[figure.kind](sheet, **figure.data)
        sheet.savefig(stream, format="svg", metadata={"Date": None})
    head, start, rest = stream.getvalue().partition('<g id="figure_1">')
    body = _FONT.sub("", _GROUP.sub("<g", start + rest))  # nothing refers to groups
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, variable)
    box = re.search('viewBox="[^"]*"', head)
    assert box is not None
    ids = f"{name}-title", f"{name}-description"
    return (
        f'<svg class="{width}" {box[0]} role="img" aria-labelledby="{" ".join(ids)}">'
        f'<title id="{ids[0]}">{escape(figure.title)}</title>'
        f'<desc id="{ids[1]}">{escape(figure.description)}</desc>{body}'
    )


def _short(text: str) -> str:
    """A name that fits into a figure, in one line."""
    flat = " ".join(clean(text).split())
    return flat if len(flat) <= LONGEST else flat[: LONGEST - 1] + "…"


def panel_of(sheet: Any, height: float) -> Any:
    """The axes of a sheet of this height in inches."""
    sheet.set_size_inches(sheet.get_figwidth(), height)
    return sheet.subplots()


def forest(sheet: Any, gains: Sequence[Gain], names: Sequence[str], margin: float) -> None:
    """Gains with their intervals, a line each, against zero and the margin.

    A dot is filled where the whole interval lies above the margin.
    """
    panel = panel_of(sheet, 0.3 * len(gains) + 0.9)
    panel.axvline(0, color=LINE, linewidth=1)
    panel.axvline(margin, color=INK, linewidth=1, linestyle="--")
    panel.text(margin, -0.75, f"margin {margin:g}", ha="center", va="bottom", fontsize=8.5)
    for y, gain in enumerate(gains):
        panel.plot(gain.adjusted_ci95, [y, y], color=ACCENT, linewidth=1.2)
        panel.plot(gain.ci95, [y, y], color=ACCENT, linewidth=3.2, solid_capstyle="butt")
        face = ACCENT if gain.adjusted_ci95[0] > margin else "none"
        panel.plot(gain.difference, y, "o", color=ACCENT, markerfacecolor=face, markersize=6)
    _name_rows(panel, names, -0.7)
    panel.set_xlabel("gain")


def stacked(sheet: Any, rows: Sequence[tuple[str, Sequence[int]]]) -> None:
    """Shares of the causes of COLOURS, a bar for each (name, counts)."""
    from matplotlib.patches import Patch

    panel = panel_of(sheet, 0.36 * len(rows) + 1.0)
    for y, (_, counts) in enumerate(rows):
        left, total = 0.0, sum(counts) or 1
        for number_, colour in zip(counts, COLOURS.values(), strict=True):
            share = number_ / total
            panel.barh(y, share, left=left, height=0.72, color=colour, edgecolor="none")
            if share >= 0.09:
                place = left + share / 2
                panel.text(place, y, str(number_), ha="center", va="center", color="#ffffff")
            left += share
    _name_rows(panel, [name for name, _ in rows], -0.5)
    panel.set_xlim(0, 1)
    panel.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    legend = [Patch(color=COLOURS[cause], label=name) for cause, name in CAUSES.items()]
    sheet.legend(handles=legend, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)


def _name_rows(panel: Any, names: Sequence[str], top: float) -> None:
    """Names at the left of the rows, the first at the top."""
    panel.set_yticks(range(len(names)), list(map(_short, names)))
    panel.tick_params(axis="y", length=0)
    panel.set_ylim(len(names) - 0.5, top)


def heat(
    sheet: Any,
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    most: float | None,
    marked: Sequence[tuple[int, int]] = (),
) -> None:
    """Cells by value with their scale, as a `Figure` of this kind has them."""
    import matplotlib

    panel = panel_of(sheet, 0.27 * len(rows) + 0.6 + 0.075 * max(map(len, columns)))
    name, low, high = ("RdBu", -1.0, 1.0) if most is None else ("Blues", -0.2 * most, most)
    shades = matplotlib.colormaps[name].resampled(SHADES)  # few, because a scale draws each
    mesh = panel.pcolormesh(values, cmap=shades, vmin=low, vmax=high)  # no size is white
    ticks = [-1, 0, 1] if most is None else [0, most]
    scale = sheet.colorbar(mesh, ax=panel, ticks=ticks, shrink=min(1.0, 8 / len(rows)), aspect=10)
    scale.ax.set_yticklabels([number(tick) if most else f"{tick}" for tick in ticks])
    scale.ax.tick_params(length=0)
    scale.outline.set_visible(False)
    panel.invert_yaxis()
    slant = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    panel.set_xticks([x + 0.5 for x in range(len(columns))], list(map(_short, columns)), **slant)
    panel.set_yticks([y + 0.5 for y in range(len(rows))], list(map(_short, rows)))
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    if marked:
        x, y = ([cell[at] + 0.5 for cell in marked] for at in (1, 0))
        panel.plot(x, y, "o", color=INK, fillstyle="none")


Points = Sequence[tuple[float, float]]


def scatter(
    sheet: Any, empty: Points, filled: Points, labels: Sequence[tuple[str, tuple[float, float]]]
) -> None:
    """A map of points, on which distances are to scale."""
    panel = panel_of(sheet, min(sheet.get_figwidth(), TALLEST))
    for points, face in ((empty, "none"), (filled, ACCENT)):
        across, up = ([point[at] for point in points] for at in (0, 1))
        panel.scatter(across, up, facecolors=face, s=14, edgecolors=ACCENT, linewidths=0.8)
    for label, place in labels:
        panel.annotate(label, place, (7, 7), textcoords="offset points", color=INK)
    panel.set_aspect("equal", "datalim")
    panel.set_axis_off()


DRAWN: Mapping[str, Callable[..., None]] = {
    "heat": heat,
    "scatter": scatter,
    "forest": forest,
    "stacked": stacked,
}
