"""How the arguments and options of a command are written on a command line and in a file.

A command has parameters of three sources:

- The options that its `CommandSpec` names stand in three tables: `loraprobe.options`, `Output` and
  OTHERS. A field of a table says how its option is written.
- Further options and the arguments are parameters of the command's function. Their annotations say
  how they are written.
- Every command takes `--debug` and `--config FILE.yaml` too (EVERYWHERE).

The keys of a file of `--config` are the long names of options; its key `adapters` lists references.
Paths in it are relative to the current directory. An option on the command line replaces that of
the file. An option of Machine, such as `--device`, that neither of them gives is taken from the
environment (LORAPROBE_DEVICE). A file may come from a stranger. So an option that sends, runs,
writes or overwrites can stand on the command line only; its declaration says `typed`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from loraprobe.cli.running import CALL, Output, options_from
from loraprobe.errors import UsageError
from loraprobe.extension import override_of, task_sources
from loraprobe.formatting import listing, nearest
from loraprobe.options import (
    EVERYWHERE,
    AddedOptions,
    CommandSpec,
    Options,
    as_fields,
    groups,
    option,
    options_of,
    repeats,
    table,
)

if TYPE_CHECKING:
    from loraprobe.registry import Registry

FIRST = "Most used"  # the panel of the options that stand first
PANELS = "Adapters", "Composition", "Evaluation", "Machine", "Output"  # of the classes of options
TASKS = "Tasks"  # the panel of --task, where that does not stand first
ADAPTERS, COMPOSITION, EVALUATION, MACHINE, OUTPUT = PANELS
REFERENCE = "a directory, or owner/name with @revision and :sub/folder where needed, or NAME=REF"
LONGEST_FILE = 200_000  # bytes of a file of --config
FORMATS = "JSONL", *(source.help for source in task_sources())  # what --task takes
QUESTIONS = ", or ".join(filter(None, (", ".join(FORMATS[:-1]), FORMATS[-1])))
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
            known = getattr(importlib.import_module(module), name)
            complete_one = _specs if isinstance(known, Registry) else _starting
            words += complete_one(known, incomplete)
        return words

    return complete


def _specs(registry: Registry[Any], incomplete: str) -> list[str]:
    """Names that go on from a text; behind a colon the options of the named member."""
    name, colon, rest = incomplete.partition(":")
    if not colon or name not in registry:
        return _starting(registry.names(), incomplete)
    fields = dataclasses.fields(registry.get(name.replace("-", "_")))
    done, comma, last = rest.rpartition(",")
    head = f"{name}:{done}{comma}"
    return [head + option for option in _starting((f"{f.name.rstrip('_')}=" for f in fields), last)]


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def scenarios(incomplete: str) -> list[str]:
    """Scenarios of the demo."""
    from loraprobe.demo import shipped_world

    return _starting(shipped_world().scenarios, incomplete)


RefsArgument = Annotated[list[str], argument("REF", f"Adapters: {REFERENCE}.")]
TasksArgument = Annotated[list[str], argument("FILE", f"Tasks: {QUESTIONS}.")]
DebugOption = Annotated[
    bool, setting(" ", "On an error also print the traceback.", OUTPUT, "--debug")
]
# What a run works on beside the adapters, and what every command takes: name -> panel, field and
# type of its option.
OTHERS: Mapping[str, tuple[str, Any, Any]] = {
    "base": (
        ADAPTERS,
        option(
            None, "REF", "Base model: a directory, a Hub id, or auto (what the adapters agree on)."
        ),
        str | None,
    ),
    "task": (
        TASKS,
        option(
            None,
            "FILE",
            f"Questions: {QUESTIONS}; may be repeated.",
        ),
        Texts,
    ),
    "probe": (
        EVALUATION,
        option(
            None,
            "auto|FILE",
            "auto, or a file with a question or entity a line (an answer after a tab).",
        ),
        str | None,
    ),
    "config": (
        OUTPUT,
        option(
            None,
            "FILE",
            "Take options that are not given here from this YAML file, by their long names.",
        ),
        str | None,
    ),
    "debug": (OUTPUT, option(False, "", "On an error also print the traceback."), bool),
}


@functools.cache
def tables() -> Mapping[str, tuple[str, Any, Any]]:
    """Name of an option of a table -> its panel of the help, its field and its type."""
    core = zip(PANELS, (*Options.__bases__, Output), strict=True)
    added = ((group.title, group) for group in groups() if issubclass(group, AddedOptions))
    rows = dict(OTHERS)
    for panel, group in (*core, *added):
        fields, hints = dataclasses.fields(group), get_type_hints(group)
        rows |= {field.name: (panel, field, hints[field.name]) for field in fields}
    return rows


def of_command(spec: CommandSpec, function: Callable[..., None]) -> Callable[..., None]:
    """What typer calls for a command: a function of all its arguments and options.

    It gives `function` the parameters that this has, `options` and `output` made of the others.
    """
    declared = inspect.signature(function, eval_str=True).parameters
    annotated = {
        name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in declared.items()
        if hasattr(parameter.annotation, "__metadata__")
    }
    names = *options_of(spec.name), *EVERYWHERE
    arguments = [declared[n] for n in declared if n not in ("options", "output", *names)]
    parameters = [annotated.get(name) or _of_table(spec, name) for name in names]

    @functools.wraps(function)
    def called(**given: Any) -> None:
        options, output = options_from(given)
        chosen = override_of(spec.name, options) or function
        values = {**given, "options": options, "output": output}
        chosen(**{name: values[name] for name in inspect.signature(chosen).parameters})

    signature = inspect.Signature([*arguments, *parameters])
    called.__signature__ = signature  # type: ignore[attr-defined]
    return called


def words_of(spec: CommandSpec, name: str) -> dict[str, Any]:
    """What the table says of an option, as a command takes it, with its flags."""
    field = tables()[name][1]
    words = {"default": field.default, **field.metadata, **spec.changed.get(name, {})}
    return words | {"flags": words["flags"] or (f"--{name.replace('_', '-')}",)}


def _of_table(spec: CommandSpec, name: str) -> inspect.Parameter:
    """The parameter for an option that a table has, as a command takes it."""
    panel, _, hint = tables()[name]
    changed, words = spec.changed.get(name, {}), words_of(spec, name)
    default = words["default"]
    if name in table() and repeats(name) and "default" not in changed:
        hint, default = Texts, None
    elif words["read"] or get_origin(hint) in (tuple, Literal):  # a text until it is read
        hint = str if default is not None else str | None
    # Where the base runs is the same for all commands; `merge` calls another thing --dtype.
    of_machine = panel == MACHINE and not words["typed"] and "help" not in changed
    info = setting(
        words["metavar"] or " ",
        words["help"],
        FIRST if name in spec.first.split() else panel,
        *words["flags"],
        autocompletion=_members(*words["completes"]) if words["completes"] else None,
        typed=words["typed"],
        envvar=f"LORAPROBE_{name.upper()}" if of_machine else None,
        show_envvar=False,  # long names would be cut; `loraprobe --help` tells the rule
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is ... else default,
        annotation=Annotated[hint, info],
    )


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
    """A command that reads the options that were not given from the file of --config."""

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
                lead = f"{file}: {command} has no option {name[:60]!r}:"
                raise UsageError(lead, nearest(name[:60], known))
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
        parameters = inspect.signature(vars(self)["callback"], eval_str=True).parameters
        notes = {n: getattr(one.annotation, "__metadata__", ()) for n, one in parameters.items()}
        return {n for n, known in notes.items() if any(getattr(a, "typed", False) for a in known)}


def _typed_as(known: Mapping[str, Any], names: Iterable[str]) -> str:
    """How options and arguments are typed: --engine and FILE."""
    return listing(
        [known[n].metavar if known[n].param_type_name == "argument" else f"--{n}" for n in names]
    )


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
