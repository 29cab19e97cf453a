"""Hostile strings, how they get into every text of an audit, and what a reader makes of them."""

import dataclasses
from collections.abc import Mapping

from markdown_it import MarkdownIt

from loraprobe.records import Command

READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])

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
    "command kind side part severity decision evidence metric device dtype commit sha256 state "
    "outcome".split()
)


def changed(document, path, value):
    """Puts a value at a place of a JSON document."""
    *steps, last = path
    for step in steps:
        document = document[step]
    document[last] = value


def structure(text):
    """What a reader of Markdown makes of a text: its blocks, links, tables ...; text and code are
    left out, since whether a string stands as code depends on what it holds."""
    plain = ("text", "text_special", "softbreak", "code_inline")
    parts = [part for token in READER.parse(text) for part in (token, *(token.children or ()))]
    return [part.type for part in parts if part.type not in plain]


def planted(record, text):
    """The record with `text` in place of every string that somebody else may have chosen."""
    if isinstance(record, Command):
        return Command("inspect", (text,), (("--base", text),))
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
