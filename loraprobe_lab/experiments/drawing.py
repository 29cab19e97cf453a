"""Style and colours of all figures, and reproducible SVG text."""

from __future__ import annotations

from collections.abc import Iterator
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
