"""How the arguments and options of a command are written on a command line and in a file.

The signature of a command lists them. One with the name of a field in `loraprobe.options` is
written as that field says; any other says it in its own annotation. Every command also takes
`--debug` and `--config FILE.yaml`, whose keys are the long names of the options; `adapters` holds
the references. What the command line gives, the file does not add to. Paths are those of the
current directory. A file may come from a stranger, so an option that sends, runs, writes or
overwrites is taken from the command line alone; its declaration says `typed`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from loraprobe.cli.running import CALL, Output
from loraprobe.errors import UsageError
from loraprobe.extension import installed, task_sources
from loraprobe.formatting import listing, nearest
from loraprobe.options import (
    AddedOptions,
    Options,
    added_to,
    as_fields,
    groups,
    hints,
    repeats,
    table,
)

if TYPE_CHECKING:
    from loraprobe.registry import Registry

PANELS = "Adapters", "Tasks", "Composition", "Evaluation", "Machine", "Output"  # in their order
ADAPTERS, TASKS, COMPOSITION, EVALUATION, MACHINE, OUTPUT = PANELS
REFERENCE = "a directory, or owner/name with @revision and :sub/folder where needed, or NAME=REF"
FILES = "JSONL", "JSON", "CSV", "TSV", "Parquet", "hf:// for a data set of the Hub"
LONGEST_FILE = 200_000  # bytes of a file of --config
QUESTIONS = [*FILES, *(source.help for source in task_sources())]  # what --task takes
Texts = list[str] | None  # the values of an option that may be repeated


def argument(metavar: str, help: str, typed: bool = False, **more: Any) -> Any:
    """An argument, which has no default to show. typed: no file of --config gives it."""
    made: Any = typer.Argument(metavar=metavar, help=help, show_default=False, **more)
    made.typed = typed
    return made


def setting(
    metavar: str,
    help: str,
    panel: str | None = None,
    *flags: str,
    typed: bool = False,
    **more: Any,
) -> Any:
    """An option, named after its parameter unless flags are given, as a flag without a value is.

    panel: where the help shows it. metavar: " " for a flag. typed: no file of --config gives it.
    """
    made: Any = typer.Option(*flags, metavar=metavar, help=help, rich_help_panel=panel, **more)
    made.typed = typed
    return made


def _members(*places: str) -> Callable[[str], list[str]]:
    """Completes the names in registries and other collections: the words that a beginning may be.

    places: MODULE.NAME of each, which is imported when a shell asks.
    """

    def complete(incomplete: str) -> list[str]:
        from loraprobe.registry import Registry

        words = []
        for module, _, name in (place.rpartition(".") for place in places):
            known = getattr(importlib.import_module(f"loraprobe.{module}"), name)
            complete_one = _specs if isinstance(known, Registry) else _starting
            words += complete_one(known, incomplete)
        return words

    return complete


def _specs(registry: Registry[Any], incomplete: str) -> list[str]:
    """Names that go on from a text; behind a colon the options of the named member."""
    name, colon, rest = incomplete.partition(":")
    if not colon or name not in registry:
        return _starting(registry.names(), incomplete.replace("-", "_"))
    fields = dataclasses.fields(registry.get(name.replace("-", "_")))
    done, comma, last = rest.rpartition(",")
    head = f"{name}:{done}{comma}"
    return [head + option for option in _starting((f"{f.name.rstrip('_')}=" for f in fields), last)]


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


complete_methods = _members("merging.METHODS")
complete_routers = _members("routing.ROUTERS")
_systems = _members("merging.METHODS", "routing.ROUTERS", "records.FIXED")
# Types of options whose values are completed.
MethodSpecs = Annotated[Texts, typer.Option(autocompletion=complete_methods)]
RouterSpecs = Annotated[Texts, typer.Option(autocompletion=complete_routers)]
SystemSpecs = Annotated[Texts, typer.Option(autocompletion=_systems)]
DiagnosticSpecs = Annotated[Texts, typer.Option(autocompletion=_members("diagnostics.DIAGNOSTICS"))]
IssueCodes = Annotated[Texts, typer.Option(autocompletion=_members("findings.CODES"))]


def scenarios(incomplete: str) -> list[str]:
    """Scenarios of the demo."""
    from loraprobe.demo import shipped_world

    return _starting(shipped_world().scenarios, incomplete)


RefsArgument = Annotated[list[str], argument("REF", f"Adapters: {REFERENCE}.")]
TasksArgument = Annotated[list[str], argument("FILE", "Task files, or hf://datasets/owner/name.")]
BaseOption = Annotated[
    str | None,
    setting(
        "REF", "Base model: a directory, a Hub id, or auto (what the adapters agree on).", ADAPTERS
    ),
]
TaskOption = Annotated[
    Texts,
    setting(
        "FILE",
        f"Questions: {', '.join(QUESTIONS[:-1])}, or {QUESTIONS[-1]}; may be repeated.",
        TASKS,
    ),
]
ProbeOption = Annotated[
    str | None,
    setting(
        "auto|FILE",
        "auto, or a file with a question or entity a line (an answer after a tab).",
        EVALUATION,
    ),
]


DebugOption = Annotated[
    bool, setting(" ", "On an error also print the traceback.", OUTPUT, "--debug")
]


@functools.cache
def settings() -> Mapping[str, Mapping[str, Any]]:
    """Name of a field -> panel, flags, metavar and help of its option, and whether it is typed."""
    core = zip(PANELS, (*Options.__bases__, Output), strict=True)
    added = ((group.title, group) for group in groups() if issubclass(group, AddedOptions))
    return {
        one.name: {"panel": panel, **one.metadata}
        for panel, group in (*core, *added)
        for one in dataclasses.fields(group)
    }


def with_added(command: str, function: Callable[..., None]) -> Callable[..., None]:
    """The function of a command, its `**added` in the place of which its signature has the options
    that extensions add to the command."""
    own = inspect.signature(function, eval_str=True)
    if "added" not in own.parameters:
        return function
    kept = [one for one in own.parameters.values() if one.name != "added"]
    kept += [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if repeats(name) else table()[name].default,
            annotation=Texts if repeats(name) else hints()[name],
        )
        for name in added_to(command)
    ]

    @functools.wraps(function)
    def called(**given: Any) -> None:
        others = (one.instead(command, given) for one in installed())
        next(filter(None, others), function)(**given)

    called.__signature__ = own.replace(parameters=kept)  # type: ignore[attr-defined]
    return called


ConfigOption = Annotated[
    str | None,
    setting(
        "FILE",
        "Take options that are not given here from this YAML file, by their long names.",
        OUTPUT,
        show_default=False,
    ),
]


def _everywhere(*, config: ConfigOption = None, debug: DebugOption = False) -> None:
    """The options that every command has; its function does not get their values."""


class Plain:
    """A command or group whose help shows no type of Python beside flags and arguments."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, with those that typer adds."""
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for one in parameters:
            if one.param_type_name == "argument":
                one.display_type_rich = lambda ctx: None
            elif one.is_flag and one.metavar is None:
                one.metavar = " "
        return parameters


class Configured(Plain, TyperCommand):
    """A command whose options are written as their fields say, with what all commands take.

    It reads the options that were not given from the file of --config.
    """

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        for parameter in self.params:
            if parameter.name in settings() and not vars(parameter)["help"]:
                _write_as_its_field(parameter)
        app = typer.Typer(add_completion=False)
        app.command()(_everywhere)
        for option in typer.main.get_command(app).params:
            option.expose_value = False
            self.params.append(option)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing and any(word.startswith("--config") for word in args):
            given = self.make_parser(ctx).parse_args(list(args))[0]
            added = self._of_file(given, ctx.command_path) if given.get("config") else []
            CALL.words[len(CALL.words) - len(args) :] = [*added, *args]
            args = [*added, *args]
        return super().parse_args(ctx, args)

    def _of_file(self, given: Mapping[str, Any], command: str) -> list[str]:
        """The words of --config that the command line does not give. Raises UsageError."""
        file, words = given["config"], list[str]()
        known = {name: one for one in self.params for name in _names(one)}
        known.pop("config")  # a file names no other
        content, typed = _read(file), self.typed()
        for name in content:
            if name not in known:
                shown = f"{name[:60]!r}: {nearest(name[:60], known)}"
                raise UsageError(f"{file}: {command} has no option {shown}")
        if refused := [name for name in content if known[name].name in typed]:
            raise UsageError(
                f"{file} cannot set {listing(refused)}: what sends, runs, writes or overwrites is "
                f"taken from the command line alone; give {_typed_as(known, refused)} there."
            )
        for name, value in content.items():
            if not given.get(known[name].name):
                words += _words(known[name], value)
        return words

    def typed(self) -> set[str]:
        """The parameters that the command line alone gives, by their names."""
        declared = get_type_hints(inspect.unwrap(vars(self)["callback"]), include_extras=True)
        own = {
            name
            for name, hint in declared.items()
            if any(getattr(one, "typed", False) for one in getattr(hint, "__metadata__", ()))
        }
        return own | {
            one.name for one in self.params if settings().get(one.name, {}).get("typed", False)
        }


def _typed_as(known: Mapping[str, Any], names: Iterable[str]) -> str:
    """How options and arguments are typed: --engine and FILE."""
    return listing(
        [known[n].metavar if known[n].param_type_name == "argument" else f"--{n}" for n in names]
    )


def _write_as_its_field(option: Any) -> None:
    """Gives an option the flags, metavar, help and panel of its field."""
    told = settings()[option.name]
    option.opts = list(told["flags"] or [f"--{option.name.replace('_', '-')}"])
    option.secondary_opts = []  # no --no-json beside --json
    option.metavar, option.help = told["metavar"] or " ", told["help"]
    option.rich_help_panel = told["panel"]


def _names(parameter: Any) -> list[str]:
    """The names by which a file calls a parameter: long options, or that of an argument."""
    if parameter.param_type_name == "argument":
        return ["adapters" if parameter.name == "refs" else parameter.name]
    return [option.removeprefix("--") for option in parameter.opts if option.startswith("--")]


def _read(file: str) -> Mapping[str, Any]:
    """The mapping in a YAML file, by the names of options. Raises UsageError."""
    # what most commands do without
    from loraprobe.front_matter import plain_data
    from loraprobe.untrusted import error_line, unique_keys

    place = Path(file)
    try:
        if place.exists() and not place.is_file():
            raise UsageError(f"--config: {file} is no file; name a file of YAML.")
        size = place.stat().st_size
        if size > LONGEST_FILE:
            raise UsageError(f"--config: {file} has {size:,} bytes; name a smaller file.")
        content = plain_data(place.read_text(encoding="utf-8-sig"))
    except OSError as error:
        why = error.strerror
        raise UsageError(f"--config: {file} cannot be read ({why}); check the path.") from None
    except ValueError as error:
        raise UsageError(
            f"--config: {file} is no YAML ({error_line(error)}); correct it."
        ) from None
    if not isinstance(content, Mapping):
        raise UsageError(f"--config: {file} must hold options by name, such as margin: 0.1.")
    named = [(str(key).replace("_", "-"), value) for key, value in content.items()]
    try:
        return unique_keys(named)
    except ValueError as error:
        raise UsageError(f"--config: {file}: {error}; name each option once.") from None


def _words(parameter: Any, value: Any) -> list[str]:
    """A value of a file as the words of a command line. Raises UsageError for words of its own."""
    named = parameter.param_type_name == "option"
    option = parameter.opts[:1] if named else []
    flag = getattr(parameter, "is_flag", False)
    if value is None:
        return []
    if flag is not isinstance(value, bool):
        takes = "true or false" if flag else "a value"
        raise UsageError(f"--config: {_names(parameter)[0]} takes {takes}, not {value!r:.60}.")
    if flag:
        return option if value else parameter.secondary_opts[:1]
    if isinstance(value, Mapping):
        value = as_fields(value)
    texts = list(map(str, value)) if isinstance(value, list) else [str(value)]
    if parameter.nargs != -1 and not getattr(parameter, "multiple", False):
        texts = [",".join(texts)]
    for text in texts:
        if not named and text.startswith("-") and text != "-":  # read as an option
            raise UsageError(f"--config: {text[:60]!r} names nothing; give options by their names.")
    return [word for text in texts for word in (*option, text)]
