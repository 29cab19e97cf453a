"""Templates in which no text of other people becomes markup."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

from loraprobe.formatting import clean

if TYPE_CHECKING:
    import jinja2


@functools.cache
def templates(**options: Any) -> jinja2.Environment:
    """The templates of the reports. options: how jinja2 escapes the texts that they are given."""
    import jinja2  # which most commands do without

    return jinja2.Environment(
        loader=jinja2.PackageLoader("loraprobe.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        **options,
    )


def markdown(template: str, **values: Any) -> str:
    """A template filled in, for Markdown: every text that it is given is escaped.

    The filter `code` gives a text as code, `fenced` one as a line of a block of code.
    """
    environment = templates(finalize=_finished)
    environment.filters["code"] = code
    environment.filters["fenced"] = fenced
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


def fenced(text: str) -> Verbatim:
    """Text as a line of a block of code, which no text of it can end."""
    return Verbatim(_flat(text).replace("```", "'''"))


class Verbatim(str):
    """Markdown that is escaped already."""


def _flat(text: str) -> str:
    return " ".join(clean(text).split())
