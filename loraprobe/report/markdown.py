"""Templates of Markdown, and how text of other people stays text in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from loraprobe.formatting import clean
from loraprobe.records import Command


def filled(template: str | Path, **values: Any) -> str:
    """A template filled in, for Markdown: every text that it is given is escaped.

    template: the name of one beside the reports, or the file of another one.
    The filter `code` gives a text as code, `fenced` one as a line of a block of code, `command` a
    command.
    """
    import jinja2  # which most commands do without

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("loraprobe.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finished,
    )
    environment.filters.update(code=code, command=command, fenced=fenced)
    if isinstance(template, Path):
        return environment.from_string(template.read_text(encoding="utf-8")).render(values)
    return environment.get_template(template).render(values)


def _finished(value: Any) -> Any:
    return inert(value) if isinstance(value, str) and not isinstance(value, Verbatim) else value


# These characters start markup, a link or a table cell anywhere in a line.
_MARKS = re.compile(r"[\\`*\[\]|#<>&~]|(?<![^\W_])_|_(?![^\W_])|(?<=:)/(?=/)|(?<=\bwww)\.|@(?=\w)")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
# At the start of a line these make a list, a heading or a rule.
_START = re.compile(r"^(?:([-+=])(?=\s|\1|$)|(\d+)([.)])(?=\s|$))")


def inert(text: str) -> str:
    """One line of text, escaped so that it is no markup, no link and no end of a table cell."""
    flat = _MARKS.sub(lambda mark: _ENTITIES.get(mark[0], "\\" + mark[0]), _flat(text))
    return _START.sub(lambda start: f"{start[2] or ''}\\{start[1] or start[3]}", flat)


def code(text: str) -> Verbatim:
    """Text as code, or escaped if code cannot hold it. A bar ends a table cell even in code."""
    flat = _flat(text)
    if "<" in flat or "`" in flat or not flat:
        return Verbatim(inert(flat))
    return Verbatim("`" + flat.replace("|", "\\|") + "`")


def command(given: Command) -> Verbatim:
    """A command as code; a program becomes a block within an item of a list."""
    lines = clean(given).replace("```", "'''").split("\n")
    if not given.in_python or len(lines) == 1:
        return code(str(given))
    return Verbatim("\n".join(["", "  ```python", *(f"  {line}" for line in lines), "  ```"]))


def fenced(text: str) -> Verbatim:
    """Text as a line of a block of code, which no text of it can end."""
    return Verbatim(_flat(text).replace("```", "'''"))


class Verbatim(str):
    """Markdown that is escaped already."""


def _flat(text: str) -> str:
    return " ".join(clean(text).split())
