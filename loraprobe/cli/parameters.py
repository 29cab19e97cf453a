"""How the arguments and options of a command are written on a command line and in a file.

The signature of a command lists them. One with the name of a field in `loraprobe.options` is
written as that field says; any other says it in its own annotation. Every command also takes
`--debug` and `--config FILE.yaml`, whose keys are the long names of the options; `adapters` holds
the references. What the command line gives, the file does not add to. Paths are those of the
current directory. A file may come from a stranger, so it cannot let code run and cannot publish
anything.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from loraprobe.cli.running import CALL, Output
from loraprobe.errors import UsageError
from loraprobe.formatting import nearest
from loraprobe.options import Options, as_fields

if TYPE_CHECKING:
    from loraprobe.registry import Registry

PANELS = "Adapters", "Tasks", "Composition", "Evaluation", "Machine", "Output"  # in their order
ADAPTERS, TASKS, COMPOSITION, EVALUATION, MACHINE, OUTPUT = PANELS
REFERENCE = "a directory, or owner/name with @revision and :sub/folder where needed, or NAME=REF"
TYPED_ONLY = ("trust-remote-code", "run-unsafe-code", "push", "public")
Texts = list[str] | None  # the values of an option that may be repeated


def argument(metavar: str, help: str, **more: Any) -> Any:
    """An argument, which has no default to show."""
    return typer.Argument(metavar=metavar, help=help, show_default=False, **more)


def setting(metavar: str, help: str, panel: str | None = None, *flags: str, **more: Any) -> Any:
    """An option, named after its parameter unless flags are given, as a flag without a value is.

    panel: where the help shows it. metavar: " " for a flag.
    """
    return typer.Option(*flags, metavar=metavar, help=help, rich_help_panel=panel, **more)


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
        "Questions: JSONL, JSON, CSV, TSV, Parquet, hf:// for a data set of the Hub, or "
        "lm_eval:TASK[,TASK], also with @DIR; may be repeated.",
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
    """Name of a field -> panel, flags, metavar and help of its option."""
    groups = zip(PANELS, (*Options.__bases__, Output), strict=True)
    return {
        one.name: {"panel": panel, **one.metadata}
        for panel, group in groups
        for one in dataclasses.fields(group)
    }


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
        for key, value in _read(file).items():
            name = str(key).replace("_", "-")
            if name not in known:
                raise UsageError(
                    f"{file}: {command} has no option {name!r}: {nearest(name, known)}"
                )
            if name in TYPED_ONLY:
                raise UsageError(
                    f"{file} cannot set {name}, which lets code run or publishes; give --{name} on "
                    "the command line."
                )
            if not given.get(known[name].name):
                words += _words(known[name], value)
        return words


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


def _read(file: str) -> Mapping[Any, Any]:
    """The mapping in a YAML file."""
    import yaml  # which most commands do without

    from loraprobe.untrusted import CONFIG

    try:
        size = Path(file).stat().st_size
        if size > CONFIG:
            raise UsageError(f"--config: {file} has {size:,} bytes; name a smaller file.")
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8-sig"))
    except OSError as error:
        why = error.strerror
        raise UsageError(f"--config: {file} cannot be read ({why}); check the path.") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(f"--config: {file} is no YAML ({why}); correct it.") from None
    if not isinstance(content, Mapping):
        raise UsageError(f"--config: {file} must hold options by name, such as margin: 0.1.")
    return content


def _words(parameter: Any, value: Any) -> list[str]:
    """A value of a file as the words of a command line."""
    option = parameter.opts[:1] if parameter.param_type_name == "option" else []
    if value is None or isinstance(value, bool):
        return option if value else []
    if isinstance(value, Mapping):
        value = as_fields(value)
    texts = list(map(str, value)) if isinstance(value, list) else [str(value)]
    if parameter.nargs != -1 and not getattr(parameter, "multiple", False):
        texts = [",".join(texts)]
    return [word for text in texts for word in (*option, text)]
