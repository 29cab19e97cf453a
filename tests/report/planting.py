"""Hostile strings, and how they get into every text of an audit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

MARKUP = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><b onclick="x">',
    "</code></pre>",
    "[here](http://e.vil/x)",
    "![i](http://e.vil/i.png)",
    "<http://e.vil>",
    "http://e.vil/x",
    "www.e.vil",
    "a@e.vil",
    "**b** *i* __b__ _i_ ~~s~~",
    "`c`",
    "``",
    "a | b",
    "# h",
    "- x",
    "+ x",
    "1. x",
    "---",
    "===",
    "> q",
    "&lt;b&gt; &#60;i&#62;",
    "[r]: http://e.vil",
    "$x$ {{ x }} {% x %}",
    "\\*x\\* \\",
    "[bold]x[/bold]",
    "[link=http://e.vil]x[/link]",
]
OURS = frozenset(
    "command kind side part severity decision evidence metric device dtype commit sha256".split()
)


def planted(record, text):
    """The record with `text` in place of every string that somebody else may have chosen."""
    if isinstance(record, str):
        return text
    if isinstance(record, tuple):
        return tuple(planted(held, text) for held in record)
    if isinstance(record, Mapping):  # of names, but for the ranks of an adapter
        ranks = record.keys() == {"min", "max"}
        return dict(record) if ranks else {text + k: held for k, held in record.items()}
    if dataclasses.is_dataclass(record):
        names = [field.name for field in dataclasses.fields(record) if field.name not in OURS]
        held = {name: planted(getattr(record, name), text) for name in names}
        return dataclasses.replace(record, **held)
    return record
