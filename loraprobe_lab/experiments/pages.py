"""The output of an experiment: a page (Markdown), the same as JSON, and a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from loraprobe.formatting import count
from loraprobe_lab.world import write_text


@dataclass(frozen=True)
class Pages:
    """The document (plain data), the page, and what draws the figure.

    digits: places to which the numbers of the JSON document are rounded; None for all. more: what
    follows from the document, as texts by file name.
    """

    name: str
    document: dict[str, Any] = field(repr=False)
    markdown: str = field(repr=False)
    figure: Callable[[], str] = field(repr=False)
    digits: int | None = 4
    more: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def json(self) -> str:
        """The document as it is saved."""
        return as_json(self.document, self.digits)

    def files(self, directory: Path) -> tuple[Path, ...]:
        names = (*(f"{self.name}.{ending}" for ending in ("md", "json", "svg")), *self.more)
        return tuple(directory / name for name in names)

    def write(self, directory: Path) -> Pages:
        """Writes NAME.md, NAME.json, NAME.svg and the others, each complete or not at all."""
        texts = (self.markdown, self.json, self.figure(), *self.more.values())
        for path, text in zip(self.files(directory), texts, strict=True):
            write_text(path, text)
        return self


def as_json(document: Mapping[str, Any], digits: int | None = 4) -> str:
    """The document with rounded numbers; a row of a list of rows is one line."""

    def rounded(text: str) -> float:
        return float(text) if digits is None else round(float(text), digits)

    lines, plain = [], json.loads(json.dumps(document), parse_float=rounded)
    for key, value in plain.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in value)
            text = f"[\n{rows}\n ]"
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def render(template: str, **values: Any) -> str:
    """A page from its template in `loraprobe_lab/templates`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("loraprobe_lab", "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "table": markdown_table,
        "number": number,
        "percent": percent,
        "plural": count,
    }
    return environment.get_template(f"{template}.md.jinja").render(**values)


def markdown_table(rows: Iterable[Sequence[str]], head: Sequence[str]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def signed(value: float, interval: tuple[float, float], standing: bool | None) -> str:
    """A gain with its interval: bold where it lies above the margin (True), in brackets where it
    lies below (False)."""
    text = f"{value:+.2f} ({interval[0]:+.2f} to {interval[1]:+.2f})"
    return text if standing is None else f"**{text}**" if standing else f"[{text}]"


def number(value: float | None, digits: int = 3) -> str:
    """A rounded number; a dash where it is not defined."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """5 %; a dash where it is not defined."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.0f} %"


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
