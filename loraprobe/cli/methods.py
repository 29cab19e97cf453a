"""`loraprobe methods`: what every registry holds, as a list or in full."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json as json_
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from rich.console import Console
from rich.text import Text

from loraprobe.cli.parameters import argument
from loraprobe.cli.running import Output
from loraprobe.errors import UsageError
from loraprobe.formatting import flowing, nearest, wrapped
from loraprobe.registry import Registry, name_of
from loraprobe.wiring import GROUP, extensions

NAME_WIDTH = 22  # of a member of a registry
LISTS = "laws", "lossless in"  # what a member has several of


def _known(incomplete: str) -> list[str]:
    return [row["name"] for row in described() if row["name"].startswith(incomplete)]


NamesArgument = Annotated[
    list[str] | None,
    argument("NAME", "Tell all about these; without names a list.", autocompletion=_known),
]


def described() -> list[dict[str, Any]]:
    """Every entry of every registry as plain data.

    `tests/pages.py` wrote those of the core, and of each extension, into a file beside them: the
    members themselves need torch, whose import takes longer than all of this command. Those that
    other packages add are read of themselves.
    """
    rows, more, theirs = _stored("loraprobe.cli"), list[dict[str, Any]](), set[str]()
    for one in extensions():
        package = type(one).__module__
        if not package.startswith(f"{GROUP}."):
            theirs |= {name for names in one.members.values() for name in names}
        elif one.members:
            more += _stored(package)
    if theirs:
        more += [row_of(kind, c) for kind in registries() for c in kind if c.__module__ in theirs]
    kinds, added = list(dict.fromkeys(row["kind"] for row in rows)), {row["kind"] for row in more}

    def place(row: dict[str, Any]) -> tuple[int, str]:  # spaces stand in the order of their table
        return kinds.index(row["kind"]), row["name"] if row["kind"] in added else ""

    return sorted([*rows, *more], key=place)


def _stored(package: str) -> list[dict[str, Any]]:
    text = importlib.resources.files(package).joinpath("methods.json").read_text("utf-8")
    rows: list[dict[str, Any]] = json_.loads(text)
    return rows


def registries() -> tuple[Registry[Any], ...]:
    """The registries whose members are listed."""
    from loraprobe.diagnostics import DIAGNOSTICS
    from loraprobe.merging import METHODS
    from loraprobe.probes import PROBES
    from loraprobe.routing import ROUTERS

    return DIAGNOSTICS, PROBES, METHODS, ROUTERS


def row_of(registry: Registry[Any], cls: type) -> dict[str, Any]:
    """A member of a registry. Its choices are the options that take one of a few words."""
    hints = typing.get_type_hints(cls)
    fields = {f.name.rstrip("_"): f for f in dataclasses.fields(cls) if f.init}
    kinds = {name: hints[field.name] for name, field in fields.items()}
    literal = {k: kind for k, kind in kinds.items() if typing.get_origin(kind) is typing.Literal}
    return {
        "kind": registry.noun,
        "name": name_of(cls),
        **documented(cls),
        "options": {
            name: None if f.default is dataclasses.MISSING else f.default
            for name, f in fields.items()
        },
        "choices": {name: list(typing.get_args(kind)) for name, kind in literal.items()},
        "formula": getattr(cls, "formula", None),
        "paper": getattr(cls, "paper", None),
        "laws": sorted(getattr(cls, "laws", ())),
        "lossless_in": sorted(getattr(cls, "lossless", ())),
    }


def documented(thing: Any) -> dict[str, str]:
    """The first line of a docstring, and all of it with its paragraphs flowing."""
    summary = (thing.__doc__ or "").strip().splitlines()[0]
    return {"summary": summary, "description": flowing(thing.__doc__)}


def _named(rows: list[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of these names. Raises UsageError for others, with what the name means elsewhere or
    the nearest one."""
    known = {row["name"] for row in rows}
    wanted = [name.partition(":")[0].strip().replace("-", "_").lower() for name in names]
    for given, name in zip(names, wanted, strict=True):
        if name not in known:
            from loraprobe.merging import METHODS

            if name in METHODS.elsewhere:
                METHODS.make(name)  # raises
            hint = nearest(name, known, "see loraprobe methods, which lists all.")
            raise UsageError(f"Nothing is called {given!r}:", hint)
    return [row for row in rows if row["name"] in wanted]


def methods(output: Output, names: NamesArgument = None) -> None:
    """List every diagnostic, coverage probe, merge method, space, router and known way of training,
    one a line, or explain those that are named."""
    rows = _named(described(), names) if names else described()
    if output.document("methods", {"methods": rows}):
        return
    console = Console(highlight=False)
    for kind in dict.fromkeys(row["kind"] for row in rows):
        console.print(Text(f"{kind}s", "bold"))
        for row in (one for one in rows if one["kind"] == kind):
            short = f" {row['name']:{NAME_WIDTH}}{row['summary']}"
            if names:
                lines = list(_explained(row, console.width))
            else:  # for a program a line each
                lines = _hanging(short, console.width) if console.is_terminal else [short]
            for line in lines:
                console.print(Text(line), soft_wrap=True)
    if not names:
        console.print("loraprobe methods NAME tells options, formula, paper and laws.")
    sys.stdout.flush()


def _hanging(line: str, width: int) -> list[str]:
    """A name and its summary, which goes on below itself."""
    head, summary = line[: NAME_WIDTH + 1], line[NAME_WIDTH + 1 :]
    first, *more = wrapped(summary, max(1, width - len(head)))
    return [head + first, *(" " * len(head) + rest for rest in more)]


def _explained(row: Mapping[str, Any], width: int) -> Iterator[str]:
    """Everything about a member, in lines."""
    options = ",".join(f"{name}={value}" for name, value in row.get("options", {}).items())
    told = [row["description"], row.get("formula"), row.get("paper")]
    told += [f"{name}: {' or '.join(words)}" for name, words in row.get("choices", {}).items()]
    lists = {name: row.get(name.replace(" ", "_")) for name in LISTS}
    told += [f"{name}: {', '.join(words)}" for name, words in lists.items() if words]
    spec = f"{row['name']}:{options}" if options else row["name"]
    yield from (f" {line}" for line in wrapped(spec, width - 1))
    for text in told:
        if text not in (None, "-"):
            yield from (f"    {line}" for line in wrapped(text, width - 4))
