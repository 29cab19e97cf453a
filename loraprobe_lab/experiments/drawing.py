"""Style, colours, grid and legend of all figures, and reproducible SVG text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any

DARK, RED, BLUE, GREEN, GREY = "#333333", "#b3452c", "#2f6f9f", "#5a8f4a", "#9a9a9a"
STYLE = {
    "svg.hashsalt": "loraprobe",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@contextmanager
def drawing() -> Iterator[Any]:
    """Yields matplotlib's Figure class, in the style of these figures, without any window."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        yield Figure


def as_svg(figure: Any) -> str:
    """The figure as SVG text, the same for the same figure."""
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return text.getvalue()


def grid_lines(panel: Any) -> None:
    """Draws faint horizontal lines behind the data."""
    panel.grid(axis="y", color="#e9e9e9", linewidth=0.6)
    panel.set_axisbelow(True)


def legend(figure: Any, rows: Sequence[Mapping[str, Any]], columns: int, **more: Any) -> None:
    """Adds a legend below the panels; a row is a line, or a patch if it has the key `patch`."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(**{k: v for k, v in row.items() if k != "patch"})
        if "patch" in row
        else Line2D([], [], **row)
        for row in rows
    ]
    figure.legend(
        handles=handles, loc="lower center", ncols=columns, frameon=False, fontsize=8, **more
    )
