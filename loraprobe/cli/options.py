"""Options of a command from their declarations in `loraprobe.options`, in panels by group."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from loraprobe.cli.completing import OF_OPTIONS
from loraprobe.cli.config import STARTED, WORDS
from loraprobe.cli.output import Output
from loraprobe.cli.parameters import Config, Debug
from loraprobe.declarations import Declaration, as_given, declarations, hints
from loraprobe.options import Options

LONGEST_WORDS = 11  # columns that the words of an option may take in the help
METAVARS: Mapping[Any, str] = {bool: " ", int: "N", float: "X", Path: "FILE"}
Command = Callable[..., Any]
REQUIRED = inspect.Parameter.empty
# Every command has these options; its function does not get them.
EVERYWHERE = [
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
    for name, default, kind in (("config", None, Config), ("debug", False, Debug))
]


def with_options(*fields: str, **changed: Mapping[str, Any]) -> Callable[[Command], Command]:
    """Adds options to a command, by the names of their fields in `Options` and `Output`.

    fields: names with spaces between them. The command gets them as `options`, an Options, and
    `output`, an Output, where it has such parameters. `changed` gives a field another default or
    help in this command. With `repeats=False` the option is taken only once.
    """
    names = " ".join(fields).split()

    def decorate(command: Command) -> Command:
        parameters = _parameters(command)
        own = {k: v for k, v in parameters.items() if k not in ("options", "output")}
        added = {name: _parameter(name, changed.get(name, {})) for name in names}

        def run(**given: Any) -> Any:
            made = {
                "options": _values(Options, {n: given[n] for n in names if n in _FIELDS}),
                "output": _values(Output, {n: given[n] for n in names if n in _PRINTED}),
            }
            if made["output"].html is not None:  # a page maps layers and modules
                made["options"] = dataclasses.replace(made["options"], per_module=True)
            wanted = {name: value for name, value in made.items() if name in parameters}
            return command(**{n: given[n] for n in own}, **wanted)

        shown = [*own.values(), *added.values(), *EVERYWHERE]
        run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in shown}
        run.__doc__ = command.__doc__
        return run

    return decorate


_FIELDS, _PRINTED = declarations(Options), declarations(Output)


def _parameters(command: Command) -> dict[str, inspect.Parameter]:
    """The command's own parameters with their annotations resolved."""
    types = typing.get_type_hints(command, include_extras=True)
    return {
        name: parameter.replace(annotation=types[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(command).parameters.items()
    }


def _parameter(name: str, changed: Mapping[str, Any]) -> inspect.Parameter:
    """The keyword that typer makes an option of."""
    kind = Options if name in _FIELDS else Output
    found = (_FIELDS if name in _FIELDS else _PRINTED)[name]
    declared = dataclasses.replace(found, **{k: v for k, v in changed.items() if k != "default"})
    default = changed.get("default", getattr(kind, name))
    if declared.repeats:
        default = None
    hint = hints(kind)[name]
    made = typer.Option(
        declared.flag,
        *([declared.short] if declared.short else []),
        help=declared.help,
        rich_help_panel=declared.group,
        metavar=declared.metavar or _metavar(hint),
        autocompletion=OF_OPTIONS.get(name),
        show_default=default not in (None, False, REQUIRED),
    )
    typed: Any = _typed(hint, declared)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[typed, made]
    )


def _metavar(hint: Any) -> str:
    """What the help shows for a value: its words, or a short name of its kind; " " for a flag."""
    kinds = typing.get_args(hint) or (hint,)
    if typing.get_origin(hint) is typing.Literal:
        words = "|".join(kinds)
        return words if len(words) <= LONGEST_WORDS else "TEXT"
    return next((METAVARS[kind] for kind in kinds if kind in METAVARS), "TEXT")


def _typed(hint: Any, declared: Declaration) -> Any:
    """The type of the command line: texts where they are read later, else the field's own."""
    if declared.repeats:
        return list[str] | None
    parts = typing.get_args(hint)
    if declared.read or typing.get_origin(hint) in (typing.Literal, tuple):
        return str | None if type(None) in parts else str
    return hint


def _values(kind: type, given: Mapping[str, Any]) -> Any:
    """An Options or Output from what typer gives; what was not given keeps its default."""
    values = {n: as_given(kind, n, value) for n, value in given.items() if value is not None}
    if kind is Options:
        values["arguments"] = tuple(WORDS)
        values["started"] = STARTED[0] if STARTED else None
        if values.get("methods", ("none",)) != ("none",):
            values.setdefault("routers", ())  # a user who names methods asks for these alone
    return kind(**values)
