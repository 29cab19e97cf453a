"""The matrix as one figure: name sets down, templates across, a dot with interval for each size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from itertools import product
from typing import Any

from loraprobe.errors import UsageError
from loraprobe_lab.reproduce.cells import Cell, Matrix
from loraprobe_lab.reproduce.claims import Paper
from loraprobe_lab.reproduce.measure import METHODS

SYSTEMS = (*METHODS, "chain")
COLOURS = {2: "#b3452c", 3: "#2f6f9f"}
LABELS = {2: "library of the two hops", 3: "and the target adapter"}
GREY = "#9a9a9a"


STYLE = {
    "svg.hashsalt": "loraprobe",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@contextmanager
def drawing() -> Iterator[Any]:
    """Yields matplotlib's Figure class, in the style of these figures, without any window.

    Raises UsageError if matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "Figures need matplotlib, which is not installed: pip install 'loraprobe[lab]'."
        ) from None
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        yield Figure


def as_svg(figure: Any) -> str:
    """The figure as SVG text, the same for the same figure."""
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return text.getvalue()


def matrix_figure(matrix: Matrix, cells: Sequence[Cell], paper: Paper) -> str:
    """SVG: exact match of uniform, sum, arrow and chain in every panel of the matrix.

    Dots of one method stand in the order of the sizes; the grey bar is the span, over the sizes,
    of the best of base and the two hop adapters, the dashed line the joint adapter's mean.
    """
    with drawing() as Figure:
        groups, templates = matrix.groups, matrix.templates
        figure = Figure(figsize=(4.1 * len(templates), 2.3 * len(groups) + 0.9))
        axes = figure.subplots(len(groups), len(templates), sharex=True, sharey=True, squeeze=False)
        for (row, group), (column, template) in product(enumerate(groups), enumerate(templates)):
            panel = axes[row][column]
            here = [c for c in cells if (c.group, c.template) == (group, template)]
            _panel(panel, here, matrix.sizes, matrix.margin)
            if row == 0:
                asked = "step by step" if here and here[0].form == "cot" else "asked at once"
                panel.set_title(f"{template} ({asked})", fontsize=10)
            if column == 0:
                panel.set_ylabel(f"{group}\nexact match")
        _legend(figure, matrix.sizes)
        figure.suptitle(paper.title, y=1.0, fontsize=11)
        figure.tight_layout(rect=(0, 0.06, 1, 1))
        return as_svg(figure)


def _panel(panel: Any, cells: Sequence[Cell], sizes: Sequence[str], margin: float) -> None:
    panel.set_ylim(-0.03, 1.03)
    panel.set_xticks(range(len(SYSTEMS)), SYSTEMS)
    panel.set_xlim(-0.5, len(SYSTEMS) - 0.5)
    panel.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    panel.set_axisbelow(True)
    singles = [c for c in cells if c.role == "baseline" and c.library == 2]
    best = [max((c.score for c in singles if c.size == s), default=0.0) for s in sizes]
    panel.axhspan(min(best), max(best) + 0.004, color=GREY, alpha=0.35, linewidth=0)
    joint = [c.score for c in cells if c.role == "yardstick"]
    if joint:
        panel.axhline(sum(joint) / len(joint), color="#333333", linestyle="--", linewidth=0.9)
    slots = 2 * len(sizes) + 1
    for cell in cells:
        if cell.role != "composition":
            continue
        slot = sizes.index(cell.size) + (0 if cell.library == 2 else len(sizes) + 1)
        x = SYSTEMS.index(cell.system) + 0.8 * ((slot + 0.5) / slots - 0.5)
        colour, low, high = COLOURS[cell.library], *cell.score_ci95
        panel.plot([x, x], [low, high], color=colour, linewidth=1.1, alpha=0.6)
        filled = cell.gain_ci95 is not None and cell.gain_ci95[0] > margin
        panel.plot(
            x,
            cell.score,
            "o",
            markersize=4.2,
            color=colour,
            markerfacecolor=colour if filled else "white",
        )


def _legend(figure: Any, sizes: Sequence[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], marker="o", linestyle="-", color=COLOURS[k], markerfacecolor="white",
               label=LABELS[k]) for k in COLOURS
    ]  # fmt: skip
    handles += [
        Line2D([], [], marker="o", linestyle="", color="#333333",
               label="filled: gains on base and singles"),
        Patch(color=GREY, alpha=0.35, label="best of base and hop adapters, over the sizes"),
        Line2D([], [], linestyle="--", color="#333333", label="joint adapter, mean"),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="lower center", ncols=5, frameon=False, fontsize=8)
    figure.text(
        0.5, 0.045, f"dots of one system from left to right: {', '.join(sizes)}",
        ha="center", fontsize=8, color="#555555",
    )  # fmt: skip
