"""The figures of a page as SVG text, drawn with matplotlib.

Text stays text. Ink, grid lines and the accent become CSS variables, so that a figure follows the
colours of the page. No label is read as mathematics.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from statistics import mean
from typing import Any
from xml.etree import ElementTree

from loraprobe.errors import UsageError
from loraprobe.records import Gain, LibraryAdapter
from loraprobe.report.system_tables import CAUSES

WIDTH = 4.6  # inches; a phone shows it at its own size
# Colours that stand for variables of the page, replaced in the SVG text.
INK, LINE, ACCENT = "#010203", "#040506", "#070809"
VARIABLES = {
    INK: "currentColor",
    LINE: "var(--line, #c9d0d8)",  # the second value where a viewer drops the styles
    ACCENT: "var(--accent, #1f5f99)",
}
STYLE = Path(__file__).parent / "templates" / "page.mplstyle"
UNKNOWN_TO_XML = {0xFFFE: "�", 0xFFFF: "�"}
NUMBERED = 12  # families of a map that are numbered
LONGEST = 26  # characters of a name in a figure; its table has the whole name


@dataclass(frozen=True)
class About:
    """What a reader who cannot see a figure needs: its name (an id), title and description."""

    name: str
    title: str
    description: str


@contextmanager
def drawing() -> Iterator[Any]:
    """Yields matplotlib's Figure class in the style of the page, without any window.

    Raises UsageError if matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "--html draws with matplotlib, which is not installed: pip install matplotlib."
        ) from None
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of fonts that lack a script
    with matplotlib.rc_context(fname=STYLE):
        yield Figure


def check_drawing() -> None:
    """Raises UsageError if matplotlib is not installed."""
    with drawing():
        pass


def short(text: str) -> str:
    """A name that fits into a figure, in one line of characters that XML knows."""
    flat = " ".join(text.translate(UNKNOWN_TO_XML).split())
    return flat if len(flat) <= LONGEST else flat[: LONGEST - 1] + "…"


def forest(about: About, gains: Sequence[Gain], names: Sequence[str], margin: float | None) -> str:
    """Gains with their intervals, a line each, against zero and the margin.

    A dot is filled where the whole interval lies above the margin.
    """
    with drawing() as Figure:
        figure = Figure(figsize=(WIDTH, 0.3 * len(gains) + 0.9))
        panel = figure.subplots()
        panel.axvline(0, color=LINE, linewidth=1)
        if margin is not None:
            panel.axvline(margin, color=INK, linewidth=1, linestyle="--")
            panel.text(margin, -0.75, f"margin {margin:g}", ha="center", va="bottom", fontsize=8.5)
        for y, gain in enumerate(gains):
            panel.plot(gain.adjusted_ci95, [y, y], color=ACCENT, linewidth=1.2)
            panel.plot(gain.ci95, [y, y], color=ACCENT, linewidth=3.2, solid_capstyle="butt")
            above = margin is not None and gain.adjusted_ci95[0] > margin
            face = ACCENT if above else "none"
            panel.plot(gain.difference, y, "o", color=ACCENT, markerfacecolor=face, markersize=6)
        panel.set_yticks(range(len(gains)), list(map(short, names)))
        panel.tick_params(axis="y", length=0)
        panel.set_ylim(len(gains) - 0.4, -0.7)
        panel.set_xlabel("gain")
        return _svg(figure, about)


def stacked(about: About, rows: Sequence[tuple[str, Sequence[int]]]) -> str:
    """Shares of the causes of CAUSES, a bar for each (name, counts)."""
    with drawing() as Figure:
        figure = Figure(figsize=(WIDTH, 0.36 * len(rows) + 1.0))
        panel = figure.subplots()
        for y, (_, counts) in enumerate(rows):
            left, total = 0.0, sum(counts) or 1
            for count, (_, colour) in zip(counts, CAUSES.values(), strict=True):
                share = count / total
                panel.barh(y, share, left=left, height=0.72, color=colour, edgecolor="none")
                if share >= 0.09:
                    place = left + share / 2
                    panel.text(place, y, str(count), ha="center", va="center", color="#ffffff")
                left += share
        panel.set_yticks(range(len(rows)), [short(name) for name, _ in rows])
        panel.tick_params(axis="y", length=0)
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.set_xlim(0, 1)
        panel.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
        _legend(figure)
        return _svg(figure, about)


def _legend(figure: Any) -> None:
    """The colours of the causes, below the bars."""
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name) for name, colour in CAUSES.values()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)


def heat(
    about: About,
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    texts: Sequence[Sequence[str]] | None,
    most: float,
) -> str:
    """Cells from light (0) to dark; an empty cell was not measured.

    texts: what stands in each cell, where there is room. most: the value of the darkest cell.
    """
    with drawing() as Figure:
        from matplotlib.patches import Rectangle

        figure = Figure(figsize=(WIDTH, 0.27 * len(rows) + 0.35 + 0.075 * max(map(len, columns))))
        panel = figure.subplots()
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if value is None:
                    continue
                share = value / most
                cell = Rectangle((x + 0.03, y + 0.03), 0.94, 0.94, color=_shade(share))
                panel.add_patch(cell)
                if texts is not None:
                    colour = "#ffffff" if share > 0.5 else "#101418"
                    place = {"ha": "center", "va": "center", "fontsize": 8}
                    panel.text(x + 0.5, y + 0.5, texts[y][x], color=colour, **place)
        panel.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
        slant = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        panel.set_xticks([x + 0.5 for x in range(len(columns))], list(map(short, columns)), **slant)
        panel.set_yticks([y + 0.5 for y in range(len(rows))], list(map(short, rows)))
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        return _svg(figure, about)


def scatter(about: About, adapters: Sequence[LibraryAdapter]) -> str:
    """A map of adapters; families are filled, and the largest of them numbered at their middle."""
    with drawing() as Figure:
        figure = Figure(figsize=(WIDTH, WIDTH))
        panel = figure.subplots()
        small = {"s": 14, "edgecolors": ACCENT, "linewidths": 0.8}
        ring = {"s": 70, "facecolors": "none", "edgecolors": INK, "linewidths": 1.2}
        panel.scatter(*_places(a for a in adapters if a.family is None), facecolors="none", **small)
        panel.scatter(*_places(a for a in adapters if a.family), facecolors=ACCENT, **small)
        panel.scatter(*_places(a for a in adapters if a.outlier), **ring)
        for family in range(1, NUMBERED + 1):
            held = _places(a for a in adapters if a.family == family)
            if held[0]:
                middle = (mean(held[0]), mean(held[1]))
                panel.annotate(str(family), middle, (7, 7), textcoords="offset points", color=INK)
        panel.set_aspect("equal", "datalim")
        panel.spines[:].set_visible(False)
        panel.set_xticks([])
        panel.set_yticks([])
        return _svg(figure, about)


def _places(adapters: Iterable[LibraryAdapter]) -> tuple[list[float], list[float]]:
    """The coordinates of those adapters that have a place on the map: across, and up."""
    places = [adapter.place for adapter in adapters if adapter.place is not None]
    return [x for x, _ in places], [y for _, y in places]


def _shade(share: float) -> str:
    """A blue from light to dark: dark text is readable up to a share of 0.5, white text above."""
    share = min(max(share, 0.0), 1.0)
    light, dark = (
        ((226, 238, 248), (116, 166, 206)) if share <= 0.5 else ((52, 108, 156), (8, 48, 92))
    )
    part = 2 * share if share <= 0.5 else 2 * share - 1
    mixed = (round(a + (b - a) * part) for a, b in zip(light, dark, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_FONT = re.compile(r"font-family: [^;]*;?")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def _svg(figure: Any, about: About) -> str:
    """The figure as SVG text with title and description; sizes and fonts are left to the page.

    All ids start with the figure's name. Only attributes are changed, so that a label may hold
    anything.
    """
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    drawn = ElementTree.fromstring(text.getvalue())
    ids = {key: f"{about.name}-{key}" for key in ("title", "description")}
    root = ElementTree.Element("svg", viewBox=drawn.attrib["viewBox"], role="img")
    root.set("aria-labelledby", " ".join(ids.values()))
    ElementTree.SubElement(root, "title", id=ids["title"]).text = about.title
    ElementTree.SubElement(root, "desc", id=ids["description"]).text = about.description
    root.extend(part for part in drawn if part.tag in (f"{_SVG}defs", f"{_SVG}g"))
    for node in list(root.iter())[3:]:
        _adapt(node, about.name)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _adapt(node: ElementTree.Element, name: str) -> None:
    """Gives a drawn element the ids, colours and fonts of the page."""
    for child in [child for child in node if child.tag == f"{_SVG}style"]:  # it is for all pages
        node.remove(child)
    node.tag = node.tag.removeprefix(_SVG)
    link, own = node.attrib.pop(_LINK, None), node.attrib.pop("id", None)
    if link is not None:
        node.set("href", f"#{name}-{link[1:]}")
    if own is not None and node.tag != "g":
        node.set("id", f"{name}-{own}")
    for key, value in node.attrib.items():
        for colour, variable in VARIABLES.items():
            value = value.replace(colour, variable)
        node.set(key, _REFERENCE.sub(rf"url(#{name}-\1)", _FONT.sub("", value)))
